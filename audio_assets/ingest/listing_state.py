"""What the sensor that lists the bucket remembers: what is stored of each prefix, and what it has asked for.

For each prefix there are two digests (`bucket_scan`): of the objects that the bucket lists, and of the rows of
`raw_audio`. Where they differ there is something to do. The pair of the two is what a request is about: the same pair
is asked for once, however many ticks see it, and again only after one of the two has changed.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from audio_assets.ingest.bucket_scan import BucketScan
from audio_assets.ingest.sensor_database import transaction
from audio_assets.ingest.sweep import Part, Sweep

ABSENT_SCANS = 2
"""A partition without rows is retired when so many complete scans in a row have not seen its prefix: an object that was
just announced by another way may not be in a scan that began before it."""

RETIRED_AT_ONCE = 500
"""Most partitions that one tick retires: Dagster's daemon deletes them one by one, each in some 10 ms, and no other
sensor has its turn meanwhile."""

_DIGEST_BYTES = 16
_SCHEMA = """
CREATE TABLE IF NOT EXISTS prefixes (
    prefix TEXT PRIMARY KEY, identity TEXT, stored BLOB NOT NULL, row_count INTEGER NOT NULL, asked_stored BLOB,
    asked_listed BLOB, run_key TEXT, taken INTEGER NOT NULL, asked_at REAL NOT NULL, absent INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS scan (prefix TEXT PRIMARY KEY, digest BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS scan_parts (
    prefix TEXT PRIMARY KEY, levels INTEGER NOT NULL, after TEXT NOT NULL, done INTEGER NOT NULL
) WITHOUT ROWID;
"""


@dataclass
class PrefixState:
    """One prefix. ``identity`` is that of the partition file that ``stored`` and ``row_count`` were read from.

    ``asked`` is the pair of digests (stored, listed) of the last request, ``run_key`` its key, ``taken`` whether
    Dagster was seen to have its run. ``absent`` counts scans in a row that did not see the prefix.
    """

    prefix: str
    identity: str | None = None
    stored: int = 0
    row_count: int = 0
    asked: tuple[int, int] | None = None
    run_key: str | None = None
    taken: bool = False
    asked_at: float = 0.0
    absent: int = 0


@dataclass(frozen=True)
class Changes:
    """What a tick is to do.

    ``again`` are requests that Dagster did not take over yet, ``new`` those of this tick; ``waiting`` prefixes are left
    for later ticks; ``retired`` ones are to be no partitions any more. ``changed`` is to be saved before anything is
    asked for, and ``forgotten`` to be removed.
    """

    again: list[PrefixState]
    new: list[PrefixState]
    waiting: int
    retired: list[str]
    changed: list[PrefixState]
    forgotten: list[str]


class ListingState:
    """The state under ``directory``, made when first written. For one sensor at a time, which has a ``name`` for it."""

    def __init__(self, directory: Path, name: str = "listing") -> None:
        self.path = directory / f"{name}.sqlite"

    def load(self) -> dict[str, PrefixState]:
        """Every prefix that is known.

        Raises:
            StorageError: the disk refused, or the file is damaged.
        """
        with self._transaction() as connection:
            return {
                prefix: PrefixState(
                    prefix,
                    identity,
                    _number(stored),
                    rows,
                    None if asked_stored is None else (_number(asked_stored), _number(asked_listed)),
                    run_key,
                    bool(taken),
                    asked_at,
                    absent,
                )
                for (
                    prefix,
                    identity,
                    stored,
                    rows,
                    asked_stored,
                    asked_listed,
                    run_key,
                    taken,
                    asked_at,
                    absent,
                ) in connection.execute("SELECT * FROM prefixes")
            }

    def save(self, changed: Iterable[PrefixState], removed: Iterable[str] = ()) -> None:
        """Keep these prefixes and forget those; on the disk when this returns.

        Raises:
            StorageError: the disk refused; everything is as it was.
        """
        with self._transaction() as connection:
            connection.executemany("DELETE FROM prefixes WHERE prefix = ?", [(prefix,) for prefix in removed])
            connection.executemany(
                "INSERT OR REPLACE INTO prefixes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        p.prefix,
                        p.identity,
                        _bytes(p.stored),
                        p.row_count,
                        None if p.asked is None else _bytes(p.asked[0]),
                        None if p.asked is None else _bytes(p.asked[1]),
                        p.run_key,
                        p.taken,
                        p.asked_at,
                        p.absent,
                    )
                    for p in changed
                ],
            )

    def load_scan(self, about: str, depth: int) -> BucketScan:
        """The scan that earlier ticks began; a new one if there is none, or none ``about`` the same."""
        with self._transaction() as connection:
            facts = dict(connection.execute("SELECT name, value FROM facts"))
            digests = {prefix: _number(digest) for prefix, digest in connection.execute("SELECT * FROM scan")}
            parts = [
                Part(prefix, levels, after, bool(done))
                for prefix, levels, after, done in connection.execute("SELECT * FROM scan_parts")
            ]
        if facts.get("about") != about:
            return BucketScan.begin(depth)
        if not parts:
            return BucketScan.begin(depth, (int(facts.get("last_keys", 0)), int(facts.get("last_prefixes", 0))))
        return BucketScan(Sweep(parts), digests, int(facts["keys"]), int(facts["pages"]))

    def save_scan(self, scan: BucketScan, about: str) -> None:
        """Keep a scan for the next tick; of a complete one, what tells the next scan how to go about it."""
        parts, digests = list(scan.sweep.parts.values()), scan.digests
        facts = {"about": about, "keys": str(scan.keys), "pages": str(scan.pages)}
        if scan.complete:
            facts |= {"last_keys": str(scan.keys), "last_prefixes": str(len(digests))}
            parts, digests = [], {}
        with self._transaction() as connection:
            for table in ("scan", "scan_parts", "facts"):
                connection.execute(f"DELETE FROM {table}")  # noqa: S608 - names of this function
            connection.executemany("INSERT INTO scan VALUES (?, ?)", [(p, _bytes(d)) for p, d in digests.items()])
            connection.executemany(
                "INSERT INTO scan_parts VALUES (?, ?, ?, ?)", [(p.prefix, p.levels, p.after, p.done) for p in parts]
            )
            connection.executemany("INSERT INTO facts VALUES (?, ?)", list(facts.items()))

    def _transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        return transaction(self.path, _SCHEMA, "scan_parts")


def compare(
    listed: dict[str, int],
    states: dict[str, PrefixState],
    *,
    registered: Collection[str],
    is_busy: Callable[[str], bool],
    has_run: Callable[[str], bool],
    limit: int,
    now: float,
) -> Changes:
    """What is to be asked for after a complete scan.

    Args:
        listed: digest by prefix, of the whole bucket.
        states: what is known; changed in place, and added to.
        registered: prefixes that are partitions in Dagster.
        is_busy: whether a run is at work on a prefix, or queued for it: it may or may not see the change, so wait.
        has_run: whether Dagster took over the run of a key.
        limit: most requests; the others wait for the next tick, those that waited longest first.
        now: Unix time.
    """
    changed: dict[str, PrefixState] = {}
    again: list[PrefixState] = []
    wanted: list[tuple[PrefixState, int]] = []
    waiting = 0
    for prefix in listed.keys() - states.keys():
        states[prefix] = PrefixState(prefix)
    for prefix, state in states.items():
        there = listed.get(prefix, 0)
        absent = 0 if prefix in listed else min(state.absent + 1, ABSENT_SCANS)
        if absent != state.absent:
            state.absent = absent
            changed[prefix] = state
        if there == state.stored:
            if state.asked is not None:
                state.asked, state.run_key, state.taken = None, None, False
                changed[prefix] = state
        elif state.asked == (state.stored, there) and state.run_key is not None:
            if not state.taken and has_run(state.run_key):
                state.taken = True
                changed[prefix] = state
            if not state.taken:
                again.append(state)
        elif is_busy(prefix):
            waiting += 1
        else:
            wanted.append((state, there))
    again = again[:limit]
    wanted.sort(key=lambda pair: (pair[0].asked_at, pair[0].prefix))
    new = wanted[: limit - len(again)]
    for state, there in new:
        state.asked = (state.stored, there)
        # With the time, since the same change can come back after it was undone, and is then another.
        told = f"{state.prefix}\0{state.stored}\0{there}\0{now}"
        state.run_key = f"objects-{hashlib.sha256(told.encode('utf-8', 'surrogatepass')).hexdigest()[:40]}"
        state.taken = False
        state.asked_at = now
        changed[state.prefix] = state
    retired = []
    for prefix in registered:
        known = states.setdefault(prefix, PrefixState(prefix))
        if prefix not in listed and known.row_count == 0 and known.absent == 0:
            known.absent = 1
            changed[prefix] = known
        elif known.row_count == 0 and known.absent >= ABSENT_SCANS and not is_busy(prefix):
            retired.append(prefix)
    waiting += len(wanted) - len(new)
    known_to_dagster = set(registered)
    forgotten = {
        p for p, s in states.items() if s.identity is None and s.absent >= ABSENT_SCANS and p not in known_to_dagster
    }
    return Changes(
        again,
        [state for state, _ in new],
        waiting,
        sorted(retired)[:RETIRED_AT_ONCE],
        [state for prefix, state in changed.items() if prefix not in forgotten],
        sorted(forgotten),
    )


def _bytes(digest: int) -> bytes:
    return digest.to_bytes(_DIGEST_BYTES, "big")


def _number(stored: bytes) -> int:
    return int.from_bytes(stored, "big")
