"""Ctrl-C and SIGTERM end a command at any moment, whoever else has a hand on signals.

Dagster, while it runs a job, puts handlers of its own in place. Between steps they only take a note, which is dropped
when the job ends; and afterwards SIGTERM does what SIGINT does: nothing, where a shell started this process in the
background with SIGINT ignored. So both signals get one handler, and a copy of each goes to a socket that no handler of
Python's can keep it from.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM})

UNWINDING_S = 8.0
"""Time between a signal and the end of the process, whatever still waits for a network, a name server or a model. What
is stored is safe from any kill, so nothing is lost but the work under way."""

_AGAIN_S = 0.02
"""Time between a signal that a finalizer lost and its repetition: enough to be out of the finalizer."""

EXIT_INTERRUPTED = 130

_MESSAGE = b"error: interrupted; what was transcribed is kept, run the same command again to go on\n"

_watch: _Watch | None = None


@contextmanager
def heeded() -> Iterator[None]:
    """Within the block SIGINT and SIGTERM raise KeyboardInterrupt in the main thread, and end the process soon after.

    SIGINT counts also where the parent ignored it, as scripts do for jobs in the background. For the main thread.
    """
    global _watch
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _watch = watch = _Watch()
    wakeup = signal.set_wakeup_fd(watch.writer.fileno(), warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    unraisable = sys.unraisablehook
    sys.unraisablehook = partial(_repeat_if_lost, watch, unraisable)
    try:
        yield
    finally:
        # The end of the process is still to come after a signal, and may take its time.
        if not watch.came():
            sys.unraisablehook = unraisable
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            watch.close()
            _watch = None


def check() -> None:
    """Raise for a signal that came in `heeded` and that somebody else's handler kept to itself.

    Raises:
        KeyboardInterrupt: one came.
    """
    if _watch is not None and _watch.came():
        raise KeyboardInterrupt


def conclude() -> int:
    """Say once that the command was interrupted; returns the exit code for that."""
    if _watch is None or not _watch.said.is_set():
        os.write(2, _MESSAGE)
    if _watch is not None:
        _watch.said.set()
        if threading.current_thread() is threading.main_thread():
            # The process ends now; another signal could only add a traceback.
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
    return EXIT_INTERRUPTED


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _repeat_if_lost(watch: _Watch, otherwise: Callable[[Any], object], lost: Any) -> None:
    """For `sys.unraisablehook`: nothing raised in a finalizer gets out of it, be it the end of the command.

    Python would print it with a traceback, and the main thread would go on until the process is ended for it.
    """
    if issubclass(lost.exc_type, Exception) or not watch.came():
        otherwise(lost)
        return
    again = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), signal.SIGINT))
    again.daemon = True
    again.start()


class _Watch:
    """Sees each signal, and ends the process when the main thread does not."""

    def __init__(self) -> None:
        self._reader, self.writer = socket.socketpair()
        self._reader.setblocking(False)
        self.writer.setblocking(False)
        self._lock = threading.Lock()
        self._came = False
        self._closed = False
        self.said = threading.Event()
        self._thread = threading.Thread(target=self._run, name="interrupts", daemon=True)
        self._thread.start()

    def came(self) -> bool:
        """Whether one of `SIGNALS` has arrived; the first that is seen starts the countdown."""
        with self._lock:
            try:
                arrived = self._reader.recv(4096)
            except BlockingIOError:
                arrived = b""
            if not self._came and SIGNALS & set(arrived):
                self._came = True
                countdown = threading.Timer(UNWINDING_S, _end)
                countdown.daemon = True
                countdown.start()
            return self._came

    def close(self) -> None:
        self._closed = True
        self.writer.close()
        self._thread.join()
        self._reader.close()

    def _run(self) -> None:
        while not (self._closed or self.came()):
            select.select([self._reader], [], [])


def _end() -> None:
    if sys.stderr.isatty():
        # A progress bar may have hidden the cursor.
        os.write(2, b"\x1b[?25h\n")
    os._exit(conclude())
