"""Whether mirror, cache, partition files, warehouse and exports agree; what does not, and how to mend it.

The partition files are the record: the others are compared with them. Mending never costs money: what would have to be
downloaded or transcribed again is named, with the command that does it, and left.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import duckdb

from audio_assets import partitions, schemas, settings
from audio_assets.errors import BusyError, FileError, SettingsError, StorageError
from audio_assets.storage import atomic, exports
from audio_assets.storage.objects import Objects
from audio_assets.storage.partition_files import DamagedFileError, PartitionStore, file_name_for, first_line
from audio_assets.storage.warehouse import PARTITION_COLUMN, Warehouse, quoted

_UPSTREAM = {
    "transcripts": "raw_audio",
    "tokens": "transcripts",
    "transcript_quality": "tokens",
    "prefix_summary": "tokens",
    "token_frequency": "tokens",
}
"""Each partitioned table and the one it is made from."""

_ROW_PER_ROW = ("transcripts", "tokens", "transcript_quality")
"""Tables that have exactly one row for each row of the table they are made from."""

_CACHED_STATUSES = ("ok", "empty")
_NOT_CACHED_COLUMNS = ("prefix", "sha256", "fingerprint", "cached", "error")
_EXAMPLES = 3


@dataclass(frozen=True)
class Disagreement:
    """One thing that does not agree: what is wrong, where, how to mend it, whether that was done, and what was done."""

    what: str
    where: str
    fix: str
    repaired: bool = False
    done: str = "mended"

    @property
    def line(self) -> str:
        """One line for a terminal."""
        return f"{self.where}: {self.what}; {self.done if self.repaired else self.fix}"


class MirrorFiles(Protocol):
    """The local copy of the bucket, as far as it is compared here."""

    def path_for(self, key: str) -> Path:
        """Where the object ``key`` lies."""
        ...

    def files(self) -> Iterator[str]:
        """Keys of the audio files that are there."""
        ...

    def dropped(self) -> Collection[str]:
        """Keys of the files that are not there, to keep within a disk budget."""
        ...

    def inspect(self, key: str) -> Any:
        """What is known of the file, with ``size_bytes`` and ``sha256``; None when there is none."""
        ...


class Transcripts(Protocol):
    """The transcription cache, as far as it is compared here."""

    def get(self, sha256: str, fingerprint: str) -> dict[str, Any] | None:
        """The stored result; None when there is none or it is damaged."""
        ...

    def put(self, sha256: str, fingerprint: str, result: dict[str, Any]) -> None:
        """Store a result."""
        ...


def verify(
    home: settings.Home,
    store: PartitionStore,
    warehouse: Warehouse,
    *,
    mirror: MirrorFiles | None = None,
    cache: Transcripts | None = None,
    repair: bool = False,
) -> list[Disagreement]:
    """Compare everything that is kept and return every disagreement, mended where ``repair`` allows and it is free.

    Every partition file is read in full, and every export's checksum computed. A mirrored file is hashed only when it
    changed since its hash was recorded.

    Args:
        home: where exports and leftovers of interrupted writes are looked for.
        store: the record.
        warehouse: the database that follows it.
        mirror: the local copy of the bucket; not looked at when None.
        cache: the transcription cache; not looked at when None.
        repair: mend what can be mended without the network and without paying.

    Raises:
        StorageError: the store cannot be listed.
    """
    found = [*_leftovers(home, store, repair)]
    unreadable, damaged = _partition_files(store, warehouse, repair)
    found += damaged
    found += _lineage(store, unreadable)
    if mirror is not None:
        found += _mirror(store, mirror, unreadable)
    if cache is not None:
        found += _cache(store, cache, unreadable, repair)
    found += _warehouse(store, warehouse, unreadable, repair)
    found += _exports(home.exports, store, repair)
    return found


def existing_home(home: settings.Home) -> PartitionStore:
    """The record of a home in which something is kept, even if it has no rows yet.

    Raises:
        SettingsError: nothing is kept there, or its address is none; nothing was written.
        StorageError: the store cannot be listed.
    """
    if home.shared is not None:
        Objects(home.shared)
    store = PartitionStore(home.record)
    kept = (home.bucket, home.audio, home.cache, home.tables, home.warehouse, home.exports, home.locks)
    if any(path.exists() for path in kept) or any(store.partitions(table) for table in schemas.TABLES.values()):
        return store
    where = home.root if home.shared is None else store.root
    raise SettingsError(
        f"{where}: no home is there; set AUDIO_ASSETS_HOME to the home that is meant, or make one with "
        "`audio-assets run`"
    )


def _leftovers(home: settings.Home, store: PartitionStore, repair: bool) -> Iterator[Disagreement]:
    directories = [home.root, home.exports]
    if Path(store.root).is_absolute():
        directories += [Path(store.root, name) for name in schemas.TABLES]
    for directory in directories:
        for temp in atomic.stale_temps(directory):
            yield Disagreement(
                "left over from a write that was interrupted",
                str(temp),
                "run `audio-assets verify --repair` to remove it",
                repair and temp in atomic.remove_stale_temps(directory),
            )


def _partition_files(
    store: PartitionStore, warehouse: Warehouse, repair: bool
) -> tuple[set[tuple[str, str | None]], list[Disagreement]]:
    """Partitions that cannot be read, and what is wrong with the files among the tables."""
    unreadable: set[tuple[str, str | None]] = set()
    found: list[Disagreement] = []
    for name, table in schemas.TABLES.items():
        scan = store.scan(table)
        found += [_split(reason, uri) for uri, reason in scan.unreadable]
        for file in scan.files:
            try:
                store.read_file(table, file)
            except FileNotFoundError:
                continue
            except StorageError as error:
                problem = _split(str(error), file.uri)
                mended = _restored(store, warehouse, table, file.partition) if repair and _ours(error) else None
                if mended is None:
                    unreadable.add((name, file.partition))
                else:
                    problem = dataclasses.replace(problem, repaired=True, done=f"mended: {mended}")
                found.append(problem)
    return unreadable, found


def _ours(error: StorageError) -> bool:
    """Whether the file may be taken away: not if it is a sound file of somebody else's, or moved here by hand."""
    return isinstance(error, DamagedFileError)


def _restored(store: PartitionStore, warehouse: Warehouse, table: schemas.Table, partition: str | None) -> str | None:
    """Put the rows that the warehouse last loaded in the place of a damaged file, which is set aside; says what it did.

    None when nothing could be done. Rows that were never loaded come again with the next run: audio is mirrored and
    transcripts are cached, so that costs nothing either.
    """
    try:
        rows = warehouse.rows_of(table, partition)
    except (StorageError, BusyError):
        rows = None
    try:
        # It goes with the file, and the rows must not give way to those of an older run.
        number = store.number(partition)
        aside = store.set_aside(table, partition)
        if rows is None:
            return f"set aside as {aside}; the next run makes the partition again"
        store.write(table, rows, partition, number)
    except (StorageError, OSError):
        return None
    return f"set aside as {aside}, its {rows.num_rows} rows restored from the warehouse"


def _split(reason: str, uri: str) -> Disagreement:
    """A reason of the form ``where: what; how to mend it``."""
    what, _, fix = reason.removeprefix(f"{uri}: ").rpartition("; ")
    return Disagreement(what or fix, uri, fix if what else "move it elsewhere")


def _lineage(store: PartitionStore, unreadable: set[tuple[str, str | None]]) -> Iterator[Disagreement]:
    """Partitions whose rows do not follow from those of the table they are made from."""
    present = {name: {f.partition for f in store.partitions(t)} for name, t in schemas.TABLES.items() if t.partitioned}
    for name, upstream in _UPSTREAM.items():
        for partition in sorted(p for p in present[upstream] | present[name] if p is not None):
            if (name, partition) in unreadable or (upstream, partition) in unreadable:
                continue
            where = f"{name}, partition {partition!r}"
            fix = f"materialize {name} for it: `audio-assets run --prefix {_prefix(partition)!r}`"
            if partition not in present[name]:
                yield Disagreement(f"missing, although {upstream} has it", where, fix)
            elif partition not in present[upstream]:
                yield Disagreement(
                    f"there, although {upstream} does not have it", where, f"materialize {upstream} for it"
                )
            elif name in _ROW_PER_ROW:
                ids = store.read(schemas.TABLES[name], [partition], ["id"]).column("id").to_pylist()
                wanted = store.read(schemas.TABLES[upstream], [partition], ["id"]).column("id").to_pylist()
                if ids != wanted:
                    odd = sorted(set(ids) ^ set(wanted)) or sorted(ids)
                    yield Disagreement(
                        f"its rows are not those of {upstream}: {len(ids)} and {len(wanted)} rows, as for {_some(odd)}",
                        where,
                        fix,
                    )


def _mirror(
    store: PartitionStore, mirror: MirrorFiles, unreadable: set[tuple[str, str | None]]
) -> Iterator[Disagreement]:
    again = "`audio-assets run` downloads it again"
    known: set[str] = set()
    dropped = mirror.dropped()
    for row in _rows(store, schemas.RAW_AUDIO, ["id", "sha256", "size_bytes", "status"], unreadable):
        known.add(row["id"])
        if row["status"] != "ok" or row["sha256"] is None:
            continue
        where = str(mirror.path_for(row["id"]))
        try:
            state = mirror.inspect(row["id"])
        except FileError as error:
            yield Disagreement(f"cannot be read: {error}", where, again)
            continue
        if state is None and row["id"] in dropped:
            continue
        if state is None:
            yield Disagreement(f"missing, although raw_audio has {row['id']!r}", where, again)
        elif state.sha256 != row["sha256"]:
            yield Disagreement(f"its bytes are not those that raw_audio has for {row['id']!r}", where, again)
    # Objects whose row is in a damaged file are not strangers.
    unknown = tuple(_prefix(p) for name, p in unreadable if name == schemas.RAW_AUDIO.name and p is not None)
    for key in sorted(mirror.files()):
        if key not in known and not key.startswith(unknown):
            yield Disagreement(
                f"raw_audio does not have {key!r}", str(mirror.path_for(key)), "`audio-assets run` takes it in"
            )


def _cache(
    store: PartitionStore, cache: Transcripts, unreadable: set[tuple[str, str | None]], repair: bool
) -> Iterator[Disagreement]:
    seen: set[tuple[str, str]] = set()
    for row in _rows(store, schemas.TRANSCRIPTS, None, unreadable):
        key = (row["sha256"], row["fingerprint"])
        if row["status"] not in _CACHED_STATUSES or None in key or key in seen:
            continue
        seen.add(key)
        entry = cache.get(*key)
        if entry is not None and entry.get("transcription") == row["transcription"]:
            continue
        if entry is None and repair:
            # The row holds what was paid for: the cache can have it back.
            kept = {name: value for name, value in row.items() if name not in _NOT_CACHED_COLUMNS}
            kept["segments"] = [{**segment, "flags": segment.get("flags") or []} for segment in row["segments"] or []]
            kept["flags"] = row["flags"] or []
            # What cannot be stored stays on the list; the others are mended all the same.
            with contextlib.suppress(OSError):
                cache.put(*key, kept)
        yield Disagreement(
            "no readable entry, so it would be transcribed again"
            if entry is None
            else "its text is not that of the transcripts table",
            f"cache entry of {row['id']!r}",
            "run `audio-assets verify --repair` to restore it from the table"
            if entry is None
            else "materialize transcripts for its prefix",
            repair and entry is None and cache.get(*key) is not None,
        )


def _warehouse(
    store: PartitionStore, warehouse: Warehouse, unreadable: set[tuple[str, str | None]], repair: bool
) -> Iterator[Disagreement]:
    def compare() -> list[tuple[str, str]]:
        """What is wrong, and where."""
        if not warehouse.path.exists():
            held, counts = {}, {}
        else:
            held, counts = warehouse.held(), _counts(warehouse)
        wrong: list[tuple[str, str]] = []
        for name, table in schemas.TABLES.items():
            there = {file_name_for(f.partition): f for f in store.partitions(table)}
            for key, file in there.items():
                if (name, file.partition) in unreadable:
                    continue
                identity, rows = held.get((name, key), (None, 0))
                where = f"{warehouse.path.name}, {name}" + (f", partition {file.partition!r}" if file.partition else "")
                if identity is None:
                    wrong.append(("not loaded yet", where))
                elif identity != file.identity:
                    wrong.append(("older than its partition file", where))
                elif rows != counts.get((name, file.partition), 0):
                    wrong.append((f"{counts.get((name, file.partition), 0)} rows instead of {rows}", where))
            gone = [key for table_name, key in held if table_name == name and key not in there]
            wrong += [("its partition file is gone", f"{warehouse.path.name}, {name}, file {key!r}") for key in gone]
        return wrong

    try:
        wrong = compare()
    except BusyError as error:
        yield Disagreement(str(error), str(warehouse.path), "run `audio-assets verify` again when nobody writes")
        return
    except StorageError as error:
        mended = repair and _rebuilt(warehouse)
        yield dataclasses.replace(_split(str(error), str(warehouse.path)), repaired=mended)
        return
    mended = False
    if wrong and repair:
        refresh = warehouse.refresh()
        # Rows that were changed behind the back of the loader do not show in the files' identities.
        mended = refresh.deferred is None and (not compare() or (_rebuilt(warehouse) and not compare()))
    for what, where in wrong:
        yield Disagreement(what, where, "run `audio-assets verify --repair` to load it", mended)


def _counts(warehouse: Warehouse) -> dict[tuple[str, str | None], int]:
    """Rows that each table of the warehouse holds of each partition."""
    counts: dict[tuple[str, str | None], int] = {}
    with warehouse.connect(refresh=False) as connection:
        for name, table in schemas.TABLES.items():
            partition = PARTITION_COLUMN if table.partitioned else "NULL"
            try:
                rows = connection.execute(f"SELECT {partition}, count(*) FROM {quoted(name)} GROUP BY 1")  # noqa: S608
                counts |= {(name, key): count for key, count in rows.fetchall()}
            except duckdb.Error as error:
                raise StorageError(
                    f"{warehouse.path}: table {name} cannot be read: {first_line(error)}; run `audio-assets verify"
                    " --repair` to rebuild it from the partition files"
                ) from error
    return counts


def _rebuilt(warehouse: Warehouse) -> bool:
    try:
        warehouse.rebuild()
    except (StorageError, BusyError):
        return False
    return True


def _exports(directory: Path, store: PartitionStore, repair: bool) -> Iterator[Disagreement]:
    manifest = exports.read_manifest(directory)
    entries = {str(entry.get("name")): entry for entry in manifest.get("files", [])}
    fix = "run `audio-assets export` to write it again"
    for name, format_ in sorted((name, format_) for format_, name in exports.FILE_NAMES.items()):
        path = directory / name
        entry = entries.get(name)
        if entry is None:
            what = f"not in {exports.MANIFEST}" if path.exists() else None
        else:
            what = _export_problem(path, entry, store)
        if what is None:
            continue
        options = entry or {}
        yield Disagreement(what, str(path), fix, repair and _exported(directory, store, format_, options))


def _export_problem(path: Path, entry: dict[str, Any], store: PartitionStore) -> str | None:
    if not path.exists():
        return f"missing, although {exports.MANIFEST} lists it"
    try:
        sha256 = exports.sha256_of(path)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if sha256 != entry.get("sha256"):
        return f"its bytes are not those that {exports.MANIFEST} describes"
    try:
        record = exports.record_digest(
            store, entry.get("prefixes"), all_columns=_all_columns(entry), graded=bool(entry.get("min_grade"))
        )
    except StorageError:
        return None  # the damaged partition file is named on its own
    return None if record == entry.get("record") else "older than the partition files"


def _all_columns(entry: dict[str, Any]) -> bool:
    return list(entry.get("columns", exports.DEFAULT_COLUMNS)) != list(exports.DEFAULT_COLUMNS)


def _exported(directory: Path, store: PartitionStore, format_: str, entry: dict[str, Any]) -> bool:
    try:
        exports.export_corpus(
            store,
            directory,
            [format_],
            all_columns=_all_columns(entry),
            prefixes=entry.get("prefixes"),
            include_partial=bool(entry.get("include_partial")),
            min_grade=entry.get("min_grade"),
        )
    except StorageError:
        return False
    return True


def _rows(
    store: PartitionStore,
    table: schemas.Table,
    columns: list[str] | None,
    unreadable: set[tuple[str, str | None]],
) -> Iterator[dict[str, Any]]:
    """The rows of every readable partition, one partition in memory at a time."""
    for file in store.partitions(table):
        if (table.name, file.partition) not in unreadable and file.partition is not None:
            yield from store.read(table, [file.partition], columns).to_pylist()


def _prefix(partition: str) -> str:
    try:
        return partitions.prefix_for(partition)
    except ValueError:
        return partition


def _some(ids: Iterable[str]) -> str:
    shown = list(ids)
    return ", ".join(map(repr, shown[:_EXAMPLES])) + (
        f" and {len(shown) - _EXAMPLES} more" if len(shown) > _EXAMPLES else ""
    )
