"""The disk budget: which files of the mirror stay, and which are dropped for others, to be fetched again when needed.

Dropped first is what was transcribed, least recently used first; then what still waits, last come first, since it is
transcribed last. Never dropped are files in use, and files that the bucket could not give back: copied in by hand,
changed in place, or gone from the bucket. What is known of a file, and its rows, stay.

An index in ``.state/disk.sqlite`` knows sizes and uses; processes that share the mirror share it. It can be deleted:
it is made anew from the files, and what was dropped is then fetched again.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from audio_assets import processes
from audio_assets.errors import FileFailed, StorageError

if TYPE_CHECKING:
    from audio_assets.ingest.listing import RemoteObject
    from audio_assets.ingest.mirror import Mirror

INDEX = "disk.sqlite"
PROCESSES = "processes"
"""Folder beside the index, with a locked file of each process that holds something."""

_LOOK_AGAIN_S = 600.0
"""How long the index is trusted before it is compared with the files: somebody may add or remove some by hand."""
_POLL_S = 0.05
_BUSY_TIMEOUT_S = 60.0
_AT_ONCE = 100

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    key BLOB PRIMARY KEY, size INTEGER NOT NULL, etag TEXT, used REAL NOT NULL, spent INTEGER NOT NULL,
    dropped INTEGER NOT NULL, kept INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS held (
    token TEXT PRIMARY KEY, key BLOB NOT NULL, size INTEGER NOT NULL, process TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value REAL NOT NULL);
"""

_CANDIDATES = """
SELECT key, size FROM files
WHERE NOT dropped AND NOT kept AND (spent OR ?) AND key NOT IN (SELECT key FROM held)
ORDER BY spent DESC, CASE WHEN spent THEN used ELSE -used END LIMIT ?
"""


_MAY_END = "SELECT count(*) FROM held WHERE size > 0 OR key IN (SELECT key FROM files WHERE NOT dropped)"
"""Holds that will free something. Who waits for room holds a key, too."""


class NoRoomYet(FileFailed):
    """There is no room for a file that is not needed yet."""


class DiskBudget:
    """The files of ``mirror`` within ``max_bytes``; without a limit nothing is dropped, and the index kept up."""

    def __init__(self, mirror: Mirror, max_bytes: int | None) -> None:
        self.mirror = mirror
        self.max_bytes = max_bytes
        self.path = index_path(mirror.root)
        self._processes = self.path.with_name(PROCESSES)
        self._looked = threading.Lock()
        self._look()

    def used_bytes(self) -> int:
        """Bytes of the files that lie in the mirror, and of downloads under way."""
        with self._transaction() as index:
            return self._used(index)

    @contextmanager
    def room(
        self, found: RemoteObject, cancelled: threading.Event | None = None, *, ahead: bool = False
    ) -> Iterator[Callable[[RemoteObject], None]]:
        """Room for a file while it is fetched and looked at: files are dropped for it, or it waits until some are free.

        Gives a function that gets room for what the object has become instead.

        Args:
            found: the object that is fetched.
            cancelled: once set, waiting ends.
            ahead: it is not needed yet: nothing is dropped for it that waits to be transcribed, and it does not wait.

        Raises:
            NoRoomYet: ``ahead``, and there is none.
            FileFailed: there cannot be room for it, or waiting was cancelled.
        """
        key, never = found.key, threading.Event()
        token = _token()
        self._reserve(token, found, cancelled or never, ahead)

        def change(found: RemoteObject) -> None:
            # Two that hold what they have and wait for more would wait for each other.
            self._let_go(token)
            self._reserve(token, found, cancelled or never, ahead)

        try:
            yield change
        finally:
            with self._transaction() as index:
                self._enter(index, key)
                index.execute("DELETE FROM held WHERE token = ?", (token,))

    def _enter(self, index: sqlite3.Connection, key: str) -> None:
        """Note what lies there of ``key``, for which there was room."""
        state = self.mirror.state(key)
        with suppress(OSError):
            size = self.mirror.path_for(key).stat().st_size
            index.execute(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, 0, 0, 0)",
                (_bytes(key), size, state.etag if state else None, time.time()),
            )

    def _let_go(self, token: str) -> None:
        with self._transaction() as index:
            index.execute("DELETE FROM held WHERE token = ?", (token,))

    @contextmanager
    def reading(self, key: str) -> Iterator[None]:
        """Keep the file of ``key`` for as long as it is read."""
        token = _token()
        with self._transaction() as index:
            index.execute("INSERT INTO held VALUES (?, ?, 0, ?)", (token, _bytes(key), self._process()))
            index.execute("UPDATE files SET used = ? WHERE key = ?", (time.time(), _bytes(key)))
        try:
            yield
        finally:
            self._let_go(token)

    def shrink(self) -> None:
        """Drop what is over the limit, as far as it can be."""
        with self._transaction() as index:
            self._forget_the_dead(index)
            self._make_room(index, 0, None, ahead=False)

    def spent(self, keys: Iterable[str]) -> None:
        """These files are transcribed: they are the first to go."""
        with self._transaction() as index:
            index.executemany("UPDATE files SET spent = 1 WHERE key = ? AND NOT spent", [(_bytes(k),) for k in keys])

    def keep(self, keys: Iterable[str]) -> None:
        """The bucket does not have these objects any more: their files are the last copies."""
        with self._transaction() as index:
            index.executemany("UPDATE files SET kept = 1 WHERE key = ? AND NOT kept", [(_bytes(k),) for k in keys])

    def kept(self) -> set[str]:
        """The files that are not dropped, since the bucket cannot give them back as far as is known."""
        with self._transaction() as index:
            kept = index.execute("SELECT key FROM files WHERE kept AND NOT dropped").fetchall()
        return {key.decode("utf-8", "surrogatepass") for (key,) in kept}

    def came_back(self, keys: Collection[str]) -> None:
        """The bucket has these objects, be it again: their files can be had from it."""
        with self._transaction() as index:
            kept = [key for (key,) in index.execute("SELECT key FROM files WHERE kept")]
            if kept:
                listed = set(map(_bytes, keys))
                # One that cannot be had again after all is found out when it is to be dropped.
                back = [(key,) for key in kept if key in listed]
                index.executemany("UPDATE files SET kept = 0 WHERE key = ?", back)

    def _reserve(self, token: str, found: RemoteObject, cancelled: threading.Event, ahead: bool) -> None:
        key, size_bytes, limit = found.key, found.size_bytes, self.max_bytes
        if limit is not None and size_bytes > limit:
            raise FileFailed(
                f"{size_bytes} bytes, and the mirror may hold {limit} in all (AUDIO_ASSETS_MAX_DISK, --max-disk); "
                "raise that to take the object in"
            )
        while True:
            with self._transaction() as index:
                self._forget_the_dead(index)
                if self._make_room(index, size_bytes, found, ahead):
                    index.execute(
                        "INSERT INTO held VALUES (?, ?, ?, ?)", (token, _bytes(key), size_bytes, self._process())
                    )
                    return
                (held,) = index.execute(_MAY_END).fetchone()
            if ahead:
                raise NoRoomYet("there is no room for it yet")
            if not held:
                raise FileFailed(
                    f"no room within the {limit} bytes of AUDIO_ASSETS_MAX_DISK (--max-disk): the mirror is full of "
                    "files that the bucket cannot give back; raise it, or `audio-assets run --forget-gone`"
                )
            if cancelled.wait(_POLL_S):
                raise FileFailed("the download was cancelled; the next run tries again")

    def _make_room(self, index: sqlite3.Connection, size_bytes: int, found: RemoteObject | None, ahead: bool) -> bool:
        if self.max_bytes is None:
            return True
        over = self._used(index, found) + size_bytes - self.max_bytes
        while over > 0:
            candidates = index.execute(_CANDIDATES, (not ahead, _AT_ONCE)).fetchall()
            if not candidates:
                if ahead or not self.mirror.remove_idle_part(besides=found):
                    return False
                over = self._used(index, found) + size_bytes - self.max_bytes
                continue
            for key, size in candidates:
                if over <= 0:
                    break
                if self._drop(index, key):
                    over -= size
        return True

    def _drop(self, index: sqlite3.Connection, key: bytes) -> bool:
        name = key.decode("utf-8", "surrogatepass")
        state, path = self.mirror.state(name), self.mirror.path_for(name)
        try:
            status = path.stat()
        except FileNotFoundError:
            index.execute("DELETE FROM files WHERE key = ?", (key,))
            return True
        untouched = state is not None and (state.size_bytes, state.mtime_ns) == (status.st_size, status.st_mtime_ns)
        if state is None or state.etag is None or not untouched:
            index.execute("UPDATE files SET kept = 1 WHERE key = ?", (key,))
            return False
        path.unlink(missing_ok=True)
        index.execute("UPDATE files SET dropped = 1, etag = ? WHERE key = ?", (state.etag, key))
        return True

    def _used(self, index: sqlite3.Connection, besides: RemoteObject | None = None) -> int:
        ((files,),) = index.execute("SELECT coalesce(sum(size), 0) FROM files WHERE NOT dropped").fetchall()
        ((reserved,),) = index.execute("SELECT coalesce(sum(size), 0) FROM held").fetchall()
        # What broken downloads left lies there too, and is gone on with: by the object that room is asked for as well.
        return int(files) + max(int(reserved), self.mirror.parts_bytes(besides=besides))

    def _look(self) -> None:
        """Compare the index with the files, unless that was done a moment ago."""
        with self._transaction() as index:
            told = index.execute("SELECT value FROM facts WHERE name = 'looked'").fetchone()
            if told is not None and 0 <= time.time() - told[0] < _LOOK_AGAIN_S:
                return
            known = {k for (k,) in index.execute("SELECT key FROM files WHERE NOT dropped")}
            there: dict[bytes, os.stat_result] = {}
            for key in self.mirror.files():
                try:
                    there[_bytes(key)] = self.mirror.path_for(key).stat()
                except FileNotFoundError:
                    continue
            index.executemany("DELETE FROM files WHERE key = ?", [(key,) for key in known - there.keys()])
            # Of what was there before, nobody knows whether it is transcribed; what comes from here on is known.
            index.executemany(
                "INSERT OR REPLACE INTO files VALUES (?, ?, NULL, ?, 1, 0, 0)",
                [(key, status.st_size, status.st_ctime) for key, status in there.items() if key not in known],
            )
            index.execute("INSERT OR REPLACE INTO facts VALUES ('looked', ?)", (time.time(),))
        processes.remove_dead(self._processes)

    def _process(self) -> str:
        try:
            return processes.own_name(self._processes)
        except OSError as error:
            raise StorageError(f"{self._processes}: {error.strerror}; check the disk and its permissions") from error

    def _forget_the_dead(self, index: sqlite3.Connection) -> None:
        """Holds of processes that are no more hold nothing; what they have fetched lies there all the same."""
        for (process,) in index.execute("SELECT DISTINCT process FROM held").fetchall():
            if not processes.is_alive(self._processes, process):
                fetched = index.execute("SELECT key FROM held WHERE process = ? AND size > 0", (process,)).fetchall()
                for (key,) in fetched:
                    self._enter(index, key.decode("utf-8", "surrogatepass"))
                index.execute("DELETE FROM held WHERE process = ?", (process,))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with _transaction(self.path) as index:
            yield index


def index_path(root: Path) -> Path:
    """Where the index of the mirror under ``root`` lies, if it has one."""
    return root / ".state" / INDEX


def dropped_files(root: Path, prefix: str = "") -> dict[str, tuple[str | None, int]]:
    """ETag and size of each file that was dropped from the mirror under ``root``, as far as its key may be meant.

    With an ASCII ``prefix`` those are the keys that start with it; any other may be spelled in two ways.
    """
    path = index_path(root)
    if not path.exists():
        return {}
    with _transaction(path) as index:
        first = _bytes(prefix) if prefix.isascii() else b""
        # No UTF-8 has this byte.
        bounds = (first, first + b"\xff")
        rows = index.execute(
            "SELECT key, etag, size FROM files WHERE dropped AND key >= ? AND key < ?", bounds
        ).fetchall()
    return {key.decode("utf-8", "surrogatepass"): (etag, size) for key, etag, size in rows}


def forget(root: Path, key: str) -> None:
    """Nothing is to be known of ``key`` any more."""
    path = index_path(root)
    if path.exists():
        with _transaction(path) as index:
            index.execute("DELETE FROM files WHERE key = ?", (_bytes(key),))


@contextmanager
def _transaction(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        index = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            # It can be made anew: no wait for the disk.
            index.execute("PRAGMA synchronous = OFF")
            if not index.execute("SELECT 1 FROM sqlite_master WHERE name = 'held'").fetchone():
                index.executescript(_SCHEMA)
            index.execute("BEGIN IMMEDIATE")
            yield index
            index.execute("COMMIT")
        finally:
            index.close()  # rolls back what was not committed
    except (sqlite3.Error, OSError) as error:
        raise StorageError(f"{path}: {error}; correct the permissions, or delete the file: it is made anew") from error


def _token() -> str:
    return secrets.token_hex(16)


def _bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")
