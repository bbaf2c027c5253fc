"""Small SQLite databases in which a sensor keeps its state: whole transactions, safe from a kill at any moment."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from audio_assets.errors import StorageError

BUSY_TIMEOUT_S = 30.0
"""How long one tick waits for another that writes."""


@contextmanager
def transaction(path: Path, schema: str, table: str) -> Iterator[sqlite3.Connection]:
    """A connection in one transaction, committed at the end of the block and rolled back by an error.

    Args:
        path: the database; made when it is missing.
        schema: statements that make its tables.
        table: the last of them: where it is missing, ``schema`` is run first.

    Raises:
        StorageError: the file is damaged, or the disk refused. What was there before is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = FULL")
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [table]).fetchone():
                connection.executescript(schema)
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        finally:
            connection.close()  # rolls back what was not committed
    except (sqlite3.Error, OSError) as error:
        raise StorageError(
            f"{path}: {error}; free some space or correct the permissions, or move the file away"
        ) from error
