"""Thousands of objects through the whole pipeline while one request in a hundred goes wrong, at random.

``SOAK_OBJECTS`` sets how many; ``make faults`` takes 20,000.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

import numpy as np
import pytest
import soundfile

from audio_assets.demo import demo_objects
from audio_assets.settings import Home
from audio_assets_tests.conftest import subprocess_environment
from audio_assets_tests.faults.campaign import tried
from audio_assets_tests.faults.invariant import assert_one_row_each, unfinished_files
from audio_assets_tests.speech.conftest import heard

OBJECTS = int(os.environ.get("SOAK_OBJECTS", "1000"))
PER_PREFIX = 500
FAULT_SHARE = 0.01
SECONDS = 1.2
PAGE = 1000
SHIFTS = 1000

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]


class Bucket:
    """Recordings of the same second or so, each of other bytes, made when they are asked for."""

    def __init__(self, count: int):
        speech = next(o.body for o in demo_objects() if o.key.endswith("/01.wav"))
        samples, self._rate = soundfile.read(io.BytesIO(speech), dtype="float32")
        self._samples = samples[int(0.3 * self._rate) : int((0.3 + SECONDS) * self._rate)]
        self.keys = [f"soak-{n // PER_PREFIX:03}/{n:06}.wav" for n in range(count)]
        self.sizes = len(self.body(self.keys[0]))

    def body(self, key: str) -> bytes:
        # Later and quieter: sounds that differ also when they are sent with less precision.
        number = int(key.rpartition("/")[2].partition(".")[0])
        quieter, later = divmod(number, SHIFTS)
        samples = np.roll(self._samples, later) * np.float32(1 - quieter / 40)
        body = io.BytesIO()
        soundfile.write(body, samples, self._rate, format="WAV", subtype="PCM_16")
        return body.getvalue()

    def etag(self, key: str) -> str:
        return hashlib.md5(self.body(key)).hexdigest()


class Faults:
    """One request in a hundred, always the same ones, and what was injected."""

    def __init__(self, kinds: list[str], seed: int):
        self._kinds, self._random, self._lock = kinds, random.Random(seed), threading.Lock()
        self.injected: Counter[str] = Counter()

    def draw(self) -> str | None:
        with self._lock:
            if self._random.random() >= FAULT_SHARE:
                return None
            kind = self._random.choice(self._kinds)
            self.injected[kind] += 1
            return kind


@contextmanager
def serving(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def do_GET(self) -> None:
            answer(self)

        do_POST = do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, kind: str, **headers: str) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", headers.pop("length", str(len(body))))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def bucket_answer(bucket: Bucket, faults: Faults, fetched: list[float]) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        address = urlsplit(handler.path)
        key = unquote(address.path.lstrip("/").partition("/")[2])
        if not key:
            send(handler, 200, listing(bucket, parse_qs(address.query)), "application/xml")
            return
        fault = faults.draw()
        body = bucket.body(key)
        if fault in ("500", "503"):
            send(handler, int(fault), b"<Error><Code>SlowDown</Code></Error>", "application/xml")
        elif fault == "reset":
            handler.close_connection = True
        else:
            start = int((handler.headers.get("Range") or "bytes=0-")[6:].partition("-")[0])
            etag, sent = f'"{bucket.etag(key)}"', body[start:]
            ranged = {"Content_Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
            length = str(len(sent))
            if fault == "short":
                handler.close_connection = True
                sent = sent[: len(sent) // 2]
            elif fault == "corrupt":
                sent = sent[:100] + bytes([sent[100] ^ 255]) + sent[101:]
            when = "Fri, 02 Jan 2026 03:04:05 GMT"
            send(
                handler,
                206 if start else 200,
                sent,
                "audio/wav",
                length=length,
                ETag=etag,
                Last_Modified=when,
                **ranged,
            )
            fetched.append(time.monotonic())

    return answer


def listing(bucket: Bucket, query: dict[str, list[str]]) -> bytes:
    prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
    after = query.get("continuation-token", query.get("start-after", [""]))[0]
    encoded = query.get("encoding-type") == ["url"]
    name = quote if encoded else escape
    keys = [k for k in bucket.keys if k.startswith(prefix)]
    folders = sorted({k[: k.index("/", len(prefix)) + 1] for k in keys if delimiter and "/" in k[len(prefix) :]})
    files = [k for k in keys if not delimiter or "/" not in k[len(prefix) :]]
    page = [k for k in files if k > after][:PAGE]
    more = bool(page) and page[-1] != files[-1]
    entries = "".join(
        f"<Contents><Key>{name(k)}</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified>"
        f"<ETag>&quot;{bucket.etag(k)}&quot;</ETag><Size>{bucket.sizes}</Size></Contents>"
        for k in page
    )
    entries += "".join(f"<CommonPrefixes><Prefix>{name(f)}</Prefix></CommonPrefixes>" for f in folders if f > after)
    entries += "<EncodingType>url</EncodingType>" if encoded else ""
    entries += f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>{entries}</ListBucketResult>"
    ).encode()


def api_answer(faults: Faults, posts: Counter[bytes]) -> Callable[[BaseHTTPRequestHandler], None]:
    good = json.dumps(heard()).encode()
    wrong = {
        "500": (500, b'{"error": {"message": "oops"}}', "application/json"),
        "429": (429, b'{"error": {"message": "slow down", "code": "rate_limit_exceeded"}}', "application/json"),
        "html": (200, b"<html>welcome</html>", "text/html"),
        "null": (200, b'{"text": null}', "application/json"),
        "cut": (200, good[:40], "application/json"),
    }

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.command != "POST":
            send(handler, 404, b'{"error": {"message": "no such model"}}', "application/json")
            return
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        # From the first byte of the recording to the boundary that ends it, which is another one in each request.
        sound = body[body.index(b"fLaC") :].partition(b"\r\n--")[0]
        posts[hashlib.md5(sound).digest()] += 1
        fault = faults.draw()
        if fault == "hang up":
            handler.close_connection = True
        elif fault is not None:
            status, text, kind = wrong[fault]
            send(handler, status, text, kind)
        else:
            send(handler, 200, good, "application/json")

    return answer


@dataclass(frozen=True)
class Sample:
    """A process at a moment: the time, what it has resident, and what it has used of the processors."""

    at: float
    resident_kb: int
    cpu_s: float


def sample(pid: int) -> Sample | None:
    status = Path(f"/proc/{pid}/status").read_text()
    resident = [line for line in status.splitlines() if line.startswith("VmRSS")]
    used = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    cpu_s = sum(map(int, used)) / os.sysconf("SC_CLK_TCK")
    return Sample(time.monotonic(), int(resident[0].split()[1]), cpu_s) if resident else None


def run(*arguments: str, directory: Path, environment: dict[str, str]) -> tuple[int, str, list[Sample]]:
    """Run a command; its exit status, its errors, and what it was like every half second."""
    errors = directory / "stderr"
    with errors.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "audio_assets", *arguments],
            cwd=directory,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=file,
        )
        samples = []
        while process.poll() is None:
            samples += [found] if (found := sample(process.pid)) else []
            time.sleep(0.5)
    return process.returncode, errors.read_text(), samples


def resident_mb(samples: list[Sample], number: int) -> float:
    """What was resident in the ``number``-th quarter (1 to 4) of a run, on average."""
    part = samples[len(samples) * (number - 1) // 4 : len(samples) * number // 4]
    return sum(each.resident_kb for each in part) / len(part) / 1e3


def cost_of(samples: list[Sample], fetched: list[float], number: int) -> tuple[float, float]:
    """Seconds, and seconds of the processors, that the ``number``-th quarter of the objects took."""
    ends = fetched[len(fetched) * (number - 1) // 4], fetched[len(fetched) * number // 4 - 1]
    cpu = np.interp(ends, [each.at for each in samples], [each.cpu_s for each in samples])
    return ends[1] - ends[0], float(cpu[1] - cpu[0])


def test_a_long_run_amid_random_faults(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    bucket, fetched, posts = Bucket(OBJECTS), list[float](), Counter[bytes]()
    of_bucket = Faults(["500", "503", "reset", "short", "corrupt"], seed=1)
    of_api = Faults(["500", "429", "html", "null", "cut", "hang up"], seed=2)
    home = Home(tmp_path / "home")
    with serving(bucket_answer(bucket, of_bucket, fetched)) as s3, serving(api_answer(of_api, posts)) as api:
        environment = subprocess_environment(
            home.root,
            R2_BUCKET="soak",
            R2_ENDPOINT_URL=s3,
            R2_ACCESS_KEY_ID="key",
            R2_SECRET_ACCESS_KEY="secret",
            WHISPER_ENGINE="openai",
            OPENAI_API_KEY="test-key",
            OPENAI_BASE_URL=f"{api}/v1",
        )
        code, errors, samples = run("run", directory=tmp_path, environment=environment)
        assert code in (0, 3), errors[-2000:]
        assert "Traceback" not in errors
        requests = sum(posts.values())
        for _ in range(2):
            if code:
                code, errors, _ = run("run", directory=tmp_path, environment=environment)
        assert code == 0, errors[-2000:]
        verified, told, _ = run("verify", directory=tmp_path, environment=environment)
        assert verified == 0, told[-2000:]
    assert_one_row_each(home, set(bucket.keys))
    assert unfinished_files(home) == []

    injected = of_bucket.injected.total() + of_api.injected.total()
    assert injected > OBJECTS * FAULT_SHARE
    assert len(posts) == OBJECTS, "each recording was asked for"
    assert sum(posts.values()) <= OBJECTS + of_api.injected.total(), "nothing was paid for again that had an answer"
    assert requests <= 1.03 * OBJECTS
    tried(request, injected)

    second, last = resident_mb(samples, 2), resident_mb(samples, 4)
    (took, used), (took_last, used_last) = cost_of(samples, fetched, 2), cost_of(samples, fetched, 4)
    print(
        f"{OBJECTS} objects, {injected} faults; second and last quarter: {second:.0f} and {last:.0f} MB,"
        f" {took:.0f} and {took_last:.0f} s, {used:.0f} and {used_last:.0f} s of CPU"
    )
    if OBJECTS >= 10_000:
        # In a short run the second quarter is still the start.
        assert last <= 1.1 * second, "memory grows"
        # Servers and neighbours share the machine: what an object costs is steadier than how long it takes.
        assert used_last <= 1.1 * used, "an object costs more than before"
        assert took_last <= 1.25 * took, "throughput falls"
