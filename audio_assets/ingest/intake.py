"""One partition of the bucket, or of the files that lie in the mirror, as rows of `schemas.RAW_AUDIO`."""

from __future__ import annotations

import os
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from audio_assets.crashes import CrashMarks
from audio_assets.errors import FileError, InvalidAudio
from audio_assets.ingest.changes import diff
from audio_assets.ingest.disk_budget import DiskBudget
from audio_assets.ingest.download import download
from audio_assets.ingest.listing import PrefixListing, RemoteObject, discover_prefixes, list_prefix
from audio_assets.ingest.mirror import Mirror, ObjectState
from audio_assets.ingest.probe import PROBE_VERSION, probe
from audio_assets.ingest.selection import EXCLUDED, Selection
from audio_assets.ingest.workers import Workers
from audio_assets.partitions import prefix_of
from audio_assets.schemas import RAW_AUDIO

Row = dict[str, object]

_ANY_AUDIO = Selection()

DOWNLOADS = 64
"""Downloads at once, where nothing is said: they wait for the network, not for a core. Each takes at most 1 MB."""

AHEAD = 256
"""Objects that are fetched and may wait to be looked at. They lie on the disk; when there are more, downloads wait."""

_TRIAL_S = 60.0
"""What the trial of a file may take on which a run has died while it looked at it."""


@dataclass(frozen=True)
class IntakeOptions:
    """How much is done at once.

    ``max_workers`` downloads run at once, and on their own: what is there is looked at by other threads, and up to
    `AHEAD` objects may wait for those. A ``batch_size`` lowers both bounds. ``key_prefixes`` takes in only
    objects whose keys start with one of these strings (all when empty), and ``limit`` only the first so many of them,
    in the order of their keys. ``selection`` says which objects count. Rows of other objects stay as they are. With
    ``scratch`` the mirror is this machine's own copy: what was taken in by any machine need not lie in it.
    """

    batch_size: int | None = None
    max_workers: int = DOWNLOADS
    limit: int | None = None
    key_prefixes: tuple[str, ...] = ()
    selection: Selection = field(default_factory=Selection)
    scratch: bool = False

    def __post_init__(self) -> None:
        if (self.batch_size is not None and self.batch_size < 1) or self.max_workers < 1:
            raise ValueError(f"batch_size {self.batch_size} and max_workers {self.max_workers} must be at least 1")
        if self.limit is not None and self.limit < 0:
            raise ValueError(f"limit {self.limit} is negative; leave it out to take in everything")

    def wants(self, key: str) -> bool:
        """Whether the options ask for ``key``; NFC and NFD spellings are the same."""
        return (not self.key_prefixes or _nfc(key).startswith(self._prefixes)) and self.selection.matches(key)

    @cached_property
    def _prefixes(self) -> tuple[str, ...]:
        return tuple(map(_nfc, self.key_prefixes))

    @property
    def narrows(self) -> bool:
        """Whether there are audio files that the options do not ask for."""
        return bool(self.key_prefixes) or self.selection.narrows


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
    ``selected`` the number of those that the options asked for. ``changed`` is False when the rows are those of before.
    ``passed_over`` counts, by kind, what was listed and is not fetched.
    """

    table: pa.Table
    downloaded: int
    skipped: int
    failed: int
    bytes_downloaded: int
    listed: int
    selected: int
    changed: bool = True
    passed_over: Counter[str] = field(default_factory=Counter)

    @property
    def statuses(self) -> dict[str, int]:
        """Rows by status."""
        return dict(Counter(self.table.column("status").to_pylist()))


ProgressCallback = Callable[[IntakeProgress], None]


@dataclass(frozen=True)
class Task:
    """One object to take in: its key, what the listing says of it (None: it lies in the mirror), its row of before."""

    key: str
    found: RemoteObject | None
    before: Row | None


@dataclass(frozen=True)
class Taken:
    """What became of a `Task`: its row, and downloaded, skipped or failed."""

    row: Row
    action: str
    bytes_downloaded: int = 0


class Results(Protocol):
    """What became of tasks, as it comes. Closing it begins nothing more."""

    def __iter__(self) -> Iterator[Taken]: ...

    def close(self) -> object:
        """End the work."""
        ...


Spread = Callable[[Sequence[Task]], Results]
"""Has tasks done, by whomever, and gives what became of each as it comes: `take`, with all else filled in."""


def take(
    tasks: Iterable[Task],
    prefix: str,
    mirror: Mirror,
    options: IntakeOptions,
    client: Any = None,
    bucket: str = "",
    budget: DiskBudget | None = None,
    marks: CrashMarks | None = None,
) -> Generator[Taken, None, None]:
    """Fetch what the mirror does not hold, and probe; gives what became of each task as it comes.

    ``tasks`` may be an iterator that waits for results before it goes on. Closing the generator, as an error that dooms
    every file or Ctrl-C does, begins nothing more.

    Args:
        tasks: what to take in.
        prefix: the partition's prefix.
        mirror: where the files are kept.
        options: batch size, workers, largest object.
        client: a boto3 S3 client, where tasks come from a listing.
        bucket: name of its bucket.
        budget: what the mirror may hold; objects wait for room, and files are dropped for them.
        marks: tell the next run of which file this one died.

    Raises:
        SettingsError: bucket, credentials or endpoint are wrong; nothing else can succeed either.
    """

    def fetch(task: Task, cancelled: threading.Event) -> Taken | _Fetched:
        if task.found is None:
            return _Fetched(task)
        refusal = options.selection.refusal(task.found)
        if refusal is not None:
            return Taken(_failed_row(task.key, prefix, "invalid", refusal[1]) | _listing(task.found), "skipped")
        return _fetch(client, bucket, task, task.found, prefix, mirror, cancelled, budget, options.selection)

    def look(fetched: Taken | _Fetched, _: threading.Event) -> Taken:
        return fetched if isinstance(fetched, Taken) else _look(fetched, prefix, mirror, marks)

    downloads, ahead = options.max_workers, AHEAD
    if isinstance(tasks, Sequence):
        downloads = max(1, min(downloads, len(tasks)))
    if options.batch_size is not None:
        ahead = options.batch_size
    with Workers(look, min(downloads, os.cpu_count() or 1)) as lookers, Workers(fetch, downloads) as fetchers:
        yield from lookers.each(fetchers.each(tasks, min(downloads, ahead)), ahead)


def lost(task: Task, prefix: str, reason: str) -> Taken:
    """The row of an object that could not be taken in for a ``reason`` outside of it."""
    return Taken(_failed_row(task.key, prefix, "failed", reason) | _listing(task.found), "failed")


def ingest_prefix(
    client: Any,
    bucket: str,
    prefix: str,
    depth: int,
    mirror: Mirror,
    previous: pa.Table | None = None,
    options: IntakeOptions | None = None,
    on_progress: ProgressCallback | None = None,
    spread: Spread | None = None,
    budget: DiskBudget | None = None,
) -> Intake:
    """Bring the mirror and the rows of one partition up to date with the bucket.

    Objects whose ETag and size the mirror already holds are not fetched again. One file that fails is a row with a
    status; the others go on. Rows of ``previous`` that the bucket no longer lists become ``gone``.

    Args:
        client: a boto3 S3 client; safe to share between threads.
        bucket: name of the bucket.
        prefix: the partition's prefix, as `partitions.prefix_of` gives it.
        depth: folders that make a partition.
        mirror: where the files are kept.
        previous: the partition's rows as they were, if any.
        options: batch size, workers, limit.
        on_progress: called in this thread, once per file; once for all files that need nothing.
        spread: who takes the objects in; by default threads of this process.
        budget: what the mirror may hold.

    Raises:
        SettingsError: bucket, credentials or endpoint are wrong; nothing else can succeed either.
    """
    options = options or IntakeOptions()
    stored = RAW_AUDIO.empty() if previous is None else previous
    mirror.remove_stale_parts()
    found = survey(client, bucket, prefix, depth, mirror, stored, options)
    if found.todo:
        mirror.settle_twins([each.key for each in found.todo], [*found.keys, *stored.column("id").to_pylist()])
    before = _by_id(_rows_of(stored, {each.key for each in found.todo}))
    tasks = [Task(each.key, each, before.get(each.key)) for each in found.todo]
    spread = spread or partial(
        take, prefix=prefix, mirror=mirror, options=options, client=client, bucket=bucket, budget=budget
    )
    if budget is not None:
        restore_records(mirror, budget, stored)
        budget.came_back(found.keys)
        if found.vanished:
            # Before anything is dropped for what is fetched now.
            budget.keep(found.vanished)
    done = _run(tasks, spread, found.skipped, on_progress)
    gone = {id: _gone_from_bucket(row) for id, row in _by_id(_rows_of(stored, found.vanished)).items()}
    table = _replaced(stored, done.rows | gone, found.replaced)
    changed = previous is None or not table.equals(previous)
    return replace(done.intake(table, len(found.keys), found.selected, changed=changed), passed_over=found.passed_over)


def restore_records(mirror: Mirror, budget: DiskBudget, stored: pa.Table) -> list[str]:
    """Record anew which object a file of the mirror is, where that was lost and rows of ``stored`` have the same bytes.

    Without its record, which a power cut can take, a file is never dropped: it might be somebody's own. Gives the keys.
    """
    kept = budget.kept()
    if not kept:
        return []
    fetched = pc.and_(pc.is_valid(stored.column("etag")), pc.not_equal(stored.column("status"), "gone"))
    restored = []
    for row in _rows_of(stored.filter(fetched), kept).to_pylist():
        try:
            now = mirror.inspect(row["id"])
            if now is None or now.etag is not None or now.sha256 != row["sha256"]:
                continue
            told = {name: row[name] for name in ("etag", "last_modified", "content_type")}
            mirror.record(replace(now, **told, metadata=dict(row["metadata"] or ())))
        except FileError:
            # Whoever needs the file says what is wrong with it.
            continue
        restored.append(row["id"])
    return restored


@dataclass(frozen=True)
class Survey:
    """What there is to do in a partition: objects to take in, and ids of rows to mark as gone or to replace.

    The objects of ``keys`` were found, ``selected`` of them asked for, of which ``skipped`` need nothing.
    ``passed_over`` counts, by kind, what was listed and is not fetched.
    """

    keys: list[str]
    selected: int
    skipped: int
    todo: list[RemoteObject]
    vanished: set[str]
    replaced: set[str]
    passed_over: Counter[str]


def survey(
    client: Any, bucket: str, prefix: str, depth: int, mirror: Mirror, stored: pa.Table, options: IntakeOptions
) -> Survey:
    """List a partition of the bucket and compare it with its rows and with the mirror. Nothing is fetched.

    Raises:
        SettingsError: bucket, credentials or endpoint are wrong.
        AudioAssetsError: the listing is not complete; nothing can be said of what is missing in it.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="ingest-scan") as aside:
        # The disk is looked at while the bucket is listed.
        scan = aside.submit(mirror.scan, prefix, recursive=prefix.count("/") >= depth)
        settled = _settled(stored)
        tally: Counter[str] = Counter()
        # Rows of objects that do not count are compared too: nothing is said of them, so they are no news.
        listed = list_prefix(client, bucket, prefix, depth, passed=lambda key: _ANY_AUDIO.count(key, tally))
        changes = diff(listed, stored)
        present = scan.result()
    dropped = mirror.dropped(prefix)
    wanted: Sequence[int] = range(len(listed))
    if options.narrows:
        wanted = [at for at, key in enumerate(listed.keys) if options.wants(key)]
    if options.selection.narrows:
        tally[EXCLUDED] = sum(not options.selection.matches(key) for key in listed.keys)
    wanted = wanted[: options.limit]
    chosen = set(wanted) if len(wanted) < len(listed) else None
    todo = [*changes.new, *changes.overwritten]
    skipped = 0
    for at in changes.unchanged:
        if chosen is not None and at not in chosen:
            continue
        id = changes.respelled.get(at) or listed.keys[at]
        modified_us = settled.get(id)
        if modified_us is not None and (
            options.scratch
            or present.get(id) == (listed.sizes[at], modified_us)
            or dropped.get(id) == (listed.etags[at], listed.sizes[at])
            or _holds(mirror, listed[at])
        ):
            skipped += 1
        else:
            todo.append(at)
    if chosen is not None:
        todo = [at for at in todo if at in chosen]
    # What is there already was fetched, whatever the limit is now.
    options.selection.count_refused([listed.sizes[at] for at in todo], tally)
    tasks = listed.at(sorted(todo))
    taken = set(map(_nfc, tasks.keys))
    return Survey(
        keys=listed.keys,
        selected=len(wanted),
        skipped=skipped,
        todo=list(tasks),
        vanished={id for id in changes.vanished if options.wants(id)},
        # The row of an object that is spelled in another way now makes room for the new one.
        replaced={id for id in [*changes.replaced, *changes.respelled.values()] if _nfc(id) in taken},
        passed_over=tally,
    )


def _holds(mirror: Mirror, found: RemoteObject) -> bool:
    """`Mirror.holds`; False also for a file that cannot be read: whoever takes it in says why, in its row."""
    try:
        return mirror.holds(found)
    except FileError:
        return False


def ingest_mirror(
    mirror: Mirror,
    prefix: str,
    depth: int,
    previous: pa.Table | None = None,
    options: IntakeOptions | None = None,
    on_progress: ProgressCallback | None = None,
    spread: Spread | None = None,
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
        spread: who looks at the files; by default threads of this process.
    """
    options = options or IntakeOptions()
    known = _by_id(previous)
    keys = sorted(key for key in mirror.files(prefix) if prefix_of(key, depth) == prefix)
    chosen = [key for key in keys if options.wants(key)][: options.limit]

    lying, taken = set(keys), set(chosen)
    kept = {
        key: row if key in lying or not options.wants(key) else _gone_from_mirror(row)
        for key, row in known.items()
        if key not in taken
    }
    misnamed = {name for name in mirror.misnamed() if prefix_of(name, depth) == prefix and options.wants(name)}
    for name in sorted(misnamed):
        kept[name] = _failed_row(name, prefix, "failed", "the mirror cannot read this file name; rename the file")
    tasks = [Task(key, None, known.get(key)) for key in chosen]
    done = _run(tasks, spread or partial(take, prefix=prefix, mirror=mirror, options=options), 0, on_progress)
    rows = kept | done.rows
    table = RAW_AUDIO.from_rows([rows[key] for key in sorted(rows)])
    changed = previous is None or not table.equals(previous)
    return done.intake(table, len(keys) + len(misnamed), len(chosen), changed=changed)


def mirror_prefixes(mirror: Mirror, depth: int, selection: Selection | None = None) -> list[PrefixListing]:
    """The prefixes at ``depth`` that hold files of the mirror that count, sorted by prefix."""
    wants = (selection or _ANY_AUDIO).wants

    def objects() -> Iterator[RemoteObject]:
        for key in filter(wants, mirror.files()):
            try:
                size = mirror.path_for(key).stat().st_size
            except FileNotFoundError:
                continue
            yield RemoteObject(key, None, size, None)
        for name in filter(wants, mirror.misnamed()):
            yield RemoteObject(name, None, 0, None)

    return discover_prefixes(objects(), depth)


@dataclass(frozen=True)
class _Done:
    """What a run over the objects brought: their rows by id, how many were skipped, fetched and lost."""

    rows: dict[str, Row]
    actions: Counter[str]
    bytes_downloaded: int

    def intake(self, table: pa.Table, listed: int, selected: int, *, changed: bool) -> Intake:
        actions = self.actions
        return Intake(
            table,
            actions["downloaded"],
            actions["skipped"],
            actions["failed"],
            self.bytes_downloaded,
            listed,
            selected,
            changed,
        )


def _run(tasks: Sequence[Task], spread: Spread, skipped: int, on_progress: ProgressCallback | None) -> _Done:
    """Have ``tasks`` done, and count."""
    rows: dict[str, Row] = {}
    actions: Counter[str] = Counter(skipped=skipped)
    fetched = 0
    total = skipped + len(tasks)
    if skipped and on_progress is not None:
        on_progress(IntakeProgress(skipped, total, "", "skipped", "ok", 0))
    # An error that dooms every file, or Ctrl-C, ends the block: what has not begun is not begun.
    with closing(spread(tasks)) as results:
        for taken in results:
            key = str(taken.row["id"])
            rows[key] = taken.row
            actions[taken.action] += 1
            fetched += taken.bytes_downloaded
            if on_progress is not None:
                status = str(taken.row["status"])
                on_progress(IntakeProgress(sum(actions.values()), total, key, taken.action, status, fetched))
    return _Done(rows, actions, fetched)


def _settled(stored: pa.Table) -> dict[str, int]:
    """The stored rows that need no second try, by id: when their object was stored, in µs since 1970 (-1: unknown)."""
    status = stored.column("status")
    probed = pc.greater_equal(pc.fill_null(stored.column("probe"), 0), PROBE_VERSION)  # see refused_by_earlier_probe
    known = pc.or_(pc.equal(status, "ok"), pc.and_(pc.equal(status, "invalid"), probed))
    fine = pc.and_(known, pc.is_valid(stored.column("sha256")))
    rows = stored.select(["id", "last_modified"]).filter(fine)
    modified = pc.fill_null(rows.column("last_modified").cast(pa.int64()), -1)
    return dict(zip(rows.column("id").to_pylist(), modified.to_pylist(), strict=True))


def refused_by_earlier_probe(row: Mapping[str, Any]) -> bool:
    """Whether a row's bytes were refused by a version of the probe before this one, which may take them in."""
    return row["status"] == "invalid" and (row["probe"] or 0) < PROBE_VERSION


def _rows_of(stored: pa.Table, ids: Set[str]) -> pa.Table:
    return stored.filter(pc.is_in(stored.column("id"), pa.array(sorted(ids), pa.string())))


def _replaced(stored: pa.Table, fresh: dict[str, Row], dropped: Set[str]) -> pa.Table:
    """``stored`` with the rows of ``fresh`` in place of its own and without ``dropped``, in the order of ids."""
    if not fresh and not dropped:
        return stored
    others = stored.filter(pc.invert(pc.is_in(stored.column("id"), pa.array([*fresh, *dropped], pa.string()))))
    rows = RAW_AUDIO.from_rows([fresh[key] for key in sorted(fresh)])
    return pa.concat_tables([RAW_AUDIO.conform(others), rows]).sort_by("id")


@dataclass(frozen=True)
class _Fetched:
    """An object that lies in the mirror, and whether it was downloaded for this; its state, if that is known.

    ``hold`` keeps its file there until it was looked at.
    """

    task: Task
    state: ObjectState | None = None
    downloaded: bool = False
    hold: ExitStack = field(default_factory=ExitStack)


def _fetch(
    client: Any,
    bucket: str,
    task: Task,
    found: RemoteObject,
    prefix: str,
    mirror: Mirror,
    cancelled: threading.Event,
    budget: DiskBudget | None,
    selection: Selection,
) -> Taken | _Fetched:
    hold = ExitStack()
    enlarge: Callable[[RemoteObject], None] | None = None

    def admit(new: RemoteObject) -> None:
        # What was said of the size held for what was listed.
        refusal = selection.refusal(new)
        if refusal is not None:
            raise InvalidAudio(refusal[1])
        if enlarge is not None:
            enlarge(new)

    try:
        # A file is not dropped before it was looked at.
        if budget is not None:
            hold.enter_context(budget.reading(found.key))
        if mirror.holds(found) and (held := mirror.state(found.key)):
            return _Fetched(task, held, hold=hold)
        hold.close()
        if budget is not None:
            enlarge = hold.enter_context(budget.room(found, cancelled))
        state = download(client, bucket, found, mirror, cancelled=cancelled, on_change=admit)
        return _Fetched(task, state, downloaded=True, hold=hold)
    except BaseException as error:
        hold.close()
        if not isinstance(error, FileError):
            raise
        return Taken(_failed_row(found.key, prefix, error.status, str(error)) | _listing(found), "failed")


def _look(fetched: _Fetched, prefix: str, mirror: Mirror, marks: CrashMarks | None) -> Taken:
    task, state = fetched.task, fetched.state
    with fetched.hold:
        if state is None:
            return _take_file(task.key, prefix, mirror, task.before, marks)
        row = _row(state, prefix, mirror, task.before, marks)
    return Taken(row, "downloaded", state.size_bytes) if fetched.downloaded else Taken(row, "skipped")


def _listing(found: RemoteObject | None) -> Row:
    if found is None:
        return {}
    return {"etag": found.etag, "size_bytes": found.size_bytes, "last_modified": found.last_modified}


def _take_file(key: str, prefix: str, mirror: Mirror, before: Row | None, marks: CrashMarks | None) -> Taken:
    try:
        state = mirror.inspect(key)
    except FileError as error:
        return Taken(_failed_row(key, prefix, error.status, str(error)), "failed")
    if state is None:
        return Taken(_failed_row(key, prefix, "failed", "the file was removed while it was read"), "failed")
    return Taken(_row(state, prefix, mirror, before, marks), "skipped")


def _row(state: ObjectState, prefix: str, mirror: Mirror, before: Row | None, marks: CrashMarks | None) -> Row:
    row: Row = {
        "id": state.key,
        "prefix": prefix,
        "etag": state.etag,
        "size_bytes": state.size_bytes,
        "last_modified": state.last_modified,
        "content_type": state.content_type,
        "metadata": sorted(state.metadata.items()),
        "sha256": state.sha256,
        "probe": PROBE_VERSION,
    }
    settled = before is not None and before["status"] in ("ok", "invalid") and not refused_by_earlier_probe(before)
    if before is not None and settled and before["sha256"] == state.sha256:
        # The same bytes are the same audio.
        probed = ("container", "codec", "sample_rate_hz", "channels", "duration_s", "probe", "status", "error")
        return row | {name: before[name] for name in probed}
    path = mirror.path_for(state.key)
    try:
        trial = ["audio_assets.ingest.probe", str(path)]
        with marks.around(state.sha256, trial, _TRIAL_S) if marks is not None else nullcontext():
            found = probe(path)
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


def _gone_from_bucket(row: Row) -> Row:
    return row if row["status"] == "gone" else row | {"status": "gone", "error": "no longer in the bucket"}


def _gone_from_mirror(row: Row) -> Row:
    if row["etag"] is not None or row["status"] == "gone":
        return row
    return row | {"status": "gone", "error": "no longer in the mirror folder"}


def _by_id(table: pa.Table | None) -> dict[str, Row]:
    return {row["id"]: row for row in table.to_pylist()} if table is not None else {}


def _nfc(key: str) -> str:
    return unicodedata.normalize("NFC", key)
