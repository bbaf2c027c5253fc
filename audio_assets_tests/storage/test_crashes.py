"""What is left when a process dies in the middle: old rows or new rows, complete, and after the next run no rubbish."""

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from audio_assets import schemas
from audio_assets.storage.atomic import CRASH_VARIABLE
from audio_assets.storage.exports import FORMATS, MANIFEST
from audio_assets.storage.partition_files import PartitionStore
from audio_assets.storage.warehouse import Warehouse

from .rows import temporary_files, write_everything

OLD, NEW = ("old", 700), ("new", 900)

POINTS = [
    "partition:before-write",
    "partition:half-written",
    "partition:before-rename",
    "partition:after-rename",
    "warehouse:in-transaction",
    "export:half-written",
    "export:before-rename",
    "export:after-rename",
]


def run(home: Path, state: tuple[str, int], crash_at: str | None = None) -> int:
    environment = {k: v for k, v in os.environ.items() if k not in (CRASH_VARIABLE, "PYTHONWARNINGS")}
    if crash_at:
        environment[CRASH_VARIABLE] = crash_at
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "audio_assets_tests.storage.rows", str(home), state[0], str(state[1])],
        env=environment | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def stored(home: Path, table: schemas.Table) -> tuple[str, int]:
    """Which of the two states the record of ``table`` is in: anything between fails."""
    values = PartitionStore(home / "tables").read(table, ["a"]).to_pylist()
    texts = {row["transcription"] if table is schemas.TRANSCRIPTS else row["tokens"][0] for row in values}
    assert len(texts) == 1
    state = (texts.pop(), len(values))
    assert state in (OLD, NEW)
    return state


def loaded(home: Path, table: str, column: str) -> tuple[str, int]:
    """The same of the warehouse as it was left, without bringing it up to date."""
    with duckdb.connect(str(home / "warehouse.duckdb"), read_only=True) as connection:
        found = connection.execute(f"SELECT {column}, count(*) FROM {table} GROUP BY 1").fetchall()
    assert found in ([OLD], [NEW])
    return found[0]


def exported(home: Path) -> None:
    """Every export is whole: the old one or the new one."""
    states = {OLD, NEW}
    lines = [json.loads(line) for line in (home / "exports" / "corpus.jsonl").read_text().splitlines()]
    assert (lines[0]["transcription"], len(lines)) in states
    table = pq.read_table(home / "exports" / "corpus.parquet")
    assert (table["transcription"][0].as_py(), len(table)) in states
    query = "SELECT min(transcription), count(*) FROM corpus"
    with duckdb.connect(str(home / "exports" / "corpus.duckdb"), read_only=True) as connection:
        assert connection.execute(query).fetchone() in states
    with closing(sqlite3.connect(home / "exports" / "corpus.sqlite")) as connection:
        assert connection.execute(query).fetchone() in states
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in the old state; tests work on copies."""
    home = tmp_path_factory.mktemp("before")
    write_everything(home, *OLD)
    return home


def crash_and_recover(before: Path, home: Path, point: str) -> None:
    shutil.copytree(before, home)
    assert run(home, NEW, crash_at=point) == -signal.SIGKILL, f"nothing passes {point}"

    # Whatever happened, what is there is complete.
    for table in (schemas.TRANSCRIPTS, schemas.TOKENS):
        stored(home, table)
    loaded(home, "transcripts", "transcription")
    loaded(home, "token_occurrences", "token")
    exported(home)

    # The next run knows nothing of the crash and leaves nothing of it.
    write_everything(home, *NEW)
    assert stored(home, schemas.TRANSCRIPTS) == stored(home, schemas.TOKENS) == NEW
    assert loaded(home, "transcripts", "transcription") == loaded(home, "token_occurrences", "token") == NEW
    assert temporary_files(home) == []
    assert not list((home / ".warehouse.duckdb.requests").iterdir())
    entries = json.loads((home / "exports" / MANIFEST).read_text())["files"]
    assert {entry["format"] for entry in entries} == set(FORMATS)
    for entry in entries:
        body = (home / "exports" / entry["name"]).read_bytes()
        assert (entry["sha256"], entry["row_count"]) == (hashlib.sha256(body).hexdigest(), NEW[1])


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_leaves_old_or_new_rows_and_the_next_run_cleans_up(before: Path, tmp_path: Path, point: str) -> None:
    crash_and_recover(before, tmp_path / "home", point)


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_ten_kills_at_each_point_lose_nothing(before: Path, tmp_path: Path, point: str) -> None:
    for n in range(10):
        crash_and_recover(before, tmp_path / str(n), point)


def test_a_kill_inside_the_transaction_leaves_the_load_to_the_next_refresh(before: Path, tmp_path: Path) -> None:
    home = shutil.copytree(before, tmp_path / "home")
    assert run(home, NEW, crash_at="warehouse:in-transaction") == -signal.SIGKILL
    assert loaded(home, "transcripts", "transcription") == OLD
    warehouse = Warehouse(home / "warehouse.duckdb", PartitionStore(home / "tables"))
    assert warehouse.refresh(["raw_audio"]).loaded == 2
    assert loaded(home, "transcripts", "transcription") == NEW
