"""Where Dagster keeps its runs and partitions when ``DAGSTER_HOME`` is not set: in the home, so that they last."""

from __future__ import annotations

import os
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from audio_assets.errors import SettingsError
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
        SettingsError: the directory cannot be made or written.
    """
    import dagster as dg
    from filelock import FileLock, Timeout

    directory = ensure_dagster_home(home)
    with suppress(Timeout), FileLock(directory / ".opening.lock", timeout=_OPENING_S):
        return dg.DagsterInstance.get()
    return dg.DagsterInstance.get()


def package_version() -> str:
    """The installed version of this package."""
    try:
        return version("audio-assets")
    except PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    # `make dev` asks where Dagster's state is, so that it and the command line share it.
    from audio_assets.settings import home

    with open_instance(home()):
        print(os.environ["DAGSTER_HOME"])  # noqa: T201
