"""Writing a file so that readers meet the old one or the new one, whole, and nothing else.

A file is written under a temporary name beside its place, flushed to the disk and renamed. A process that dies leaves
at most a temporary file, which `remove_stale_temps` clears away on the next run. A temporary file whose writer is alive
is locked (``flock``), so that cleaning never takes a file from under another process, on this machine or in another
container that shares the directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from audio_assets import processes
from audio_assets.errors import BusyError

CRASH_VARIABLE = "AUDIO_ASSETS_CRASH_AT"
"""Environment variable that makes the process kill itself at a named point. Only tests set it."""

_TEMP = re.compile(r"^\.(?P<name>.+)\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp(?P<suffix>[.-].+)?$", re.DOTALL)

_GRACE_S = 60.0
"""An unlocked temporary file of a living process may be between creation and lock: it is left alone this long."""

_NAME_BYTES = 180
"""How much of the final name a temporary name repeats: names have at most 255 bytes."""

_open_temps: set[str] = set()


def crash_point(name: str) -> None:
    """Kill this process, as a power cut would, where `CRASH_VARIABLE` names this point; otherwise do nothing."""
    if os.environ.get(CRASH_VARIABLE) == name:
        os.kill(os.getpid(), signal.SIGKILL)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``, whole or not at all.

    Raises:
        OSError: the disk refused; what was at ``path`` is untouched.
    """
    with replacing(path) as temp:
        temp.write_bytes(data)


@contextlib.contextmanager
def replacing(path: Path, *, crash_name: str | None = None) -> Iterator[Path]:
    """A temporary path to write to, which takes the place of ``path`` when the block ends well.

    The directory is made when it is missing. The temporary file exists and is empty; a library that wants to create the
    file itself may delete it first. When the block raises, the temporary file goes and ``path`` stays as it was.

    Args:
        path: where the file shall be.
        crash_name: prefix of the points at which tests may kill the process: ``<crash_name>:before-rename`` and
            ``<crash_name>:after-rename``.

    Raises:
        OSError: the disk refused; what was at ``path`` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temp, lock = _create_temp(path)
    try:
        yield temp
        sync(temp)
        if crash_name:
            crash_point(f"{crash_name}:before-rename")
        temp.replace(path)
        sync(path.parent)
        if crash_name:
            crash_point(f"{crash_name}:after-rename")
    except BaseException:
        # A library may have put files of its own beside it, such as DuckDB's write-ahead log.
        for left in [temp, *(p for p in path.parent.iterdir() if p.name.startswith(f"{temp.name}."))]:
            with contextlib.suppress(OSError):
                _remove(left)
        raise
    finally:
        os.close(lock)
        _open_temps.discard(str(temp))


@contextlib.contextmanager
def replacing_directory(path: Path) -> Iterator[Path]:
    """An empty directory to fill, which takes the place of ``path`` when the block ends well.

    When the block raises, what was filled goes and ``path`` stays as it was. Between two renames at the end ``path`` is
    missing for a moment; a process that dies there leaves the old one beside it, and the next call, or
    `settle_directory`, puts it back.

    Raises:
        BusyError: another process is at it.
        OSError: the disk refused.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = _beside(path)
    with _alone_at(path):
        _settle(path)
        fresh.mkdir()
        try:
            yield fresh
            if path.exists():
                path.rename(old)
            fresh.rename(path)
        finally:
            for left in (fresh, old):
                if left.exists() and path.exists():
                    shutil.rmtree(left)


def settle_directory(path: Path) -> None:
    """Clear away what a `replacing_directory` that was killed has left beside ``path``.

    Raises:
        BusyError: a process is at it.
        OSError: the disk refused.
    """
    if any(left.exists() for left in _beside(path)):
        with _alone_at(path):
            _settle(path)


def _beside(path: Path) -> tuple[Path, Path]:
    """The directory that is to take the place of ``path``, and the one whose place it takes."""
    return path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")


@contextlib.contextmanager
def _alone_at(path: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    try:
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=0):
            yield
    except Timeout:
        raise BusyError(f"{path}: another process is writing it; try again when it is done") from None


def _settle(path: Path) -> None:
    fresh, old = _beside(path)
    if old.exists() and not path.exists():
        old.rename(path)
    for left in (fresh, old):
        if left.exists():
            shutil.rmtree(left)


def remove_stale_temps(directory: Path) -> list[Path]:
    """Delete the temporary files that dead processes left in ``directory`` (not below it); return their paths.

    A file that a living process writes is left alone. A missing directory holds nothing.
    """
    return [temp for temp in stale_temps(directory) if _remove(temp)]


def stale_temps(directory: Path) -> list[Path]:
    """The temporary files that dead processes left in ``directory`` (not below it)."""
    try:
        with os.scandir(directory) as entries:
            names = [entry.name for entry in entries if entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [directory / name for name in sorted(names) if _is_stale(directory / name)]


def _create_temp(path: Path) -> tuple[Path, int]:
    """A new, empty, locked temporary file beside ``path``, and the descriptor that holds the lock."""
    shown = path.name.encode()[:_NAME_BYTES].decode(errors="ignore")
    temp = path.parent / f".{shown}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    _open_temps.add(str(temp))
    try:
        descriptor = os.open(temp, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except BaseException:
        _open_temps.discard(str(temp))
        raise
    with contextlib.suppress(
        OSError
    ):  # some network file systems have no locks; the process id still protects the file
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return temp, descriptor


def sync(path: Path) -> None:
    """Flush a file or a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot flush a directory; they order the rename themselves.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _is_stale(temp: Path) -> bool:
    match = _TEMP.match(temp.name)
    if match is None:
        return False
    # What a library keeps beside its file (``….tmp.wal``) is stale when that file is.
    suffix = match["suffix"] or ""
    owner = temp.with_name(temp.name[: len(temp.name) - len(suffix)])
    if str(owner) in _open_temps:
        return False
    return (bool(suffix) and not owner.exists()) or is_abandoned(owner, int(match["pid"]))


def _remove(temp: Path) -> bool:
    try:
        if temp.is_dir():
            shutil.rmtree(temp)
        else:
            temp.unlink()
    except FileNotFoundError:
        return False
    return True


def is_abandoned(temp: Path, pid: int) -> bool:
    """Whether nobody writes ``temp`` any more, which process ``pid`` made and holds the lock of while it does."""
    try:
        descriptor = os.open(temp, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        if pid == os.getpid() or not processes.exists(pid):
            return True
        return time.time() - os.fstat(descriptor).st_mtime > _GRACE_S
    finally:
        os.close(descriptor)
