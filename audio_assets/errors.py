"""The errors this package raises, and what each one means for a run.

    AudioAssetsError          anything that a user should read as one line
    ├── SettingsError         a setting, credential or bucket is missing or wrong: dooms every file (exit 4)
    ├── NoSuchPrefixError     nothing lies under a prefix that was asked for (exit 2)
    ├── PartitionKeyError     a partition of Dagster's is none that a prefix has (exit 2)
    ├── BusyError             another run holds what this one needs (exit 5)
    │   └── SupersededError   a newer run has published what this one was about to (exit 5)
    ├── StorageError          a table, the warehouse or an export could not be read or written (exit 1)
    │   └── SchemaError       data does not have the columns that `schemas.py` promises
    └── FileError             one file could not be handled: becomes a row with `status` and `error`
        ├── InvalidAudio      status ``invalid``: the bytes are not audio that can be decoded
        ├── FileFailed        status ``failed``: tried and gave up; the next run tries again
        └── FileDeferred      status ``deferred``: rate limit or budget; the next run tries again

A message names the thing, the reason and the next step, and fits on one line.
"""

from __future__ import annotations

import errno
import os
from typing import ClassVar


class AudioAssetsError(Exception):
    """Base of all errors of this package. ``exit_code`` is what the command line exits with."""

    exit_code: int = 1


class SettingsError(AudioAssetsError):
    """A setting, credential or bucket is missing or wrong. Retrying cannot help."""

    exit_code = 4


class NoSuchPrefixError(AudioAssetsError):
    """Nothing lies under a prefix that was asked for."""

    exit_code = 2


class PartitionKeyError(AudioAssetsError, ValueError):
    """A partition of Dagster's is none that a prefix has."""

    exit_code = 2


class BusyError(AudioAssetsError):
    """Another run holds the partition or the warehouse."""

    exit_code = 5


class SupersededError(BusyError):
    """A newer run has published what this one was about to; nothing was changed."""


class StorageError(AudioAssetsError):
    """A table, the warehouse or an export could not be read or written."""


_IN_THE_WAY = "Move away what lies in its place"

_MACHINE = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some space",
    errno.EROFS: "Make it writable",
    errno.EACCES: "Correct its permissions",
    errno.EPERM: "Correct its permissions",
    errno.EMFILE: "Allow more open files (`ulimit -n 1024`)",
    errno.ENFILE: "Close some programs",
    errno.EIO: "Check the disk",
    errno.EEXIST: _IN_THE_WAY,
    errno.EISDIR: _IN_THE_WAY,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.ELOOP: _IN_THE_WAY,
}


def machine_trouble(error: OSError) -> StorageError | None:
    """What a disk that is full, read-only or broken, a lack of file handles, or a file or directory where the other
    should be, means to a user; None if it is none of these.
    """
    cure = _MACHINE.get(error.errno) if error.errno is not None else None
    if cure is None or error.errno is None:
        return None
    # Of a rename the second name is the one that people know.
    named = error.filename2 or error.filename
    where = f"{named}: " if named else ""
    return StorageError(
        f"{where}{os.strerror(error.errno)}; what was stored before is untouched. {cure}, then run again"
    )


class SchemaError(StorageError):
    """Data does not have the columns, types or nullability that `schemas.py` promises."""


class FileError(AudioAssetsError):
    """One file could not be handled. ``status`` goes to the row, ``str(error)`` to its ``error`` column."""

    status: ClassVar[str] = "failed"


class InvalidAudio(FileError):
    """The bytes are not audio that can be decoded."""

    status = "invalid"


class FileFailed(FileError):
    """Tried and gave up; the next run tries again."""

    status = "failed"


class FileDeferred(FileError):
    """Put off by a rate limit or a budget; the next run tries again."""

    status = "deferred"
