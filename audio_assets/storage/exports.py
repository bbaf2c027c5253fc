"""Exports: the corpus as one JSON Lines, Parquet, SQLite or DuckDB file.

One pass over the partition files feeds all formats, a few thousand rows at a time, so memory does not grow with the
corpus. Each file is built aside and renamed; ``MANIFEST.json`` follows with counts and checksums.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from audio_assets import partitions, schemas
from audio_assets.errors import StorageError
from audio_assets.storage import atomic
from audio_assets.storage.partition_files import (
    ROW_GROUP_ROWS,
    WRITE_KEY,
    PartitionStore,
    Unreadable,
    adapt,
    first_line,
)
from audio_assets.storage.warehouse import quoted, sql_type

FORMATS = ("json", "parquet", "sqlite", "duckdb")
"""What can be exported, as ``--output-format`` spells it."""

FILE_NAMES = {"json": "corpus.jsonl", "parquet": "corpus.parquet", "sqlite": "corpus.sqlite", "duckdb": "corpus.duckdb"}
"""The file of each format."""

MANIFEST = "MANIFEST.json"

DUCKDB_STORAGE_VERSION = "v1.0.0"
"""Format of an exported DuckDB file: every 1.x client opens it."""

DEFAULT_COLUMNS = ("id", "transcription", "tokens")

_BATCH_ROWS = 2_048
_COMMIT_ROWS = 10_000
"""DuckDB keeps the rows of a transaction in memory, beyond its memory limit: 500 MB for 400,000 transcripts in one
transaction, 350 MB in pieces of this size [measured]."""

_EXPORTED = ("ok", "empty", "gone")
_HASH_PIECE_BYTES = 2**20


@dataclass(frozen=True)
class ExportFile:
    """One exported file: its format, place, rows, size in bytes and SHA-256."""

    format: str
    path: Path
    row_count: int
    size_bytes: int
    sha256: str


def export_schema(all_columns: bool) -> pa.Schema:
    """Columns of an export: id, transcription, tokens; or everything known of each recording.

    The columns of `transcripts` come first, then those of `raw_audio` and `tokens` that are not among them. What
    `raw_audio` says differently of the object (``status``, ``error``, ``duration_s``, ``sha256``) is named ``audio_…``.
    """
    if not all_columns:
        return pa.schema(
            [
                pa.field("id", pa.string(), nullable=False),
                pa.field("transcription", pa.string(), nullable=False),
                pa.field("tokens", pa.list_(pa.string()), nullable=False),
            ]
        )
    fields = [pa.field(name, field.type) for name, (_, _, field) in _all_columns().items()]
    return pa.schema(fields)


def _all_columns() -> dict[str, tuple[schemas.Table, str, pa.Field]]:
    """Name in the export -> table, column there, field."""
    columns: dict[str, tuple[schemas.Table, str, pa.Field]] = {}
    for table in (schemas.TRANSCRIPTS, schemas.RAW_AUDIO, schemas.TOKENS):
        for field in table.schema:
            name = field.name
            if name in columns:
                if table is not schemas.RAW_AUDIO or name in ("id", "prefix"):
                    continue
                name = f"audio_{name}"
            columns[name] = (table, field.name, field)
    return columns


def check_choice(formats: Sequence[str], min_grade: str | None) -> None:
    """Make sure that formats and grade are some that `export_corpus` knows.

    Raises:
        ValueError: one is unknown, or there is no format.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        what = f"unknown export format {unknown[0]!r}" if unknown else "no export format"
        raise ValueError(f"{what}; use some of {', '.join(FORMATS)}")
    if min_grade is not None and min_grade not in schemas.GRADES:
        raise ValueError(f"unknown grade {min_grade!r}; use one of {', '.join(schemas.GRADES)}")


def export_corpus(
    store: PartitionStore,
    directory: Path,
    formats: Sequence[str],
    *,
    all_columns: bool = False,
    prefixes: Sequence[str] | None = None,
    include_partial: bool = False,
    min_grade: str | None = None,
    on_unreadable: Callable[[Unreadable], None] | None = None,
) -> list[ExportFile]:
    """Write ``corpus.*`` and ``MANIFEST.json`` into ``directory``.

    A row is a recording with a transcript: status ok, empty or gone, and partial when asked for. Partitions come in
    the order of their keys, rows in the order of their ids, so the same corpus gives the same JSON Lines bytes.

    Args:
        store: the record.
        directory: made when it is missing.
        formats: some of `FORMATS`.
        all_columns: every column of raw_audio, transcripts and tokens instead of id, transcription and tokens.
        prefixes: only these R2 prefixes; None for all.
        include_partial: also recordings whose transcript is not complete yet.
        min_grade: only recordings whose transcript has this grade of `schemas.GRADES` or a better one; None for all.
        on_unreadable: called with each file that is damaged or foreign; its partition is left out, and
            ``MANIFEST.json`` says so.

    Raises:
        ValueError: an unknown format or grade.
        StorageError: a partition file is damaged and ``on_unreadable`` is not given, or the disk refused. Earlier
            exports are untouched.
    """
    check_choice(formats, min_grade)
    chosen = _Choice(all_columns, prefixes, include_partial, min_grade)
    wanted = [name for name in FORMATS if name in formats]
    if on_unreadable is not None:
        for foreign in store.scan(schemas.TRANSCRIPTS).unreadable:
            on_unreadable(foreign)
    left_out: set[str] = set()
    while True:
        try:
            return _export(store, directory, wanted, chosen, left_out)
        except _UnreadablePartitionError as error:
            if on_unreadable is None:
                raise StorageError(str(error)) from error
            # Some of its rows may be written already: the export starts anew without it.
            left_out.add(error.partition)
            on_unreadable(Unreadable(str(error).partition(": ")[0], str(error)))


@dataclass(frozen=True)
class _Choice:
    """Which rows and columns are exported."""

    all_columns: bool
    prefixes: Sequence[str] | None
    include_partial: bool
    min_grade: str | None

    @property
    def statuses(self) -> list[str]:
        return [*_EXPORTED, "partial"] if self.include_partial else list(_EXPORTED)

    @property
    def grades(self) -> list[str] | None:
        """Grades that are good enough; None for any and none."""
        if self.min_grade is None:
            return None
        return list(schemas.GRADES[: schemas.GRADES.index(self.min_grade) + 1])


class _UnreadablePartitionError(StorageError):
    """A partition that cannot be exported because one of its files cannot be read."""

    def __init__(self, partition: str, reason: str):
        super().__init__(reason)
        self.partition = partition


def _export(
    store: PartitionStore,
    directory: Path,
    wanted: list[str],
    chosen: _Choice,
    left_out: Collection[str],
) -> list[ExportFile]:
    keys = [key for key in _partition_keys(store, chosen.prefixes) if key not in left_out]
    schema = export_schema(chosen.all_columns)
    record = hashlib.sha256()
    rows = 0
    try:
        directory.mkdir(parents=True, exist_ok=True)
        atomic.remove_stale_temps(directory)
        with contextlib.ExitStack() as stack:
            targets = [
                stack.enter_context(atomic.replacing(directory / FILE_NAMES[name], crash_name="export"))
                for name in wanted
            ]
            with contextlib.ExitStack() as open_sinks:
                sinks: list[_Sink] = []
                for name, temp in zip(wanted, targets, strict=True):
                    sinks.append(_SINKS[name](temp, schema))
                    open_sinks.callback(sinks[-1].close)
                for key in keys:
                    for batch in _joined(store, key, chosen, schema, record):
                        rows += batch.num_rows
                        for sink in sinks:
                            sink.write(batch)
                        atomic.crash_point("export:half-written")
                for sink in sinks:
                    sink.finish()
            sums = [sha256_of(temp) for temp in targets]
            sizes = [temp.stat().st_size for temp in targets]
        files = [
            ExportFile(name, directory / FILE_NAMES[name], rows, size, digest)
            for name, size, digest in zip(wanted, sizes, sums, strict=True)
        ]
        _write_manifest(directory, files, schema, record.hexdigest(), chosen, left_out)
    except (OSError, sqlite3.Error, duckdb.Error) as error:
        raise StorageError(
            f"{directory}: the export could not be written: {first_line(error)}; earlier exports are untouched."
            " Free some space or correct the permissions, then run `audio-assets export` again"
        ) from error
    return files


def record_digest(
    store: PartitionStore, prefixes: Sequence[str] | None = None, *, all_columns: bool = False, graded: bool = False
) -> str:
    """A digest of the partition files that an export is made from; it changes when any of them is written again.

    Raises:
        StorageError: a partition file is damaged.
    """
    digest = hashlib.sha256()
    for key in _partition_keys(store, prefixes):
        for table in (schemas.TRANSCRIPTS, schemas.RAW_AUDIO, schemas.TOKENS, schemas.TRANSCRIPT_QUALITY):
            if table is schemas.RAW_AUDIO and not all_columns:
                continue
            if table is schemas.TRANSCRIPT_QUALITY and not graded:
                continue
            with contextlib.suppress(FileNotFoundError), store.open(table, key) as file:
                digest.update(_identity(table, file))
    return digest.hexdigest()


def _identity(table: schemas.Table, file: pq.ParquetFile) -> bytes:
    written: bytes = (file.metadata.metadata or {}).get(WRITE_KEY, b"")
    return table.name.encode() + written


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of an export directory; empty when there is none or it is damaged."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _partition_keys(store: PartitionStore, prefixes: Sequence[str] | None) -> list[str]:
    present = [file.partition for file in store.partitions(schemas.TRANSCRIPTS) if file.partition is not None]
    if prefixes is None:
        return present
    wanted = {partitions.partition_key_for(prefix) for prefix in prefixes}
    return [key for key in present if key in wanted]


def _joined(
    store: PartitionStore, key: str, chosen: _Choice, schema: pa.Schema, record: Any
) -> Iterator[pa.RecordBatch]:
    """The exported rows of one partition, in the order of their ids.

    Raises:
        _UnreadablePartitionError: a file of it is damaged or foreign.
    """
    try:
        yield from _rows_of(store, key, chosen, schema, record)
    except StorageError as error:
        raise _UnreadablePartitionError(key, str(error)) from error


def _rows_of(
    store: PartitionStore, key: str, chosen: _Choice, schema: pa.Schema, record: Any
) -> Iterator[pa.RecordBatch]:
    by_table: dict[str, list[tuple[str, str]]] = {}
    if chosen.all_columns:
        for name, (table, column, _) in _all_columns().items():
            by_table.setdefault(table.name, []).append((name, column))
    else:
        by_table = {"transcripts": [("id", "id"), ("transcription", "transcription")], "tokens": [("tokens", "tokens")]}
    with contextlib.ExitStack() as stack:
        try:
            main = stack.enter_context(_Cursor.open(store, schemas.TRANSCRIPTS, key, by_table["transcripts"]))
        except FileNotFoundError:
            return
        record.update(main.identity)
        sides: list[_Cursor] = []
        for table in (schemas.RAW_AUDIO, schemas.TOKENS):
            if table.name not in by_table:
                continue
            with contextlib.suppress(FileNotFoundError):
                sides.append(stack.enter_context(_Cursor.open(store, table, key, by_table[table.name])))
                record.update(sides[-1].identity)
        good = _good_ids(store, key, chosen.grades, record)
        while (batch := main.next_batch()) is not None:
            keep = pc.and_(
                pc.is_in(batch.column("status"), pa.array(chosen.statuses)), pc.is_valid(batch.column("transcription"))
            )
            if good is not None:
                keep = pc.and_(keep, pc.is_in(batch.column("id"), good))
            batch = batch.filter(keep)
            if batch.num_rows == 0:
                continue
            ids = batch.column("id").combine_chunks()
            columns = {name: batch.column(column) for name, column in by_table["transcripts"]}
            for side in sides:
                matched = side.match(ids)
                for name, column in side.names:
                    columns[name] = matched.column(column)
            arrays = []
            for field in schema:
                values = columns.get(field.name)
                values = pa.nulls(batch.num_rows, field.type) if values is None else values
                if field.name == "tokens":
                    # A transcript without words has no tokens: an empty list, also before the tokens are made.
                    values = pc.coalesce(values, pa.scalar([], field.type))
                arrays.append(values)
            table_ = pa.Table.from_arrays(arrays, schema=schema).combine_chunks()
            yield from table_.to_batches()


def _good_ids(store: PartitionStore, key: str, grades: list[str] | None, record: Any) -> pa.Array | None:
    """The recordings of a partition whose transcripts have one of ``grades``; None when any will do.

    Raises:
        StorageError: they are not graded.
    """
    if grades is None:
        return None
    table = schemas.TRANSCRIPT_QUALITY
    try:
        with store.open(table, key) as file:
            record.update(_identity(table, file))
    except FileNotFoundError:
        raise StorageError(
            f"partition {key!r}: its transcripts have no grades; run `audio-assets run` without --skip-summary, or "
            "leave out --min-grade"
        ) from None
    rows = store.read(table, [key], ["id", "grade"])
    return rows.filter(pc.is_in(rows.column("grade"), pa.array(grades))).column("id").combine_chunks()


class _Cursor:
    """One partition file, read forwards in the order of its ids."""

    def __init__(self, file: pq.ParquetFile, table: schemas.Table, names: list[tuple[str, str]]) -> None:
        self.names = names
        self.identity = _identity(table, file)
        needed = dict.fromkeys(["id", *(column for _, column in names)])
        if table is schemas.TRANSCRIPTS:
            needed |= dict.fromkeys(["status", "transcription"])
        self._shape = schemas.Table(
            table.name, table.description, tuple(c for c in table.columns if c.name in needed), table.key
        )
        present = [name for name in self._shape.column_names if name in set(file.schema_arrow.names)]
        # Row group by row group: a reader over all of them keeps what it needs for each.
        self._batches = (
            batch
            for group in range(file.metadata.num_row_groups)
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group], columns=present)
        )
        self._ahead: pa.Table | None = None

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, store: PartitionStore, table: schemas.Table, key: str, names: list[tuple[str, str]]
    ) -> Iterator[_Cursor]:
        """Open the partition ``key``; `FileNotFoundError` when it was never written."""
        with store.open(table, key) as file:
            yield cls(file, table, names)

    def next_batch(self) -> pa.Table | None:
        """The next rows, or None at the end."""
        for batch in self._batches:
            if batch.num_rows:
                return adapt(pa.Table.from_batches([batch]), self._shape)
        return None

    def match(self, ids: pa.Array) -> pa.Table:
        """One row for each of ``ids``, which ascend from call to call; nulls where there is none."""
        last = ids[-1].as_py()
        found: list[pa.Table] = []
        while True:
            if self._ahead is None:
                self._ahead = self.next_batch()
                if self._ahead is None:
                    break
            have = self._ahead.column("id")
            end = have[-1].as_py()
            if have[0].as_py() > last:
                break
            mask = pc.is_in(have, ids)
            found.append(self._ahead if pc.all(mask).as_py() else self._ahead.filter(mask))
            if end > last:
                self._ahead = self._ahead.filter(pc.greater(have, ids[-1]))
                break
            # Equal ids may go on in the next batch only when they are repeated, and then the first one is enough.
            self._ahead = None
        rows = pa.concat_tables(found) if found else self._shape.empty()
        where = pc.index_in(ids, rows.column("id").combine_chunks())
        if rows.num_rows == len(ids) and where.null_count == 0 and _counts_up(where):
            return rows
        return rows.combine_chunks().take(where)


def _counts_up(where: pa.Array) -> bool:
    import numpy as np

    return bool(np.array_equal(where.to_numpy(zero_copy_only=False), np.arange(len(where))))


class _Sink(Protocol):
    """One format being written: `finish` when all is written, `close` in any case."""

    def write(self, batch: pa.RecordBatch) -> None: ...

    def finish(self) -> None: ...

    def close(self) -> None: ...


class _JsonSink:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = path.open("w", encoding="utf-8", newline="\n")
        self._names = schema.names

    def write(self, batch: pa.RecordBatch) -> None:
        self._file.write("".join(_json(row) + "\n" for row in _rows(batch)))

    def finish(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _ParquetSink:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._waiting: list[pa.RecordBatch] = []

    def write(self, batch: pa.RecordBatch) -> None:
        self._waiting.append(batch)
        if sum(waiting.num_rows for waiting in self._waiting) >= ROW_GROUP_ROWS:
            self._flush()

    def finish(self) -> None:
        self._flush()
        self._writer.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what was not finished is thrown away
            self._writer.close()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.Table.from_batches(self._waiting), row_group_size=ROW_GROUP_ROWS)
            self._waiting = []


class _SqliteSink:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        # The file is nobody's until it is renamed: no journal is needed.
        self._connection.execute("PRAGMA journal_mode = OFF")
        self._connection.execute("PRAGMA synchronous = OFF")
        kinds = {pa.int64(): "INTEGER", pa.bool_(): "INTEGER", pa.float64(): "REAL"}
        columns = ", ".join(f"{quoted(f.name)} {kinds.get(f.type, 'TEXT')}" for f in schema)
        self._connection.execute(f"CREATE TABLE corpus ({columns})")
        self._connection.execute("CREATE TABLE tokens (id TEXT, position INTEGER, token TEXT)")
        self._connection.execute("BEGIN")
        self._insert = f"INSERT INTO corpus VALUES ({', '.join('?' * len(schema))})"  # noqa: S608

    def write(self, batch: pa.RecordBatch) -> None:
        rows = list(_rows(batch))
        self._connection.executemany(self._insert, ([_cell(value) for value in row.values()] for row in rows))
        self._connection.executemany(
            "INSERT INTO tokens VALUES (?, ?, ?)",
            ((row["id"], position, token) for row in rows for position, token in enumerate(row["tokens"])),
        )

    def finish(self) -> None:
        self._connection.execute("COMMIT")
        self._connection.execute("CREATE INDEX corpus_id ON corpus (id)")
        self._connection.execute("CREATE INDEX tokens_token ON tokens (token)")

    def close(self) -> None:
        self._connection.close()


class _DuckdbSink:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        path.unlink()  # DuckDB does not take an empty file for a database
        self._connection = duckdb.connect(
            str(path),
            config={
                "storage_compatibility_version": DUCKDB_STORAGE_VERSION,
                "memory_limit": "192MB",
                "threads": 1,
                "enable_external_access": False,
            },
        )
        columns = ", ".join(f"{quoted(f.name)} {sql_type(f.type)}" for f in schema)
        self._connection.execute(f"CREATE TABLE corpus ({columns})")
        self._connection.execute("BEGIN")
        self._uncommitted = 0

    def write(self, batch: pa.RecordBatch) -> None:
        self._connection.register("incoming", pa.Table.from_batches([batch]))
        self._connection.execute("INSERT INTO corpus SELECT * FROM incoming")
        self._connection.unregister("incoming")
        self._uncommitted += batch.num_rows
        if self._uncommitted >= _COMMIT_ROWS:
            self._connection.execute("COMMIT")
            self._connection.execute("BEGIN")
            self._uncommitted = 0

    def finish(self) -> None:
        self._connection.execute("COMMIT")
        # Closing would write what is left in the log, and say nothing if it cannot.
        self._connection.execute("CHECKPOINT")

    def close(self) -> None:
        self._connection.close()


_SINKS: dict[str, Any] = {"json": _JsonSink, "parquet": _ParquetSink, "sqlite": _SqliteSink, "duckdb": _DuckdbSink}


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    names = batch.schema.names
    columns = [_values(batch.column(i)) for i in range(batch.num_columns)]
    for values in zip(*columns, strict=True):
        yield dict(zip(names, values, strict=True))


def _values(column: pa.Array) -> list[Any]:
    if pa.types.is_map(column.type):
        return [None if pairs is None else dict(pairs) for pairs in column.to_pylist()]
    return list(column.to_pylist())


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=_plain)


def _finite(value: Any) -> Any:
    """``value`` with null for each NaN and infinity: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list) else value


def _cell(value: Any) -> Any:
    if isinstance(value, list | dict):
        return _json(value)
    return _plain(value) if hasattr(value, "isoformat") else value


def _plain(value: Any) -> Any:
    return value.isoformat()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_HASH_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _write_manifest(
    directory: Path,
    files: list[ExportFile],
    schema: pa.Schema,
    record: str,
    chosen: _Choice,
    left_out: Collection[str],
) -> None:
    """Describe the new files; keep what is said of formats that were not exported now and still lie there."""
    entries = {}
    for entry in read_manifest(directory).get("files", []):
        path = directory / str(entry.get("name"))
        if path.is_file() and path.stat().st_size == entry.get("size_bytes"):
            entries[entry["name"]] = entry
    for file in files:
        described = asdict(file)
        del described["path"]
        entries[file.path.name] = {
            "name": file.path.name,
            **described,
            "columns": schema.names,
            "prefixes": None if chosen.prefixes is None else sorted(chosen.prefixes),
            "include_partial": chosen.include_partial,
            "min_grade": chosen.min_grade,
            "left_out": sorted(left_out),
            "record": record,
        }
    body = {"files": [entries[name] for name in sorted(entries)]}
    atomic.write_bytes(directory / MANIFEST, (json.dumps(body, ensure_ascii=False, indent=2) + "\n").encode())
