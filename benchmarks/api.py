"""The API engine against a server on loopback: ``python -m benchmarks.api``.

Prints a table for people and, as the last line, one JSON object. The server runs in a process of its own, answers after
300 ms, and counts what it gets; the clips are cut from 44 s of recorded speech. A place among the allowed requests is
busy for the 300 ms of its answer, and idle from the first request to the last answer otherwise: the way to and fro, the
start and the end count as idle. What is not measured: a real endpoint, TLS, and decoding and voice activity detection,
which happen before the engine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import multiprocessing
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from audio_assets.speech.capabilities import AUDIO_FORMATS
from audio_assets.speech.decode import decode
from audio_assets.speech.engine import SAMPLE_RATE_HZ, Clip, ClipResult, Samples
from audio_assets.speech.ledger import Account
from audio_assets.speech.openai_api import OpenAIEngine, OpenAIOptions

LATENCY_S = 0.3
CLIPS = 500
CONCURRENCY = 50
RATE_PER_S = 20

Result = dict[str, Any]


def result(name: str, value: float | None, unit: str, goal: float, met: bool, note: str = "") -> Result:
    row: Result = {"name": name, "value": None if value is None else round(value, 3), "unit": unit, "goal": goal}
    return row | {"met": met} | ({"note": note} if note else {})


# -- the server: a process of its own, so that its work is not counted as the client's


@dataclass
class Counts:
    """What the server saw. ``busy_s`` is the sum of the times that requests spent in it."""

    ok: int = 0
    refused: int = 0
    bytes_in: int = 0
    peak: int = 0
    busy_s: float = 0.0
    first: float = 0.0
    last: float = 0.0


def serve(pipe: Connection, rate: float | None, headers: bool) -> None:
    """Answer on a free port until the pipe says ``stop``; then send the counts through it."""
    counts = Counts()
    body = json.dumps(
        {
            "text": "It was the best of times.",
            "language": "english",
            "segments": [{"start": 0.0, "end": 1.0, "text": " It was the best of times.", "avg_logprob": -0.2}],
            "usage": {"type": "duration", "seconds": 2},
        }
    ).encode()
    level, at, flying = float(rate or 0), time.monotonic(), 0

    def head(status: str, extra: str, length: int) -> bytes:
        told = ""
        if headers and rate:
            told = (
                f"x-ratelimit-limit-requests: {rate:.0f}\r\nx-ratelimit-remaining-requests: {int(level)}\r\n"
                f"x-ratelimit-reset-requests: {(rate - level) / rate * 1000:.0f}ms\r\n"
            )
        kind = "content-type: application/json\r\n"
        return f"HTTP/1.1 {status}\r\n{kind}{told}{extra}content-length: {length}\r\n\r\n".encode()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal level, at, flying
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                lines = request.lower().split(b"\r\n")
                length = next((int(line.split(b":")[1]) for line in lines if b"content-length:" in line), 0)
                await reader.readexactly(length)
                if request.startswith(b"GET"):
                    writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
                    continue
                now = time.monotonic()
                counts.first = counts.first or now
                counts.bytes_in += length
                if rate:
                    level = min(rate, level + (now - at) * rate)
                    at = now
                    if level < 1:
                        counts.refused += 1
                        answer = b'{"error": {"message": "slow down", "code": "rate_limit_exceeded"}}'
                        writer.write(head("429 Too Many Requests", "", len(answer)) + answer)
                        continue
                    level -= 1
                top = head("200 OK", "", len(body))
                flying += 1
                counts.peak = max(counts.peak, flying)
                await asyncio.sleep(LATENCY_S)
                flying -= 1
                counts.busy_s += LATENCY_S
                counts.ok += 1
                counts.last = time.monotonic()
                writer.write(top + body)
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=512)
        pipe.send(server.sockets[0].getsockname()[1])
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        server.close()

    asyncio.run(main())
    pipe.send(counts)


@contextlib.contextmanager
def server(rate: float | None = None, headers: bool = False) -> Iterator[tuple[str, Any]]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, rate, headers))
    process.start()
    counts: list[Counts] = []
    try:
        yield f"http://127.0.0.1:{ours.recv()}/v1", counts
        ours.send("stop")
        counts.append(ours.recv())
    finally:
        process.join(5)
        process.kill()


# -- the client


def cut_clips(length_s: float, count: int) -> list[Clip]:
    import moonshine_voice

    speech: Samples = decode(Path(moonshine_voice.__file__).parent / "assets" / "two_cities.wav").samples
    size = int(length_s * SAMPLE_RATE_HZ)
    starts = np.linspace(0, len(speech) - size, count).astype(int)
    return [Clip(f"clip-{n}", speech[s : s + size]) for n, s in enumerate(starts)]


@dataclass
class Run:
    counts: Counts
    seconds: float
    cpu_s: float
    wav_bytes: int


def send(clips: list[Clip], form: str | None, rate: float | None = None, headers: bool = False) -> Run:
    """All clips through the engine, `CONCURRENCY` at once, as the pipeline's workers would."""
    with server(rate, headers) as (url, counts):
        options = OpenAIOptions(
            api_key="k", base_url=url, workers=CONCURRENCY, audio_format=form, attempts=8, first_backoff_s=0.5
        )
        engine = OpenAIEngine(options)
        # Importing the SDK and opening the loop are paid once per process, not per request.
        warm = threading.Thread(target=engine.announced_shutdown)
        warm.start()
        warm.join()
        billed = engine.billed_to(Account())
        with ThreadPoolExecutor(engine.parallelism) as workers:
            # In the pipeline the threads are there before the first clip is.
            there = threading.Barrier(engine.parallelism)
            list(workers.map(lambda _: there.wait(), range(engine.parallelism)))
            # What setting up left behind is not the requests' to clear away.
            gc.collect()
            cpu, began = time.process_time(), time.monotonic()
            found = list(workers.map(lambda clip: next(billed.transcribe([clip])), clips))
            seconds, cpu_s = time.monotonic() - began, time.process_time() - cpu
        engine.close()
        lost = sum(not isinstance(r, ClipResult) for r in found)
        assert not lost, (
            f"{lost} of {len(clips)} clips have no result: {next(r for r in found if not isinstance(r, ClipResult))}"
        )
    wav = sum(44 + 2 * len(c.samples) for c in clips)
    return Run(counts[0], seconds, cpu_s, wav)


def bench_concurrency(rounds: int, count: int, form: str | None) -> list[Result]:
    clips = cut_clips(2.0, count)
    runs = [send(clips, form) for _ in range(rounds)]
    busy = [r.counts.busy_s / (CONCURRENCY * (r.counts.last - r.counts.first)) for r in runs]
    share = 100 * statistics.median(busy)
    cpu = statistics.median(1000 * r.cpu_s / count for r in runs)
    smaller = statistics.median(r.wav_bytes / r.counts.bytes_in for r in runs)
    note = f"peak {max(r.counts.peak for r in runs)}, {statistics.median(r.seconds for r in runs):.2f} s"
    what = f"{count} clips of 2 s, audio_format {form or 'not set'}"
    return [
        result(f"allowed concurrency kept busy, {what}", share, "%", 90, share >= 90, note),
        result(f"client CPU a request, compression included, {what}", cpu, "ms", 5, cpu < 5),
        result(f"bytes sent, requests whole, against WAV, {what}", smaller, "x", 3, smaller >= 3),
    ]


def bench_rate(rounds: int, count: int, form: str | None) -> list[Result]:
    out = []
    clips = cut_clips(2.0, count)
    for headers in (True, False):
        runs = [send(clips, form, RATE_PER_S, headers) for _ in range(max(1, rounds // 2))]
        # The bucket starts full: its first second's worth comes on top of the rate.
        share = statistics.median(100 * r.counts.ok / (r.counts.last - r.counts.first) / RATE_PER_S for r in runs)
        refused = statistics.median(100 * r.counts.refused / (r.counts.ok + r.counts.refused) for r in runs)
        how = "with rate headers" if headers else "without rate headers"
        out += [
            result(f"throughput at a limit of {RATE_PER_S}/s, {how}", share, "%", 95, share >= 95),
            result(f"answers 429 at a limit of {RATE_PER_S}/s, {how}", refused, "%", 2, refused < 2),
        ]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each measurement (default 3)")
    parser.add_argument("--clips", type=int, default=CLIPS, help=f"clips of each measurement (default {CLIPS})")
    parser.add_argument("--format", choices=AUDIO_FORMATS, help="how audio is sent (default: what the engine picks)")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}")
    results: list[Result] = []
    for bench in (bench_concurrency, bench_rate):
        try:
            rows = bench(arguments.rounds, arguments.clips, arguments.format)
        except Exception as error:
            reason = f"could not be measured: {type(error).__name__}: {error}"
            rows = [result(bench.__name__, None, "", 0, False, reason)]
        for row in rows:
            value = "-" if row["value"] is None else f"{row['value']:,}"
            mark = "met" if row["met"] else "NOT MET"
            print(
                f"{value:>10} {row['unit']:3} goal {row['goal']:>4}  {mark:8} {row['name']}  {row.get('note', '')}",
                flush=True,
            )
        results += rows
    print(json.dumps({"benchmark": "api", "results": results}))


if __name__ == "__main__":
    main()
