"""The warehouse: a DuckDB database whose real tables follow the partition files.

The files are the record; the database can be deleted at any time and is rebuilt from them. One process at a time loads,
under a file lock, every file that the database does not hold yet, each within one transaction. Whoever finds the
database taken, by another loader or by somebody who reads it, leaves the loading to the next one: nothing fails and
nothing is lost.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa
from filelock import FileLock, Timeout

from audio_assets import schemas
from audio_assets.errors import BusyError, StorageError
from audio_assets.storage import atomic
from audio_assets.storage.partition_files import (
    PartitionFile,
    PartitionStore,
    Unreadable,
    file_name_for,
    schema_version,
)

STORAGE_VERSION = "v1.4.0"
"""Format of the database file. DuckDB 1.4 (2025, long-term support) and everything newer opens it."""

PARTITION_COLUMN = "_partition"
"""Last column of each partitioned table: the Dagster partition key whose file the row came from."""

VIEWS: dict[str, str] = {
    # `position` counts from 0. Spans run parallel to tokens; they are looked up only by queries that ask for them.
    "token_occurrences": """
        SELECT id, prefix, language, i - 1 AS position, token,
               spans[i].lemma AS lemma, spans[i].is_stop AS is_stop,
               spans[i].start_char AS start_char, spans[i].end_char AS end_char,
               spans[i].start_s AS start_s, spans[i].end_s AS end_s
        FROM (
            SELECT id, prefix, language, spans, unnest(tokens) AS token, generate_subscripts(tokens, 1) AS i
            FROM tokens
        )
    """,
    # A file that could not be read has no transcript either: it is named once, where it failed first.
    "latest_failures": """
        SELECT id, prefix, 'raw_audio' AS stage, status, error FROM raw_audio
        WHERE status IN ('partial', 'invalid', 'failed', 'deferred')
        UNION ALL
        SELECT id, prefix, 'transcripts' AS stage, status, error FROM transcripts
        WHERE status IN ('partial', 'invalid', 'failed', 'deferred')
          AND id NOT IN (SELECT id FROM raw_audio WHERE status IN ('partial', 'invalid', 'failed', 'deferred'))
    """,
}
"""Views over the tables, by name."""

_BATCH_FILES = 256
_BATCH_BYTES = 16 * 2**20
"""Small files are loaded together up to these limits; a larger file is streamed on its own, in bounded memory."""

_RETRY_S = 0.05

_deferred_here: set[str] = set()
"""Databases that were taken the last time this process came: the next time it looks once and does not wait, so that a
reader who stays costs a run the waiting time once and not once per partition."""


@dataclass(frozen=True)
class Refresh:
    """What one refresh did: partition files loaded, partitions removed, why it was put off, files it had to skip."""

    loaded: int = 0
    removed: int = 0
    deferred: str | None = None
    skipped: list[Unreadable] = field(default_factory=list)


class Warehouse:
    """A DuckDB database that follows a `PartitionStore`.

    Args:
        path: the database file; made when it is missing.
        store: the record.
        lock_timeout_s: how long to wait for others before a load is put off, in seconds.
    """

    def __init__(self, path: Path, store: PartitionStore, lock_timeout_s: float = 10.0) -> None:
        self.path = Path(path)
        self.store = store
        self.lock_timeout_s = lock_timeout_s

    @property
    def lock_path(self) -> Path:
        """The lock that loaders take in turn."""
        return self.path.with_name(self.path.name + ".lock")

    def refresh(self, tables: Sequence[str] | None = None) -> Refresh:
        """Bring ``tables`` (all, by default) in step with the record.

        Waiting for others longer than ``lock_timeout_s`` is not an error: the result says why it was put off, and the
        next refresh catches up.

        Raises:
            StorageError: the store cannot be listed, or the database file is damaged; the record is untouched.
        """
        names = list(schemas.TABLES) if tables is None else list(tables)
        key = str(self.path)
        deadline = time.monotonic() + (0.0 if key in _deferred_here else self.lock_timeout_s)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._locked(deadline), self._writable(deadline) as connection:
                refresh = self._load(connection, names)
        except BusyError as error:
            _deferred_here.add(key)
            return Refresh(deferred=str(error))
        _deferred_here.discard(key)
        return refresh

    @contextlib.contextmanager
    def connect(self, *, refresh: bool = True) -> Iterator[duckdb.DuckDBPyConnection]:
        """A read-only connection. While it is open, loads of others are put off: keep it short.

        Args:
            refresh: bring the database in step with the record first.

        Raises:
            BusyError: a loader held the database for longer than ``lock_timeout_s``.
            StorageError: the database file is damaged.
        """
        if refresh or not self.path.exists():
            self.refresh()
        deadline = time.monotonic() + self.lock_timeout_s
        connection = self._open(deadline, read_only=True)
        try:
            connection.execute("SET TimeZone = 'UTC'")
            yield connection
        finally:
            connection.close()

    @contextlib.contextmanager
    def _locked(self, deadline: float) -> Iterator[None]:
        lock = FileLock(self.lock_path)
        try:
            lock.acquire(timeout=max(0.0, deadline - time.monotonic()))
        except Timeout as error:
            raise BusyError(f"another writer is loading {self.path.name}; the next refresh catches up") from error
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _writable(self, deadline: float) -> Iterator[duckdb.DuckDBPyConnection]:
        connection = self._open(deadline, read_only=False)
        try:
            yield connection
        finally:
            connection.close()

    def _open(self, deadline: float, *, read_only: bool) -> duckdb.DuckDBPyConnection:
        while True:
            try:
                if read_only:
                    return duckdb.connect(str(self.path), read_only=True)
                return duckdb.connect(str(self.path), config={"storage_compatibility_version": STORAGE_VERSION})
            except (duckdb.IOException, duckdb.ConnectionException) as error:
                if not _is_taken(error):
                    raise StorageError(
                        f"{self.path}: cannot be opened: {_first_line(error)}; run `audio-assets verify --repair` to"
                        " rebuild it from the partition files"
                    ) from error
                if time.monotonic() >= deadline:
                    raise BusyError(
                        f"somebody has {self.path.name} open; the next refresh catches up"
                        if not read_only
                        else f"{self.path}: a writer has it open; try again"
                    ) from error
            except duckdb.Error as error:
                raise StorageError(
                    f"{self.path}: cannot be opened: {_first_line(error)}; run `audio-assets verify --repair` to"
                    " rebuild it from the partition files"
                ) from error
            time.sleep(_RETRY_S)

    def _load(self, connection: duckdb.DuckDBPyConnection, names: Sequence[str]) -> Refresh:
        _ensure_layout(connection)
        loaded = removed = 0
        skipped: list[Unreadable] = []
        for name in names:
            table = schemas.TABLES[name]
            scan = self.store.scan(table)
            skipped += scan.unreadable
            held: dict[str, str] = dict(
                connection.execute(
                    "SELECT file, identity FROM meta.partition_files WHERE table_name = ?", [name]
                ).fetchall()
            )
            present = {file_name_for(f.partition) for f in scan.files}
            gone = [file for file in held if file not in present]
            if gone:
                self._replace(connection, table, [], gone)
                removed += len(gone)
            fresh = [f for f in scan.files if held.get(file_name_for(f.partition)) != f.identity]
            for batch in _batches(fresh):
                count, bad = self._load_batch(connection, table, batch, held)
                loaded += count
                skipped += bad
        return Refresh(loaded, removed, None, skipped)

    def _load_batch(
        self,
        connection: duckdb.DuckDBPyConnection,
        table: schemas.Table,
        batch: list[PartitionFile],
        held: dict[str, str],
    ) -> tuple[int, list[Unreadable]]:
        parts: list[tuple[PartitionFile, pa.Table]] = []
        bad: list[Unreadable] = []
        for file in batch:
            try:
                parts.append((file, self.store.read_file(table, file)))
            except FileNotFoundError:
                continue
            except StorageError as error:
                bad.append(Unreadable(file.uri, str(error)))
        stale = [name for name in (file_name_for(f.partition) for f, _ in parts) if name in held]
        self._replace(connection, table, parts, stale)
        return len(parts), bad

    def _replace(
        self,
        connection: duckdb.DuckDBPyConnection,
        table: schemas.Table,
        parts: list[tuple[PartitionFile, pa.Table]],
        stale: list[str],
    ) -> None:
        """Put ``parts`` in the place of the rows that came from the files named ``stale``, in one transaction."""
        connection.execute("BEGIN")
        try:
            if stale:
                if table.partitioned:
                    connection.execute(
                        f"DELETE FROM {quoted(table.name)} WHERE {PARTITION_COLUMN} IN (SELECT partition FROM"  # noqa: S608
                        " meta.partition_files WHERE table_name = ? AND file IN (SELECT unnest(?::VARCHAR[])))",
                        [table.name, stale],
                    )
                else:
                    connection.execute(f"DELETE FROM {quoted(table.name)}")  # noqa: S608
                connection.execute(
                    "DELETE FROM meta.partition_files WHERE table_name = ? AND file IN (SELECT unnest(?::VARCHAR[]))",
                    [table.name, stale],
                )
            atomic.crash_point("warehouse:in-transaction")
            if parts:
                rows = pa.concat_tables([_with_partition(data, file.partition) for file, data in parts])
                if table.partitioned:
                    connection.register("incoming", rows)
                else:
                    connection.register("incoming", rows.drop_columns([PARTITION_COLUMN]))
                connection.execute(f"INSERT INTO {quoted(table.name)} BY NAME SELECT * FROM incoming")  # noqa: S608
                connection.unregister("incoming")
                files = pa.table(
                    {
                        "table_name": [table.name] * len(parts),
                        "partition": pa.array([f.partition for f, _ in parts], pa.string()),
                        "file": [file_name_for(f.partition) for f, _ in parts],
                        "identity": [f.identity for f, _ in parts],
                        "row_count": [data.num_rows for _, data in parts],
                    }
                )
                connection.register("incoming", files)
                connection.execute("INSERT INTO meta.partition_files BY NAME SELECT * FROM incoming")
                connection.unregister("incoming")
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(duckdb.Error):
                connection.execute("ROLLBACK")
            raise


def quoted(name: str) -> str:
    """An SQL identifier. Names come from `schemas.py` only; values are always bound."""
    return '"' + name.replace('"', '""') + '"'


def sql_type(kind: pa.DataType) -> str:
    """The DuckDB type of an Arrow type that `schemas.py` uses.

    Raises:
        TypeError: there is no such DuckDB type.
    """
    if pa.types.is_list(kind):
        return f"{sql_type(kind.value_type)}[]"
    if pa.types.is_struct(kind):
        return "STRUCT(" + ", ".join(f"{quoted(f.name)} {sql_type(f.type)}" for f in kind) + ")"
    if pa.types.is_map(kind):
        return f"MAP({sql_type(kind.key_type)}, {sql_type(kind.item_type)})"
    names = {
        pa.string(): "VARCHAR",
        pa.int64(): "BIGINT",
        pa.float64(): "DOUBLE",
        pa.bool_(): "BOOLEAN",
        pa.timestamp("us", tz="UTC"): "TIMESTAMP WITH TIME ZONE",
    }
    if kind not in names:
        raise TypeError(f"Arrow type {kind} has no DuckDB type here; add it to storage/warehouse.py")
    return names[kind]


def _layout_version() -> str:
    parts = [schema_version(table) + name for name, table in schemas.TABLES.items()]
    parts += [name + sql for name, sql in VIEWS.items()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _ensure_layout(connection: duckdb.DuckDBPyConnection) -> None:
    """Make every table and view; start a table afresh, to be filled from the record, when its columns have changed."""
    version = _layout_version()
    with contextlib.suppress(duckdb.CatalogException):
        if connection.execute("SELECT version FROM meta.layout").fetchone() == (version,):
            return
    connection.execute("BEGIN")
    connection.execute("CREATE SCHEMA IF NOT EXISTS meta")
    connection.execute("CREATE TABLE IF NOT EXISTS meta.layout (version VARCHAR NOT NULL)")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS meta.table_versions (table_name VARCHAR NOT NULL, version VARCHAR NOT NULL)"
    )
    connection.execute(
        "CREATE TABLE IF NOT EXISTS meta.partition_files (table_name VARCHAR NOT NULL, partition VARCHAR,"
        " file VARCHAR NOT NULL, identity VARCHAR NOT NULL, row_count BIGINT NOT NULL)"
    )
    known = dict(connection.execute("SELECT table_name, version FROM meta.table_versions").fetchall())
    for view in VIEWS:
        connection.execute(f"DROP VIEW IF EXISTS {quoted(view)}")
    for name, table in schemas.TABLES.items():
        if known.get(name) == schema_version(table):
            continue
        columns = [f"{quoted(c.name)} {sql_type(c.type)}{'' if c.nullable else ' NOT NULL'}" for c in table.columns]
        if table.partitioned:
            columns.append(f"{PARTITION_COLUMN} VARCHAR NOT NULL")
        connection.execute(f"DROP TABLE IF EXISTS {quoted(name)}")
        connection.execute(f"CREATE TABLE {quoted(name)} ({', '.join(columns)})")
        connection.execute("DELETE FROM meta.partition_files WHERE table_name = ?", [name])
        connection.execute("DELETE FROM meta.table_versions WHERE table_name = ?", [name])
        connection.execute("INSERT INTO meta.table_versions VALUES (?, ?)", [name, schema_version(table)])
    for view, sql in VIEWS.items():
        connection.execute(f"CREATE VIEW {quoted(view)} AS {sql}")
    connection.execute("DELETE FROM meta.layout")
    connection.execute("INSERT INTO meta.layout VALUES (?)", [version])
    connection.execute("COMMIT")


def _with_partition(data: pa.Table, partition: str | None) -> pa.Table:
    return data.append_column(PARTITION_COLUMN, pa.repeat(pa.scalar(partition, pa.string()), data.num_rows))


def _batches(files: Sequence[PartitionFile]) -> Iterator[list[PartitionFile]]:
    batch: list[PartitionFile] = []
    size = 0
    for file in files:
        if batch and (len(batch) >= _BATCH_FILES or size + file.size_bytes > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += file.size_bytes
    if batch:
        yield batch


def _is_taken(error: duckdb.Error) -> bool:
    """Whether an error of opening says that another process, or a reader of this process, has the database open."""
    text = str(error)
    return "lock" in text.lower() or "different configuration" in text or "already" in text.lower()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
