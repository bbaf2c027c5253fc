"""A loopback server that speaks the documented contract of Cloudflare Queues' HTTP pull consumers.

Messages are leased when they are pulled, come again when the visibility timeout ends without an acknowledgement, count
their attempts, and go to a dead-letter list after too many. Bodies of the content type ``json`` are in base64.
"""

from __future__ import annotations

import base64
import json
import threading
import time
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

ACCOUNT = "0123456789abcdef0123456789abcdef"
QUEUE = "fedcba9876543210fedcba9876543210"
TOKEN = "queue-canary-token"
ACTIONS_OF_DELETION = ("DeleteObject", "LifecycleDeletion")


@dataclass
class _Message:
    body: str
    content_type: str
    timestamp_ms: int
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    attempts: int = 0
    lease: str | None = None
    visible_at: float = 0.0


class QueueServer:
    """One queue of one account. ``faults`` are taken one for each request: an HTTP status, ``hang``, ``lost answer``
    (the request is served, its answer never arrives), ``html``, ``redirect``, ``trickle``.
    """

    def __init__(self, max_retries: int = 100) -> None:
        self.faults: list[int | str] = []
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.dead: list[str] = []
        self.max_retries = max_retries
        self.acknowledged: list[str] = []
        self._messages: list[_Message] = []
        self._ahead_s = 0.0
        self._lock = threading.Lock()
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/client/v4"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> QueueServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def settings(self) -> dict[str, str]:
        """The settings that point at this queue."""
        return {
            "R2_ACCOUNT_ID": ACCOUNT,
            "R2_EVENTS_QUEUE_ID": QUEUE,
            "CLOUDFLARE_API_TOKEN": TOKEN,
            "CLOUDFLARE_BASE_URL": self.base_url,
        }

    def send(self, body: str, content_type: str = "json") -> str:
        """Put a message into the queue; returns its id."""
        message = _Message(body, content_type, int(time.time() * 1000))
        with self._lock:
            self._messages.append(message)
        return message.id

    def notify(self, bucket: str, key: str, etag: str = "e" * 32, action: str = "PutObject", **other: Any) -> str:
        """What R2 sends when an object is written or deleted."""
        described: dict[str, Any] = {"key": key}
        if action not in ACTIONS_OF_DELETION:
            described |= {"size": 65536, "eTag": etag}
        event = {
            "account": ACCOUNT,
            "action": action,
            "bucket": bucket,
            "object": described,
            "eventTime": f"2026-11-24T19:36:44.{time.monotonic_ns() % 1000:03}Z",
        } | other
        return self.send(json.dumps(event))

    def pass_time(self, seconds: float) -> None:
        """Let leases age."""
        self._ahead_s += seconds

    def left(self) -> int:
        """Messages that nobody has acknowledged."""
        return len(self._messages)

    def pull(self, request: dict[str, Any]) -> dict[str, Any]:
        size, timeout_ms = request["batch_size"], request["visibility_timeout_ms"]
        assert 1 <= size <= 100 and 0 < timeout_ms <= 12 * 3_600_000
        now = time.monotonic() + self._ahead_s
        with self._lock:
            handed = []
            for message in [m for m in self._messages if m.visible_at <= now][:size]:
                if message.attempts > self.max_retries:
                    self._messages.remove(message)
                    self.dead.append(message.id)
                    continue
                message.attempts += 1
                message.lease = uuid.uuid4().hex
                message.visible_at = now + timeout_ms / 1000
                coded = message.content_type != "text"
                handed.append(
                    {
                        "body": base64.b64encode(message.body.encode()).decode() if coded else message.body,
                        "id": message.id,
                        "timestamp_ms": message.timestamp_ms,
                        "attempts": message.attempts,
                        "metadata": {"CF-Content-Type": message.content_type, "CF-sourceMessageSource": "r2"},
                        "lease_id": message.lease,
                    }
                )
            return {"message_backlog_count": len(self._messages), "messages": handed}

    def ack(self, request: dict[str, Any]) -> dict[str, Any]:
        leases = {entry["lease_id"] for entry in request["acks"]}
        assert len(leases) <= 100
        now = time.monotonic() + self._ahead_s
        with self._lock:
            done = [m for m in self._messages if m.lease in leases and m.visible_at > now]
            self._messages = [m for m in self._messages if m not in done]
            self.acknowledged += [m.id for m in done]
        return {"ackCount": len(done), "retryCount": 0, "warnings": []}


def _handler(queue: QueueServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: object) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            verb = self.path.rpartition("/")[2]
            request = json.loads(body)
            queue.requests.append((verb, request))
            fault = queue.faults.pop(0) if queue.faults else None
            if fault == "hang":
                queue.closing.wait(30)
                self.close_connection = True
                return
            if fault == "trickle":
                self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                for number in range(600):
                    if queue.closing.wait(0.05):
                        break
                    self.wfile.write(f"X-Wait-{number}: 1\r\n".encode())
                self.close_connection = True
                return
            if fault == "redirect":
                self._answer(302, b"", {"Location": queue.base_url + "/elsewhere"})
            elif fault == "html":
                self._answer(200, b"<html>sign in</html>")
            elif isinstance(fault, int):
                self._fail(fault, 1000, "as the test wants")
            elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._fail(401, 10000, "Authentication error")
            elif self.path != f"/client/v4/accounts/{ACCOUNT}/queues/{QUEUE}/messages/{verb}":
                self._fail(404, 11000, "Queue does not exist")
            else:
                result = queue.pull(request) if verb == "pull" else queue.ack(request)
                if fault == "lost answer":
                    self.close_connection = True
                    return
                told = {"success": True, "errors": [], "messages": [], "result": result}
                self._answer(200, json.dumps(told).encode())

        def _fail(self, status: int, code: int, message: str) -> None:
            told = {"success": False, "errors": [{"code": code, "message": message}], "messages": [], "result": None}
            self._answer(status, json.dumps(told).encode())

        def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    return Handler
