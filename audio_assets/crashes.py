"""Files on which a process has died: before they are touched again, a process of their own has to come through.

A decoder that crashes, or memory that runs out, takes the whole run with it, and every run after it, since the next one
meets the same file. So the name of a file stands in a small locked file while it is decoded. A mark that nobody holds
is a dead process's: it died of this file perhaps, or it was only killed, and then the trial passes and the mark goes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from audio_assets.errors import FileFailed, InvalidAudio

_SUFFIX = ".mark"
_MOST_BYTES = 256
_FORGOTTEN_S = 30 * 86400
_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGSYS}
_NO_MEMORY = 77
_ALONE_BYTES = 6 << 30
"""Address space of a trial: a file that would take more takes the machine down."""


class CrashMarks:
    """Marks of the files that this process decodes, in ``directory``; to be closed. Several threads may use them."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._lock = threading.Lock()
        self._free: list[tuple[int, Path]] = []
        self._dead = self._found()

    def __enter__(self) -> CrashMarks:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the marks of this object; those of dead processes stay until their file has passed a trial."""
        with self._lock:
            free, self._free = self._free, []
        for handle, path in free:
            path.unlink(missing_ok=True)
            os.close(handle)

    @contextlib.contextmanager
    def around(self, name: str, trial: Sequence[str], timeout_s: float) -> Iterator[None]:
        """Have ``name`` marked while the block runs. If a process died with its mark, ``trial`` is run before.

        Args:
            name: of the bytes, one line of ASCII.
            trial: module and arguments of a command that does to the file what the block will do.
            timeout_s: what the trial may take.

        Raises:
            InvalidAudio: the file ends every process that decodes it.
            FileFailed: the trial was killed or took too long; the next run tries again.
        """
        with self._lock:
            left = self._dead.get(name, [])
        if left:
            _try_alone(trial, timeout_s)
            with self._lock:
                self._dead.pop(name, None)
            for path in left:
                path.unlink(missing_ok=True)
        slot = self._take()
        if slot is None:
            yield
            return
        handle, _ = slot
        try:
            # On a full disk there is a file, and no room for a name in it.
            with contextlib.suppress(OSError):
                os.pwrite(handle, name.encode()[:_MOST_BYTES].ljust(_MOST_BYTES), 0)
            yield
        finally:
            os.ftruncate(handle, 0)
            with self._lock:
                self._free.append(slot)

    def _take(self) -> tuple[int, Path] | None:
        """A locked, empty file; None where the disk or the file system has none to give, which must stop nobody."""
        with self._lock:
            if self._free:
                return self._free.pop()
        path = self._directory / f"{os.getpid()}-{secrets.token_hex(6)}{_SUFFIX}"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except OSError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            # Without locks a living process could not be told from a dead one.
            os.close(handle)
            path.unlink(missing_ok=True)
            return None
        return handle, path

    def _found(self) -> dict[str, list[Path]]:
        """What dead processes were at, and the marks that say so. Empty and old ones are removed."""
        dead: dict[str, list[Path]] = {}
        with contextlib.suppress(OSError):
            for path in sorted(self._directory.glob(f"*{_SUFFIX}")):
                name = _left_in(path)
                if name:
                    dead.setdefault(name, []).append(path)
                elif name is not None:
                    path.unlink(missing_ok=True)
        return dead


def _left_in(path: Path) -> str | None:
    """What a dead process was at; empty for nothing, or long ago; None while somebody lives who holds the mark."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if time.time() - os.fstat(handle).st_mtime > _FORGOTTEN_S:
            return ""
        return os.pread(handle, _MOST_BYTES, 0).decode("ascii", "replace").strip()
    except OSError:
        return None
    finally:
        os.close(handle)


def _try_alone(trial: Sequence[str], timeout_s: float) -> None:
    package = str(Path(__file__).parent.parent)
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    with subprocess.Popen(  # noqa: S603 - a module of this package
        [sys.executable, "-m", *trial],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise FileFailed(
                f"a run died while it was decoded, and alone it takes longer than {timeout_s:.0f} s; convert the file"
            ) from None
        finally:
            process.kill()
    if code == _NO_MEMORY:
        raise FileFailed("a run died while it was decoded, and alone it takes all memory; convert or split the file")
    if code >= 0:
        # Also where it is refused: the caller will hear the same reason.
        return
    name = signal.Signals(-code).name
    if -code in _CRASHES:
        raise InvalidAudio(f"decoding it crashes the decoder ({name}), which ended a run; convert the file")
    raise FileFailed(
        f"a run died while it was decoded, and the process that tried it alone was ended by {name}; if memory ran out, "
        "convert or split the file"
    )


def alone() -> None:
    """In a process that tries a file: end with whoever asked for it, and take no more memory than one file should."""
    import resource

    def listen() -> None:
        # Not through `sys.stdin`, whose lock a thread may not hold when the interpreter ends.
        os.read(0, 1)
        os._exit(0)

    def tell(kind: type[BaseException], error: BaseException, traceback: object) -> None:
        os._exit(_NO_MEMORY if issubclass(kind, MemoryError) else 1)

    sys.excepthook = tell
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (_ALONE_BYTES, _ALONE_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.Thread(target=listen, daemon=True).start()
