import multiprocessing
import time
from pathlib import Path
from typing import Any

import duckdb
import pytest

from audio_assets import schemas
from audio_assets.storage.partition_files import PartitionStore
from audio_assets.storage.warehouse import Warehouse

from .rows import temporary_files, transcripts

WRITERS, PARTITIONS, ROWS = 4, 25, 20


def write_partitions(root: str, number: int, timeout_s: float, results: Any) -> None:
    store = PartitionStore(Path(root, "tables"))
    warehouse = Warehouse(Path(root, "warehouse.duckdb"), store, lock_timeout_s=timeout_s)
    outcomes = []
    try:
        for n in range(PARTITIONS):
            key = f"writer{number}-{n}"
            rows = transcripts(f"{key}/", {f"{key}/{i}": f"text {i}" for i in range(ROWS)})
            store.write(schemas.TRANSCRIPTS, rows, key)
            outcomes.append(warehouse.refresh(["transcripts"]).deferred)
        results.put(outcomes)
    except BaseException as error:
        results.put(repr(error))


def write_at_once(root: Path, timeout_s: float) -> list[str | None]:
    """Four processes write 25 partitions each; what each load said."""
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    processes = [
        spawn.Process(target=write_partitions, args=(str(root), n, timeout_s, results)) for n in range(WRITERS)
    ]
    for process in processes:
        process.start()
    outcomes = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(30)
    assert all(isinstance(outcome, list) for outcome in outcomes), outcomes
    return [said for outcome in outcomes for said in outcome]


def count(root: Path) -> tuple[int, int]:
    warehouse = Warehouse(root / "warehouse.duckdb", PartitionStore(root / "tables"), lock_timeout_s=30)
    with warehouse.connect() as connection:
        found = connection.execute("SELECT count(*), count(DISTINCT id) FROM transcripts").fetchone()
    assert found is not None
    return found


def test_four_processes_that_write_at_once_lose_no_row_and_meet_no_error(tmp_path: Path) -> None:
    outcomes = write_at_once(tmp_path, timeout_s=60)
    assert outcomes == [None] * (WRITERS * PARTITIONS)
    with duckdb.connect(str(tmp_path / "warehouse.duckdb"), read_only=True) as connection:
        loaded = connection.execute("SELECT count(*) FROM transcripts").fetchone()
    assert loaded == (WRITERS * PARTITIONS * ROWS,)
    assert temporary_files(tmp_path) == []


def test_four_processes_lose_nothing_while_somebody_keeps_the_warehouse_open(tmp_path: Path) -> None:
    Warehouse(tmp_path / "warehouse.duckdb", PartitionStore(tmp_path / "tables")).refresh()
    with duckdb.connect(str(tmp_path / "warehouse.duckdb"), read_only=True) as reader:
        start = time.monotonic()
        outcomes = write_at_once(tmp_path, timeout_s=1)
        assert time.monotonic() - start < 60
        assert None not in outcomes
        assert reader.execute("SELECT count(*) FROM transcripts").fetchone() == (0,)
        assert len(PartitionStore(tmp_path / "tables").partitions(schemas.TRANSCRIPTS)) == WRITERS * PARTITIONS
    assert count(tmp_path) == (WRITERS * PARTITIONS * ROWS,) * 2


def rewrite(root: str, number: int, barrier: Any) -> None:
    store = PartitionStore(Path(root, "tables"))
    warehouse = Warehouse(Path(root, "warehouse.duckdb"), store, lock_timeout_s=60)
    barrier.wait()
    for n in range(10):
        rows = transcripts("a/", {f"a/{i}": f"writer {number}, round {n}" for i in range(50 + number)})
        store.write(schemas.TRANSCRIPTS, rows, "a")
        warehouse.refresh(["transcripts"])


def test_two_writers_of_one_partition_end_with_one_complete_set_of_rows(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(3)
    processes = [spawn.Process(target=rewrite, args=(str(tmp_path), n, barrier)) for n in range(2)]
    for process in processes:
        process.start()
    barrier.wait()
    store = PartitionStore(tmp_path / "tables")
    while any(process.is_alive() for process in processes):
        # Whoever reads meanwhile meets one writer's rows, all of them.
        texts = store.read(schemas.TRANSCRIPTS, ["a"], ["transcription"]).column("transcription").to_pylist()
        assert len(set(texts)) <= 1
        assert not texts or len(texts) == 50 + int(texts[0][7])
    assert [process.exitcode for process in processes] == [0, 0]
    text = store.read(schemas.TRANSCRIPTS, ["a"]).column("transcription").to_pylist()
    with duckdb.connect(str(tmp_path / "warehouse.duckdb"), read_only=True) as connection:
        loaded = [row for (row,) in connection.execute("SELECT transcription FROM transcripts").fetchall()]
    assert loaded == text and set(text) in ({"writer 0, round 9"}, {"writer 1, round 9"})


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    # The working directory of a test is its own; the processes it spawns import this module from the project's root.
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
