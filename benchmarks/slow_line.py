"""A line to a server some way off: ``python -m benchmarks.slow_line PORT DELAY_S MBIT``, a TCP proxy on loopback.

Requests, connecting included, take ``DELAY_S`` longer, and the answers of all connections together pass at no more
than ``MBIT`` megabits a second (0: as fast as they come). Answers go from socket to socket in the kernel: the proxy
shall not be what is measured. Prints its port.
"""

from __future__ import annotations

import heapq
import os
import selectors
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fcntl import fcntl

NONBLOCKING, SET_PIPE_SIZE, PIPE_BYTES = 2, 1031, 1 << 20
"""Of Linux: splice(2) and fcntl(2)."""

PIECE_BYTES = 64 * 1024
"""What a connection takes at a time of a line that is limited, so that all get their turn."""
BURST_S = 0.002
"""What a line that was idle may make up for: about what waits in the queue of a network card."""


class _Line:
    """How many bytes may pass now; no limit where ``bytes_per_s`` is 0."""

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self._free = 0.0
        self._at = time.monotonic()

    @property
    def free(self) -> int:
        if not self.bytes_per_s:
            return PIPE_BYTES
        now = time.monotonic()
        most = max(BURST_S * self.bytes_per_s, 2.0 * PIECE_BYTES)
        self._free = min(most, self._free + (now - self._at) * self.bytes_per_s)
        self._at = now
        return min(int(self._free), PIECE_BYTES) if self._free >= PIECE_BYTES else 0

    def passed(self, count: int) -> None:
        self._free -= count if self.bytes_per_s else 0

    @property
    def wait_s(self) -> float:
        """Until a piece may pass."""
        return max(0.0, (PIECE_BYTES - self._free) / self.bytes_per_s) if self.bytes_per_s else 0.0


class _Link:
    """A client's connection and its own to the server."""

    def __init__(self, client: socket.socket, port: int, selector: selectors.BaseSelector) -> None:
        self.client, self.server = client, socket.create_connection(("127.0.0.1", port))
        self._selector = selector
        for end in (self.client, self.server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(end, selectors.EVENT_READ, self)
        self._out, self._into = os.pipe()
        fcntl(self._into, SET_PIPE_SIZE, PIPE_BYTES)
        self.held, self.is_open = 0, True

    def answer(self, line: _Line) -> bool:
        """Pass on what there is of the answer, as far as the line takes it; False at its end."""
        try:
            free = line.free
            if not self.held and free:
                self.held = os.splice(self.server.fileno(), self._into, free, flags=NONBLOCKING)
                if not self.held:
                    return False
                line.passed(self.held)
            while self.held:
                self.held -= os.splice(self._out, self.client.fileno(), self.held, flags=NONBLOCKING)
        except BlockingIOError:
            pass
        # While the client cannot take more nothing more is fetched for it.
        waits_for = selectors.EVENT_READ | (selectors.EVENT_WRITE if self.held else 0)
        if self._selector.get_key(self.client).events != waits_for:
            self._selector.modify(self.client, waits_for, self)
        self.listen(not self.held)
        return True

    def listen(self, to_server: bool) -> None:
        listens = self.server.fileno() in self._selector.get_map()
        if to_server and not listens:
            self._selector.register(self.server, selectors.EVENT_READ, self)
        elif listens and not to_server:
            self._selector.unregister(self.server)

    def close(self) -> None:
        self.is_open = False
        for end in (self.client, self.server):
            if end.fileno() in self._selector.get_map():
                self._selector.unregister(end)
            end.close()
        os.close(self._out)
        os.close(self._into)


def serve(port: int, delay_s: float, bytes_per_s: float) -> None:
    """Until the process is killed."""
    selector = selectors.DefaultSelector()
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(listener.getsockname()[1], flush=True)
    selector.register(listener, selectors.EVENT_READ, None)
    line = _Line(bytes_per_s)
    late: list[tuple[float, int, _Link, bytes]] = []
    thirsty: deque[_Link] = deque()
    number = 0

    def pass_on(link: _Link) -> None:
        if not link.held and not line.free:
            # Its turn comes when the line is free again.
            link.listen(to_server=False)
            thirsty.append(link)
        elif not link.answer(line):
            link.close()

    while True:
        waits = [late[0][0] - time.monotonic()] if late else []
        waits += [line.wait_s] if thirsty else []
        for ready, what in selector.select(max(0.0, min(waits)) if waits else None):
            link = ready.data
            if link is None:
                _Link(listener.accept()[0], port, selector)
                continue
            if not link.is_open:
                continue
            try:
                if ready.fileobj is link.server or what & selectors.EVENT_WRITE:
                    pass_on(link)
                if link.is_open and ready.fileobj is link.client and what & selectors.EVENT_READ:
                    request = link.client.recv(1 << 16)
                    if not request:
                        link.close()
                    number += 1
                    heapq.heappush(late, (time.monotonic() + delay_s, number, link, request))
            except OSError:
                link.close()
        for _ in range(len(thirsty)):
            if not line.free:
                break
            link = thirsty.popleft()
            if link.is_open:
                with suppress(OSError):
                    pass_on(link)
        while late and late[0][0] <= time.monotonic():
            _, _, link, request = heapq.heappop(late)
            if link.is_open:
                with suppress(OSError):
                    link.server.sendall(request)


@contextmanager
def slow_line(port: int, delay_s: float, mbit: float = 0) -> Iterator[str]:
    """Run one in a process of its own; the address to ask instead of the server's at ``port``."""
    command = [sys.executable, "-m", "benchmarks.slow_line", str(port), str(delay_s), str(mbit)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    serve(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]) * 1e6 / 8)
