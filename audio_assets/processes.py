"""Which processes are alive, told by a locked file of each.

A process id says too little: in a container every process may be number 1, a number is given again after a restart, and
two containers that share a directory do not see each other's. A lock is let go by the system when its process ends,
however it ends.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
from pathlib import Path

_ENDING = ".process"

_guard = threading.Lock()
_own: dict[tuple[Path, int], tuple[str, int]] = {}
"""Name and open file of this process for each directory. The number tells a forked child from its parent."""


def exists(pid: int) -> bool:
    """Whether there is a process of that number here, be it another one by now."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def own_name(directory: Path) -> str:
    """The name of this process in ``directory``, whose file stays locked for as long as it lives.

    Raises:
        OSError: the disk refuses.
    """
    with _guard:
        place = (directory, os.getpid())
        known = _own.get(place)
        if known is not None and (directory / known[0]).exists():
            return known[0]
        directory.mkdir(parents=True, exist_ok=True)
        while True:
            path = directory / f"{os.getpid()}-{secrets.token_hex(8)}{_ENDING}"
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # Somebody who looks for the dead was between us and our lock.
                os.close(handle)
                continue
            except OSError:
                # Some network file systems have no locks; the process id tells a little.
                pass
            if path.exists():
                _own[place] = (path.name, handle)
                return path.name
            os.close(handle)


def is_alive(directory: Path, name: str) -> bool:
    """Whether the process of that ``name`` in ``directory`` still lives; the file of a dead one is removed."""
    own = _own.get((directory, os.getpid()))
    if own is not None and own[0] == name:
        return True
    path = directory / name
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        number = name.partition("-")[0]
        return number.isdigit() and exists(int(number))
    else:
        path.unlink(missing_ok=True)
        return False
    finally:
        os.close(handle)


def remove_dead(directory: Path) -> None:
    """Remove the files of dead processes."""
    for path in directory.glob(f"*{_ENDING}"):
        is_alive(directory, path.name)
