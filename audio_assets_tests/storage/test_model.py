"""The store and the warehouse behave like a dict of partitions, whatever happens in whatever order."""

import os
import shutil
import signal
import tempfile
import warnings
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from audio_assets import schemas
from audio_assets.storage import atomic
from audio_assets.storage.partition_files import PartitionStore
from audio_assets.storage.warehouse import Warehouse

from .rows import HOSTILE, temporary_files, tokens

KEYS = st.sampled_from(HOSTILE[:12])
WORDS = st.lists(st.sampled_from(["to", "be", "or", "not", "'; --", "🎙️"]), max_size=4)
CONTENTS = st.dictionaries(st.sampled_from([f"{n}'s.wav" for n in range(6)]), WORDS, max_size=4)
POINTS = st.sampled_from(["before-write", "half-written", "before-rename", "after-rename"])


class Storage(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.open_again()
        self.model: dict[str, dict[str, list[str]]] = {}

    @rule()
    def open_again(self) -> None:
        self.store = PartitionStore(self.root / "tables")
        self.warehouse = Warehouse(self.root / "warehouse.duckdb", self.store, lock_timeout_s=30)

    @rule(key=KEYS, content=CONTENTS)
    def write(self, key: str, content: dict[str, list[str]]) -> None:
        self.store.write(schemas.TOKENS, tokens(key, content), key)
        self.model[key] = content

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        assert self.store.delete(schemas.TOKENS, key) == (key in self.model)
        self.model.pop(key, None)

    @rule(key=KEYS, content=CONTENTS, point=POINTS)
    def write_and_be_killed(self, key: str, content: dict[str, list[str]], point: str) -> None:
        with warnings.catch_warnings():
            # Python warns that other threads hold locks; the child touches none of theirs.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            os.environ[atomic.CRASH_VARIABLE] = f"partition:{point}"
            try:
                PartitionStore(self.root / "tables").write(schemas.TOKENS, tokens(key, content), key)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if point == "after-rename":
            self.model[key] = content

    @rule(key=KEYS, content=CONTENTS)
    def write_what_is_refused(self, key: str, content: dict[str, list[str]]) -> None:
        data = tokens(key, content).drop_columns(["tokens"])
        try:
            self.store.write(schemas.TOKENS, data, key)
        except schemas.SchemaError:
            return
        raise AssertionError("a table without tokens was stored")

    @rule()
    def refresh(self) -> None:
        refresh = self.warehouse.refresh()
        assert refresh.deferred is None and refresh.skipped == []

    @rule()
    def remove_the_warehouse(self) -> None:
        if self.warehouse.path.exists():
            self.warehouse.path.unlink()

    @rule(key=KEYS)
    def read_one(self, key: str) -> None:
        data = self.store.read(schemas.TOKENS, [key], ["tokens", "id"])
        assert {r["id"]: r["tokens"] for r in data.to_pylist()} == self.model.get(key, {})
        assert (self.store.find(schemas.TOKENS, key) is not None) == (key in self.model)

    @rule()
    def read_by_sql(self) -> None:
        expected = {(k, i, n, t) for k, v in self.model.items() for i, ts in v.items() for n, t in enumerate(ts)}
        with self.warehouse.connect() as connection:
            found = connection.execute("SELECT prefix, id, position, token FROM token_occurrences").fetchall()
        assert sorted(found) == sorted(expected)

    @invariant()
    def the_record_is_the_model(self) -> None:
        data = self.store.read(schemas.TOKENS)
        found: dict[str, dict[str, list[str]]] = {f.partition or "": {} for f in self.store.partitions(schemas.TOKENS)}
        for row in data.to_pylist():
            found[row["prefix"]][row["id"]] = row["tokens"]
        assert found == self.model

    def teardown(self) -> None:
        if not hasattr(self, "root"):
            return
        self.open_again()
        self.store.write(schemas.TOKENS, tokens("last", {}), "last")
        assert temporary_files(self.root) == []
        shutil.rmtree(self.root)


Storage.TestCase.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
TestStorage = Storage.TestCase
