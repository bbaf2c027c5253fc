"""A home in a bucket: which of several runs stands, and what machines tell each other of the money."""

import time
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from audio_assets import schemas
from audio_assets.errors import SupersededError
from audio_assets.resources.duckdb_io import PartitionedDuckDBIOManager
from audio_assets.resources.home import HomeResource
from audio_assets.speech.ledger import Account, Request, bring_up_to_date
from audio_assets.storage.objects import Objects
from audio_assets_tests.storage.rows import tokens

TOKENS = schemas.TOKENS


@pytest.mark.slow
def test_a_run_after_the_counter_was_lost_is_the_newest(objects: Objects) -> None:
    manager = PartitionedDuckDBIOManager()
    for run in ("lost-1", "lost-2", "lost-3"):
        number = manager.fence(run, "a")
        manager.store().write(TOKENS, tokens("a/", {"a/1": [run]}), "a", number)
    [counter] = objects.names("fences")
    objects.delete(counter)
    manager.store().write(TOKENS, tokens("a/", {"a/1": ["after"]}), "a", manager.fence("lost-4", "a"))
    assert manager.store().read(TOKENS, ["a"]).column("tokens").to_pylist() == [["after"]]


def test_the_warehouse_is_published_after_its_counter_was_lost(objects: Objects) -> None:
    manager = PartitionedDuckDBIOManager()
    assert [manager.publish() is not None for _ in range(2)] == [True, True]
    objects.delete("fences/warehouse.json")
    assert manager.publish() is not None


def test_a_run_over_all_prefixes_that_was_overtaken_is_refused(objects: Objects) -> None:
    manager = PartitionedDuckDBIOManager()
    made: list[bool] = []

    def run() -> bool:
        return dg.materialize([r2_prefixes], resources={"warehouse": manager}, raise_on_error=False).success

    @dg.asset(io_manager_key="warehouse")
    def r2_prefixes(context: dg.AssetExecutionContext) -> pa.Table:
        manager.fence(context.run.run_id, None)
        rows = []
        if not made:
            # Another run begins and ends meanwhile.
            made.append(False)
            made.append(run())
            rows = [{"prefix": "old/", "partition": "old"}]
        return schemas.R2_PREFIXES.from_rows(rows)

    assert run() is False
    assert made == [False, True]
    assert manager.store().read(schemas.R2_PREFIXES).num_rows == 0


def test_exports_of_a_run_that_was_overtaken_are_not_put_over_newer_ones(objects: Objects) -> None:
    home, manager = HomeResource(), PartitionedDuckDBIOManager()
    old, new = (manager.fence(run, None) for run in ("export-old", "export-new"))

    def publish(text: str, number: int | None) -> None:
        for name in ("a.json", "b.json"):
            path = home.paths().exports / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        home.publish(home.paths().exports, number)

    publish("old", old)
    publish("new", new)
    with pytest.raises(SupersededError, match="exports"):
        publish("woke up", old)
    assert {body for name in objects.names("exports") for body, _ in [objects.get(name) or (b"", "")]} == {b"new"}
    publish("new again", new)

    objects.delete("fences/whole.json")
    publish("after the counter was lost", manager.fence("export-next", None))


def test_a_run_that_is_overtaken_while_it_publishes_stops(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    home, manager = HomeResource(), PartitionedDuckDBIOManager()
    old, new = (manager.fence(run, None) for run in ("halfway-old", "halfway-new"))
    exports = home.paths().exports
    exports.mkdir(parents=True)
    upload, uploaded = Objects.upload, list[str]()

    def overtaken(self: Objects, path: Path, name: str) -> None:
        upload(self, path, name)
        uploaded.append(name)
        if len(uploaded) == 1:
            home.publish(exports, new)

    for name in ("a.json", "b.json"):
        (exports / name).write_text("x")
    monkeypatch.setattr(Objects, "upload", overtaken)
    with pytest.raises(SupersededError):
        home.publish(exports, old)
    assert uploaded == ["exports/a.json", "exports/a.json", "exports/b.json"]


class Machine:
    """One of several machines that share the home."""

    def __init__(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home, self._name, self._scratch, self._patch = HomeResource(), name, tmp_path / name, monkeypatch

    def __enter__(self) -> "Machine":
        self._patch.setenv("AUDIO_ASSETS_SCRATCH", str(self._scratch))
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def sends(self, account: Account, id: str) -> None:
        """A request that is answered."""
        request = Request(id, "0" * 64, "0-1", 1.0, "m", "e")
        account.begin(request, 0.1)
        account.end(request, "ok", None, 0.1)

    def account(self) -> Account:
        return Account(None, self.home.paths().ledger, lambda id: "a/", self._name)

    def records(self, recorded: list[dict[str, Any]], later_s: float = 0.0) -> list[dict[str, Any]]:
        """What `transcription_ledger` does."""
        self.home.pull_ledger("a/")
        ledger = self.home.paths().ledger
        return bring_up_to_date(ledger, "a/", recorded, time.time() + later_s, self.home.drop_journal)


@pytest.fixture
def here(objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine("here", tmp_path, monkeypatch)


@pytest.fixture
def there(objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine("there", tmp_path, monkeypatch)


def test_a_journal_is_brought_and_fetched_once_and_gone_when_it_is_on_record(
    objects: Objects, here: Machine, there: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    put, get = Objects.put, Objects.get
    monkeypatch.setattr(Objects, "put", lambda self, name, *a, **k: asked.append("put") or put(self, name, *a, **k))
    monkeypatch.setattr(Objects, "get", lambda self, name: asked.append("get") or get(self, name))
    with here:
        account = here.account()
        here.sends(account, "a/1.wav")
        account.close()
        here.home.push_ledger("a/")
        here.home.push_ledger("a/")
    with there:
        rows = there.records([])
        assert there.records(rows) == rows
        there.home.push_ledger("a/")
    assert asked == ["put", "get"]
    assert [row["id"] for row in rows] == ["a/1.wav"]
    with there:
        assert there.records(rows, later_s=7200) == rows
    assert list(objects.names("ledger")) == []
    with here:
        here.home.push_ledger("a/")
    assert list(objects.names("ledger")) == [], "what is on record does not come back"


def test_a_fuller_journal_takes_the_place_of_a_partial_one_and_never_the_other_way(
    objects: Objects, here: Machine, there: Machine
) -> None:
    with here:
        account = here.account()
        here.sends(account, "a/1.wav")
        here.home.push_ledger("a/")
    with there:
        assert len(there.records([])) == 1
    with here:
        here.sends(account, "a/2.wav")
        account.close()
        here.home.push_ledger("a/")
    [(name, size, _)] = objects.listed("ledger")
    with there:
        there.home.push_ledger("a/")
        assert [(n, s) for n, s, _ in objects.listed("ledger")] == [(name, size)]
        assert [row["id"] for row in there.records([])] == ["a/1.wav", "a/2.wav"]


def test_a_journal_of_a_lost_process_is_brought_by_the_next_one_of_its_machine(
    objects: Objects, here: Machine, there: Machine
) -> None:
    with here:
        account = here.account()
        here.sends(account, "a/1.wav")
        account.close()
        here.home.push_ledger("b/")
        assert list(objects.names("ledger")) == []
        HomeResource().push_ledger("a/")
    with there:
        assert [row["id"] for row in there.records([])] == ["a/1.wav"]
