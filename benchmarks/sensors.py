"""The sensors at scale, and how soon an upload is a row: two parts of ``python -m benchmarks.ingest``.

* The tick: a bucket of 10,000 prefixes with 10 objects each, listed from a server on loopback in a process of its own,
  and as many partition files; then 1 % of the prefixes get a new object. Timed is the evaluation of the sensor, listing
  included, with a Dagster instance on disk. Not measured: the network to R2, and the launch of the runs.
* The latency: a real S3 server, a queue server and the real daemon, each in a process or thread of its own, on this
  machine. From the end of the upload of a 10 s clip to its row in the warehouse, transcribed with the packaged model.
  Not measured: how long R2 takes to notify the queue.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

PREFIXES = 10_000
KEYS_PER_PREFIX = 10
CHANGED = PREFIXES // 100
TICK_GOAL_S = 10.0
LATENCY_GOAL_S = 30.0
UPLOADS = 3
CLIP_S = 10
ETAG = "0123456789abcdef0123456789abcdef"
PAGE = 1000

Result = dict[str, Any]


def row(name: str, value: float, unit: str, goal: float, note: str = "") -> Result:
    return {"name": name, "value": round(value, 2), "unit": unit, "goal": goal, "met": value <= goal, "note": note}


# -- the tick


def serve_listing(pipe: Connection) -> None:
    """Answer listings on a free port; after ``change`` through the pipe, 1 % of the prefixes have another object."""
    keys = [f"p{n:05}/{k:03}.wav" for n in range(PREFIXES) for k in range(KEYS_PER_PREFIX)]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            start = int(query.get("continuation-token", ["0"])[0])
            if "start-after" in query:
                start = bisect.bisect_right(keys, query["start-after"][0])
            page = keys[start : start + PAGE]
            more = start + PAGE < len(keys)
            entries = "".join(
                f"<Contents><Key>{key}</Key><LastModified>2026-11-24T03:04:05.000Z</LastModified><ETag>&quot;{ETAG}&quot;"
                f"</ETag><Size>200000</Size><StorageClass>STANDARD</StorageClass></Contents>"
                for key in page
            )
            token = f"<NextContinuationToken>{start + PAGE}</NextContinuationToken>" if more else ""
            body = (
                '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
                f"<IsTruncated>{str(more).lower()}</IsTruncated><KeyCount>{len(page)}</KeyCount>{token}{entries}"
                "</ListBucketResult>"
            ).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        pipe.send(server.server_port)
        import threading

        threading.Thread(target=server.serve_forever, daemon=True).start()
        while pipe.recv() == "change":
            keys.extend(f"p{n * 100:05}/new.wav" for n in range(CHANGED))
            keys.sort()
            pipe.send("changed")
        server.shutdown()


@contextlib.contextmanager
def listing_server() -> Iterator[tuple[str, Connection]]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve_listing, args=(theirs,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}", ours
    finally:
        ours.send("stop")
        process.join(10)


def bench_tick(root: Path) -> list[Result]:
    import dagster as dg

    from audio_assets.automation import new_r2_objects_sensor
    from audio_assets.partitions import PARTITIONS_NAME
    from audio_assets.resources.duckdb_io import PartitionedDuckDBIOManager
    from audio_assets.resources.home import HomeResource
    from audio_assets.resources.r2 import R2Resource
    from audio_assets.schemas import RAW_AUDIO
    from audio_assets.storage.partition_files import PartitionStore

    store = PartitionStore(root / "tables")
    for n in range(PREFIXES):
        rows = [
            {
                "id": f"p{n:05}/{k:03}.wav",
                "prefix": f"p{n:05}/",
                "etag": ETAG,
                "size_bytes": 200_000,
                "metadata": [],
                "sha256": f"{n:032x}{k:032x}",
                "status": "ok",
            }
            for k in range(KEYS_PER_PREFIX)
        ]
        store.write(RAW_AUDIO, RAW_AUDIO.from_rows(rows), f"p{n:05}")
    with listing_server() as (endpoint, pipe), dg.instance_for_test() as instance:
        instance.add_dynamic_partitions(PARTITIONS_NAME, [f"p{n:05}" for n in range(PREFIXES)])
        r2 = R2Resource(
            bucket="b", endpoint_url=endpoint, aws_access_key_id="bench", aws_secret_access_key="bench-secret"
        )

        def tick() -> tuple[float, Any]:
            started = time.perf_counter()
            result = new_r2_objects_sensor(
                dg.build_sensor_context(instance=instance),
                r2=r2,
                home=HomeResource(root=str(root)),
                warehouse=PartitionedDuckDBIOManager(tables_root=str(root / "tables")),
            )
            return time.perf_counter() - started, result

        first_s, result = tick()
        assert isinstance(result, dg.SkipReason), result
        quiet_s = statistics.median(tick()[0] for _ in range(3))
        pipe.send("change")
        pipe.recv()
        changed_s, result = tick()
        assert len(result.run_requests) == CHANGED, result
    return [
        row(
            "sensor tick, 10,000 prefixes, 1 % changed",
            changed_s,
            "s",
            TICK_GOAL_S,
            f"{PREFIXES * KEYS_PER_PREFIX} objects; nothing new {quiet_s:.2f} s; the very first tick {first_s:.2f} s",
        )
    ]


# -- the latency


def clip(number: int) -> bytes:
    """Ten seconds of recorded speech, other ones for each number: equal bytes would come from the cache."""
    from audio_assets.demo import encode, recording

    samples, rate = recording()
    start = number * (CLIP_S + 1) * rate
    return bytes(encode(samples[start : start + CLIP_S * rate], rate, "wav"))


def bench_latency(root: Path) -> list[Result]:
    from audio_assets.demo import BUCKET, packaged_model
    from audio_assets.demo_server import WeedServer
    from audio_assets.settings import Home
    from audio_assets_tests.automation.test_daemon import Daemon
    from audio_assets_tests.conftest import r2_environment, subprocess_environment
    from audio_assets_tests.queue_server import QueueServer

    home = Home(root / "home")
    latencies = []
    with WeedServer(root / "weed", bucket=BUCKET) as weed, QueueServer() as queue:
        environment = subprocess_environment(
            home.root, **r2_environment(weed), **queue.settings, WHISPER_MODEL=packaged_model()
        )
        daemon = Daemon(home, environment, sensors=["r2_event_sensor"])
        try:
            client = weed.client()
            deadline = time.monotonic() + 120
            while not queue.requests and time.monotonic() < deadline:
                time.sleep(0.25)
            for number in range(UPLOADS):
                key = f"calls/{number}.wav"
                client.put_object(Bucket=BUCKET, Key=key, Body=clip(number))
                started = time.perf_counter()
                queue.notify(BUCKET, key)
                found = daemon.row(key)
                latencies.append(time.perf_counter() - started)
                assert found["status"] == "ok", found
                time.sleep(5 + number * 2)  # until the run has ended, and out of step with the ticks
        finally:
            daemon.stop()
    shown = ", ".join(f"{s:.1f}" for s in latencies)
    return [
        row(
            "upload to row by the event sensor, 10 s clip",
            statistics.median(latencies),
            "s",
            LATENCY_GOAL_S,
            f"median of {shown} s",
        )
    ]


# -- parts of `benchmarks.ingest`


def sensor_tick(options: argparse.Namespace) -> list[Result]:
    """A tick of the sensor that lists, with 10,000 prefixes and 1 % changed; its size is not scaled."""
    return _in_a_home(bench_tick)


def event_latency(options: argparse.Namespace) -> list[Result]:
    """From an upload to its row, by the event sensor and the real daemon."""
    return _in_a_home(bench_latency)


def _in_a_home(bench: Callable[[Path], list[Result]]) -> list[Result]:
    with tempfile.TemporaryDirectory() as directory:
        os.environ["AUDIO_ASSETS_HOME"] = directory
        return bench(Path(directory))
