"""Runs the pipeline for the command line: the same assets and the same Dagster instance as the UI, in one process."""

from __future__ import annotations

import logging
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from audio_assets import dead_runs, interrupts, schemas, settings
from audio_assets.dagster_home import open_instance, state_faults
from audio_assets.errors import AudioAssetsError, BusyError, NoSuchPrefixError, SettingsError, StorageError
from audio_assets.forget import Forgetting
from audio_assets.ingest.intake import IntakeOptions, restore_records
from audio_assets.ingest.listing import holds_any
from audio_assets.ingest.selection import PASSED_OVER, Selection
from audio_assets.partitions import PARTITIONS_NAME, partition_key_for, prefix_for, prefix_of
from audio_assets.resources.duckdb_io import FILE_IDENTITY, PartitionedDuckDBIOManager
from audio_assets.resources.home import HomeResource
from audio_assets.resources.progress import LogProgress, Progress
from audio_assets.resources.r2 import R2Resource
from audio_assets.settled import Settled, Unchanged
from audio_assets.storage.exports import FILE_NAMES
from audio_assets.storage.partition_files import PartitionStore

if TYPE_CHECKING:
    import dagster as dg

QUALITY = "transcript_quality"
SUMMARY_ASSETS = [QUALITY, "prefix_summary", "token_frequency", "prefix_statistics", "prefix_drift"]
MADE = ["raw_audio", "transcripts", "transcription_ledger", "tokens"]
MADE_OF_RAW_AUDIO = [*MADE[1:], *SUMMARY_ASSETS]
_OPEN_FILES, _FEWEST_OPEN_FILES = 1024, 64
"""With the fewest a small run comes through; each download under way takes two more."""


@dataclass(frozen=True)
class RunOptions:
    """What a run does; the fields are the flags of ``audio-assets run``. None is what the environment says.

    With ``fresh`` only these partitions are visited, and in each the recordings named are transcribed anew.
    """

    prefixes: tuple[str, ...] = ()
    batch_size: int | None = None
    max_workers: int | None = None
    output_formats: tuple[str, ...] = ("json",)
    all_columns: bool = False
    use_cache: bool = True
    limit: int | None = None
    max_cost_usd: float | None = None
    min_grade: str | None = None
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None
    max_object_bytes: int | None = None
    max_disk: int | None = None
    fresh: Mapping[str, Sequence[str]] | None = None
    skip_summary: bool = False
    skip_ingestion: bool = False
    forget_gone: bool = False
    verbose: bool = False


@dataclass
class RunReport:
    """What a run did. ``counts`` has the rows of the visited partitions by status; ``unchanged`` needed nothing.

    ``exports`` are the files that it wrote; ``older_exports`` those of other formats that lie beside them as they were.

    ``warehouse_refused`` says why the database could not be written: every row is stored, and it does not hold them.
    """

    partitions: list[str] = field(default_factory=list)
    unchanged: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    cached: int = 0
    transcribed: int = 0
    audio_minutes: float = 0.0
    cost_usd: float = 0.0
    uncertain_usd: float = 0.0
    max_cost_usd: float | None = None
    refused_by_cap: int = 0
    elapsed_s: float = 0.0
    problems: list[dict[str, str]] = field(default_factory=list)
    home: str = ""
    warehouse: str = ""
    warehouse_refused: str | None = None
    exports: list[str] = field(default_factory=list)
    older_exports: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    report: str | None = None
    passed_over: dict[str, int] = field(default_factory=dict)
    mirror_bytes: int | None = None
    dropped_files: int = 0
    forgotten: list[dict[str, Any]] = field(default_factory=list)
    retired: list[str] = field(default_factory=list)

    @property
    def unfinished(self) -> int:
        """Files that the next run tries again."""
        return sum(self.counts.get(status, 0) for status in schemas.UNFINISHED)

    def as_dict(self) -> dict[str, Any]:
        """The report as one JSON-ready object."""
        return {**asdict(self), "unfinished": self.unfinished}


class StepFailedError(AudioAssetsError):
    """A step of a run failed with one of this package's errors; message and exit code are that error's."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def run_pipeline(
    options: RunOptions,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> RunReport:
    """Bring tables, report and exports up to date with the bucket (or with the mirror folder).

    ``say`` takes a line at each stage. Safe to interrupt and to repeat: what was transcribed is in the cache.

    Raises:
        AudioAssetsError: the run could not go on; the message names what to do. Its ``exit_code`` says which kind.
    """
    started = time.monotonic()
    _check_words()
    pipeline = _Pipeline(options, progress or LogProgress())
    store = PartitionStore(pipeline.home.record)
    report = RunReport(
        home=str(pipeline.home.root), warehouse=str(pipeline.home.warehouse), max_cost_usd=options.max_cost_usd
    )

    if options.fresh is None:
        pipeline.execute("discover_job", {"r2_prefixes": {"skip_ingestion": options.skip_ingestion, **pipeline.globs}})
    chosen = _choose_partitions(store, options.prefixes, pipeline.lies)
    if options.fresh is not None:
        chosen = [(partition, []) for partition, _ in chosen if options.fresh.get(partition)]
    if options.fresh is not None:
        say(f"{sum(map(len, options.fresh.values()))} recordings in {len(chosen)} prefixes to transcribe again")
    elif options.skip_ingestion and not chosen:
        say(f"no audio lies in {pipeline.home.audio}: put recordings there, or correct AUDIO_ASSETS_HOME")
    else:
        say(f"{len(chosen)} prefixes in {'the mirror' if options.skip_ingestion else 'the bucket'}")
    if options.fresh is None and not options.skip_ingestion:
        tidy_mirror(pipeline.resource, store)
    left = options.limit
    unchanged: set[str] = set()
    with pipeline.settled_among([name for name, cutting in chosen if not cutting]) as settled:
        for number, (partition, key_prefixes) in enumerate(chosen, 1):
            if left is not None and left <= 0:
                break
            found = None if key_prefixes else settled(partition)
            if found is not None:
                say(f"[{number}/{len(chosen)}] {partition}: nothing new")
                report.partitions.append(partition)
                unchanged.add(partition)
                _pass_over(report, found.passed_over)
                continue
            say(f"[{number}/{len(chosen)}] {partition}")
            with partition_lock(pipeline.home, partition):
                if options.fresh is None:
                    result = pipeline.prefix(partition, key_prefixes, left, report.cost_usd + report.uncertain_usd)
                else:
                    result = pipeline.again(
                        partition, report.cost_usd + report.uncertain_usd, options.fresh.get(partition, ())
                    )
            report.partitions.append(partition)
            if left is not None:
                left -= int(result["raw_audio"]["objects_selected"])
            _add(report, result)
    forgetting = Forgetting.of(
        store,
        HomeResource(),
        _filters(chosen, report.partitions if options.forget_gone else [], pipeline.selection),
        bucket_listed=not options.skip_ingestion,
    )
    for partition in forgetting.vanished:
        say(f"forgetting {len(forgetting.vanished[partition])} objects of {partition}")
        unchanged.discard(partition)
        if pipeline.settled is not None:
            pipeline.settled.forget(partition)
        with partition_lock(pipeline.home, partition):
            if forgetting.purge(partition, pipeline.instance):
                _add(report, pipeline.again(partition, report.cost_usd + report.uncertain_usd))
            else:
                report.partitions.remove(partition)
    report.unchanged = len(unchanged)
    _count(report, store)
    budget = pipeline.resource.budget()
    if budget is not None:
        report.mirror_bytes, report.dropped_files = budget.used_bytes(), len(budget.mirror.dropped())

    corpus = pipeline.corpus()
    if options.forget_gone and forgetting.unfinished:
        forgetting.finish(PartitionedDuckDBIOManager())
    report.forgotten = [asdict(item) for item in forgetting.forgotten]
    report.retired = forgetting.retired
    if not options.skip_summary:
        report.report = str(pipeline.home.report)
    report.left_out = list(corpus["corpus_export"]["left_out"])
    _list_exports(report, Path(corpus["corpus_export"]["directory"]), options.output_formats)
    if pipeline.home.shared is None:
        # A database that somebody else holds follows by itself; one that the disk refuses does not.
        last = PartitionedDuckDBIOManager().warehouse().refresh()
        report.warehouse_refused = last.deferred if last.refused else None
    report.elapsed_s = round(time.monotonic() - started, 3)
    return report


@contextmanager
def partition_lock(home: settings.Home, partition: str) -> Iterator[None]:
    """Hold the partition for this process.

    Raises:
        BusyError: another run on this machine holds it.
    """
    import hashlib

    # A partition key can be longer than a file name may be.
    name = hashlib.sha256(partition.encode("utf-8")).hexdigest()[:32]
    lock = FileLock(home.locks / f"{name}.lock", timeout=0)
    home.locks.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire()
    except Timeout:
        raise BusyError(
            f"partition {partition!r} is held by another run; wait for it to end, or run other prefixes with --prefix"
        ) from None
    try:
        yield
    finally:
        lock.release()


class _Pipeline:
    """The project's jobs, executed in this process on the lasting Dagster instance."""

    def __init__(self, options: RunOptions, progress: Progress):
        from audio_assets.definitions import build_definitions

        self.options = options
        self.home = settings.home()
        self.resource = HomeResource(max_disk=options.max_disk)
        # An address that is none is said here; a step would bury it.
        self.resource.objects()
        _allow_open_files()
        self.instance = open_instance(self.home)
        # A run that was killed would count as running for ever, and hold its place in the queue.
        with state_faults():
            dead_runs.end(self.instance)
        self.last_run = ""
        self.definitions = build_definitions(progress=progress, home=self.resource)
        if not options.verbose:
            # Dagster's own log goes to the run's event log either way; the terminal gets the progress and the result.
            logging.getLogger("dagster").setLevel(logging.CRITICAL)

    @property
    def assets(self) -> list[str]:
        """What is made of each prefix."""
        graded = [QUALITY] * (self.options.min_grade is not None)
        return [*MADE, *(graded if self.options.skip_summary else SUMMARY_ASSETS)]

    @cached_property
    def settled(self) -> Settled | None:
        """What is known of prefixes that a run of these options leaves as they are; None where it takes all anew."""
        options = self.options
        if options.fresh is not None or options.limit is not None or options.skip_ingestion or not options.use_cache:
            return None
        if self.home.shared is not None:
            # Journals of other machines would have to be looked for: nine requests and more for each prefix.
            return None
        intake = IntakeOptions(selection=self.selection)
        return Settled(self.resource, R2Resource(), self._made_by, self.assets, intake)

    @property
    def selection(self) -> Selection:
        """Which objects count."""
        include, exclude = self.options.include, self.options.exclude
        return self.resource.selection(
            None if include is None else list(include),
            None if exclude is None else list(exclude),
            self.options.max_object_bytes,
        )

    def lies(self, prefix: str) -> bool:
        """Whether audio that counts lies where the run takes it from, under keys that start with ``prefix``."""
        if self.options.skip_ingestion:
            wants = IntakeOptions(key_prefixes=(prefix,), selection=self.selection).wants
            mirror = self.resource.mirror()
            return any(map(wants, chain(mirror.files(prefix), mirror.misnamed())))
        r2 = R2Resource()
        return holds_any(r2.get_client(), r2.bucket_name(), prefix, self.selection.wants)

    def _made_by(self, partition: str) -> str | None:
        """The run that made the transcripts of a partition last, as far as Dagster's history goes."""
        import dagster as dg

        if not self.instance.has_dynamic_partition(PARTITIONS_NAME, partition):
            return None
        asked = dg.AssetRecordsFilter(asset_key=dg.AssetKey("transcripts"), asset_partitions=[partition])
        found = self.instance.fetch_materializations(asked, limit=1).records
        return found[0].run_id if found else None

    @contextmanager
    def settled_among(self, partitions: Sequence[str]) -> Iterator[Callable[[str], Unchanged | None]]:
        """Tells of each of ``partitions`` whether a run would change nothing; to be asked in their order."""
        if self.settled is None:
            yield lambda partition: None
            return
        with self.settled.among(partitions) as settled:
            yield settled

    @property
    def globs(self) -> dict[str, list[str]]:
        """The run config of the assets that list, as far as it is not that of the environment."""
        asked = {"include": self.options.include, "exclude": self.options.exclude}
        return {name: list(globs) for name, globs in asked.items() if globs is not None}

    @property
    def at_once(self) -> dict[str, int]:
        """The run config of how much is done at once, as far as the user has said it."""
        asked = {"batch_size": self.options.batch_size, "max_workers": self.options.max_workers}
        return {name: number for name, number in asked.items() if number is not None}

    def prefix(
        self, partition: str, key_prefixes: list[str], limit: int | None, spent_usd: float
    ) -> dict[str, dict[str, Any]]:
        options = self.options
        selection: dict[str, Any] = {"key_prefixes": key_prefixes, "limit": limit}
        workers = self.at_once
        cap, most = options.max_cost_usd, options.max_object_bytes
        config = {
            "raw_audio": {
                "skip_ingestion": options.skip_ingestion,
                **({} if most is None else {"max_object_bytes": most}),
                **self.globs,
                **workers,
                **selection,
            },
            "transcripts": {
                "no_cache": not options.use_cache,
                **({} if cap is None else {"max_cost_usd": max(0.0, cap - spent_usd)}),
                **({} if most is None else {"max_bytes": most}),
                **workers,
                **selection,
            },
        }
        if partition not in self.instance.get_dynamic_partitions(PARTITIONS_NAME):
            self.instance.add_dynamic_partitions(PARTITIONS_NAME, [partition])
        result = self.execute("prefix_job", config, self.assets, partition)
        if self.settled is not None and not key_prefixes and not int(result["transcripts"]["files_transcribed"]):
            written = {name: str(result[name][FILE_IDENTITY]) for name in self.assets}
            self.settled.note(partition, self.last_run, written)
        return result

    def again(self, partition: str, spent_usd: float, fresh_ids: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
        """Make anew what is made of `raw_audio`, from the cache: also where the run itself did not trust it.

        Only ``fresh_ids`` are transcribed although the cache holds them.
        """
        options = self.options
        workers = self.at_once
        cap = options.max_cost_usd
        limits = {} if cap is None else {"max_cost_usd": max(0.0, cap - spent_usd)}
        config = {"transcripts": {"fresh_ids": list(fresh_ids), **workers, **limits}}
        return self.execute("prefix_job", config, MADE_OF_RAW_AUDIO, partition)

    def corpus(self) -> dict[str, dict[str, Any]]:
        options = self.options
        config = {
            "corpus_export": {
                "formats": list(options.output_formats),
                "all_columns": options.all_columns,
                **({} if options.min_grade is None else {"min_grade": options.min_grade}),
            }
        }
        assets = ["corpus_export"] + (
            [] if options.skip_summary else ["corpus_summary", "prefix_keywords", "corpus_report"]
        )
        return self.execute("corpus_job", config, assets)

    def execute(
        self,
        job_name: str,
        config: dict[str, dict[str, Any]],
        assets: Sequence[str] | None = None,
        partition: str | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Run a job and return the metadata of each asset it materialized.

        Raises:
            AudioAssetsError: a step failed; message and exit code are those of the error that it met.
        """
        import dagster as dg

        level = "DEBUG" if self.options.verbose else "CRITICAL"
        try:
            result = self.definitions.resolve_job_def(job_name).execute_in_process(
                run_config={
                    "ops": {name: {"config": values} for name, values in config.items()},
                    "loggers": {"console": {"config": {"log_level": level}}},
                },
                instance=self.instance,
                partition_key=partition,
                tags={dead_runs.PROCESS_TAG: dead_runs.own_process()},
                asset_selection=[dg.AssetKey(a) for a in assets] if assets else None,
                raise_on_error=False,
            )
        finally:
            # Whatever went wrong after a signal went wrong because of it.
            interrupts.check()
        self.last_run = result.run_id
        for event in result.all_events:
            if event.is_step_failure:
                raise _error_of(event)
            if event.is_run_failure and event.job_failure_data.error is not None:
                raise AudioAssetsError(_reason(job_name, event.job_failure_data.error))
        if not result.success:
            raise AudioAssetsError(f"{job_name} did not finish; `audio-assets run --verbose` shows Dagster's log")
        return {
            event.asset_key.to_user_string(): {
                name: value.value for name, value in event.materialization.metadata.items()
            }
            for event in result.all_events
            if event.is_step_materialization and event.asset_key is not None
        }


def tidy_mirror(home: HomeResource, store: PartitionStore) -> None:
    """Do what visiting a prefix does for the mirror, once for those that are not visited.

    Raises:
        StorageError: the index of the mirror cannot be written.
    """
    # What cannot be removed is in nobody's way; a prefix that is visited says what is wrong with the disk.
    with suppress(OSError):
        home.mirror().remove_stale_parts()
    budget = home.budget()
    if budget is not None:
        rows = store.read(schemas.RAW_AUDIO, columns=["id", "status"], on_unreadable=lambda bad: None)
        # The bucket cannot give these back.
        budget.keep(id for id, status in zip(*rows.to_pydict().values(), strict=True) if status == "gone")
        budget.shrink()
        if budget.kept():
            whole = store.read(schemas.RAW_AUDIO, on_unreadable=lambda bad: None)
            budget.came_back(restore_records(budget.mirror, budget, whole))
            budget.shrink()


def _check_words() -> None:
    """Look for what is wrong with the settings of tokens: they are made last, when transcribing is paid for.

    Raises:
        SettingsError: a variable asks for something that does not exist; the message names it.
    """
    from audio_assets.assets.tokens import TokensConfig

    TokensConfig().check()


def _allow_open_files() -> None:
    """Let this process open as many files as it may.

    Raises:
        SettingsError: those are too few. Found out on the way, each library would say so in words of its own.
    """
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft != resource.RLIM_INFINITY and soft < _FEWEST_OPEN_FILES:
        raise SettingsError(
            f"a run needs {_FEWEST_OPEN_FILES} open files at once, and this process may have {soft}; allow more "
            "(`ulimit -n 1024`), then run again"
        )


def _error_of(event: dg.DagsterEvent) -> AudioAssetsError:
    """The error that made a step fail, with its exit code.

    Raises:
        KeyboardInterrupt: the step did not fail: a signal ended it.
    """
    from audio_assets.assets.common import EXIT_CODE

    failure = event.step_failure_data
    user = failure.user_failure_data
    if user is not None and user.description:
        code = user.metadata.get(EXIT_CODE)
        return StepFailedError(user.description, exit_code=int(str(code.value)) if code is not None else 1)
    if failure.error is not None and failure.error.cls_name == "DagsterExecutionInterruptedError":
        raise KeyboardInterrupt
    return AudioAssetsError(_reason(str(event.step_key), failure.error))


def _reason(what: str, error: Any) -> str:
    """An error that Dagster recorded as one line: what storage said of itself, or else the innermost cause."""
    while error is not None:
        if error.cls_name == StorageError.__name__:
            return " ".join(error.message.split()).partition(": ")[2]
        if error.cause is None:
            break
        error = error.cause
    message = " ".join(error.message.split()) if error is not None else "no reason given"
    return f"{what}: {message}. `audio-assets run --verbose` shows the whole story"


def _choose_partitions(
    store: PartitionStore, wanted: Sequence[str], lies: Callable[[str], bool]
) -> list[tuple[str, list[str]]]:
    """The partitions that the ``--prefix`` filters touch, each with the filters that cut through it.

    A filter selects keys as in S3: any leading string. It takes a partition whole when the partition's prefix starts
    with it; it cuts through a partition when it goes deeper. ``lies`` tells whether there is audio under a filter.

    Raises:
        NoSuchPrefixError: there is none, nor was there any, under one of the filters.
    """
    depth = settings.load().audio_assets_prefix_depth
    # Prefixes are in NFC; a terminal of macOS pastes NFD.
    wanted = [unicodedata.normalize("NFC", w) for w in wanted]
    listed = store.read(schemas.R2_PREFIXES, columns=["prefix"]).column("prefix").to_pylist()
    # A prefix that vanished from the bucket is visited too: its rows become `gone`.
    stored = [prefix_for(p.partition) for p in store.partitions(schemas.RAW_AUDIO) if p.partition]
    chosen: list[tuple[str, list[str]]] = []
    unused = set(wanted)
    for prefix in sorted({*listed, *stored}):
        whole = [w for w in wanted if prefix.startswith(w)]
        cutting = [w for w in wanted if not prefix.startswith(w) and prefix_of(w, depth) == prefix]
        unused -= {*whole, *(w for w in cutting if lies(w) or _has_rows(store, prefix, w))}
        if whole or cutting or not wanted:
            chosen.append((partition_key_for(prefix), [] if whole else cutting))
    if unused:
        there = ", ".join(repr(p) for p in listed[:8]) or "none"
        raise NoSuchPrefixError(f"--prefix {sorted(unused)[0]!r}: no audio lies there. Prefixes with audio: {there}")
    return chosen


def _has_rows(store: PartitionStore, prefix: str, wanted: str) -> bool:
    """Whether a partition has rows of keys that start with ``wanted``: what vanished since becomes `gone`."""
    rows = store.read(schemas.RAW_AUDIO, [partition_key_for(prefix)], ["id"], on_unreadable=lambda bad: None)
    return any(map(IntakeOptions(key_prefixes=(wanted,)).wants, rows.column("id").to_pylist()))


def _add(report: RunReport, result: dict[str, dict[str, Any]]) -> None:
    """Count what one run of a partition did and spent."""
    _pass_over(report, result.get("raw_audio", {}))
    made = result["transcripts"]
    report.transcribed += int(made["files_transcribed"])
    report.cost_usd += float(made["cost_usd"])
    report.uncertain_usd += float(made.get("uncertain_usd", 0.0))
    report.refused_by_cap += int(made.get("requests_refused_by_cap", 0))


def _list_exports(report: RunReport, directory: Path, written: Sequence[str]) -> None:
    """Tell the files of the formats that were ``written`` from those that an earlier export left."""
    for name, file in sorted(FILE_NAMES.items(), key=lambda item: item[1]):
        if (directory / file).exists():
            (report.exports if name in written else report.older_exports).append(str(directory / file))


def _pass_over(report: RunReport, counted: Mapping[str, Any]) -> None:
    for kind in PASSED_OVER:
        if counted.get(kind):
            report.passed_over[kind] = report.passed_over.get(kind, 0) + int(counted[kind])


def _filters(
    chosen: Sequence[tuple[str, list[str]]], visited: Sequence[str], selection: Selection
) -> list[tuple[str, Callable[[str], bool]]]:
    """The visited partitions, each with a test of which of its keys the run was about.

    Rows of other objects stay as they were: one that is `gone` there may be back.
    """
    seen = set(visited)
    return [
        (partition, IntakeOptions(key_prefixes=tuple(key_prefixes), selection=selection).wants)
        for partition, key_prefixes in chosen
        if partition in seen
    ]


def _count(report: RunReport, store: PartitionStore) -> None:
    """Fill in what the tables say about the partitions of this run."""
    columns = ["id", "status", "error", "cached", "duration_s"]
    rows = store.read(schemas.TRANSCRIPTS, report.partitions, columns).to_pylist() if report.partitions else []
    counts = Counter(r["status"] for r in rows)
    report.counts = {s: counts[s] for s in schemas.STATUSES if counts[s]}
    report.cached = sum(bool(r["cached"]) for r in rows)
    report.audio_minutes = round(sum(r["duration_s"] or 0.0 for r in rows) / 60, 3)
    report.cost_usd = round(report.cost_usd, 6)
    report.uncertain_usd = round(report.uncertain_usd, 6)
    report.problems = [
        {"id": r["id"], "status": r["status"], "error": r["error"] or ""}
        for r in rows
        if r["status"] not in ("ok", "empty")
    ]
