"""Keys of strangers through record, warehouse and exports: exact, inside the home, and nothing else is touched."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import duckdb
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from audio_assets import schemas
from audio_assets.partitions import partition_key_for, prefix_for, prefix_of
from audio_assets.storage.exports import export_corpus
from audio_assets.storage.partition_files import PartitionStore
from audio_assets.storage.warehouse import Warehouse
from audio_assets_tests.faults.campaign import tried
from audio_assets_tests.storage.rows import HOSTILE, tokens, transcripts

BATCH = 100
KEYS = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(min_size=1),
    st.lists(
        st.sampled_from(
            [
                *(
                    "..",
                    "/",
                    "//",
                    "\\",
                    "\x00",
                    "\n",
                    "\r",
                    "%",
                    "%2F",
                    "'",
                    '"',
                    "`",
                    ";",
                    "--",
                    "$(id)",
                    "|",
                    "&",
                    "*",
                ),
                *(
                    "é",
                    "e\u0301",
                    "A",
                    "a",
                    " ",
                    "\U0001f399\ufe0f",
                    "\u202e",
                    "=1+1",
                    "DROP TABLE tokens",
                    ".wav",
                    "x" * 200,
                ),
            ]
        ),
        max_size=12,
    ).map("".join),
).filter(lambda key: 0 < len(key.encode()) <= 1024 and "\0" not in key)
# A key with a NUL is no audio file: `is_audio`. The schema refuses one in a text.
OTHERS = {"others/1.wav": "left alone", "others/2.wav": "too"}


def through_everything(keys: list[str]) -> None:
    """Write the rows of ``keys``, each in the partition that it belongs to, and read them back from everywhere."""
    words = {key: f"text of {number}" for number, key in enumerate(keys)}
    by_prefix: dict[str, dict[str, str]] = {}
    for key, text in words.items():
        by_prefix.setdefault(prefix_of(key, 1), {})[key] = text
    by_prefix.setdefault("others/", {}).update(OTHERS)
    words |= OTHERS
    with tempfile.TemporaryDirectory() as scratch:
        outer = Path(scratch)
        root = outer / "home"
        store = PartitionStore(root / "tables")
        for prefix, rows in by_prefix.items():
            partition = partition_key_for(prefix)
            assert prefix_for(partition) == prefix
            store.write(schemas.TRANSCRIPTS, transcripts(prefix, dict(rows)), partition)
            store.write(schemas.TOKENS, tokens(prefix, {key: [key, "'"] for key in rows}), partition)
        read = store.read(schemas.TRANSCRIPTS).to_pylist()
        assert {row["id"]: row["transcription"] for row in read} == words
        with Warehouse(root / "warehouse.duckdb", store).connect() as connection:
            loaded = connection.execute("SELECT id, transcription FROM transcripts").fetchall()
            assert sorted(loaded) == sorted(words.items())
            for key in keys[:5]:
                found = connection.execute("SELECT tokens FROM tokens WHERE id = ?", [key]).fetchall()
                assert found == [([key, "'"],)]
        export_corpus(store, root / "exports", ["json", "sqlite", "duckdb", "parquet"])
        lines = (root / "exports" / "corpus.jsonl").read_text(encoding="utf-8").split("\n")
        exported = [json.loads(line) for line in lines if line]
        assert {row["id"]: row["transcription"] for row in exported} == words
        with closing(sqlite3.connect(root / "exports" / "corpus.sqlite")) as other:
            assert dict(other.execute("SELECT id, transcription FROM corpus")) == words
        with duckdb.connect(str(root / "exports" / "corpus.duckdb"), read_only=True) as other:
            assert dict(other.execute("SELECT id, transcription FROM corpus").fetchall()) == words
        assert [path.name for path in outer.iterdir()] == ["home"], "nothing outside the home"


def test_hostile_keys_come_through_exactly(request: pytest.FixtureRequest) -> None:
    keys = [key for key in dict.fromkeys(HOSTILE) if key]
    through_everything(keys)
    tried(request, len(keys))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_keys_come_through_exactly(request: pytest.FixtureRequest) -> None:
    seen = 0

    @settings(max_examples=10_000 // BATCH, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(KEYS, min_size=BATCH, max_size=BATCH, unique=True))
    @example([key for key in dict.fromkeys(HOSTILE) if key])
    def batches(keys: list[str]) -> None:
        nonlocal seen
        through_everything(keys)
        seen += len(keys)

    batches()
    tried(request, seen)
