"""Forgetting objects that vanished from the bucket: their rows, cache entries, mirror copies and exports.

Everything is kept until it is asked for: a row whose object vanished is ``gone``, with its last transcript. The order
of the steps makes a killed run harmless: copies and cache entries go first, while the rows still say what to forget;
what is made of the rows is rebuilt last. From before the first removal to the end a file says what is being forgotten:
the same command, run again, finishes the work.

What stays: the transcription ledger, which is the book of what was paid (names and prices, no text), and Dagster's own
history of earlier runs.
"""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from audio_assets import derived, schemas
from audio_assets.errors import StorageError
from audio_assets.partitions import PARTITIONS_NAME, partition_key_for
from audio_assets.resources.duckdb_io import PartitionedDuckDBIOManager
from audio_assets.resources.home import HomeResource
from audio_assets.storage import exports, published
from audio_assets.storage.atomic import crash_point, write_bytes
from audio_assets.storage.objects import Objects
from audio_assets.storage.partition_files import PartitionStore
from audio_assets.storage.warehouse import PARTITION_COLUMN, Warehouse

if TYPE_CHECKING:
    import dagster as dg

_PURGED = (
    schemas.RAW_AUDIO,
    schemas.TRANSCRIPTS,
    schemas.TOKENS,
    schemas.TRANSCRIPT_QUALITY,
    schemas.PREFIX_SUMMARY,
    schemas.TOKEN_FREQUENCY,
    schemas.PREFIX_STATISTICS,
    schemas.PREFIX_DRIFT,
)
"""Tables of a partition that go with its last row."""

_ROWS_BY_ID = (schemas.RAW_AUDIO, schemas.TRANSCRIPTS, schemas.TOKENS, schemas.TRANSCRIPT_QUALITY)

_MARK = "forgetting"

_AGAIN = "run `audio-assets run --forget-gone` again"

Row = tuple[str, str]
"""Names a row: partition and id."""


@dataclass(frozen=True)
class Forgotten:
    """What was removed of one object.

    ``kept_for`` names another object with the same bytes, which keeps the cache; or the object itself where another
    partition has it, which keeps cache and copy.
    """

    id: str
    partition: str
    mirror_copy: bool
    cache_entries: int
    kept_for: str | None

    @property
    def line(self) -> str:
        """One line for a terminal."""
        if self.kept_for == self.id:
            return f"forgotten: {self.id} (its rows in {self.partition}; another partition has it)"
        cache = f"cache kept for {self.kept_for}" if self.kept_for else f"{self.cache_entries} cache entries"
        return f"forgotten: {self.id} ({'mirror copy' if self.mirror_copy else 'no mirror copy'}, {cache})"


@dataclass(frozen=True)
class _Marked:
    """Rows that are being forgotten, with the SHA-256 of all that their objects ever held.

    Not ``complete`` where earlier ones could not be read.
    """

    rows: Mapping[Row, frozenset[str]] = field(default_factory=dict)
    complete: bool = True


@dataclass(frozen=True)
class _Left:
    """What nothing may be left of: rows, objects that have no row, and contents that nobody else has."""

    rows: Mapping[Row, Collection[str]]
    keys: Collection[str]
    hashes: Collection[str]


class _Mark:
    """The file that says what is being forgotten. Who removes it has looked whether anything is left.

    Where the home is in a bucket it lies there: any machine finishes the work of another.
    """

    def __init__(self, home: HomeResource) -> None:
        self._path, self._objects = home.paths().root / _MARK, home.objects()

    def exists(self) -> bool:
        return self._get()[0] is not None

    def read(self) -> _Marked:
        return _marked(self._get()[0])

    def add(self, rows: Mapping[Row, Collection[str]]) -> None:
        """Note ``rows`` beside those of earlier runs; stored when this returns.

        Raises:
            OSError: the disk refused.
            StorageError: the bucket refused.
        """
        while True:
            body, etag = self._get()
            before = _marked(body)
            told = {row: {*hashes, *before.rows.get(row, ())} for row, hashes in rows.items()}
            listed = [
                {"partition": partition, "id": key, "sha256": sorted(hashes)}
                for (partition, key), hashes in sorted({**before.rows, **told}.items())
            ]
            if self._put(json.dumps({"rows": listed, "complete": before.complete}).encode(), etag):
                return

    def remove(self) -> None:
        if self._objects is not None:
            self._objects.delete(_MARK)
        else:
            self._path.unlink(missing_ok=True)

    def _get(self) -> tuple[bytes | None, str | None]:
        """What it says, and its ETag in a bucket."""
        if self._objects is not None:
            return self._objects.get(_MARK) or (None, None)
        try:
            return self._path.read_bytes(), None
        except FileNotFoundError:
            return None, None

    def _put(self, body: bytes, etag: str | None) -> bool:
        if self._objects is not None:
            return self._objects.put(_MARK, body, replaces=etag, is_new=etag is None) is not None
        write_bytes(self._path, body)
        return True


def _marked(body: bytes | None) -> _Marked:
    """What a mark says; nothing is known of one that is damaged."""
    if body is None:
        return _Marked()
    try:
        told = json.loads(body)
        rows = {(str(row["partition"]), str(row["id"])): frozenset(map(str, row["sha256"])) for row in told["rows"]}
        return _Marked(rows, bool(told["complete"]))
    except (ValueError, TypeError, KeyError):
        return _Marked(complete=False)


@dataclass
class Forgetting:
    """The vanished objects of some partitions, as they are forgotten. ``retired`` partitions had no other rows."""

    store: PartitionStore
    home: HomeResource
    vanished: dict[str, list[str]] = field(default_factory=dict)
    forgotten: list[Forgotten] = field(default_factory=list)
    retired: list[str] = field(default_factory=list)

    @staticmethod
    def of(
        store: PartitionStore,
        home: HomeResource,
        chosen: Sequence[tuple[str, Callable[[str], bool]]],
        *,
        bucket_listed: bool = True,
    ) -> Forgetting:
        """What there is to forget in the ``chosen`` partitions, each with a test of which keys are meant.

        Where the bucket was not listed, only files of the mirror folder that never came from it.

        Raises:
            StorageError: a table cannot be read.
        """
        vanished = {}
        for partition, wants in chosen:
            rows = store.read(schemas.RAW_AUDIO, [partition], ["id", "status", "etag"]).to_pylist()
            meant = (row for row in rows if row["status"] == "gone" and (bucket_listed or row["etag"] is None))
            if wanted := [row["id"] for row in meant if wants(row["id"])]:
                vanished[partition] = wanted
        return Forgetting(store, home, vanished)

    @property
    def unfinished(self) -> bool:
        """Whether something was removed, by this process or one that was killed, and `finish` did not follow."""
        return self._mark.exists()

    @property
    def _mark(self) -> _Mark:
        return _Mark(self.home)

    def purge(self, partition: str, instance: dg.DagsterInstance) -> bool:
        """Remove copies, cache entries and the rows of `raw_audio`; whether the partition still has rows.

        Without rows it is retired: its tables go, and Dagster no longer has it. With rows, what is made of `raw_audio`
        is to be materialized anew.

        Raises:
            StorageError: the disk or the bucket refused; run it again.
            SupersededError: a newer run has written the partition meanwhile.
        """
        import dagster as dg

        # A number of its own, before anything is read: an older run that wakes up cannot bring the rows back.
        fence = PartitionedDuckDBIOManager().fence(f"forget-{uuid.uuid4().hex}", partition)
        rows = self.store.read(schemas.RAW_AUDIO, [partition])
        # Another run may have found some of them since they were chosen.
        gone = rows.filter(pc.equal(rows.column("status"), "gone")).column("id").to_pylist()
        vanished = set(self.vanished[partition]).intersection(gone)
        self.vanished[partition] = sorted(vanished)
        contents = self._contents(partition, vanished)
        leaving = {(partition, key) for partition, keys in self.vanished.items() for key in keys}
        owners = self._owners(leaving)
        # With another prefix depth an object has rows in two partitions, and is gone from one of them only.
        elsewhere = {key for _, key in self._rows() - leaving} & vanished
        contents = {key: hashes for key, hashes in contents.items() if key not in elsewhere}
        mirror, cache = self.home.mirror(), self.home.cache()
        try:
            self._mark.add({(partition, key): contents.get(key, ()) for key in vanished})
            for key in sorted(vanished):
                if key in elsewhere:
                    self.forgotten.append(Forgotten(key, partition, mirror_copy=False, cache_entries=0, kept_for=key))
                    continue
                hashes = contents.get(key, set())
                shared = [owners[sha] for sha in sorted(hashes) if sha in owners]
                entries = sum(cache.drop(sha) for sha in hashes if sha not in owners)
                copied = mirror.remove(key)
                self.forgotten.append(Forgotten(key, partition, copied, entries, shared[0] if shared else None))
        except OSError as error:
            raise _refused(error) from error
        crash_point("forget:copies-removed")
        left = rows.filter(pc.invert(pc.is_in(rows.column("id"), value_set=pa.array(sorted(vanished)))))
        if left.num_rows:
            self.store.write(schemas.RAW_AUDIO, left, partition, fence)
            metadata = {"forgotten": len(vanished), "dagster/partition_row_count": left.num_rows}
            crash_point("forget:rows-removed")
            instance.report_runless_asset_event(
                dg.AssetMaterialization(schemas.RAW_AUDIO.name, partition=partition, metadata=metadata)
            )
            return True
        instance.delete_dynamic_partition(PARTITIONS_NAME, partition)
        # `raw_audio` last: while it is there, the next run comes here again.
        for table in reversed(_PURGED):
            self.store.delete(table, partition)
        self.retired.append(partition)
        return False

    def finish(self, manager: PartitionedDuckDBIOManager) -> None:
        """Rebuild the warehouse and every export that is there, publish them, and make sure that nothing is left.

        Raises:
            StorageError: something of a forgotten object is still there; the message names it.
            BusyError: another process is loading the warehouse, or a newer one was published meanwhile.
        """
        warehouse = manager.warehouse()
        directory = self.home.paths().exports
        for entry in self._exports():
            if entry.get("record") == self._record(entry):
                continue
            exports.export_corpus(
                self.store,
                directory,
                [entry["format"]],
                all_columns=list(entry["columns"]) != list(exports.DEFAULT_COLUMNS),
                prefixes=entry.get("prefixes"),
                include_partial=bool(entry.get("include_partial")),
                min_grade=entry.get("min_grade"),
            )
        left = self._left()
        try:
            derived.forget(self.home.paths(), left.keys)
            for sha in left.hashes:
                # What a disk that lost its power has brought back.
                self.home.cache().drop(sha)
        except OSError as error:
            raise _refused(error) from error
        crash_point("forget:made-of-it-removed")
        # Rows that are deleted stay in a database's free pages: only a new file holds nothing of them.
        warehouse.rebuild()
        objects = self.home.objects()
        if objects is not None:
            self._publish(objects, manager, left)
        self._prove(warehouse, left)
        if objects is not None:
            self._prove_published(objects, left)
        self._mark.remove()

    def _publish(self, objects: Objects, manager: PartitionedDuckDBIOManager, left: _Left) -> None:
        """Bring what was made anew to where all machines share it, and remove there what is no longer true.

        Subtitles and clips of other objects stay: another machine may have published them.
        """
        paths = self.home.paths()
        derived.forget_published(paths, objects, left.keys)
        objects.delete(*self._unknown_exports(objects))
        for name in (*exports.FILE_NAMES.values(), exports.MANIFEST):
            if (paths.exports / name).exists():
                self.home.publish(paths.exports / name)
        # Not one that somebody begins to publish from here on.
        there = set(objects.names("warehouse"))
        manager.publish()
        objects.delete(*(name for name in published.outdated(objects) if name in there))

    def _unknown_exports(self, objects: Objects) -> list[str]:
        """Published exports that this machine has not: it cannot tell how they were made."""
        directory = self.home.paths().exports
        known = {f"exports/{name}" for name in exports.FILE_NAMES.values() if not (directory / name).exists()}
        return [name for name in objects.names("exports") if name in known]

    def _left(self) -> _Left:
        """What is marked and has no row any more, here or by a run before: nothing of it may be left.

        What is marked and has a row came back, or is forgotten when the row is.
        """
        marked = self._mark.read()
        there = self._rows()
        ids = {key for _, key in there}
        rows = {row: hashes for row, hashes in marked.rows.items() if row not in there}
        keys = {key for _, key in rows if key not in ids}
        if not marked.complete:
            # Whose they are can still be told: everything that has subtitles or clips had a row.
            keys |= derived.keys_of(self.home.paths()) - ids
        owners = self._owners(rows)
        return _Left(rows, keys, {sha for hashes in rows.values() for sha in hashes if sha not in owners})

    def _rows(self) -> set[Row]:
        return {row for row, _ in self._read_rows(schemas.RAW_AUDIO, "status")}

    def _read_rows(self, table: schemas.Table, column: str) -> Iterator[tuple[Row, str | None]]:
        read = self.store.read(table, columns=["prefix", "id", column]).to_pydict()
        keys = {prefix: partition_key_for(prefix) for prefix in set(read["prefix"])}
        for prefix, key, value in zip(read["prefix"], read["id"], read[column], strict=True):
            yield (keys[prefix], key), value

    def _exports(self) -> list[dict[str, Any]]:
        """What the manifest says of the exports."""
        files: list[dict[str, Any]] = exports.read_manifest(self.home.paths().exports).get("files", [])
        return files

    def _record(self, entry: Mapping[str, object]) -> str:
        prefixes = entry.get("prefixes")
        columns = entry.get("columns")
        return exports.record_digest(
            self.store,
            prefixes if isinstance(prefixes, list) else None,
            all_columns=columns != list(exports.DEFAULT_COLUMNS),
            graded=bool(entry.get("min_grade")),
        )

    def _contents(self, partition: str, ids: set[str]) -> dict[str, set[str]]:
        """SHA-256 of everything that these objects ever held, as far as it is on record."""
        found: defaultdict[str, set[str]] = defaultdict(set)
        for table in (schemas.RAW_AUDIO, schemas.TRANSCRIPTS, schemas.TRANSCRIPTION_LEDGER):
            for row in self.store.read(table, [partition], ["id", "sha256"]).to_pylist():
                if row["id"] in ids and row["sha256"]:
                    found[row["id"]].add(row["sha256"])
        return found

    def _owners(self, leaving: Collection[Row]) -> dict[str, str]:
        """An object for each content that a row other than ``leaving`` still has, by SHA-256."""
        owners: dict[str, str] = {}
        for table in (schemas.RAW_AUDIO, schemas.TRANSCRIPTS):
            for row, sha in self._read_rows(table, "sha256"):
                if sha and row not in leaving:
                    owners.setdefault(sha, row[1])
        return owners

    def _prove(self, warehouse: Warehouse, left: _Left) -> None:
        """Look for all that may not be there any more.

        Raises:
            StorageError: something is.
        """
        mirror, cache, paths = self.home.mirror(), self.home.cache(), self.home.paths()
        for _, key in left.rows:
            if key in left.keys and mirror.path_for(key).exists():
                raise StorageError(f"{mirror.path_for(key)}: still there; remove it, then {_AGAIN}")
        for sha in left.hashes:
            if cache.count(sha):
                raise StorageError(f"{paths.cache}: still has entries of {sha}; {_AGAIN}")
        made = derived.left_of(paths, left.keys)
        if made is not None:
            raise StorageError(f"{made}: still there; {_AGAIN}")
        described = {entry.get("name") for entry in self._exports()}
        for path in (paths.exports / name for name in exports.FILE_NAMES.values()):
            if path.exists() and path.name not in described:
                raise StorageError(
                    f"{path}: {exports.MANIFEST} does not say what is in it; delete it, or write it anew with "
                    f"`audio-assets export`, then {_AGAIN}"
                )
        partitions, ids = [partition for partition, _ in left.rows], [key for _, key in left.rows]
        with warehouse.connect(refresh=False) as connection:
            for table in _ROWS_BY_ID:
                rows = f"({PARTITION_COLUMN}, id) IN (SELECT unnest(?), unnest(?))"
                query = f"SELECT id FROM {table.name} WHERE {rows}"  # noqa: S608 - a name of schemas.py
                found = connection.execute(query, [partitions, ids]).fetchone()
                if found is not None:
                    raise StorageError(f"{warehouse.path}: table {table.name} still has {found[0]!r}; {_AGAIN}")

    def _prove_published(self, objects: Objects, left: _Left) -> None:
        """Look for all that may not be in the bucket any more.

        Raises:
            StorageError: something is.
        """
        made = derived.published_of(self.home.paths(), objects, left.keys)
        found = [*([] if made is None else [made]), *self._unknown_exports(objects), *published.outdated(objects)]
        if found:
            raise StorageError(f"{objects.shown}/{found[0]}: still there; {_AGAIN}")


def _refused(error: OSError) -> StorageError:
    return StorageError(
        f"{error.filename}: cannot be removed ({error.strerror}); correct its permissions, then {_AGAIN}"
    )
