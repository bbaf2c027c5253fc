"""A loopback server that answers S3 requests for objects, and misbehaves as told."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

LISTING = """<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>false</IsTruncated>{}</ListBucketResult>"""
ENTRY = (
    "<Contents><Key>{}</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified>"
    "<ETag>&quot;{}&quot;</ETag><Size>{}</Size></Contents>"
)


class FaultyServer:
    """Serves `objects`; before each answer for a key it takes one fault from ``faults[key]``, if any is left.

    A fault is an HTTP status, or one of ``short`` (fewer bytes than Content-Length says), ``short without length``,
    ``corrupt`` (same length, other bytes), ``reset`` (connection cut before an answer), ``overlong``, ``silence``
    (no answer), ``weak`` (the ETag as a weak one), ``no range`` and ``other range`` (all of the body, or another piece
    than was asked for), ``stall`` (half of the body, then nothing), ``held`` (no answer before `held` is set). A
    `listing` is sent as it is, instead of the true one; the listing ``silence`` never comes. With a `barrier`, no
    object is sent before enough requests for objects wait.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.etags: dict[str, str] = {}
        self.faults: dict[str, list[int | str]] = defaultdict(list)
        self.starts: list[tuple[str, int]] = []
        self.requests: list[tuple[str, str]] = []
        self.listing: str | None = None
        self.headers: dict[str, str | None] = {}
        """Sent with each object in place of the true ones; None for none."""
        self.barrier: threading.Barrier | None = None
        self.on_answer: Callable[[], None] = lambda: None
        """Called when a request for an object has arrived."""
        self.held = threading.Event()
        self.asked = threading.Event()
        """Set when a request arrived that will not be answered."""
        self.most_at_once = 0
        self._ended = threading.Event()
        self._at_once = 0
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def put(self, key: str, content: bytes, etag: str | None = None) -> None:
        self.objects[key] = content
        self.etags[key] = etag or hashlib.md5(content).hexdigest()

    def gets(self, key: str) -> int:
        return self.requests.count(("GET", key))

    def __enter__(self) -> FaultyServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path, _, query = self.path.partition("?")
                key = unquote(path.lstrip("/").partition("/")[2])
                if not key and "list-type=2" in query:
                    self._list()
                    return
                with server._lock:
                    server._at_once += 1
                    server.most_at_once = max(server.most_at_once, server._at_once)
                try:
                    if server.barrier is not None:
                        server.barrier.wait(timeout=30)
                    self._answer(key)
                finally:
                    with server._lock:
                        server._at_once -= 1

            def do_HEAD(self) -> None:
                self._answer(unquote(self.path.lstrip("/").partition("/")[2]))

            def _stand_still(self) -> None:
                self.close_connection = True
                server.asked.set()
                server._ended.wait(60)

            def _list(self) -> None:
                if server.listing == "silence":
                    self._stand_still()
                    return
                entries = "".join(ENTRY.format(k, server.etags[k], len(v)) for k, v in sorted(server.objects.items()))
                body = (LISTING.format(entries) if server.listing is None else server.listing).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _answer(self, key: str) -> None:
                server.requests.append((self.command, key))
                server.on_answer()
                fault = server.faults[key].pop(0) if server.faults[key] else None
                if fault == "held":
                    server.held.wait(30)
                if fault == "reset":
                    self.close_connection = True
                    return
                if fault == "silence":
                    self._stand_still()
                    return
                if fault == "clock":
                    self._refuse(403, "RequestTimeTooSkewed")
                    return
                if isinstance(fault, int):
                    self._refuse(
                        fault, {500: "InternalError", 503: "SlowDown", 401: "Unauthorized"}.get(fault, "Error")
                    )
                    return
                if key not in server.objects:
                    self._refuse(404, "NoSuchKey")
                    return
                wanted = self.headers.get("If-Match")
                if wanted and wanted.strip('"') != server.etags[key]:
                    self._refuse(412, "PreconditionFailed")
                    return
                body = server.objects[key]
                start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
                server.starts.append((key, start))
                if fault == "no range":
                    start = 0
                if fault == "other range":
                    start = len(body) // 3
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
                body = body[start:]
                told: dict[str, str | None] = {
                    "ETag": f'{"W/" if fault == "weak" else ""}"{server.etags[key]}"',
                    "Last-Modified": "Fri, 02 Jan 2026 03:04:05 GMT",
                    "Content-Type": "audio/wav",
                }
                for name, value in (told | server.headers).items():
                    if value is not None:
                        self.send_header(name, value)
                if fault == "short without length":
                    self.send_header("Connection", "close")
                    self.close_connection = True
                elif fault != "overlong":
                    self.send_header("Content-Length", str(len(body)))
                else:
                    self.send_header("Content-Length", str(len(body) + 1000))
                self.end_headers()
                if self.command == "HEAD":
                    return
                if fault in ("short", "short without length"):
                    body = body[: len(body) // 2]
                    self.close_connection = True
                elif fault == "corrupt":
                    body = bytes([body[0] ^ 1]) + body[1:]
                elif fault == "overlong":
                    body += bytes(1000)
                if fault == "stall":
                    self.wfile.write(body[: len(body) // 2])
                    self._stand_still()
                    return
                if fault == "trickle":
                    with contextlib.suppress(OSError):
                        for number in range(len(body)):
                            self.wfile.write(body[number : number + 1])
                            time.sleep(0.02)
                    self.close_connection = True
                    return
                self.wfile.write(body)

            def _refuse(self, status: int, code: str) -> None:
                body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>told to</Message></Error>".encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler
