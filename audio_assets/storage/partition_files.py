"""The record: one immutable Parquet file per table and partition, on a local disk or in an S3 bucket.

A file is complete or not there at all: on a disk it is written aside and renamed, in a bucket it is put in one request.
Rows are matched to columns by name against `schemas.py` and kept in the order of the table's key. Any number of
processes on any number of machines may write; of two writers of one partition the last one wins, whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from audio_assets import schemas
from audio_assets.errors import SchemaError, SettingsError, StorageError
from audio_assets.storage import atomic
from audio_assets.storage.places import place_for

TABLE_KEY = b"audio_assets.table"
PARTITION_KEY = b"audio_assets.partition"
SCHEMA_KEY = b"audio_assets.schema"
WRITE_KEY = b"audio_assets.write"

ROW_GROUP_ROWS = 16_384
"""Rows per row group: a 100,000-row partition gives every core of a laptop work, and one group of long transcripts
stays within tens of megabytes."""

_DICTIONARY_ROWS = 500
"""Below this a dictionary per column costs more than it saves: measured at 10 rows, a third of the time of a read."""

_PARALLEL_ROWS = 5_000
"""Below this, handing columns to several threads costs more than decoding them."""

_SCHEMAS: dict[str, tuple[schemas.Table, pa.Schema, bytes]] = {}
"""Table, Arrow schema and version by name: making them anew takes as long as opening a small file."""

_SUFFIX = ".parquet"
_ASIDE = ".damaged"
_WHOLE = "all" + _SUFFIX
"""Name of the one file of a table that has no partitions."""

_STEM_BYTES = 200
"""Longer names are cut and told apart by their SHA-256: file systems allow 255 bytes, temporary names add some."""

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_+=@. ")
_TAGGED = re.compile(r"^(?P<body>.*)~(?P<tag>[0-9a-f]{8}|[0-9a-f]{64})$")


class DamagedFileError(StorageError):
    """A partition file whose bytes cannot be read: cut short, overwritten, or no Parquet at all."""


class Unreadable(NamedTuple):
    """A file under ``tables/`` that is not a partition of its table, and why."""

    uri: str
    reason: str


@dataclass(frozen=True)
class PartitionFile:
    """One partition file as it lies in the store.

    ``identity`` changes whenever the file is replaced, and only then. ``size_bytes`` is the size of the file.
    """

    table: str
    partition: str | None
    uri: str
    identity: str
    size_bytes: int
    _rows: Callable[[], int] = field(repr=False, compare=False)

    @property
    def row_count(self) -> int:
        """Rows in the file, from its footer: reading it opens the file once more unless it was just written.

        Raises:
            StorageError: the file is gone or damaged.
        """
        return self._rows()


@dataclass(frozen=True)
class Scan:
    """What lies in the directory of one table: its partition files by partition, and what does not belong there."""

    files: list[PartitionFile]
    unreadable: list[Unreadable]


class PartitionStore:
    """Partition files under one root.

    Args:
        root: a directory; ``s3://bucket/folder`` (credentials, region and endpoint from the usual ``AWS_*`` variables
            or from the URL, as in ``s3://key:secret@bucket/folder?endpoint_override=127.0.0.1:8333&scheme=http``); or
            ``r2://bucket/folder`` (credentials and endpoint from the ``R2_*`` settings). Nothing is opened yet.

    Raises:
        SettingsError: the URL has no bucket or another scheme.
    """

    def __init__(self, root: str | Path) -> None:
        self._place = place_for(root)

    @property
    def threads(self) -> int:
        """How many files are worth reading at once."""
        return self._place.threads

    @property
    def root(self) -> str:
        """The root as text, without credentials."""
        return self._place.shown

    def write(
        self, table: schemas.Table, data: pa.Table, partition: str | None, fence: int | None = None
    ) -> PartitionFile:
        """Replace one partition by ``data``, whole or not at all; zero rows are an explicit, empty partition.

        Args:
            table: the table that the partition belongs to.
            data: the rows; columns are matched by name. They are stored in the order of the table's key.
            partition: any text; None for a table without partitions.
            fence: in a bucket, whoever has the greater one wins, whoever comes first. None: that of what is replaced.

        Raises:
            SupersededError: somebody with a greater ``fence`` has written the partition.
            SchemaError: a column is missing, unknown, of another type, or holds a null or NUL it may not. Nothing is
                replaced.
            StorageError: the disk or the bucket refused. What was there before is untouched.
        """
        _check_partition(table, partition)
        rows = _in_key_order(table, table.conform(data))
        _refuse_nul(table, rows)
        metadata = _metadata(table, partition)
        path = f"{table.name}/{file_name_for(partition)}"
        atomic.crash_point("partition:before-write")
        identity, size = self._place.write(path, lambda sink: _write_parquet(sink, rows, table.key, metadata), fence)
        count: int = rows.num_rows
        return PartitionFile(table.name, partition, self._place.uri(path), identity, size, lambda: count)

    def read(
        self,
        table: schemas.Table,
        partitions: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        *,
        on_unreadable: Callable[[Unreadable], None] | None = None,
    ) -> pa.Table:
        """The rows of the given partitions, in the order given; of all of them, in the order of their keys, for None.

        Only the columns asked for are read, and come in the order asked for. A partition that was never written has
        zero rows. A nullable column that an old file does not have reads as null.

        Args:
            table: the table to read.
            partitions: partition keys; None for all, and for a table without partitions.
            columns: column names; None for all.
            on_unreadable: called with each file that is damaged or foreign, which is then left out.

        Raises:
            SchemaError: ``columns`` names one that the table does not have.
            StorageError: a file is damaged or foreign and ``on_unreadable`` is not given.
        """
        shape = _selected(table, columns)
        bad: list[Unreadable] = []
        if partitions is None:
            scan = self.scan(table)
            bad += scan.unreadable
            wanted = [file.partition for file in scan.files]
        elif not table.partitioned:
            raise ValueError(f"table {table.name} has no partitions; read it without naming any")
        else:
            wanted = list(dict.fromkeys(partitions))

        def one(partition: str | None) -> pa.Table | Unreadable | None:
            path = f"{table.name}/{file_name_for(partition)}"
            try:
                with self._open(table, partition, path) as file:
                    return _read(file, shape)
            except FileNotFoundError:
                return None
            except StorageError as error:
                return Unreadable(self._place.uri(path), str(error))

        parts: list[pa.Table] = []
        for result in self._map(one, wanted):
            if isinstance(result, Unreadable):
                bad.append(result)
            elif result is not None:
                parts.append(result)
        for item in bad:
            if on_unreadable is None:
                raise StorageError(item.reason)
            on_unreadable(item)
        if not parts:
            return shape.empty()
        return pa.concat_tables(parts)

    def dataset(
        self,
        table: schemas.Table,
        partitions: Sequence[str] | None = None,
        *,
        on_unreadable: Callable[[Unreadable], None] | None = None,
    ) -> Any:
        """The given partitions (all, by default) as a `pyarrow.dataset.Dataset`: rows are read when they are asked for.

        Files that an older schema wrote are read at once.

        Raises:
            StorageError: a file is damaged or foreign and ``on_unreadable`` is not given.
        """
        import pyarrow.dataset as ds

        if partitions is None:
            partitions_: list[str | None] = [file.partition for file in self.partitions(table)]
        else:
            partitions_ = list(dict.fromkeys(partitions))
        fragments: list[Any] = []
        old: list[pa.Table] = []
        for partition in partitions_:
            path = f"{table.name}/{file_name_for(partition)}"
            try:
                with self._open(table, partition, path) as file:
                    if (file.metadata.metadata or {}).get(SCHEMA_KEY) == schema_version(table).encode():
                        fragments.append(self._place.fragment(path))
                    else:
                        old.append(_read(file, table))
            except FileNotFoundError:
                continue
            except StorageError as error:
                if on_unreadable is None:
                    raise
                on_unreadable(Unreadable(self._place.uri(path), str(error)))
        schema = table.schema
        parts = [ds.FileSystemDataset(fragments, schema, fragments[0].format)] if fragments else []
        if old or not parts:
            parts.append(ds.dataset(pa.concat_tables([table.empty(), *old])))
        return parts[0] if len(parts) == 1 else ds.dataset(parts)

    def partitions(self, table: schemas.Table) -> list[PartitionFile]:
        """The partition files of ``table``, in the order of their keys.

        Raises:
            StorageError: the store cannot be listed.
        """
        return self.scan(table).files

    def scan(self, table: schemas.Table) -> Scan:
        """The partition files of ``table`` and the files that lie among them but are not partitions of it.

        Only names are looked at: a file with a good name can still turn out to be damaged when it is read.

        Raises:
            StorageError: the store cannot be listed.
        """
        files: list[PartitionFile] = []
        unreadable: list[Unreadable] = []
        for name, identity, size in self._place.list(table.name):
            path = f"{table.name}/{name}"
            uri = self._place.uri(path)
            try:
                partition = self._partition_of(table, name, path)
            except FileNotFoundError:
                continue
            except StorageError as error:
                unreadable.append(Unreadable(uri, str(error)))
                continue
            files.append(PartitionFile(table.name, partition, uri, identity, size, self._row_counter(table, partition)))
        files.sort(key=lambda file: file.partition or "")
        return Scan(files, unreadable)

    def find(self, table: schemas.Table, partition: str | None = None) -> PartitionFile | None:
        """The file of one partition, without looking at any other's; None when it was never written.

        Raises:
            StorageError: the disk or the bucket refused.
        """
        _check_partition(table, partition)
        path = f"{table.name}/{file_name_for(partition)}"
        found = self._place.find(path)
        if found is None:
            return None
        return PartitionFile(table.name, partition, self._place.uri(path), *found, self._row_counter(table, partition))

    def number(self, partition: str | None) -> int:
        """The greatest ``fence`` that a file of this partition was written with, in any table; 0 for none.

        None stands for the tables without partitions.

        Raises:
            StorageError: the disk or the bucket refused.
        """
        tables = [table for table in schemas.TABLES.values() if table.partitioned == (partition is not None)]
        paths = [f"{table.name}/{file_name_for(partition)}" for table in tables]
        with ThreadPoolExecutor(min(self._place.threads, len(paths))) as pool:
            return max(pool.map(self._place.number, paths))

    def delete(self, table: schemas.Table, partition: str | None = None) -> bool:
        """Remove the partition; False when there was none.

        Raises:
            StorageError: the disk or the bucket refused.
        """
        _check_partition(table, partition)
        return self._place.delete(f"{table.name}/{file_name_for(partition)}")

    def set_aside(self, table: schemas.Table, partition: str | None = None) -> str:
        """Take a damaged file out of the table without losing its bytes; returns where they are now.

        Raises:
            FileNotFoundError: it was never written.
            StorageError: the disk or the bucket refused, or the bytes are sound after all. The file is where it was.
        """
        _check_partition(table, partition)
        path = f"{table.name}/{file_name_for(partition)}"
        with self._place.open(path) as source:
            content = source.read()
        with contextlib.suppress(pa.ArrowException, OSError, ValueError):
            # A disk or a network that failed for a moment is no reason to take a file away.
            pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True).read()
            raise StorageError(f"{self._place.uri(path)}: could not be read before, and can be now; try again")
        aside = f"{path}.{secrets.token_hex(4)}{_ASIDE}"
        self._place.write(aside, lambda sink: _write_plain(sink, content))
        self._place.delete(path)
        return self._place.uri(aside)

    def read_file(self, table: schemas.Table, file: PartitionFile) -> pa.Table:
        """All rows of one listed file.

        Raises:
            FileNotFoundError: it was deleted since.
            StorageError: it is damaged or not a partition of ``table``.
        """
        with self._open(table, file.partition, f"{table.name}/{file_name_for(file.partition)}") as opened:
            return _read(opened, table)

    @contextlib.contextmanager
    def open(self, table: schemas.Table, partition: str | None) -> Iterator[pq.ParquetFile]:
        """The partition as an open Parquet file, for reading it in pieces.

        Raises:
            FileNotFoundError: it was never written.
            StorageError: it is damaged or not a partition of ``table``.
        """
        _check_partition(table, partition)
        with self._open(table, partition, f"{table.name}/{file_name_for(partition)}") as file:
            yield file

    @contextlib.contextmanager
    def _open(self, table: schemas.Table, partition: str | None, path: str) -> Iterator[pq.ParquetFile]:
        uri = self._place.uri(path)
        try:
            with self._place.open(path) as source, pq.ParquetFile(source, page_checksum_verification=True) as file:
                _check_belongs(file, table, partition, uri)
                _check_columns(file, table)
                yield file
        except (FileNotFoundError, StorageError, SettingsError):
            raise
        except (pa.ArrowException, OSError, UnicodeDecodeError, _DamagedError) as error:
            raise DamagedFileError(
                f"{uri}: not a readable Parquet file ({first_line(error)}); run `audio-assets verify --repair`: it"
                " restores the rows from the warehouse, or sets the file aside"
            ) from error

    def _partition_of(self, table: schemas.Table, name: str, path: str) -> str | None:
        if not table.partitioned:
            if name != _WHOLE:
                raise StorageError(f"{self._place.uri(path)}: not a file of table {table.name}; move it elsewhere")
            return None
        partition = partition_of(name)
        if partition is None:
            partition = self._stored_partition(path)
        if partition is None or file_name_for(partition) != name:
            raise StorageError(
                f"{self._place.uri(path)}: its name is not that of a partition of {table.name}; move it elsewhere"
            )
        return partition

    def _stored_partition(self, path: str) -> str | None:
        try:
            with self._place.open(path) as source, pq.ParquetFile(source) as file:
                stored = (file.metadata.metadata or {}).get(PARTITION_KEY)
            return stored.decode("utf-8", "surrogatepass") if stored is not None else None
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, UnicodeDecodeError):
            return None

    def _row_counter(self, table: schemas.Table, partition: str | None) -> Callable[[], int]:
        def count() -> int:
            path = f"{table.name}/{file_name_for(partition)}"
            try:
                with self._open(table, partition, path) as file:
                    return int(file.metadata.num_rows)
            except FileNotFoundError as error:
                raise StorageError(f"{self._place.uri(path)}: gone since it was listed; list again") from error

        return count

    def _map(
        self, function: Callable[[str | None], pa.Table | Unreadable | None], items: Sequence[str | None]
    ) -> Iterator[pa.Table | Unreadable | None]:
        threads = self._place.threads
        if len(items) < 2 or threads < 2:
            yield from map(function, items)
            return
        with ThreadPoolExecutor(min(threads, len(items))) as pool:
            yield from pool.map(function, items)


@functools.lru_cache(maxsize=2**16)
def file_name_for(partition: str | None) -> str:
    """The file name of a partition key: readable, plain ASCII, different for different keys even where the file system
    ignores case.

    >>> file_name_for("calls/2024")
    'calls%2F2024.parquet'
    >>> file_name_for("LibriSpeech")
    'LibriSpeech~6a5b9c2f.parquet'
    """
    if partition is None:
        return _WHOLE
    encoded = "".join(_escape(c, first=i == 0) for i, c in enumerate(partition)) or "%"
    digest = hashlib.sha256(partition.encode("utf-8", "surrogatepass")).hexdigest()
    if len(encoded) > _STEM_BYTES:
        return f"{encoded[: _STEM_BYTES // 2]}~{digest}{_SUFFIX}"
    # 'Calls' and 'calls' are two prefixes, and one file on macOS: the tag keeps them apart.
    if any("A" <= c <= "Z" for c in partition):
        return f"{encoded}~{digest[:8]}{_SUFFIX}"
    return encoded + _SUFFIX


def partition_of(name: str) -> str | None:
    """The partition key of a file name that `file_name_for` made; None where the name alone does not say.

    A name that `file_name_for` never makes may give any key: compare ``file_name_for(key)`` with the name.
    """
    stem = name[: -len(_SUFFIX)] if name.endswith(_SUFFIX) else name
    tagged = _TAGGED.match(stem)
    if tagged:
        if len(tagged["tag"]) == 64:
            return None
        stem = tagged["body"]
    if stem == "%":
        return ""
    try:
        return unquote_to_bytes(stem).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return None


def _escape(character: str, first: bool) -> str:
    # A leading dot would hide the file and look like a temporary one.
    if character in _PLAIN and not (first and character == "."):
        return character
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def _check_partition(table: schemas.Table, partition: str | None) -> None:
    if table.partitioned and partition is None:
        raise ValueError(f"table {table.name} is kept by partition; name one")
    if not table.partitioned and partition is not None:
        raise ValueError(f"table {table.name} has no partitions; got {partition!r}")


def _metadata(table: schemas.Table, partition: str | None) -> dict[bytes, bytes]:
    metadata = {
        TABLE_KEY: table.name.encode(),
        SCHEMA_KEY: schema_version(table).encode(),
        WRITE_KEY: secrets.token_hex(16).encode(),
    }
    if partition is not None:
        metadata[PARTITION_KEY] = partition.encode("utf-8", "surrogatepass")
    return metadata


def schema_version(table: schemas.Table) -> str:
    """A short name for the columns of ``table`` as they are now; another one as soon as any of them changes."""
    described = "\n".join(f"{c.name} {c.type} {c.nullable}" for c in table.columns)
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _write_parquet(sink: Any, rows: pa.Table, key: Sequence[str], metadata: dict[bytes, bytes]) -> None:
    # Most partitions are small, and a dictionary and statistics for each of some thirty leaf columns would take longer
    # to read back than their values. Statistics of the key let readers skip row groups; the others are never asked for.
    with pq.ParquetWriter(
        sink,
        rows.schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=rows.num_rows >= _DICTIONARY_ROWS,
        write_statistics=list(key) or False,
        write_page_checksum=True,
        store_schema=False,  # the types follow from Parquet's own; Arrow's copy is a third of a small file
    ) as writer:
        writer.add_key_value_metadata(metadata)
        writer.write_table(rows, row_group_size=ROW_GROUP_ROWS)
        atomic.crash_point("partition:half-written")


def _write_plain(sink: Any, content: bytes) -> None:
    """Bytes as they are, to what a place gives to write to: a path or a stream."""
    if isinstance(sink, str | Path):
        Path(sink).write_bytes(content)
    else:
        sink.write(content)


def _in_key_order(table: schemas.Table, rows: pa.Table) -> pa.Table:
    """``rows`` in the order of the table's key, by UTF-8 bytes as R2 lists keys; as they are when they already lie so.

    Sorted files let exports join tables in a stream, and let DuckDB skip row groups.
    """
    if not table.key or rows.num_rows < 2:
        return rows
    if len(table.key) == 1:
        ids = rows.column(table.key[0]).combine_chunks()
        ids = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
        if pc.all(pc.less_equal(ids[:-1], ids[1:])).as_py():
            return rows
    order = pc.sort_indices(rows, sort_keys=[(name, "ascending") for name in table.key])
    if np.array_equal(order.to_numpy(), np.arange(rows.num_rows)):
        return rows
    return rows.take(order)


def _refuse_nul(table: schemas.Table, rows: pa.Table) -> None:
    """Refuse NUL characters: SQLite and most readers of text end a value there, so it could not come back the same."""
    for name in rows.column_names:
        if any(_holds_nul(chunk) for chunk in rows.column(name).chunks):
            for index, value in enumerate(rows.column(name)):
                if "\\x00" in repr(value.as_py()):
                    key = {column: rows.column(column)[index].as_py() for column in table.key}
                    raise SchemaError(
                        f"table {table.name}: column {name} of row {key!r} holds a NUL character, which SQLite and"
                        " other readers would cut the text at; remove it"
                    )


def _holds_nul(values: pa.Array) -> bool:
    """Whether any text anywhere in ``values`` may hold a NUL: bytes behind nulls count too."""
    kind = values.type
    if pa.types.is_string(kind):
        if len(values) == 0:
            return False
        _, offsets, data = values.buffers()
        if data is None or data.size == 0:
            return False
        ends = np.frombuffer(offsets, dtype=np.int32, count=len(values) + 1, offset=4 * values.offset)
        used = np.frombuffer(data, dtype=np.uint8)[ends[0] : ends[-1]]
        return bool(used.size) and int(used.min()) == 0
    if pa.types.is_map(kind):
        return _holds_nul(values.keys) or _holds_nul(values.items)
    if pa.types.is_list(kind):
        return _holds_nul(values.flatten())
    if pa.types.is_struct(kind):
        return any(_holds_nul(child) for child in values.flatten())
    return False


def _selected(table: schemas.Table, columns: Sequence[str] | None) -> schemas.Table:
    """``table`` with only ``columns``, in that order."""
    if columns is None:
        return table
    by_name = {column.name: column for column in table.columns}
    unknown = [name for name in columns if name not in by_name]
    if unknown:
        raise SchemaError(f"table {table.name} has no column {unknown[0]!r}; it has {', '.join(by_name)}")
    return dataclasses.replace(table, columns=tuple(by_name[name] for name in dict.fromkeys(columns)))


def _check_belongs(file: pq.ParquetFile, table: schemas.Table, partition: str | None, uri: str) -> None:
    metadata = file.metadata.metadata or {}
    if TABLE_KEY not in metadata:
        raise StorageError(f"{uri}: a Parquet file that this package did not write; move it elsewhere")
    stored = metadata.get(PARTITION_KEY)
    key = stored.decode("utf-8", "surrogatepass") if stored is not None else None
    if metadata[TABLE_KEY].decode() != table.name or key != partition:
        raise StorageError(
            f"{uri}: holds partition {key!r} of table {metadata[TABLE_KEY].decode()}, so it was moved here;"
            " move it back or delete it"
        )


class _DamagedError(Exception):
    """What a file says of itself does not fit."""


def _check_columns(file: pq.ParquetFile, table: schemas.Table) -> None:
    """Compare the columns with those of the schema that the file was written under, if that is today's.

    The end of a file, which names its columns, has no checksum: one whose name is damaged would read as missing, which
    in a file of an older schema is null.
    """
    schema, version = _schema(table)
    if (file.metadata.metadata or {}).get(SCHEMA_KEY) == version and not file.schema_arrow.equals(schema):
        raise _DamagedError("its columns are not those that it was written with")


def _read(file: pq.ParquetFile, shape: schemas.Table) -> pa.Table:
    """The columns of ``shape`` from an open file, which may be older than the schema."""
    parallel = file.metadata.num_rows >= _PARALLEL_ROWS
    schema, version = _schema(shape)
    if (file.metadata.metadata or {}).get(SCHEMA_KEY) == version:
        # Written under this very schema, and checked against it then.
        data = file.read(use_threads=parallel)
    else:
        names = file.schema_arrow.names
        data = file.read(columns=[name for name in shape.column_names if name in names], use_threads=parallel)
    if data.schema.equals(schema):
        return pa.Table.from_arrays(data.columns, schema=schema)
    return adapt(data, shape)


def _schema(table: schemas.Table) -> tuple[pa.Schema, bytes]:
    """Arrow schema and version of ``table``."""
    known = _SCHEMAS.get(table.name)
    if known is None or known[0] is not table:
        known = _SCHEMAS[table.name] = (table, table.schema, schema_version(table).encode())
    return known[1:]


def adapt(data: pa.Table, shape: schemas.Table) -> pa.Table:
    """``data``, perhaps written under an older schema, as rows of ``shape``.

    Nullable columns and struct fields that are missing become null; those that the schema no longer has are left out.

    Raises:
        SchemaError: a column that may not be null is missing, or a type does not fit.
    """
    arrays: dict[str, pa.ChunkedArray] = {}
    for column in shape.columns:
        if column.name not in data.column_names:
            if not column.nullable:
                raise SchemaError(
                    f"table {shape.name}: a stored file lacks column {column.name}, which may not be null;"
                    " materialize the partition again"
                )
            arrays[column.name] = pa.chunked_array([pa.nulls(data.num_rows, column.type)])
            continue
        values = data.column(column.name)
        if values.type != column.type:
            chunks = [_adapt_values(chunk, column.type) for chunk in values.chunks]
            values = pa.chunked_array(chunks, type=chunks[0].type) if chunks else pa.chunked_array([], type=column.type)
        arrays[column.name] = values
    if not arrays:
        return data.select([])
    return shape.conform(pa.table(arrays))


def _adapt_values(values: pa.Array, want: pa.DataType) -> pa.Array:
    """``values`` with the struct fields of ``want``; other differences of type are left for the schema to judge."""
    have = values.type
    if have == want:
        return values
    if pa.types.is_struct(have) and pa.types.is_struct(want):
        children = dict(zip([f.name for f in have], values.flatten(), strict=True))
        fields = []
        arrays = []
        for wanted in want:
            child = children.get(wanted.name)
            child = pa.nulls(len(values), wanted.type) if child is None else _adapt_values(child, wanted.type)
            arrays.append(child)
            fields.append(pa.field(wanted.name, child.type, wanted.nullable))
        return pa.StructArray.from_arrays(arrays, fields=fields, mask=values.is_null())
    if pa.types.is_list(have) and pa.types.is_list(want):
        items = _adapt_values(values.flatten(), want.value_type)
        lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
        return pa.ListArray.from_arrays(
            pa.array(offsets), items, type=pa.list_(pa.field("element", items.type)), mask=values.is_null()
        )
    return values


def first_line(error: BaseException) -> str:
    """The first line of an error's message: the rest is for the library's authors."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
