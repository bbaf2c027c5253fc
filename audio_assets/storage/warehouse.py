"""The warehouse: a DuckDB database whose real tables follow the partition files.

The files are the record; the database can be deleted at any time and is rebuilt from them. One process at a time loads,
under a file lock, every file that the database does not hold yet, each within one transaction; those who waited find
their file loaded and go on. Whoever finds the database taken for too long, by loaders or by somebody who reads it,
leaves the loading to the next one: nothing fails and nothing is lost.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa
from filelock import FileLock, Timeout

from audio_assets import schemas
from audio_assets.errors import BusyError, StorageError, machine_trouble
from audio_assets.storage import atomic
from audio_assets.storage.partition_files import (
    PartitionFile,
    PartitionStore,
    Unreadable,
    adapt,
    file_name_for,
    first_line,
    schema_version,
)

STORAGE_VERSION = "v1.4.0"
"""Format of the database file. DuckDB 1.4 (2025, long-term support) and everything newer opens it."""

_OWN_FILES = ("", ".wal", ".wal.checkpoint", ".wal.recovery")
"""Names of the files that DuckDB 1.5 and 2.0 keep of a database, behind its path."""

PARTITION_COLUMN = "_partition"
"""Last column of each partitioned table: the Dagster partition key whose file the row came from."""

_FAILING = "('partial', 'invalid', 'failed', 'deferred')"

VIEWS: dict[str, str] = {
    # `position` counts from 0.
    "token_occurrences": "SELECT id, prefix, language, position, token FROM meta.token_rows",
    # A file that could not be read has no transcript either: it is named once, where it failed first.
    "latest_failures": f"""
        SELECT id, prefix, 'raw_audio' AS stage, status, error FROM raw_audio WHERE status IN {_FAILING}
        UNION ALL
        SELECT id, prefix, 'transcripts' AS stage, status, error FROM transcripts
        WHERE status IN {_FAILING} AND id NOT IN (SELECT id FROM raw_audio WHERE status IN {_FAILING})
    """,  # noqa: S608
}
"""Views over the tables, by name."""

_TOKEN_ROWS = f"""
    SELECT id, prefix, language, (generate_subscripts(tokens, 1) - 1)::INTEGER AS position,
           unnest(tokens) AS token, {PARTITION_COLUMN}
    FROM tokens
"""  # noqa: S608
"""One row per word. Kept as a table: counting words in it is five times faster than unfolding the lists each time, for
a third more space."""

_BATCH_FILES = 1_000
_BATCH_BYTES = 16 * 2**20
"""Small files are loaded together up to these limits; a larger file is streamed on its own, in bounded memory."""

_FEW_FILES = 4
"""So few are read one after the other: starting threads takes longer."""

_STREAM_ROWS = 8_192
_POLL_S = 0.005
_ROUNDS = 4

_deferred_here: set[str] = set()
"""Databases that were taken the last time this process came: the next time it looks once and does not wait, so that a
reader who stays costs a run the waiting time once and not once per partition."""

_REPAIR = "run `audio-assets verify --repair` to rebuild it from the partition files"


class WarehouseError(StorageError):
    """The database file is damaged or cannot be written. The record is not touched by it."""


_ALIAS = "warehouse"

_engines: dict[tuple[int, Path], duckdb.DuckDBPyConnection] = {}

_in_process = threading.RLock()
"""Held while this process writes the database, and while it opens it: an attempt to open a file that the same process
has open for writing fails, and on Linux drops the lock that keeps other processes out."""


@dataclass(frozen=True)
class Refresh:
    """What one refresh did: partition files loaded, partitions removed, why it was put off, files it had to skip.

    All zero with nothing put off means that there was nothing to do, or that another process did it meanwhile.
    ``refused`` tells a database that cannot be written, which does not mend itself, from one that somebody else holds.
    """

    loaded: int = 0
    removed: int = 0
    deferred: str | None = None
    skipped: list[Unreadable] = field(default_factory=list)
    refused: bool = False


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

    @property
    def _requests(self) -> Path:
        """Holds one empty file ``<table>.<random>`` for each load that somebody asked for and nobody has done."""
        return self.path.with_name(f".{self.path.name}.requests")

    def refresh(self, tables: Sequence[str] | None = None) -> Refresh:
        """Bring ``tables`` (all, by default) in step with the record.

        Waiting for others longer than ``lock_timeout_s`` is not an error, nor is a database that cannot be written:
        the result says why it was put off, and the next refresh catches up. Of several processes that refresh at once,
        one opens the database and loads for all of them.

        Args:
            tables: names of the tables to look at.

        Raises:
            StorageError: the store cannot be listed.
        """
        key = str(self.path)
        deadline = time.monotonic() + (0.0 if key in _deferred_here else self.lock_timeout_s)
        try:
            mine = self._request(list(schemas.TABLES) if tables is None else list(tables))
            lock = FileLock(self.lock_path)
            while True:
                try:
                    with lock.acquire(blocking=False):
                        refresh = self._serve(deadline)
                    break
                except Timeout:
                    if not any(request.exists() for request in mine):
                        refresh = Refresh()
                        break
                    if time.monotonic() >= deadline:
                        reason = f"another process is loading {self.path.name}; the next refresh catches up"
                        raise BusyError(reason) from None
                    time.sleep(_POLL_S)
        except (BusyError, WarehouseError, OSError) as error:
            _deferred_here.add(key)
            trouble = machine_trouble(error) if isinstance(error, OSError) else None
            return Refresh(deferred=str(trouble or error), refused=not isinstance(error, BusyError))
        _deferred_here.discard(key)
        return refresh

    def rebuild(self) -> Refresh:
        """Build the database anew from the record and put it in the place of the old one.

        Whoever reads the old one keeps it until they close it.

        Raises:
            BusyError: another loader held the lock for longer than ``lock_timeout_s``.
            StorageError: the store cannot be listed, or the disk refused.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(self.lock_path).acquire(timeout=self.lock_timeout_s, poll_interval=_POLL_S)
        except Timeout:
            raise BusyError(f"{self.path}: another process is loading it; try again when it is done") from None
        with lock:
            atomic.remove_stale_temps(self.path.parent)
            try:
                with atomic.replacing(self.path) as temp:
                    temp.unlink()  # DuckDB does not take an empty file for a database
                    with _database(temp, time.monotonic()) as connection:
                        refresh = self._load(connection, list(schemas.TABLES))
                    # A write-ahead log belongs to the database that is going.
                    self.path.with_name(self.path.name + ".wal").unlink(missing_ok=True)
            except OSError as error:
                raise StorageError(
                    f"{self.path}: cannot be rebuilt: {first_line(error)}; free some space or correct the permissions"
                ) from error
        _deferred_here.discard(str(self.path))
        return refresh

    @contextlib.contextmanager
    def connect(self, *, refresh: bool = True) -> Iterator[duckdb.DuckDBPyConnection]:
        """A read-only connection to tables that are in step with the record. Loads of others wait while it is open.

        When somebody keeps the database from being brought up to date, a private copy is built from the record for the
        time of the connection: what is read is never stale.

        Args:
            refresh: bring the database in step with the record first; without it, tables are as they were left.

        Raises:
            BusyError: only without ``refresh``: a loader held the database for longer than ``lock_timeout_s``.
            StorageError: the store cannot be listed, or the database file is damaged.
        """
        with contextlib.ExitStack() as stack:
            path = self.path
            deferred = None
            if refresh or not path.exists():
                deferred = self.refresh().deferred
            deadline = time.monotonic() + self.lock_timeout_s
            connection = None
            if deferred is None:
                try:
                    connection = _open_to_read(path, deadline)
                except BusyError:
                    if not refresh:
                        raise
            if connection is None:
                path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="audio_assets."))) / path.name
                with _database(path, deadline) as building:
                    self._load(building, list(schemas.TABLES))
                connection = _open_to_read(path, deadline)
            stack.callback(connection.close)
            connection.execute("SET TimeZone = 'UTC'")
            yield connection

    def held(self) -> dict[tuple[str, str], tuple[str, int]]:
        """What the database says it holds: (table, file name) -> (identity, rows). Nothing is refreshed.

        Raises:
            BusyError: a loader held the database for longer than ``lock_timeout_s``.
            StorageError: the database file is damaged.
        """
        if not self.path.exists():
            return {}
        with self.connect(refresh=False) as connection:
            try:
                rows = connection.execute("SELECT table_name, file, identity, row_count FROM meta.partition_files")
                return {(table, file): (identity, count) for table, file, identity, count in rows.fetchall()}
            except duckdb.Error as error:
                raise StorageError(f"{self.path}: cannot be read: {first_line(error)}; {_REPAIR}") from error

    def rows_of(self, table: schemas.Table, partition: str | None) -> pa.Table | None:
        """The rows of a partition as they were last loaded, without looking at the record; None if it never was.

        Raises:
            BusyError: a loader held the database for longer than ``lock_timeout_s``.
            StorageError: the database file is damaged.
        """
        if (table.name, file_name_for(partition)) not in self.held():
            return None
        names = ", ".join(quoted(c.name) for c in table.columns)
        only = f" WHERE {PARTITION_COLUMN} = ?" if table.partitioned else ""
        with self.connect(refresh=False) as connection:
            try:
                relation = connection.sql(
                    f"SELECT {names} FROM {quoted(table.name)}{only}",  # noqa: S608
                    params=[partition] if table.partitioned else None,
                )
                return adapt(relation.to_arrow_table(), table)
            except duckdb.Error as error:
                raise StorageError(f"{self.path}: cannot be read: {first_line(error)}; {_REPAIR}") from error

    def _request(self, tables: Sequence[str]) -> list[Path]:
        """Ask for a load of ``tables``, of oneself or of whoever holds the lock."""
        self._requests.mkdir(parents=True, exist_ok=True)
        requests = [self._requests / f"{table}.{secrets.token_hex(8)}" for table in tables]
        for request in requests:
            request.touch()
        return requests

    def _open_requests(self) -> list[Path]:
        return [path for path in self._requests.iterdir() if path.name.partition(".")[0] in schemas.TABLES]

    def _serve(self, deadline: float) -> Refresh:
        """Do what everybody asked for. The caller holds the lock."""
        total = Refresh()
        if not self._open_requests():
            return total
        with _database(self.path, deadline) as connection:
            # Opening takes longer than loading a small partition: those who ask meanwhile are served, too. Not for
            # ever, though: this process has work of its own.
            for _ in range(_ROUNDS):
                requests = self._open_requests()
                if not requests:
                    break
                asked = {path.name.partition(".")[0] for path in requests}
                total = _sum(total, self._load(connection, [name for name in schemas.TABLES if name in asked]))
                # Only now: should this process die, the next one finds the requests and does them.
                for path in requests:
                    path.unlink(missing_ok=True)
        return total

    def _load(self, connection: duckdb.DuckDBPyConnection, names: Sequence[str]) -> Refresh:
        _ensure_layout(connection)
        loaded = removed = 0
        skipped: list[Unreadable] = []
        for name in names:
            table = schemas.TABLES[name]
            scan = self.store.scan(table)
            skipped += scan.unreadable
            rows = connection.execute("SELECT file, identity FROM meta.partition_files WHERE table_name = ?", [name])
            held: dict[str, str] = dict(rows.fetchall())
            present = {file_name_for(f.partition): f for f in scan.files}
            gone = [key for key in held if key not in present]
            if gone:
                _replace(connection, table, gone, None)
                removed += len(gone)
            fresh = [file for key, file in present.items() if held.get(key) != file.identity]
            for group in self._groups(table, fresh, skipped):
                loaded += self._store_group(connection, table, group, held, skipped)
        return Refresh(loaded, removed, None, skipped)

    def _groups(
        self, table: schemas.Table, files: Sequence[PartitionFile], skipped: list[Unreadable]
    ) -> Iterator[_Group]:
        """``files`` with their rows, small ones together, in bounded memory."""

        def read(file: PartitionFile) -> pa.Table | Unreadable | None:
            try:
                return _with_partition(self.store.read_file(table, file), file)
            except FileNotFoundError:
                return None  # deleted since it was listed: the next refresh removes its rows
            except StorageError as error:
                return Unreadable(file.uri, str(error))

        batches = list(_batches([file for file in files if file.size_bytes <= _BATCH_BYTES]))
        with contextlib.ExitStack() as stack:
            each: Callable[..., Iterator[pa.Table | Unreadable | None]] = map
            if len(files) > _FEW_FILES:
                each = stack.enter_context(ThreadPoolExecutor(self.store.threads)).map
            ahead = each(read, batches[0]) if batches else iter(())
            for index, batch in enumerate(batches):
                now = ahead
                if index + 1 < len(batches):
                    # The next batch is read while the database stores this one.
                    ahead = each(read, batches[index + 1])
                parts: list[tuple[PartitionFile, pa.Table]] = []
                for file, result in zip(batch, now, strict=True):
                    if isinstance(result, Unreadable):
                        skipped.append(result)
                    elif result is not None:
                        parts.append((file, result))
                if parts:
                    rows = pa.concat_tables([data for _, data in parts]).combine_chunks()
                    yield _Group([file for file, _ in parts], [data.num_rows for _, data in parts], rows)
        for file in files:
            if file.size_bytes > _BATCH_BYTES:
                try:
                    yield _Group([file], [file.row_count], self._stream(table, file))
                except StorageError as error:
                    skipped.append(Unreadable(file.uri, str(error)))

    def _stream(self, table: schemas.Table, file: PartitionFile) -> pa.RecordBatchReader:
        def batches() -> Iterator[pa.RecordBatch]:
            with self.store.open(table, file.partition) as opened:
                for batch in opened.iter_batches(batch_size=_STREAM_ROWS):
                    rows = _with_partition(adapt(pa.Table.from_batches([batch]), table), file)
                    yield from rows.combine_chunks().to_batches()

        return pa.RecordBatchReader.from_batches(_with_partition(table.empty(), file).schema, batches())

    def _store_group(
        self,
        connection: duckdb.DuckDBPyConnection,
        table: schemas.Table,
        group: _Group,
        held: dict[str, str],
        skipped: list[Unreadable],
    ) -> int:
        """Store a group in one transaction; when it does not fit the table, its files one by one, naming the bad."""
        stale = [name for name in (file_name_for(file.partition) for file in group.files) if name in held]
        try:
            _replace(connection, table, stale, group)
        except (duckdb.DataError, duckdb.IntegrityError, duckdb.ProgrammingError) as error:
            if len(group.files) == 1:
                file = group.files[0]
                skipped.append(
                    Unreadable(file.uri, f"{file.uri}: does not fit table {table.name}: {first_line(error)}")
                )
                return 0
            singles = [single for file in group.files for single in self._groups(table, [file], skipped)]
            return sum(self._store_group(connection, table, single, held, skipped) for single in singles)
        return len(group.files)


def _sum(one: Refresh, other: Refresh) -> Refresh:
    return Refresh(one.loaded + other.loaded, one.removed + other.removed, None, one.skipped + other.skipped)


@dataclass(frozen=True)
class _Group:
    """Files to be stored together: how many rows each has, and the rows of all."""

    files: list[PartitionFile]
    row_counts: list[int]
    rows: pa.Table | pa.RecordBatchReader


def _replace(
    connection: duckdb.DuckDBPyConnection, table: schemas.Table, stale: list[str], group: _Group | None
) -> None:
    """Put ``group`` in the place of the rows that came from the files named ``stale``, in one transaction."""
    connection.execute("BEGIN")
    try:
        if stale:
            _delete(connection, table, stale)
        atomic.crash_point("warehouse:in-transaction")
        if group is not None:
            _insert(connection, table, group)
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(duckdb.Error):
            connection.execute("ROLLBACK")
        raise
    finally:
        with contextlib.suppress(duckdb.Error):
            connection.unregister("incoming")


def _delete(connection: duckdb.DuckDBPyConnection, table: schemas.Table, files: list[str]) -> None:
    targets = [quoted(table.name)] + (["meta.token_rows"] if table is schemas.TOKENS else [])
    listed = "FROM meta.partition_files WHERE table_name = ? AND file IN (SELECT unnest(?::VARCHAR[]))"
    for target in targets:
        if table.partitioned:
            connection.execute(
                f"DELETE FROM {target} WHERE {PARTITION_COLUMN} IN (SELECT partition {listed})",  # noqa: S608
                [table.name, files],
            )
        else:
            connection.execute(f"DELETE FROM {target}")  # noqa: S608
    connection.execute(f"DELETE {listed}", [table.name, files])


def _insert(connection: duckdb.DuckDBPyConnection, table: schemas.Table, group: _Group) -> None:
    connection.register("incoming", group.rows)
    connection.execute(f"INSERT INTO {quoted(table.name)} BY NAME SELECT * FROM incoming")  # noqa: S608
    partitions = [file.partition for file in group.files]
    if table is schemas.TOKENS:
        connection.execute(
            f"INSERT INTO meta.token_rows BY NAME {_TOKEN_ROWS} WHERE {PARTITION_COLUMN} IN"
            " (SELECT unnest(?::VARCHAR[]))",
            [partitions],
        )
    files = pa.table(
        {
            "table_name": [table.name] * len(partitions),
            "partition": pa.array(partitions, pa.string()),
            "file": [file_name_for(partition) for partition in partitions],
            "identity": [file.identity for file in group.files],
            "row_count": pa.array(group.row_counts, pa.int64()),
        }
    )
    connection.register("incoming", files)
    connection.execute("INSERT INTO meta.partition_files BY NAME SELECT * FROM incoming")


@contextlib.contextmanager
def _database(path: Path, deadline: float) -> Iterator[duckdb.DuckDBPyConnection]:
    """The database at ``path`` as the default one of a connection, open for writing; waits until ``deadline`` for it.

    Raises:
        BusyError: somebody still has it open.
        WarehouseError: it is damaged, was written by a newer DuckDB, or cannot be written.
    """
    with _in_process:
        connection = _engine(path)
        _wait_to_open(
            path,
            deadline,
            lambda: connection.execute(f"ATTACH {_literal(path)} AS {_ALIAS} (STORAGE_VERSION '{STORAGE_VERSION}')"),
        )
        try:
            connection.execute(f"USE {_ALIAS}")
            yield connection
            connection.execute("USE memory")
            connection.execute(f"DETACH {_ALIAS}")
        except BaseException as error:
            # Ending the engine closes the database whatever state it is in.
            _engines.clear()
            connection.close()
            if isinstance(error, duckdb.Error):
                raise WarehouseError(
                    f"{path}: cannot be written: {first_line(error)}; correct that, then {_REPAIR}"
                ) from error
            raise


def _engine(path: Path) -> duckdb.DuckDBPyConnection:
    """This process's DuckDB. Starting one takes 15 ms, attaching a database to it half a millisecond [measured].

    It reaches the files of the database at ``path`` and no other, whatever a view or a text in it asks for.
    """
    process = os.getpid()
    if (process, path) not in _engines:
        # After a fork, the parent's engine has lost its threads.
        _engines.clear()
        engine = duckdb.connect(config={"temp_directory": f"{path}.tmp"})
        own = ", ".join(_literal(Path(f"{path}{suffix}")) for suffix in _OWN_FILES)
        engine.execute(f"SET allowed_paths = [{own}]")
        engine.execute("SET enable_external_access = false")
        _engines[process, path] = engine
    return _engines[process, path]


def _open_to_read(path: Path, deadline: float) -> duckdb.DuckDBPyConnection:
    """A read-only connection that reaches no other file; raises as `_database` does."""

    def attempt() -> duckdb.DuckDBPyConnection:
        try:
            return duckdb.connect(str(path), read_only=True, config={"enable_external_access": False})
        except duckdb.ConnectionException as error:
            if "different configuration" not in str(error):
                raise
        # Somebody in this process reads it with DuckDB's own settings, which then hold for all who read it here.
        return duckdb.connect(str(path), read_only=True)

    with _in_process:
        return _wait_to_open(path, deadline, attempt)


def _wait_to_open(
    path: Path, deadline: float, attempt: Callable[[], duckdb.DuckDBPyConnection]
) -> duckdb.DuckDBPyConnection:
    while True:
        try:
            return attempt()
        except duckdb.Error as error:
            if not _is_taken(error):
                if path.is_dir():
                    raise WarehouseError(
                        f"{path}: a directory lies in the place of the database; move it away, then {_REPAIR}"
                    ) from error
                raise WarehouseError(f"{path}: cannot be opened: {first_line(error)}; {_REPAIR}") from error
            if time.monotonic() >= deadline:
                raise BusyError(f"somebody has {path.name} open; the next refresh catches up") from error
        time.sleep(_POLL_S)


def _literal(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def _is_taken(error: duckdb.Error) -> bool:
    """Whether opening failed because another process, or a connection of another kind in this one, has it open."""
    text = str(error)
    return any(
        said in text for said in ("Could not set lock on file", "file handle conflict", "different configuration")
    )


def _ensure_layout(connection: duckdb.DuckDBPyConnection) -> None:
    """Make every table and view; start a table afresh, to be filled from the record, when its columns have changed."""
    version = _layout_version()
    with contextlib.suppress(duckdb.CatalogException):
        if connection.execute("SELECT version FROM meta.layout").fetchone() == (version,):
            return
    known: dict[str, str] = {}
    with contextlib.suppress(duckdb.CatalogException):
        known = dict(connection.execute("SELECT table_name, version FROM meta.table_versions").fetchall())
    connection.execute("BEGIN")
    connection.execute("CREATE SCHEMA IF NOT EXISTS meta")
    for view in VIEWS:
        connection.execute(f"DROP VIEW IF EXISTS {quoted(view)}")
    connection.execute("CREATE OR REPLACE TABLE meta.table_versions (table_name VARCHAR NOT NULL, version VARCHAR)")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS meta.partition_files (table_name VARCHAR NOT NULL, partition VARCHAR,"
        " file VARCHAR NOT NULL, identity VARCHAR NOT NULL, row_count BIGINT NOT NULL)"
    )
    for name, table in schemas.TABLES.items():
        current = _table_version(table)
        if known.get(name) != current:
            columns = [f"{quoted(c.name)} {sql_type(c.type)}{'' if c.nullable else ' NOT NULL'}" for c in table.columns]
            if table.partitioned:
                columns.append(f"{PARTITION_COLUMN} VARCHAR NOT NULL")
            connection.execute(f"CREATE OR REPLACE TABLE {quoted(name)} ({', '.join(columns)})")
            connection.execute("DELETE FROM meta.partition_files WHERE table_name = ?", [name])
            if table is schemas.TOKENS:
                connection.execute(f"CREATE OR REPLACE TABLE meta.token_rows AS {_TOKEN_ROWS}")
        connection.execute("INSERT INTO meta.table_versions VALUES (?, ?)", [name, current])
    for view, sql in VIEWS.items():
        connection.execute(f"CREATE VIEW {quoted(view)} AS {sql}")
    connection.execute("CREATE OR REPLACE TABLE meta.layout AS SELECT ? AS version", [version])
    connection.execute("COMMIT")


@functools.cache
def _layout_version() -> str:
    parts = [name + _table_version(table) for name, table in schemas.TABLES.items()]
    parts += [name + sql for name, sql in VIEWS.items()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _table_version(table: schemas.Table) -> str:
    derived = _TOKEN_ROWS if table is schemas.TOKENS else ""
    return hashlib.sha256((schema_version(table) + PARTITION_COLUMN + derived).encode()).hexdigest()[:16]


def _with_partition(data: pa.Table, file: PartitionFile) -> pa.Table:
    if file.partition is None:
        return data
    values = pa.repeat(pa.scalar(file.partition, pa.string()), data.num_rows)
    return data.append_column(pa.field(PARTITION_COLUMN, pa.string(), nullable=False), values)


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
