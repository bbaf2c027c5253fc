"""Events between the queue and Dagster: on the disk before the queue forgets them, until Dagster has their runs.

    stored ──▶ asked for (has a run key) ──▶ done (Dagster has the run)

A process that is killed at any point loses nothing: what was not stored comes again from the queue; what was stored and
not asked for is asked for by the next tick; what was asked for is asked for again, with the same run key, until Dagster
is seen to have the run. An event that the queue tells twice has the same id and is stored once, also when it was done
long ago: ids are remembered for longer than a queue keeps a message.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audio_assets.ingest.sensor_database import transaction
from audio_assets.storage import atomic

REMEMBERED_S = 15 * 86_400
"""A queue keeps a message for at most 14 days (Cloudflare Queues, limits)."""

MALFORMED_MAX_BYTES = 16_000_000
"""When the file of malformed messages is longer than this, it is put aside, and the one before it goes."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    id TEXT PRIMARY KEY, prefix TEXT NOT NULL, stored_at REAL NOT NULL, run_key TEXT, done_at REAL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS events_open ON events (run_key, stored_at) WHERE done_at IS NULL;
CREATE TABLE IF NOT EXISTS malformed (id TEXT PRIMARY KEY, stored_at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class RunWish:
    """A run that is to be started for one prefix."""

    run_key: str
    prefix: str


class EventInbox:
    """The inbox under ``directory``, made when first written. Safe to use from several processes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.database = directory / "events.sqlite"
        self.malformed_file = directory / "malformed-events.jsonl"

    def store(self, events: Iterable[tuple[str, str]], now: float) -> int:
        """Keep events, as (id, prefix of the object); on the disk when this returns. Returns how many were new."""
        with self._transaction() as connection:
            before = connection.total_changes
            connection.executemany(
                "INSERT OR IGNORE INTO events (id, prefix, stored_at) VALUES (?, ?, ?)",
                [(event, prefix, now) for event, prefix in events],
            )
            return connection.total_changes - before

    def set_aside(self, messages: Iterable[dict[str, Any]], now: float) -> int:
        """Append messages that are no events to `malformed_file`, once each by their ``id``; returns how many.

        Each is a JSON object on a line of its own. They are on the disk when this returns.
        """
        with self._transaction() as connection:
            known = {row[0] for row in connection.execute("SELECT id FROM malformed")}
            fresh = {m["id"]: m for m in messages if m["id"] not in known}
            if not fresh:
                return 0
            if self.malformed_file.exists() and self.malformed_file.stat().st_size > MALFORMED_MAX_BYTES:
                self.malformed_file.replace(self.malformed_file.with_suffix(".old.jsonl"))
            with self.malformed_file.open("ab") as file:
                for message in fresh.values():
                    file.write(_line(message))
                file.flush()
                os.fsync(file.fileno())
            # A kill between the file and this leaves a line that comes twice, never one that is missing.
            atomic.crash_point("events:malformed-written")
            connection.executemany("INSERT INTO malformed VALUES (?, ?)", [(name, now) for name in fresh])
            connection.execute(
                "INSERT INTO counts VALUES ('malformed', ?) ON CONFLICT DO UPDATE SET value = value + excluded.value",
                [len(fresh)],
            )
            return len(fresh)

    def malformed_count(self) -> int:
        """Messages that were set aside since the inbox was made."""
        if not self.database.exists():
            return 0
        with self._transaction() as connection:
            row = connection.execute("SELECT value FROM counts WHERE name = 'malformed'").fetchone()
            return row[0] if row else 0

    def asked(self) -> list[RunWish]:
        """Runs that were asked for and that Dagster was not yet seen to have, the oldest first."""
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT run_key, prefix FROM events WHERE done_at IS NULL AND run_key IS NOT NULL"
                " GROUP BY run_key, prefix ORDER BY min(stored_at), prefix"
            )
            return [RunWish(*row) for row in rows]

    def done(self, run_keys: Iterable[str], now: float) -> None:
        """Dagster has these runs."""
        with self._transaction() as connection:
            connection.executemany(
                "UPDATE events SET done_at = ? WHERE run_key = ? AND done_at IS NULL",
                [(now, key) for key in run_keys],
            )

    def ask(self, limit: int, is_busy: Callable[[str], bool]) -> list[RunWish]:
        """Ask for a run for each prefix with events, the oldest first, at most ``limit``.

        Prefixes that ``is_busy`` wait: their run has perhaps listed the prefix already, and one run after it serves
        all events that come meanwhile. The run key follows from the events: it is the same whenever it is told.
        """
        with self._transaction() as connection:
            waiting: dict[str, list[str]] = {}
            for event, prefix in connection.execute(
                "SELECT id, prefix FROM events WHERE done_at IS NULL AND run_key IS NULL ORDER BY stored_at, id"
            ):
                waiting.setdefault(prefix, []).append(event)
            wishes: list[RunWish] = []
            for prefix, events in waiting.items():
                if len(wishes) >= limit:
                    break
                if is_busy(prefix):
                    continue
                digest = hashlib.sha256("\0".join([prefix, *sorted(events)]).encode()).hexdigest()
                wishes.append(RunWish(f"events-{digest[:40]}", prefix))
                connection.executemany(
                    "UPDATE events SET run_key = ? WHERE id = ?", [(wishes[-1].run_key, event) for event in events]
                )
            return wishes

    def waiting(self) -> int:
        """Prefixes whose events wait for a run to be asked for."""
        with self._transaction() as connection:
            [(count,)] = connection.execute(
                "SELECT count(DISTINCT prefix) FROM events WHERE done_at IS NULL AND run_key IS NULL"
            )
            return int(count)

    def forget_old(self, now: float) -> None:
        """Forget what was done, or set aside, so long ago that the queue cannot tell it again."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM events WHERE done_at < ?", [now - REMEMBERED_S])
            connection.execute("DELETE FROM malformed WHERE stored_at < ?", [now - REMEMBERED_S])

    def _transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        return transaction(self.database, _SCHEMA, "counts")


def _line(message: dict[str, Any]) -> bytes:
    """A message as a line of JSON; without its body where that cannot be written, as none that is too deep can."""
    try:
        return json.dumps(message).encode() + b"\n"
    except (ValueError, RecursionError):
        return json.dumps(message | {"body": None}).encode() + b"\n"
