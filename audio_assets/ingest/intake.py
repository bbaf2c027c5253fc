"""One partition of the bucket, or of the files that lie in the mirror, as rows of `schemas.RAW_AUDIO`."""

from __future__ import annotations

import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from audio_assets.errors import FileError
from audio_assets.ingest.download import download
from audio_assets.ingest.listing import PrefixListing, RemoteObject, discover_prefixes, list_prefix
from audio_assets.ingest.mirror import Mirror, ObjectState
from audio_assets.ingest.probe import probe
from audio_assets.ingest.workers import Workers
from audio_assets.partitions import prefix_of
from audio_assets.schemas import RAW_AUDIO

Row = dict[str, object]


@dataclass(frozen=True)
class IntakeOptions:
    """How much is done at once.

    ``batch_size`` objects are handed to the ``max_workers`` threads at a time. ``key_prefixes`` takes in only objects
    whose keys start with one of these strings (all when empty), and ``limit`` only the first so many of them, in the
    order of their keys. Rows of other objects stay as they are.
    """

    batch_size: int = 10
    max_workers: int = 8
    limit: int | None = None
    key_prefixes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.max_workers < 1:
            raise ValueError(f"batch_size {self.batch_size} and max_workers {self.max_workers} must be at least 1")
        if self.limit is not None and self.limit < 0:
            raise ValueError(f"limit {self.limit} is negative; leave it out to take in everything")

    def wants(self, key: str) -> bool:
        """Whether ``key`` starts with one of `key_prefixes`; NFC and NFD spellings are the same."""
        wanted = tuple(unicodedata.normalize("NFC", prefix) for prefix in self.key_prefixes)
        return not wanted or unicodedata.normalize("NFC", key).startswith(wanted)


@dataclass(frozen=True)
class IntakeProgress:
    """One file is done: ``action`` is downloaded, skipped or failed; ``status`` is its row's."""

    done: int
    total: int
    key: str
    action: str
    status: str
    bytes_downloaded: int


@dataclass(frozen=True)
class Intake:
    """What an intake brought.

    ``downloaded`` and ``skipped`` (already there) files may still be invalid audio: `statuses` counts the rows.
    ``failed`` files could not be fetched or read. ``listed`` is the number of objects found in the partition,
    ``selected`` the number of those that the options asked for.
    """

    table: pa.Table
    downloaded: int
    skipped: int
    failed: int
    bytes_downloaded: int
    listed: int
    selected: int

    @property
    def statuses(self) -> dict[str, int]:
        """Rows by status."""
        return dict(Counter(self.table.column("status").to_pylist()))


ProgressCallback = Callable[[IntakeProgress], None]


@dataclass(frozen=True)
class _Taken:
    row: Row
    action: str
    bytes_downloaded: int = 0


def ingest_prefix(
    client: Any,
    bucket: str,
    prefix: str,
    depth: int,
    mirror: Mirror,
    previous: pa.Table | None = None,
    options: IntakeOptions | None = None,
    on_progress: ProgressCallback | None = None,
) -> Intake:
    """Bring the mirror and the rows of one partition up to date with the bucket.

    Objects whose ETag and size the mirror already holds are not fetched again. One file that fails is a row with a
    status; the others go on. Rows of ``previous`` that the bucket no longer lists become ``gone``.

    Args:
        client: a boto3 S3 client with at least ``options.max_workers`` connections.
        bucket: name of the bucket.
        prefix: the partition's prefix, as `partitions.prefix_of` gives it.
        depth: folders that make a partition.
        mirror: where the files are kept.
        previous: the partition's rows as they were, if any.
        options: batch size, workers, limit.
        on_progress: called in this thread, once per file.

    Raises:
        SettingsError: bucket, credentials or endpoint are wrong; nothing else can succeed either.
    """
    options = options or IntakeOptions()
    known = _by_id(previous)
    listed = sorted(list_prefix(client, bucket, prefix, depth), key=lambda found: found.key)
    chosen = [found for found in listed if options.wants(found.key)][: options.limit]
    mirror.remove_stale_parts()

    def take(found: RemoteObject, cancelled: threading.Event) -> _Taken:
        return _take_object(client, bucket, found, prefix, mirror, known.get(found.key), cancelled)

    names = {found.key for found in listed}
    kept = _leftovers(known, names, {found.key for found in chosen}, options, _gone_from_bucket)
    return _run(chosen, take, kept, len(listed), options, on_progress)


def ingest_mirror(
    mirror: Mirror,
    prefix: str,
    depth: int,
    previous: pa.Table | None = None,
    options: IntakeOptions | None = None,
    on_progress: ProgressCallback | None = None,
) -> Intake:
    """Rows for the files of one partition as they lie in the mirror, without any bucket.

    Files that a user copied in by hand count like downloaded ones; their ``etag`` is null. Rows of ``previous`` whose
    file came from a bucket and is not in the mirror stay as they are; those of other missing files become ``gone``.

    Args:
        mirror: where the files lie.
        prefix: the partition's prefix, as `partitions.prefix_of` gives it.
        depth: folders that make a partition.
        previous: the partition's rows as they were, if any.
        options: batch size, workers, limit.
        on_progress: called in this thread, once per file.
    """
    options = options or IntakeOptions()
    known = _by_id(previous)
    keys = sorted(key for key in mirror.files(prefix) if prefix_of(key, depth) == prefix)
    chosen = [key for key in keys if options.wants(key)][: options.limit]

    def take(key: str, _: threading.Event) -> _Taken:
        return _take_file(key, prefix, mirror, known.get(key))

    kept = _leftovers(known, set(keys), set(chosen), options, _gone_from_mirror)
    misnamed = {name for name in mirror.misnamed() if prefix_of(name, depth) == prefix and options.wants(name)}
    for name in sorted(misnamed):
        kept[name] = _failed_row(name, prefix, "failed", "the mirror cannot read this file name; rename the file")
    return _run(chosen, take, kept, len(keys) + len(misnamed), options, on_progress)


def mirror_prefixes(mirror: Mirror, depth: int) -> list[PrefixListing]:
    """The prefixes at ``depth`` that hold audio files in the mirror, sorted by prefix."""

    def objects() -> Iterator[RemoteObject]:
        for key in mirror.files():
            try:
                size = mirror.path_for(key).stat().st_size
            except FileNotFoundError:
                continue
            yield RemoteObject(key, None, size, None)
        for name in mirror.misnamed():
            yield RemoteObject(name, None, 0, None)

    return discover_prefixes(objects(), depth)


def _run(
    chosen: Sequence[Any],
    take: Callable[[Any, threading.Event], _Taken],
    kept: dict[str, Row],
    listed: int,
    options: IntakeOptions,
    on_progress: ProgressCallback | None,
) -> Intake:
    rows = dict(kept)
    actions: Counter[str] = Counter()
    fetched = 0
    # An error that dooms every file, or Ctrl-C, ends the block: what has not begun is not begun.
    with Workers(take, options.max_workers) as workers:
        for batch in _batches(chosen, options.batch_size):
            for taken in workers.each(batch):
                key = str(taken.row["id"])
                rows[key] = taken.row
                actions[taken.action] += 1
                fetched += taken.bytes_downloaded
                if on_progress is not None:
                    done = sum(actions.values())
                    status = str(taken.row["status"])
                    on_progress(IntakeProgress(done, len(chosen), key, taken.action, status, fetched))
    table = RAW_AUDIO.from_rows([rows[key] for key in sorted(rows)])
    return Intake(table, actions["downloaded"], actions["skipped"], actions["failed"], fetched, listed, len(chosen))


def _take_object(
    client: Any,
    bucket: str,
    found: RemoteObject,
    prefix: str,
    mirror: Mirror,
    before: Row | None,
    cancelled: threading.Event,
) -> _Taken:
    try:
        held = mirror.state(found.key) if mirror.holds(found) else None
        state = held or download(client, bucket, found, mirror, cancelled=cancelled)
    except FileError as error:
        listing: Row = {"etag": found.etag, "size_bytes": found.size_bytes, "last_modified": found.last_modified}
        return _Taken(_failed_row(found.key, prefix, error.status, str(error)) | listing, "failed")
    row = _row(state, prefix, mirror, before)
    return _Taken(row, "skipped") if held else _Taken(row, "downloaded", state.size_bytes)


def _take_file(key: str, prefix: str, mirror: Mirror, before: Row | None) -> _Taken:
    try:
        state = mirror.inspect(key)
    except FileError as error:
        return _Taken(_failed_row(key, prefix, error.status, str(error)), "failed")
    if state is None:
        return _Taken(_failed_row(key, prefix, "failed", "the file was removed while it was read"), "failed")
    return _Taken(_row(state, prefix, mirror, before), "skipped")


def _row(state: ObjectState, prefix: str, mirror: Mirror, before: Row | None) -> Row:
    row: Row = {
        "id": state.key,
        "prefix": prefix,
        "etag": state.etag,
        "size_bytes": state.size_bytes,
        "last_modified": state.last_modified,
        "content_type": state.content_type,
        "metadata": sorted(state.metadata.items()),
        "sha256": state.sha256,
    }
    if before is not None and before["sha256"] == state.sha256 and before["status"] in ("ok", "invalid"):
        # The same bytes are the same audio.
        probed = ("container", "codec", "sample_rate_hz", "channels", "duration_s", "status", "error")
        return row | {name: before[name] for name in probed}
    try:
        found = probe(mirror.path_for(state.key))
    except FileError as error:
        return row | {"status": error.status, "error": str(error)}
    return row | {
        "container": found.container,
        "codec": found.codec,
        "sample_rate_hz": found.sample_rate_hz,
        "channels": found.channels,
        "duration_s": found.duration_s,
        "status": "ok",
        "error": None,
    }


def _failed_row(key: str, prefix: str, status: str, reason: str) -> Row:
    return {"id": key, "prefix": prefix, "metadata": [], "status": status, "error": reason}


def _leftovers(
    known: dict[str, Row], listed: set[str], chosen: set[str], options: IntakeOptions, gone: Callable[[Row], Row]
) -> dict[str, Row]:
    """Rows that this intake does not make anew: ``gone`` when no longer listed, else as they were."""
    return {
        key: row if key in listed or not options.wants(key) else gone(row)
        for key, row in known.items()
        if key not in chosen
    }


def _gone_from_bucket(row: Row) -> Row:
    return row if row["status"] == "gone" else row | {"status": "gone", "error": "no longer in the bucket"}


def _gone_from_mirror(row: Row) -> Row:
    if row["etag"] is not None or row["status"] == "gone":
        return row
    return row | {"status": "gone", "error": "no longer in the mirror folder"}


def _by_id(table: pa.Table | None) -> dict[str, Row]:
    return {row["id"]: row for row in table.to_pylist()} if table is not None else {}


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch
