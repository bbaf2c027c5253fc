"""What a run asks of the bucket: operations as R2 charges them, by recording and by partition.

A relay before a real S3 server reads the first line of each request that passes. Runs of the command line over few and
over many recordings, all of them new and all of them known, give what one recording costs (the slope) and what a
partition costs (the rest). Recordings, tables and transcripts lie in the same bucket, as with ``AUDIO_ASSETS_HOME`` in
R2; each run has a scratch directory of its own, as a machine that was never there.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

FEW, MANY = 6, 30
RUN_S = 240.0

CLASS_A, CLASS_B, FREE = "Class A", "Class B", "free"

_FIRST_LINE = re.compile(rb"(GET|HEAD|PUT|POST|DELETE) (\S+) HTTP/1\.1\r\n")


def charged_as(method: str, target: str) -> str:
    """How R2 charges a request (developers.cloudflare.com/r2/pricing, November 2026).

    >>> charged_as("GET", "/b/a.wav"), charged_as("GET", "/b?list-type=2"), charged_as("DELETE", "/b/a.wav")
    ('Class B', 'Class A', 'free')
    """
    if method == "DELETE":
        return FREE
    # A GET of the bucket itself, which has no key behind its name.
    lists = method == "GET" and "/" not in target.partition("?")[0].strip("/")
    return CLASS_A if method in ("PUT", "POST") or lists else CLASS_B


class Relay:
    """Passes connections on to a server of this machine and counts the requests on them."""

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def take(self) -> Counter[str]:
        """What was counted since the last time."""
        with self._lock:
            taken, self.counts = self.counts, Counter()
        return taken

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._upstream_port))
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pass, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._pass, args=(server, client, False), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while block := source.recv(1 << 16):
                # A client sends the head of a request by itself or before its body, never behind another's.
                if counted and (first := _FIRST_LINE.match(block)):
                    with self._lock:
                        self.counts[charged_as(first[1].decode(), first[2].decode())] += 1
                sink.sendall(block)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@contextmanager
def relayed(upstream_port: int) -> Iterator[Relay]:
    relay = Relay(upstream_port)
    try:
        yield relay
    finally:
        relay.close()


def measure() -> dict[str, tuple[float, float]]:
    """Operations of a recording and of a partition, by what was done and class: ``{"new, Class A": (3.0, 41.0), …}``.

    Raises:
        RuntimeError: a run failed.
    """
    import soundfile
    from moonshine_voice import __file__ as packaged

    from audio_assets.demo_server import WeedServer
    from benchmarks import api

    samples, rate = soundfile.read(Path(packaged).parent / "assets" / "two_cities.wav")
    seen: dict[str, dict[int, Counter[str]]] = {"new": {}, "known": {}}
    with (
        tempfile.TemporaryDirectory() as directory,
        WeedServer(Path(directory, "weed"), bucket="bench") as weed,
        relayed(int(weed.endpoint_url.rpartition(":")[2])) as relay,
    ):
        client = weed.client()
        for count in (FEW, MANY):
            for n in range(count):
                local = Path(directory, "recording.flac")
                start = int(n * 0.4 * rate)
                soundfile.write(local, samples[start : start + 2 * rate], rate, format="FLAC")
                client.put_object(Bucket="bench", Key=f"calls{count}/{n:04}.flac", Body=local.read_bytes())
        for count in (FEW, MANY):
            with api.server() as (url, _):
                for state, by_count in seen.items():
                    secret = quote(weed.secret_access_key, safe="")
                    endpoint = f"http://127.0.0.1:{relay.port}"
                    settings = {
                        "AUDIO_ASSETS_HOME": f"s3://{weed.access_key_id}:{secret}@bench/home{count}"
                        f"?endpoint_override=127.0.0.1:{relay.port}&scheme=http",
                        "AUDIO_ASSETS_SCRATCH": str(Path(directory, f"scratch-{count}-{state}")),
                        "R2_BUCKET": "bench",
                        "R2_ENDPOINT_URL": endpoint,
                        "R2_ACCESS_KEY_ID": weed.access_key_id,
                        "R2_SECRET_ACCESS_KEY": weed.secret_access_key,
                        "WHISPER_ENGINE": "openai",
                        "OPENAI_API_KEY": "bench",
                        "OPENAI_BASE_URL": url,
                    }
                    command = [sys.executable, "-m", "audio_assets", "run", "--prefix", f"calls{count}/"]
                    relay.take()
                    done = subprocess.run(
                        command, env=os.environ | settings, capture_output=True, text=True, timeout=RUN_S
                    )
                    if done.returncode:
                        raise RuntimeError((done.stderr.strip() or "no reason given").splitlines()[-1])
                    by_count[count] = relay.take()
    found = {}
    for state, by_count in seen.items():
        for charged in (CLASS_A, CLASS_B):
            slope = (by_count[MANY][charged] - by_count[FEW][charged]) / (MANY - FEW)
            found[f"{state}, {charged}"] = (slope, by_count[FEW][charged] - slope * FEW)
    return found
