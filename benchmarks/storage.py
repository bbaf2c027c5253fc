"""Storage against the stock ``DuckDBPandasIOManager`` and plain DuckDB: ``python -m benchmarks.storage``.

Prints a table for people and, as the last line, one JSON object. Competitors take turns in one run and the median of
the rounds counts. What is not measured: storage in a bucket, and more than four writers.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from audio_assets import schemas
from audio_assets.storage.exports import FORMATS, export_corpus
from audio_assets.storage.partition_files import PartitionStore
from audio_assets.storage.warehouse import STORAGE_VERSION, Warehouse

WRITERS = 4
PARTITIONS_PER_WRITER = 25
VOCABULARY = 20_000

Result = dict[str, Any]


def result(name: str, value: float | None, unit: str, goal: float, met: bool, note: str = "") -> Result:
    row: Result = {
        "name": name,
        "value": None if value is None else round(value, 3),
        "unit": unit,
        "goal": goal,
        "met": met,
    }
    return row | ({"note": note} if note else {})


def words(count: int, seed: int = 0) -> pa.Array:
    """``count`` words that are as unevenly frequent as those of a language."""
    ranks = (np.random.default_rng(seed).zipf(1.2, count) - 1) % VOCABULARY
    return pa.array([f"w{n:x}" for n in range(VOCABULARY)]).take(pa.array(ranks))


def token_table(prefix: str, rows: int, tokens_per_row: int, seed: int = 0) -> pa.Table:
    """A partition of the `tokens` table."""
    offsets = pa.array(np.arange(0, rows * tokens_per_row + 1, tokens_per_row, dtype=np.int32))
    tokens = pa.ListArray.from_arrays(offsets, words(rows * tokens_per_row, seed))
    columns = {
        "id": pa.array([f"{prefix}{n:08}.wav" for n in range(rows)]),
        "prefix": pa.repeat(pa.scalar(prefix), rows),
        "language": pa.repeat(pa.scalar("en"), rows),
        "transcription": pc.binary_join(tokens, " "),
        "tokens": tokens,
    }
    rest = {c.name: pa.nulls(rows, c.type) for c in schemas.TOKENS.columns if c.name not in columns}
    return schemas.TOKENS.conform(pa.table(columns | rest))


def transcript_table(tokens: pa.Table) -> pa.Table:
    """A partition of the `transcripts` table with the texts of ``tokens``."""
    rows = tokens.num_rows
    columns = {name: tokens.column(name) for name in ("id", "prefix", "language", "transcription")}
    columns["status"] = pa.repeat(pa.scalar("ok"), rows)
    rest = {c.name: pa.nulls(rows, c.type) for c in schemas.TRANSCRIPTS.columns if c.name not in columns}
    return schemas.TRANSCRIPTS.conform(pa.table(columns | rest))


def recordings(prefix: str, rows: int) -> pa.Table:
    """A partition of the `transcripts` table with every column filled, timed words included."""
    said = [{"start_s": 0.3 * n, "end_s": 0.3 * n + 0.2, "word": f"word{n}", "probability": 0.9} for n in range(20)]
    segment = {
        "start_s": 0.0,
        "end_s": 6.0,
        "text": " ".join(f"word{n}" for n in range(20)),
        "avg_logprob": -0.2,
        "no_speech_prob": 0.01,
        "compression_ratio": 1.2,
        "words": said,
    }
    return schemas.TRANSCRIPTS.from_rows(
        [
            {
                "id": f"{prefix}{n:06}.wav",
                "prefix": prefix,
                "sha256": f"{n:064x}",
                "transcription": segment["text"],
                "language": "en",
                "language_probability": 0.99,
                "duration_s": 6.5,
                "speech_s": 6.0,
                "segments": [segment],
                "engine": "local",
                "model": "tiny.en",
                "fingerprint": "f" * 64,
                "cached": False,
                "cost_usd": 0.0,
                "elapsed_s": 0.4,
                "flags": [],
                "status": "ok",
            }
            for n in range(rows)
        ]
    )


def frequency_frame(partition: str, rows: int) -> pd.DataFrame:
    """A partition of the `token_frequency` table: flat columns, the stock manager's home ground."""
    return pd.DataFrame(
        {
            "prefix": [partition] * rows,
            "token": [f"word{n:06}" for n in range(rows)],
            "count": np.arange(rows, dtype=np.int64),
            "document_count": np.arange(rows, dtype=np.int64),
            "is_stop": [n % 7 == 0 for n in range(rows)],
        }
    )


def writer(kind: str, root: str, number: int, rows: int, barrier: Any, results: Any) -> None:
    """One process: write its partitions through an IO manager, as Dagster's steps do."""
    import dagster as dg

    keys = [f"writer{number}-{n}" for n in range(PARTITIONS_PER_WRITER)]
    frames = [frequency_frame(key, rows) for key in keys]
    definition = dg.StaticPartitionsDefinition(keys)

    def manager_at(place: str) -> Any:
        if kind == "stock":
            from dagster_duckdb_pandas import DuckDBPandasIOManager

            return DuckDBPandasIOManager(database=f"{place}/stock.duckdb").create_io_manager(None)  # type: ignore[arg-type]
        from audio_assets.resources.duckdb_io import PartitionedDuckDBIOManager

        return PartitionedDuckDBIOManager(database=f"{place}/warehouse.duckdb", tables_root=f"{place}/tables")

    def context_for(key: str, place: str) -> dg.OutputContext:
        return dg.build_output_context(
            asset_key="token_frequency",
            partition_key=key,
            asset_partitions_def=definition,
            definition_metadata={"partition_expr": "prefix"},
            resource_config={"database": f"{place}/stock.duckdb", "connection_config": {}},
        )

    # Importing libraries belongs to starting a process, and is the same for both.
    with tempfile.TemporaryDirectory() as elsewhere:
        manager_at(elsewhere).handle_output(context_for(keys[0], elsewhere), frames[0])
    manager = manager_at(root)
    contexts = [context_for(key, root) for key in keys]
    barrier.wait()
    start = time.time()
    errors = []
    for context, frame in zip(contexts, frames, strict=True):
        try:
            manager.handle_output(context, frame)
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}".splitlines()[0])
    results.put((start, time.time(), errors))


def write_together(kind: str, root: Path, rows: int) -> tuple[float, list[str]]:
    """Seconds that four processes take to write their partitions, and the errors they met."""
    spawn = multiprocessing.get_context("spawn")
    barrier, results = spawn.Barrier(WRITERS), spawn.Queue()
    processes = [
        spawn.Process(target=writer, args=(kind, str(root), n, rows, barrier, results)) for n in range(WRITERS)
    ]
    for process in processes:
        process.start()
    times = [results.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    return max(t[1] for t in times) - min(t[0] for t in times), [e for t in times for e in t[2]]


def bench_writers(scale: float, rounds: int) -> list[Result]:
    rows = max(10, int(1000 * scale))
    name = f"{WRITERS} writers x {PARTITIONS_PER_WRITER} partitions of {rows} rows, throughput over the stock manager's"
    if find_spec("dagster_duckdb_pandas") is None:
        return [result(name, None, "x", 4.0, False, "dagster-duckdb-pandas is not installed: use the extra `bench`")]
    seconds: dict[str, list[float]] = {"stock": [], "ours": []}
    errors: dict[str, list[str]] = {"stock": [], "ours": []}
    missing = 0
    for _ in range(rounds):
        for kind in seconds:
            with tempfile.TemporaryDirectory() as directory:
                took, failed = write_together(kind, Path(directory), rows)
                seconds[kind].append(took)
                errors[kind] += failed
                if kind == "ours":
                    warehouse = Warehouse(
                        Path(directory, "warehouse.duckdb"), PartitionStore(Path(directory, "tables"))
                    )
                    with warehouse.connect(refresh=False) as connection:
                        held = connection.execute("SELECT count(*) FROM token_frequency").fetchone()
                    missing += rows * WRITERS * PARTITIONS_PER_WRITER - (held or (0,))[0]
    ours, stock = statistics.median(seconds["ours"]), statistics.median(seconds["stock"])
    ratio = stock / ours
    note = f"ours {ours:.2f} s, stock {stock:.2f} s; errors {len(errors['ours'])} and {len(errors['stock'])}"
    return [
        result(name, ratio, "x", 4.0, ratio >= 4, note),
        result("rows missing from the warehouse after them", missing, "rows", 0, missing == 0),
    ]


def median_s(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def interleaved(rounds: int, *actions: Callable[[], object]) -> list[float]:
    """Median seconds of each action, taking turns."""
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(rounds):
        for action, taken in zip(actions, times, strict=True):
            taken.append(median_s(action))
    return [statistics.median(taken) for taken in times]


def bench_large_partition(scale: float, rounds: int) -> list[Result]:
    rows = int(100_000 * scale)
    data = token_table("calls/", rows, 150)
    with tempfile.TemporaryDirectory() as directory, closing(duckdb.connect()) as connection:
        store = PartitionStore(Path(directory, "tables"))
        connection.register("source", data)
        target = Path(directory, "copy.parquet")
        copy = f"COPY source TO '{target}' (FORMAT parquet, COMPRESSION zstd)"
        ours, theirs = interleaved(
            rounds, lambda: store.write(schemas.TOKENS, data, "calls"), lambda: connection.execute(copy)
        )
        sizes = store.partitions(schemas.TOKENS)[0].size_bytes / 1e6, target.stat().st_size / 1e6
    note = f"ours {ours:.2f} s and {sizes[0]:.1f} MB, COPY {theirs:.2f} s and {sizes[1]:.1f} MB"
    ratio = ours / theirs
    return [result(f"write {rows} rows x 150 tokens, time over DuckDB's COPY", ratio, "x", 1.5, ratio <= 1.5, note)]


def prefix_tables(prefix: str, rows: int) -> dict[str, pa.Table]:
    """Every partitioned table of one prefix, each column filled as the pipeline does."""
    transcripts = recordings(prefix, rows)
    said = transcripts.column("transcription")[0].as_py().split()
    span = {"is_stop": False, "start_char": 0, "end_char": 5, "start_s": 0.0, "end_s": 0.2}
    names = transcripts.column("id").to_pylist()
    audio = {"etag": "e" * 32, "size_bytes": 9, "sha256": "f" * 64, "codec": "flac", "duration_s": 6.5, "status": "ok"}
    counts = {c.name: 1 for c in schemas.PREFIX_SUMMARY.columns if c.type == pa.int64()}
    summary = counts | {"prefix": prefix, "hours": 1.0, "speech_hours": 1.0, "cost_usd": 0.0}
    frequency = {"prefix": prefix, "count": rows, "document_count": rows, "is_stop": False}
    return {
        "raw_audio": schemas.RAW_AUDIO.from_rows([audio | {"id": name, "prefix": prefix} for name in names]),
        "transcripts": transcripts,
        "tokens": schemas.TOKENS.from_rows(
            [
                {
                    "id": name,
                    "prefix": prefix,
                    "language": "en",
                    "transcription": " ".join(said),
                    "tokens": said,
                    "content_tokens": said,
                    "spans": [span | {"token": word, "lemma": word} for word in said],
                    "sentence_count": 1,
                }
                for name in names
            ]
        ),
        "prefix_summary": schemas.PREFIX_SUMMARY.from_rows([summary]),
        "token_frequency": schemas.TOKEN_FREQUENCY.from_rows([frequency | {"token": word} for word in said]),
    }


def bench_catch_up(scale: float, rounds: int) -> list[Result]:
    files = max(50, int(5000 * scale))
    shapes = {
        f"{files // 5} prefixes x 5 tables, 10 recordings each": lambda key: prefix_tables(f"{key}/", 10),
        "transcripts alone, the widest table, 10 recordings each": lambda key: {
            "transcripts": recordings(f"{key}/", 10)
        },
    }
    out = []
    for shape, tables_of in shapes.items():
        rates, cpu_ms = [], []
        with tempfile.TemporaryDirectory() as directory:
            store = PartitionStore(Path(directory, "tables"))
            written = 0
            while written < files:
                key = f"p{written:05}"
                for name, data in tables_of(key).items():
                    store.write(schemas.TABLES[name], data, key)
                    written += 1
            for round_ in range(rounds):
                warehouse = Warehouse(Path(directory, f"warehouse{round_}.duckdb"), store)
                start, cpu = time.perf_counter(), time.process_time()
                refresh = warehouse.refresh()
                rates.append(written / (time.perf_counter() - start))
                cpu_ms.append((time.process_time() - cpu) / written * 1e3)
                assert refresh.loaded == written, refresh
        rate = statistics.median(rates)
        note = f"{statistics.median(cpu_ms):.2f} ms of CPU a file"
        out.append(result(f"catch up {written} partition files: {shape}", rate, "files/s", 1000, rate >= 1000, note))
    return out


def bench_top_tokens(scale: float, rounds: int) -> list[Result]:
    partitions, rows, per_row = 25, max(10, int(10_000 * scale)), 20
    top = "SELECT token, count(*) AS n FROM {} GROUP BY token ORDER BY n DESC, token LIMIT 50"
    with tempfile.TemporaryDirectory() as directory:
        store = PartitionStore(Path(directory, "tables"))
        for n in range(partitions):
            store.write(schemas.TOKENS, token_table(f"p{n:02}/", rows, per_row, seed=n), f"p{n:02}")
        warehouse = Warehouse(Path(directory, "warehouse.duckdb"), store)
        warehouse.refresh()
        plain = Path(directory, "plain.duckdb")
        with closing(
            duckdb.connect(str(plain), config={"storage_compatibility_version": STORAGE_VERSION})
        ) as connection:
            connection.execute(f"ATTACH '{warehouse.path}' AS warehouse (READ_ONLY)")
            connection.execute(
                "CREATE TABLE occurrences AS"
                " SELECT id, prefix, language, position, token FROM warehouse.token_occurrences"
            )
        with closing(duckdb.connect(str(plain), read_only=True)) as connection:
            connection.execute(f"ATTACH '{warehouse.path}' AS warehouse (READ_ONLY)")
            view, table = (
                lambda: connection.execute(top.format("warehouse.token_occurrences")).fetchall(),
                lambda: connection.execute(top.format("occurrences")).fetchall(),
            )
            assert view() == table()
            ours, theirs = interleaved(rounds * 5, view, table)
            lookup_id = interleaved(
                rounds * 5,
                lambda: connection.execute(
                    "SELECT * FROM warehouse.tokens WHERE id = ?", [f"p07/{rows // 2:08}.wav"]
                ).fetchall(),
            )[0]
            lookup_token = interleaved(
                rounds * 5,
                lambda: connection.execute(
                    "SELECT id, position FROM warehouse.token_occurrences WHERE token = ?", ["w4e1f"]
                ).fetchall(),
            )[0]
    count = partitions * rows * per_row
    ratio = ours / theirs
    note = f"view {ours * 1e3:.1f} ms, plain table {theirs * 1e3:.1f} ms"
    return [
        result(f"top 50 of {count} token rows, time over a plain DuckDB table", ratio, "x", 1.3, ratio <= 1.3, note),
        result(f"look up one id among {partitions * rows}", lookup_id * 1e3, "ms", 50, lookup_id <= 0.05),
        result(f"look up a rare token among {count}", lookup_token * 1e3, "ms", 50, lookup_token <= 0.05),
    ]


def peak_bytes() -> int:
    """The most memory this process has had resident."""
    status = Path("/proc/self/status")
    if status.exists():
        # What getrusage says includes the parent's memory at the time of the fork.
        return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def export_in_child(root: str, target: str) -> None:
    """Export everything and print the peak memory of this process, in bytes."""
    start = time.perf_counter()
    files = export_corpus(PartitionStore(root), Path(target), FORMATS)
    seconds = time.perf_counter() - start
    print(json.dumps({"peak_bytes": peak_bytes(), "rows": files[0].row_count, "seconds": seconds}))


def bench_export(scale: float, rounds: int) -> list[Result]:
    rows = max(100, int(1_000_000 * scale))
    out = []
    for partitions in (10, 1):
        with tempfile.TemporaryDirectory() as directory:
            store = PartitionStore(Path(directory, "tables"))
            for n in range(partitions):
                tokens = token_table(f"p{n:02}/", rows // partitions, 20, seed=n)
                store.write(schemas.TRANSCRIPTS, transcript_table(tokens), f"p{n:02}")
                store.write(schemas.TOKENS, tokens, f"p{n:02}")
                del tokens
            code = (
                "from benchmarks.storage import export_in_child as run;"
                f"run({str(Path(directory, 'tables'))!r}, {str(Path(directory, 'exports'))!r})"
            )
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            measured = json.loads(done.stdout.splitlines()[-1])
            assert measured["rows"] == rows // partitions * partitions, measured
        peak = measured["peak_bytes"] / 1e6
        shape = "one partition" if partitions == 1 else f"{partitions} partitions"
        name = f"peak memory of exporting {rows} rows x 20 tokens in {shape} to {', '.join(FORMATS)}"
        out.append(result(name, peak, "MB", 500, peak <= 500, f"{measured['seconds']:.0f} s"))
    return out


BENCHMARKS: dict[str, Callable[[float, int], list[Result]]] = {
    "writers": bench_writers,
    "large-partition": bench_large_partition,
    "catch-up": bench_catch_up,
    "top-tokens": bench_top_tokens,
    "export": bench_export,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(BENCHMARKS), help="run only this part; repeatable")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each measurement (default 3)")
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the full size, for a quick look")
    arguments = parser.parse_args()
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f},"
        f" Python {sys.version.split()[0]}, DuckDB {duckdb.__version__}"
    )
    results: list[Result] = []
    for name, bench in BENCHMARKS.items():
        if arguments.only and name not in arguments.only:
            continue
        try:
            rows = bench(arguments.scale, arguments.rounds)
        except Exception as error:
            rows = [result(name, None, "", 0, False, f"could not be measured: {type(error).__name__}: {error}")]
        for row in rows:
            value = "-" if row["value"] is None else f"{row['value']:,}"
            mark = "met" if row["met"] else "NOT MET"
            print(
                f"{value:>12} {row['unit']:8} goal {row['goal']:>6,}  {mark:8} {row['name']}  {row.get('note', '')}",
                flush=True,
            )
        results += rows
    print(json.dumps({"benchmark": "storage", "results": results}))


if __name__ == "__main__":
    main()
