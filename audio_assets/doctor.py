"""Checks what a run depends on, says how to mend what is wrong, and mends what killed runs left when asked."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from audio_assets import dead_runs, settings
from audio_assets.errors import AudioAssetsError
from audio_assets.partitions import PARTITIONS_NAME
from audio_assets.storage.atomic import remove_stale_temps

if TYPE_CHECKING:
    import dagster as dg

LOW_DISK_BYTES = 2_000_000_000
STALE_AFTER_S = 86_400.0
"""A temporary file that nobody has touched for a day belongs to a run that was killed."""


@dataclass(frozen=True)
class Finding:
    """One check: ``state`` is ``ok``, ``note`` (nothing stops a run) or ``wrong``; ``fix`` says what to do."""

    subject: str
    state: str
    text: str
    fix: str = ""

    def as_dict(self) -> dict[str, str]:
        """The finding as one JSON-ready object."""
        return asdict(self)

    def line(self) -> str:
        """The finding as one line."""
        mark = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}[self.state]
        return f"{mark}  {self.subject:<10} {self.text}" + (f". {self.fix}" if self.fix else "")


def diagnose() -> list[Finding]:
    """Check settings, bucket, engine, disk, Dagster's state and leftovers."""
    try:
        home = settings.home()
    except AudioAssetsError as error:
        return [Finding("settings", "wrong", str(error))]
    findings = [
        *_settings(),
        _guarded("bucket", _bucket),
        _guarded("engine", _engine),
        _guarded("home", lambda: _home(home)),
        _guarded("dagster", lambda: _dagster(home)),
    ]
    findings += list(_secrets())
    findings += list(_leftovers(home))
    findings += list(_events(home))
    return findings


def fix() -> list[str]:
    """End what killed runs left: runs that count as started, slots of pools, temporary files nobody writes.

    Returns:
        One line for each thing that was mended.

    Raises:
        SettingsError: the home cannot be written, or Dagster's configuration is wrong.
        StorageError: a database of Dagster's is damaged.
    """
    from audio_assets.dagster_home import open_instance, state_faults

    home = settings.home()
    instance = open_instance(home)
    with state_faults():
        mended = dead_runs.end(instance)
    for folder in sorted({path.parent for path in home.root.rglob(".*.tmp*")}):
        mended += [f"{path}: temporary file of a killed run, removed" for path in remove_stale_temps(folder)]
    return mended


def _guarded(subject: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except AudioAssetsError as error:
        return Finding(subject, "wrong", str(error))


def _settings() -> list[Finding]:
    """What is wrong with settings that a run meets late, or that only a sensor reads."""
    from audio_assets.assets.tokens import TokensConfig
    from audio_assets.resources import metrics

    wrong = []
    for check in (TokensConfig().check, settings.max_disk_bytes, metrics.check, _mapper, _webhook):
        try:
            check()
        except AudioAssetsError as error:
            wrong.append(Finding("settings", "wrong", str(error)))
    return wrong or [Finding("settings", "ok", "words, disk, metrics, mapper and webhook")]


def _mapper() -> None:
    if settings.load().audio_assets_mapper == "ray":
        from audio_assets.resources import ray_mapper

        ray_mapper.check()


def _webhook() -> None:
    url = settings.load().audio_assets_webhook_url
    if url is not None:
        settings.secure_url(url.get_secret_value(), "AUDIO_ASSETS_WEBHOOK_URL")


def _bucket() -> Finding:
    from audio_assets.resources.r2 import R2Resource

    found = settings.load()
    if not any([found.r2_bucket, found.r2_account_id, found.r2_endpoint_url]):
        return Finding("bucket", "note", "no R2 settings", "Only `audio-assets run --skip-ingestion` and `demo` work")
    r2 = R2Resource()
    r2.check()
    return Finding("bucket", "ok", f"{r2.bucket_name()} at {r2.endpoint()} can be listed")


def _engine() -> Finding:
    from audio_assets.resources.whisper import WhisperResource

    engine = WhisperResource().create_engine()
    return Finding("engine", "ok", f"{engine.name}, model {engine.model}")


def _home(home: settings.Home) -> Finding:
    there = next(p for p in [home.root, *home.root.parents] if p.exists())
    if not os.access(there, os.W_OK):
        return Finding("home", "wrong", f"{there} cannot be written", "Set AUDIO_ASSETS_HOME to a directory of yours")
    free = shutil.disk_usage(there).free
    if free < LOW_DISK_BYTES:
        return Finding(
            "home", "note", f"{home.root}: only {free / 1e9:.1f} GB free", "Free some, or move AUDIO_ASSETS_HOME"
        )
    return Finding("home", "ok", f"{home.root}, {free / 1e9:.0f} GB free")


def _dagster(home: settings.Home) -> Finding:
    from audio_assets.dagster_home import open_instance, state_faults

    instance = open_instance(home)
    with state_faults():
        return _runs(instance)


def _runs(instance: dg.DagsterInstance) -> Finding:
    import dagster as dg

    directory = os.environ["DAGSTER_HOME"]
    # The events, and the partitions with them, have a database of their own.
    instance.get_dynamic_partitions(PARTITIONS_NAME)
    dead = dead_runs.find(instance)
    if dead:
        return Finding(
            "dagster",
            "note",
            f"{len(dead)} runs are marked as started and their processes are gone",
            "The next `audio-assets run` or `audio-assets doctor --fix` marks them as failed",
        )
    started = instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    old = [r for r in started if time.time() - r.create_timestamp.timestamp() > STALE_AFTER_S]
    if old:
        return Finding(
            "dagster",
            "note",
            f"{len(old)} runs are marked as started for over a day",
            "If nobody works on them, mark them as failed in the UI: Runs, select, Terminate",
        )
    return Finding("dagster", "ok", f"state in {directory}")


def _events(home: settings.Home) -> Iterator[Finding]:
    from audio_assets.ingest.event_inbox import EventInbox

    inbox = EventInbox(home.sensors)
    count = inbox.malformed_count()
    if count:
        yield Finding(
            "events",
            "note",
            f"{count} messages of the queue were no events of this bucket; see {inbox.malformed_file}",
            "Let R2_EVENTS_QUEUE_ID be a queue that gets this bucket's notifications only",
        )


def _secrets() -> Iterator[Finding]:
    file = Path(".env")
    try:
        mode = file.stat().st_mode
    except OSError:
        return
    if mode & 0o077:
        yield Finding("secrets", "note", f"{file.absolute()} can be read by other users", "chmod 600 .env")


def _leftovers(home: settings.Home) -> Iterator[Finding]:
    def stale(path: Path) -> bool:
        try:
            return time.time() - path.stat().st_mtime > STALE_AFTER_S
        except FileNotFoundError:
            return False

    found = [
        path
        for directory in (home.audio, home.tables, home.cache, home.exports)
        if directory.is_dir()
        for pattern in ("*.tmp", "*.part")
        for path in directory.rglob(pattern)
        if stale(path)
    ]
    if found:
        yield Finding(
            "leftovers",
            "note",
            f"{len(found)} temporary files of killed runs, such as {found[0]}",
            "The next run removes them",
        )
    else:
        yield Finding("leftovers", "ok", "none")
