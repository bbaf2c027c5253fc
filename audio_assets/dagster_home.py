"""Where Dagster keeps its runs and partitions when ``DAGSTER_HOME`` is not set: in the home, so that they last."""

from __future__ import annotations

import errno
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from audio_assets.errors import AudioAssetsError, SettingsError, StorageError, machine_trouble
from audio_assets.settings import Home, expanded
from audio_assets.storage import atomic

if TYPE_CHECKING:
    from dagster import DagsterInstance

_OPENING_S = 60.0

DAGSTER_YAML = """\
# Dagster's own state for one machine: SQLite files next to this one. `make dev` and `audio-assets` copy it to
# DAGSTER_HOME when there is none yet.
telemetry:
  enabled: false

# No dialog that asks for an e-mail address at the first visit.
nux:
  enabled: false

# Each run loads a Whisper model and uses every core it is given: queue the rest.
concurrency:
  runs:
    max_concurrent_runs: 2

# Look for queued runs every second instead of every five: an upload is to be a row soon.
run_queue:
  dequeue_interval_seconds: 1

# Sensors in parallel: one that lists a large bucket does not hold up the one that hears of events.
sensors:
  use_threads: true
  num_workers: 4

# A run whose process was killed is marked as failed instead of staying "started" for ever.
run_monitoring:
  enabled: true
"""
"""The text of the project's ``dagster.yaml``, for installations that have no checkout beside them."""


def ensure_dagster_home(home: Home) -> Path:
    """Make sure that ``DAGSTER_HOME`` names a directory that lasts, and return it.

    Raises:
        SettingsError: the directory cannot be made or written.
    """
    configured = os.environ.get("DAGSTER_HOME")
    directory = expanded(configured, "DAGSTER_HOME") if configured else home.dagster
    if not directory.is_absolute():
        raise SettingsError(f"DAGSTER_HOME={configured!r} is not an absolute path; Dagster needs one")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        config = directory / "dagster.yaml"
        if not config.exists():
            atomic.write_bytes(config, DAGSTER_YAML.encode())
    except OSError as error:
        name = "DAGSTER_HOME" if configured else "AUDIO_ASSETS_HOME"
        raise SettingsError(
            f"{directory} cannot be written ({error.strerror}); set {name} to a directory of yours"
        ) from None
    os.environ["DAGSTER_HOME"] = str(directory)
    return directory


def open_instance(home: Home) -> DagsterInstance:
    """Dagster's instance in the directory of `ensure_dagster_home`.

    Of programs that open a new one at the same moment, Dagster leaves databases that nobody can open again: one after
    the other.

    Raises:
        SettingsError: the directory cannot be made or written, or its ``dagster.yaml`` is wrong.
        StorageError: a database of Dagster's is damaged or cannot be reached.
    """
    directory = ensure_dagster_home(home)
    with state_faults(), _turn(directory):
        return _opened(directory)


@contextmanager
def _turn(directory: Path) -> Iterator[None]:
    """Keep other programs from opening a new instance meanwhile, for as long as they wait."""
    from filelock import FileLock, Timeout

    with ExitStack() as held:
        try:
            held.enter_context(FileLock(directory / ".opening.lock", timeout=_OPENING_S))
        except Timeout:
            pass
        except OSError as error:
            # Nobody makes databases in a directory that is read-only: they are elsewhere, or there already.
            if error.errno not in (errno.EROFS, errno.EACCES):
                raise
        yield


def _opened(directory: Path) -> DagsterInstance:
    import dagster as dg
    from dagster._check import CheckError
    from yaml import YAMLError

    try:
        return dg.DagsterInstance.get()
    except (YAMLError, UnicodeDecodeError, dg.DagsterError, CheckError) as error:
        # What Dagster expects instead is pages.
        reason = " ".join(str(error).partition("Expected: ")[0].split()).removesuffix(".")[:300]
        raise SettingsError(
            f"{directory / 'dagster.yaml'}: {reason}; correct it, or remove it and audio-assets writes its own"
        ) from None


@contextmanager
def state_faults() -> Iterator[None]:
    """Say in one line what keeps Dagster from reading its state in ``DAGSTER_HOME``.

    Raises:
        StorageError: a database is damaged or cannot be reached, or the disk refuses.
    """
    from sqlalchemy.exc import DBAPIError

    directory = Path(os.environ["DAGSTER_HOME"])
    try:
        yield
    except DBAPIError as error:
        damaged = next((file for file in sorted(directory.rglob("*.db")) if _is_damaged(file)), None)
        if damaged is not None:
            raise StorageError(
                f"{damaged}: this database of Dagster's is damaged; move it away and Dagster begins a new one. It "
                "holds what Dagster noted of runs, and no transcripts"
            ) from None
        reason = " ".join(str(error.orig).split())[:300]
        raise StorageError(f"Dagster's state in {directory} cannot be read: {reason}; run again when it can") from None
    except OSError as error:
        trouble = machine_trouble(error)
        if trouble is None:
            raise
        raise trouble from None


def _is_damaged(database: Path) -> bool:
    """Whether SQLite cannot read a file. One that somebody has locked is not damaged."""
    try:
        with closing(sqlite3.connect(database.as_uri() + "?mode=ro", uri=True)) as connection:
            return bool(connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",))
    except sqlite3.OperationalError:
        return False
    except sqlite3.DatabaseError:
        return True


def package_version() -> str:
    """The installed version of this package."""
    try:
        return version("audio-assets")
    except PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    # `make dev` asks where Dagster's state is, so that it and the command line share it.
    from audio_assets.settings import home

    try:
        with open_instance(home()):
            print(os.environ["DAGSTER_HOME"])  # noqa: T201
    except AudioAssetsError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
