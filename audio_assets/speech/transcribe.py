"""The pipeline: files in, judged transcripts out, in the order in which they finish.

Reader threads decode and find speech ahead of the model; worker threads take batches of windows of similar length,
from whatever files they come; a file is finished, judged and stored when its last window is. What waits between the
two is bounded in seconds of audio, so memory does not grow with the number or the length of the files.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from audio_assets.crashes import CrashMarks
from audio_assets.errors import FileError, FileFailed
from audio_assets.speech import judge, vad
from audio_assets.speech.cache import Hold, TranscriptCache
from audio_assets.speech.decode import AudioStream, Limits, trial_of
from audio_assets.speech.engine import (
    SAMPLE_RATE_HZ,
    Clip,
    ClipResult,
    Engine,
    Segment,
    SharedLanguage,
    Timings,
    Word,
    fingerprint_of,
)

PIPELINE_VERSION = 1
"""Raised whenever decoding, windows or assembly change the text for the same engine.

Not for what only damaged or rare files gain, such as those with holes, channels that cancel each other or a first track
without speech: whoever pays an API would pay for everything once more. Those are made anew with ``--no-cache``.
"""

_WITHOUT_SPACES = frozenset({"zh", "ja", "th", "lo", "my", "yue", "km", "bo"})
_CHOICE = 3
"""A worker waits until it can choose its windows among this many batches of them."""
_FIRST = 4
"""But its first batch is a fourth of the others and does not wait, so that the first results come at once."""

_AHEAD_WINDOWS = 256
"""Windows that may wait for the model, however short: each of their files has a lock open."""

_HELD_POLL_S = 0.1
"""How often to look whether another process is done with a file."""


@dataclass(frozen=True)
class AudioFile:
    """A file to transcribe: its id (object key), where it lies, and the SHA-256 of its bytes.

    The rest is what a listing said of it, for machines that have to fetch it.
    """

    id: str
    path: Path
    sha256: str
    etag: str | None = None
    size_bytes: int = 0
    last_modified: datetime | None = None


@dataclass(frozen=True)
class TranscribeOptions:
    """How to run the pipeline. None of it changes the text.

    ``batch_size`` is how many windows one engine call takes (None: what the engine likes best; an engine that takes one
    at a time takes no more), ``max_workers`` caps the calls at once. With ``use_cache`` False nothing is read from the
    cache; results are stored all the same. ``fresh_ids`` are transcribed anew whatever the cache holds. ``readers`` are
    the threads that decode; ``ahead_s`` is how many seconds of audio may wait for the model. With ``live`` the next
    file may come only after results of earlier ones were taken: whoever waits for it keeps nobody waiting. ``on_stop``
    is called when the run ends, finished or not, before waiting for calls under way. ``on_window`` is called in the
    caller's thread whenever a window is done, with the file's id, the seconds of the recording that are done with it
    (the silence before it included), and whether the cache held it. ``timings`` collects the seconds spent decoding,
    finding speech and waiting. ``bring`` is entered while a file is decoded, which is one that the cache does not hold:
    it may take its time to have the file there. ``check`` is called once the file is open, and raises a `FileError`
    where it is not the one that is meant any more. ``marks`` tell the next run of which file this one died.
    """

    batch_size: int | None = None
    max_workers: int | None = None
    use_cache: bool = True
    fresh_ids: AbstractSet[str] | None = None
    limits: Limits = field(default_factory=Limits)
    readers: int | None = None
    ahead_s: float = 600.0
    on_stop: Callable[[], None] = lambda: None
    live: bool = False
    on_window: Callable[[str, float, bool], None] = lambda id, seconds, known: None
    timings: Timings = field(default_factory=Timings)
    bring: Callable[[AudioFile], AbstractContextManager[None]] | None = None
    check: Callable[[AudioFile], None] = lambda file: None
    marks: CrashMarks | None = None


@dataclass(frozen=True)
class FileTranscript:
    """What became of one file: the fields of a row of `schemas.TRANSCRIPTS`, without its prefix."""

    id: str
    sha256: str
    status: str
    engine: str
    model: str
    fingerprint: str
    transcription: str | None = None
    language: str | None = None
    language_probability: float | None = None
    duration_s: float | None = None
    speech_s: float | None = None
    segments: tuple[Segment, ...] = ()
    speech_spans: tuple[tuple[float, float], ...] | None = None
    loudness_dbfs: float | None = None
    cached: bool = False
    cost_usd: float | None = 0.0
    elapsed_s: float = 0.0
    flags: tuple[str, ...] = ()
    error: str | None = None

    def row(self, prefix: str) -> dict[str, Any]:
        """A row of `schemas.TRANSCRIPTS`."""
        row = asdict(self)
        row["prefix"] = prefix
        row["segments"] = [{**asdict(s), "flags": list(s.flags)} for s in self.segments]
        if self.speech_spans is not None:
            row["speech_spans"] = [{"start_s": a, "end_s": b} for a, b in self.speech_spans]
        row["flags"] = list(self.flags)
        return row


def fingerprint(engine: Engine) -> str:
    """The cache key of an engine inside this pipeline: its own fingerprint, the window plan and the versions."""
    return fingerprint_of(
        {
            "engine": engine.fingerprint(),
            "plan": asdict(engine.plan),
            "pipeline": PIPELINE_VERSION,
            "vad": [vad.SPEECH_ON, vad.SPEECH_OFF, vad.MIN_SPEECH_S, vad.PAUSE_S],
        }
    )


def transcribe_files(
    files: Iterable[AudioFile],
    engine: Engine,
    cache: TranscriptCache,
    options: TranscribeOptions | None = None,
    on_result: Callable[[FileTranscript], None] | None = None,
) -> Iterator[FileTranscript]:
    """Transcribe ``files``; gives one result per file, as they finish.

    A file that cannot be handled is a result with a status; the others go on. Each result is in the cache before it
    is given. Files with the same bytes are transcribed once, also by processes that share the cache: what one of them
    has in work, the others wait for, last of all. ``on_result`` is called in the caller's thread.

    Raises:
        SettingsError: nothing can be transcribed: bad key, no quota, no such model.
    """
    run = _Run(files, engine, cache, options or TranscribeOptions())
    try:
        for result in run.results():
            if on_result is not None:
                on_result(result)
            yield result
    finally:
        run.stop()


class _Pool:
    """Windows that wait for the model, bounded in seconds of audio."""

    def __init__(self, ahead_s: float):
        self._ahead_s = ahead_s
        self._changed = threading.Condition()
        self._waiting: list[_Task] = []
        self._seconds = 0.0
        self._closed = False
        self._blocked = 0
        self._readers = 0
        self._workers = 1
        self._given = 0
        self._taken = 0
        self._head_start = 1

    def start(self, readers: int, workers: int, size: int) -> None:
        self._readers, self._workers = readers, workers
        self._head_start = _CHOICE * size * workers

    def put(self, task: _Task) -> bool:
        """Add a window, after waiting for room; False when the run has stopped."""
        with self._changed:
            self._blocked += 1
            self._changed.notify_all()
            while self._full() and not self._closed:
                self._changed.wait()
            self._blocked -= 1
            if self._closed:
                return False
            self._waiting.append(task)
            self._seconds += task.clip.duration_s
            self._changed.notify_all()
            return True

    def _full(self) -> bool:
        # Before the first batch is back, reading far ahead would only take the processor from it.
        most = min(self._head_start, _AHEAD_WINDOWS) if self._taken <= self._workers else _AHEAD_WINDOWS
        return bool(self._waiting) and (self._seconds >= self._ahead_s or len(self._waiting) >= most)

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """A reader waits for something else: the workers must not wait for more from it."""
        with self._changed:
            self._blocked += 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._blocked -= 1

    def reader_done(self) -> None:
        with self._changed:
            self._readers -= 1
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def take(self, size: int) -> list[_Task] | None:
        """The window that waited longest and those nearest to it in length; None when there are no more.

        Once everything is read, the longest windows go first: short ones last let the workers end together.
        """
        with self._changed:
            self._taken += 1
            self._changed.notify_all()
            while True:
                wanted = _CHOICE * size
                if self._given < self._workers:
                    wanted = max(1, size // _FIRST)
                if self._closed:
                    return None
                if not self._readers and not self._waiting:
                    return None
                # More to choose from makes batches more even; readers that stand still or are gone add nothing.
                if self._waiting and (len(self._waiting) >= wanted or self._blocked >= self._readers):
                    break
                if self._waiting and size == 1:
                    break
                self._changed.wait()
            if self._given < self._workers:
                size = wanted
            first = self._waiting[0]
            if not self._readers:
                # The last windows are shared out, so that no worker stands idle at the end.
                size = min(size, max(1, -(-len(self._waiting) // self._workers)))
                first = max(self._waiting, key=lambda t: t.clip.duration_s)
            others = sorted(self._waiting, key=lambda t: abs(t.clip.duration_s - first.clip.duration_s))
            batch = [first, *[t for t in others if t is not first][: size - 1]]
            self._given += 1
            chosen = {id(t) for t in batch}
            self._waiting = [t for t in self._waiting if id(t) not in chosen]
            self._seconds = sum(t.clip.duration_s for t in self._waiting)
            self._changed.notify_all()
            return batch


@dataclass
class _Job:
    """One file in work."""

    file: AudioFile
    started: float
    language: SharedLanguage = field(default_factory=SharedLanguage)
    outcomes: dict[int, ClipResult | FileError] = field(default_factory=dict)
    offsets_s: dict[int, float] = field(default_factory=dict)
    channels: dict[int, int | None] = field(default_factory=dict)
    ends_s: dict[int | None, float] = field(default_factory=dict)
    channel_count: int = 1
    speech: dict[int | None, list[tuple[float, float]]] = field(default_factory=dict)
    expected: int | None = None
    duration_s: float = 0.0
    speech_s: float = 0.0
    truncated: bool = False
    clipped: bool = False
    loudness_dbfs: float | None = None
    claimed: bool = False
    fresh: bool = False
    spoiled: bool = False
    hold: Hold | None = None
    twins: list[AudioFile] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def claim(self) -> bool:
        """True for exactly one caller, once every window has its outcome."""
        with self.lock:
            if self.claimed or self.expected is None or len(self.outcomes) < self.expected:
                return False
            self.claimed = True
            return True


@dataclass(frozen=True)
class _Task:
    """One window on its way to the engine."""

    job: _Job
    index: int
    name: str
    clip: Clip
    covered_s: float


@dataclass(frozen=True)
class _Heard:
    """A window is done: news for the caller."""

    id: str
    covered_s: float
    known: bool


class _Run:
    def __init__(self, files: Iterable[AudioFile], engine: Engine, cache: TranscriptCache, options: TranscribeOptions):
        self._files = iter(files)
        self._files_lock = threading.Lock()
        self._engine = engine
        self._cache = cache
        self._options = options
        self._fingerprint = fingerprint(engine)
        self._workers = max(1, min(options.max_workers or engine.parallelism, engine.parallelism))
        self._batch = max(1, options.batch_size or engine.batch_size) if engine.batch_size > 1 else 1
        self._reader_count = max(1, options.readers or min(self._workers, os.cpu_count() or 1))
        self._pool = _Pool(options.ahead_s)
        self._out: queue.Queue[FileTranscript | _Heard | BaseException | None] = queue.Queue()
        self._jobs: dict[str, _Job] = {}
        self._jobs_lock = threading.Lock()
        self._done: set[str] = set()
        self._held_elsewhere: deque[_Job] = deque()
        self._reading = self._reader_count
        self._stopped = threading.Event()
        self._alive = 0
        self._threads: list[threading.Thread] = []

    def results(self) -> Iterator[FileTranscript]:
        targets = [(self._read, self._reader_count), (self._work, self._workers)]
        if self._options.live:
            targets.append((self._read_held, 1))
        self._alive = sum(count for _, count in targets)
        self._pool.start(self._alive - self._workers, self._workers, self._batch)
        for target, count in targets:
            for i in range(count):
                name = f"speech{target.__name__}-{i}"
                self._threads.append(threading.Thread(target=self._guard, args=(target,), name=name, daemon=True))
        for thread in self._threads:
            thread.start()
        while self._alive:
            item = self._out.get()
            if item is None:
                self._alive -= 1
            elif isinstance(item, BaseException):
                raise item
            elif isinstance(item, _Heard):
                self._options.on_window(item.id, item.covered_s, item.known)
            else:
                yield item

    def stop(self) -> None:
        self._stopped.set()
        self._pool.close()
        self._options.on_stop()
        for thread in self._threads:
            thread.join()
        for job in self._jobs.values():
            _let_go(job)

    def _guard(self, target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as error:  # it is raised again in the caller's thread
            self._out.put(error)
        finally:
            if target != self._work:
                self._pool.reader_done()
            self._out.put(None)

    # -- readers

    def _read(self) -> None:
        while not self._stopped.is_set():
            file = self._next_file()
            if file is None:
                break
            self._read_file(file)
        if self._options.live:
            with self._files_lock:
                self._reading -= 1
            return
        while not self._stopped.is_set():
            try:
                job = self._held_elsewhere.popleft()
            except IndexError:
                return
            with self._pool.standing_still():
                while not self._hold(job) and not self._stopped.wait(_HELD_POLL_S):
                    pass
            if job.hold is not None:
                # What another process has just transcribed is fresh.
                job.fresh = False
                self._read_job(job)

    def _read_held(self) -> None:
        """Of live files the last may come only once those held elsewhere are done: they are looked after meanwhile."""
        while not self._stopped.is_set():
            ended = not self._reading
            try:
                job = self._held_elsewhere.popleft()
            except IndexError:
                if ended:
                    return
            else:
                if self._hold(job):
                    job.fresh = False
                    self._read_job(job)
                    continue
                self._held_elsewhere.append(job)
            with self._pool.standing_still():
                self._stopped.wait(_HELD_POLL_S)

    def _next_file(self) -> AudioFile | None:
        with self._pool.standing_still() if self._options.live else nullcontext(), self._files_lock:
            return next(self._files, None)

    def _read_file(self, file: AudioFile) -> None:
        started = time.monotonic()
        fresh = not self._options.use_cache or file.id in (self._options.fresh_ids or ())
        with self._jobs_lock:
            # What this run has transcribed itself is fresh: the same bytes are never paid twice.
            fresh = fresh and file.sha256 not in self._done
            twin = self._jobs.get(file.sha256)
            if twin is not None:
                twin.twins.append(file)
                return
            job = _Job(file, started, fresh=fresh)
            self._jobs[file.sha256] = job
        if self._restore(job):
            return
        if self._hold(job):
            self._read_job(job)
        else:
            self._held_elsewhere.append(job)

    def _hold(self, job: _Job) -> bool:
        job.hold = self._cache.hold(job.file.sha256, self._fingerprint)
        return job.hold is not None

    def _restore(self, job: _Job) -> bool:
        """Finish a job from the cache, if it may be trusted and has the file."""
        stored = None if job.fresh else self._cache.get(job.file.sha256, self._fingerprint)
        result = None if stored is None else _from_cache(stored, job.file, self._engine, self._fingerprint)
        if result is not None:
            self._emit(job, result, stored)
        return result is not None

    def _read_job(self, job: _Job) -> None:
        """Cut a file that is held, unless it was finished while somebody else held it."""
        if self._restore(job):
            return
        sha256 = job.file.sha256
        if job.fresh:
            self._cache.drop_windows(sha256, self._fingerprint)
        try:
            with ExitStack() as brought:
                # Workers must not wait for more from a reader that waits for its file.
                waits = self._options.bring is not None or self._options.marks is not None
                with self._pool.standing_still() if waits else nullcontext():
                    if self._options.bring is not None:
                        brought.enter_context(self._options.bring(job.file))
                    if self._options.marks is not None:
                        brought.enter_context(self._marked(job.file, self._options.marks))
                self._cut(job, {} if job.fresh else self._cache.get_windows(sha256, self._fingerprint))
        except FileError as error:
            self._fail(job, error)

    def _marked(self, file: AudioFile, marks: CrashMarks) -> AbstractContextManager[None]:
        trial = trial_of(file.path, self._options.limits, split_channels=self._engine.plan.split_channels)
        return marks.around(file.sha256, *trial)

    def _cut(self, job: _Job, known: dict[str, dict[str, Any]]) -> None:
        count = 0
        plan, timings = self._engine.plan, self._options.timings
        with AudioStream(job.file.path, self._options.limits, split_channels=plan.split_channels) as stream:
            windowers = [vad.Windower(plan) for _ in range(stream.channels)]
            job.channel_count = len(windowers)
            blocks = stream.blocks()
            opened: os.stat_result | None = None
            while True:
                with timings.stage("decode"):
                    block = next(blocks, None)
                if block is None:
                    break
                if opened is None:
                    # An open file stays what it is when another takes its name.
                    opened = job.file.path.stat()
                    self._options.check(job.file)
                for channel, windower in enumerate(windowers):
                    with timings.stage("vad"):
                        found = list(windower.push(block if block.ndim == 1 else block[channel]))
                    for window in found:
                        if not self._submit(job, count, window, channel if block.ndim > 1 else None, known):
                            return
                        count += 1
        if opened is not None and _written_to(job.file.path, opened):
            job.spoiled = True
            self._cache.drop_windows(job.file.sha256, self._fingerprint)
            raise FileFailed("the file was written to while it was read; the next run takes it in anew")
        apart = len(windowers) > 1
        last = [(w, channel if apart else None) for channel, each in enumerate(windowers) for w in each.finish()]
        with job.lock:
            job.duration_s, job.truncated, job.clipped = stream.duration_s, stream.truncated, stream.clipped
            job.loudness_dbfs = stream.loudness_dbfs
            job.speech_s = sum(w.speech_samples for w in windowers) / SAMPLE_RATE_HZ
            job.expected = count + len(last)
        for index, (window, channel_or_none) in enumerate(last, start=count):
            if not self._submit(job, index, window, channel_or_none, known):
                return
        if job.claim():
            self._finish(job)

    def _submit(
        self, job: _Job, index: int, window: vad.Window, channel: int | None, known: dict[str, dict[str, Any]]
    ) -> bool:
        name = f"{window.start}-{window.end}" + ("" if channel is None else f"/{channel}")
        stored = known.get(name)
        result = clip_result(stored) if stored is not None else None
        with job.lock:
            job.offsets_s[index] = window.start_s
            job.channels[index] = channel
            end_s = window.end / SAMPLE_RATE_HZ
            covered_s = (end_s - job.ends_s.get(channel, 0.0)) / job.channel_count
            job.ends_s[channel] = end_s
            spans = job.speech.setdefault(channel, [])
            spans.extend((a / SAMPLE_RATE_HZ, b / SAMPLE_RATE_HZ) for a, b in window.speech)
            if result is not None:
                job.outcomes[index] = result
        if result is not None:
            self._out.put(_Heard(job.file.id, covered_s, known=True))
            if result.language is not None:
                job.language.settle(result.language, result.language_probability or 0.0)
            return not self._stopped.is_set()
        speech = tuple(
            ((a - window.start) / SAMPLE_RATE_HZ, (b - window.start) / SAMPLE_RATE_HZ) for a, b in window.speech
        )
        clip = Clip(job.file.id, window.samples, window.start_s, job.language, speech, job.file.sha256, name)
        return self._pool.put(_Task(job, index, name, clip, covered_s))

    # -- workers

    def _work(self) -> None:
        while True:
            with self._options.timings.stage("idle"):
                tasks = self._pool.take(self._batch)
            if tasks is None:
                return
            outcomes = list(self._engine.transcribe([t.clip for t in tasks]))
            for task, outcome in zip(tasks, outcomes, strict=True):
                self._settle(task, outcome)

    def _settle(self, task: _Task, outcome: ClipResult | FileError) -> None:
        job = task.job
        if isinstance(outcome, ClipResult) and job.expected != 1:
            # The only window of a file is stored as the file; all others must survive a kill.
            try:
                self._cache.put_window(job.file.sha256, self._fingerprint, task.name, asdict(outcome))
            except ValueError as error:
                outcome = _not_storable(error)
            if job.spoiled:
                # What was heard in it is not what its hash stands for.
                self._cache.drop_windows(job.file.sha256, self._fingerprint)
        self._out.put(_Heard(job.file.id, task.covered_s, known=False))
        with job.lock:
            job.outcomes[task.index] = outcome
        if job.claim():
            self._finish(job)

    # -- files

    def _finish(self, job: _Job) -> None:
        good = {i: o for i, o in sorted(job.outcomes.items()) if isinstance(o, ClipResult)}
        bad = [o for _, o in sorted(job.outcomes.items()) if isinstance(o, FileError)]
        if bad and not good:
            self._fail(job, bad[0])
            return
        segments = [
            replace(_trimmed(segment.shifted(job.offsets_s[i])), channel=job.channels[i], language=o.language)
            for i, o in good.items()
            for segment in o.segments
            if segment.text.strip()
        ]
        segments = judge.without_phantoms(segments, job.duration_s, job.speech)
        segments = [replace(s, flags=tuple(judge.judge_segment(s))) for s in segments]
        # Channels take turns; windows of one channel are in order already.
        segments.sort(key=lambda s: s.start_s)
        heard = [(o.language, o.language_probability) for o in good.values() if o.language is not None]
        language, probability = heard[0] if heard else (self._engine.language, None)
        text = _join([s.text for s in segments], language)
        flags = judge.judge_file(
            segments,
            duration_s=job.duration_s,
            speech=job.speech,
            language=language,
            language_probability=probability,
            language_asked=self._engine.language,
            truncated=job.truncated,
            clipped=job.clipped,
        )
        flags += [f for f in sorted({f for o in good.values() for f in o.flags}) if f not in flags]
        if bad:
            flags.append("incomplete")
        costs = [o.cost_usd for o in good.values()]
        spans = sorted(span for channel in job.speech.values() for span in channel)
        result = FileTranscript(
            id=job.file.id,
            sha256=job.file.sha256,
            status="partial" if bad else "ok" if text else "empty",
            engine=self._engine.name,
            model=self._engine.model,
            fingerprint=self._fingerprint,
            transcription=text,
            language=language if text else None,
            language_probability=probability if text else None,
            duration_s=job.duration_s,
            speech_s=job.speech_s,
            segments=tuple(segments),
            speech_spans=tuple((round(a, 3), round(b, 3)) for a, b in spans),
            loudness_dbfs=job.loudness_dbfs,
            cost_usd=None if any(c is None for c in costs) else sum(c or 0.0 for c in costs),
            elapsed_s=time.monotonic() - job.started,
            flags=tuple(flags),
            error=f"{len(bad)} of {len(job.outcomes)} windows have no result: {bad[0]}" if bad else None,
        )
        if not bad:
            try:
                self._cache.put(job.file.sha256, self._fingerprint, _to_cache(result))
            except ValueError as error:
                self._fail(job, _not_storable(error))
                return
        self._emit(job, result)

    def _fail(self, job: _Job, error: FileError) -> None:
        result = FileTranscript(
            id=job.file.id,
            sha256=job.file.sha256,
            status=error.status,
            engine=self._engine.name,
            model=self._engine.model,
            fingerprint=self._fingerprint,
            duration_s=job.duration_s or None,
            elapsed_s=time.monotonic() - job.started,
            error=str(error),
        )
        self._emit(job, result)

    def _emit(self, job: _Job, result: FileTranscript, stored: dict[str, Any] | None = None) -> None:
        """Give the result of a job and of the files with the same bytes; ``stored`` is the entry that it came from."""
        with self._jobs_lock:
            twins = job.twins
            job.twins = []
            del self._jobs[job.file.sha256]
            if result.status in ("ok", "empty"):
                self._done.add(job.file.sha256)
        _let_go(job)
        self._out.put(result)
        again = result.status in ("ok", "empty")
        for twin in twins:
            # The cost of an entry is that of the file that paid for it, whichever of them is met first.
            restored = None if stored is None else _from_cache(stored, twin, self._engine, self._fingerprint)
            self._out.put(restored or _copy(result, twin, cached=again))


def _written_to(path: Path, before: os.stat_result) -> bool:
    """Whether a file changed in place; another that was put in its place leaves it to whoever has it open."""
    try:
        now = path.stat()
    except OSError:
        return False
    same = (now.st_dev, now.st_ino) == (before.st_dev, before.st_ino)
    return same and (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns)


def _let_go(job: _Job) -> None:
    hold, job.hold = job.hold, None
    if hold is not None:
        hold.release()


def _not_storable(error: ValueError) -> FileFailed:
    """What one file's result becomes that is no JSON, of a number such as infinity: the others go on."""
    return FileFailed(f"its result cannot be stored ({error}); report it with the recording")


def _copy(result: FileTranscript, file: AudioFile, *, cached: bool) -> FileTranscript:
    return replace(result, id=file.id, cached=cached, elapsed_s=0.0, cost_usd=0.0)


def _trimmed(segment: Segment) -> Segment:
    words = segment.words
    if words is not None:
        # As the segment, or its first word could begin before it.
        words = tuple(replace(w, start_s=round(w.start_s, 3), end_s=round(w.end_s, 3)) for w in words)
    return replace(
        segment,
        text=segment.text.strip(),
        start_s=round(segment.start_s, 3),
        end_s=round(segment.end_s, 3),
        words=words,
    )


def _join(texts: Sequence[str], language: str | None) -> str:
    glue = "" if language in _WITHOUT_SPACES else " "
    return glue.join(t.strip() for t in texts).strip()


_STORED = (
    "status",
    "transcription",
    "language",
    "language_probability",
    "duration_s",
    "speech_s",
    "cost_usd",
    "elapsed_s",
)


def _to_cache(result: FileTranscript) -> dict[str, Any]:
    entry = {name: getattr(result, name) for name in _STORED}
    entry["segments"] = [asdict(s) for s in result.segments]
    entry["flags"] = list(result.flags)
    spans = result.speech_spans
    entry["speech_spans"] = None if spans is None else [{"start_s": a, "end_s": b} for a, b in spans]
    entry["loudness_dbfs"] = result.loudness_dbfs
    entry["id"], entry["engine"], entry["model"] = result.id, result.engine, result.model
    return entry


def _from_cache(entry: dict[str, Any], file: AudioFile, engine: Engine, fingerprint: str) -> FileTranscript | None:
    """The stored result as this file's, or None if it is not of the shape that `_to_cache` writes.

    What was paid for another file's bytes is that file's cost: the costs of all rows add up to what was spent on them.
    """
    try:
        fields = {name: entry[name] for name in _STORED}
        spans = entry.get("speech_spans")
        if entry.get("id", file.id) != file.id:
            fields["cost_usd"] = 0.0
        return FileTranscript(
            id=file.id,
            sha256=file.sha256,
            engine=engine.name,
            model=engine.model,
            fingerprint=fingerprint,
            cached=True,
            segments=tuple(_segment(s) for s in entry["segments"]),
            flags=tuple(entry["flags"]),
            # Entries of earlier versions say nothing of these.
            speech_spans=None if spans is None else tuple((s["start_s"], s["end_s"]) for s in spans),
            loudness_dbfs=entry.get("loudness_dbfs"),
            **fields,
        )
    except (KeyError, TypeError):
        return None


def clip_result(entry: dict[str, Any]) -> ClipResult | None:
    """A stored window as the engine's result, or None if it is not of that shape."""
    try:
        return ClipResult(
            tuple(_segment(s) for s in entry["segments"]),
            entry["language"],
            entry["language_probability"],
            entry["cost_usd"],
            tuple(entry["flags"]),
        )
    except (KeyError, TypeError):
        return None


def _segment(entry: dict[str, Any]) -> Segment:
    words = entry["words"]
    fields = {**entry, "words": None if words is None else tuple(Word(**w) for w in words)}
    return Segment(**{**fields, "flags": tuple(entry["flags"])})
