"""The stages that a `mapper` applies to the files of a partition: what they need, in plain data, and how they begin."""

from __future__ import annotations

import uuid
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from audio_assets.crashes import CrashMarks
from audio_assets.errors import FileDeferred, FileFailed
from audio_assets.ingest import intake
from audio_assets.ingest.intake import IntakeOptions, Taken, Task
from audio_assets.ingest.listing import RemoteObject
from audio_assets.ingest.supply import Supply
from audio_assets.resources.home import HomeResource
from audio_assets.resources.mapper import Tell
from audio_assets.resources.r2 import R2Resource
from audio_assets.resources.whisper import WhisperResource
from audio_assets.speech.decode import Limits
from audio_assets.speech.ledger import Account
from audio_assets.speech.openai_api import OpenAIEngine
from audio_assets.speech.transcribe import AudioFile, FileTranscript, TranscribeOptions, fingerprint, transcribe_files
from audio_assets.text.tokenize import TokenizeOptions, tokenize
from audio_assets.text.workers import tokenize_in_workers

JOB_ROWS = 4_096
"""Transcripts that are split into words at a time."""

NOTED_AT_ONCE = 500
"""Recordings that the cache held are noted as done with together."""

Heard = tuple[str, float, bool]
"""News of `Transcribe`: a file's id, seconds of it that are done, whether an earlier run did them."""


def supply_of(home: HomeResource, r2: R2Resource) -> Supply:
    """What brings files back that were dropped from the mirror of ``home``."""
    return Supply(home.mirror(), home.budget(), lambda: (r2.get_client(), r2.bucket_name()))


@dataclass
class TakeIn:
    """Fetch, verify and probe objects. Without ``r2``, look at the files that lie in the mirror."""

    prefix: str
    home: HomeResource
    options: IntakeOptions
    r2: R2Resource | None

    def apply(self, items: Iterable[Task], tell: Tell) -> Generator[Taken, None, None]:
        """One row per object."""
        client = self.r2.get_client() if self.r2 else None
        bucket = self.r2.bucket_name() if self.r2 else ""
        budget = self.home.budget() if self.r2 else None
        if budget is not None:
            budget.shrink()
        with CrashMarks(self.home.paths().crash_marks) as marks:
            yield from intake.take(items, self.prefix, self.home.mirror(), self.options, client, bucket, budget, marks)

    def name(self, item: Task) -> str:
        """Its key."""
        return item.key

    def name_of(self, result: Taken) -> str:
        """The key of its row."""
        return str(result.row["id"])

    def together(self, item: Task) -> str:
        """Every object by itself."""
        return item.key

    def lost(self, item: Task, reason: str) -> Taken:
        """A failed row."""
        return intake.lost(item, self.prefix, reason)

    def figures(self) -> dict[str, float]:
        """Nothing is counted."""
        return {}

    def within(self, cores: float) -> TakeIn:
        """Downloads wait for the network, not for a core."""
        return self

    def runs_model(self) -> bool:
        """Nothing is recognised."""
        return False

    def alike(self) -> str:
        """Bytes are bytes."""
        return ""


def _remote(item: AudioFile) -> RemoteObject | None:
    """What a listing said of a recording."""
    return None if item.etag is None else RemoteObject(item.id, item.etag, item.size_bytes, item.last_modified)


@dataclass(frozen=True)
class Budget:
    """What a run may spend: at most ``cap_usd``, with all runs of ``backfill`` together where there is one."""

    cap_usd: float | None
    run: str
    backfill: str | None = None


@dataclass
class Transcribe:
    """Transcribe recordings with the engine that ``whisper`` makes; tells `Heard` of windows that are done."""

    prefix: str
    home: HomeResource
    r2: R2Resource
    whisper: WhisperResource
    budget: Budget
    batch_size: int | None
    max_workers: int | None
    fresh_ids: frozenset[str]
    limits: Limits

    def __post_init__(self) -> None:
        self._figures = Account().figures()

    def apply(self, items: Iterable[AudioFile], tell: Tell) -> Generator[FileTranscript, None, None]:
        """One transcript per recording."""
        alone = isinstance(items, Sequence)
        cache = self.home.cache()
        shared = self.home.paths().shared is not None
        if shared and not alone:
            mirror = self.home.mirror()
            items = (replace(item, path=mirror.path_for(item.id)) for item in items)
        with (
            closing(self._account(alone)) as account,
            supply_of(self.home, self.r2) as supply,
            CrashMarks(self.home.paths().crash_marks) as marks,
        ):
            engine = self.whisper.billed_engine(account, cache)
            if isinstance(items, Sequence):
                key, contents = fingerprint(engine), {item.id: item.sha256 for item in items}
                supply.ahead(contents, lambda id: id in self.fresh_ids or not cache.has(contents[id], key))

            spent: list[str] = []

            def stop() -> None:
                supply.stop()
                if isinstance(engine, OpenAIEngine):
                    engine.halt()

            options = TranscribeOptions(
                batch_size=self.batch_size,
                max_workers=self.max_workers,
                fresh_ids=self.fresh_ids,
                limits=self.limits,
                on_stop=stop,
                bring=lambda item: supply.bring(item.id, item.sha256, _remote(item) if shared else None),
                check=lambda item: supply.check(item.id, item.sha256),
                on_window=lambda id, seconds, known: tell((id, seconds, known)),
                live=not alone,
                marks=marks,
            )
            try:
                for result in transcribe_files(items, engine, cache, options):
                    self._figures = account.figures()
                    if result.status not in (FileFailed.status, FileDeferred.status):
                        spent.append(result.id)
                    if not result.cached or len(spent) >= NOTED_AT_ONCE:
                        supply.spent(spent)
                        spent = []
                    yield result
            finally:
                self._figures = account.figures()
                supply.spent(spent)
                self.home.push_ledger(self.prefix)

    def _account(self, alone: bool) -> Account:
        """The budget of this copy of the stage; copies and the runs of one backfill have one in common."""
        budget, root = self.budget, self.home.paths().ledger
        common = budget.backfill or (None if alone else budget.run)
        name = budget.run if alone else f"{budget.run}/{uuid.uuid4().hex}"
        capped = budget.cap_usd is not None
        shared = self.home.cap(common, name) if common and capped else None
        return Account(budget.cap_usd, root, lambda id: self.prefix, budget.run, shared)

    def name(self, item: AudioFile) -> str:
        """Its id."""
        return item.id

    def name_of(self, result: FileTranscript) -> str:
        """The recording's id."""
        return result.id

    def together(self, item: AudioFile) -> str:
        """The same bytes are transcribed once: the first of them is, the others follow it."""
        return item.sha256

    def lost(self, item: AudioFile, reason: str) -> FileTranscript:
        """A failed row."""
        engine = self.whisper.engine_name()
        return FileTranscript(item.id, item.sha256, FileFailed.status, engine, "", "", error=reason)

    def figures(self) -> dict[str, float]:
        """The money, as `Account.figures` has it."""
        return self._figures

    def within(self, cores: float) -> Transcribe:
        """No more transcriptions at once than cores; requests to an API wait, whatever there is."""
        if self.whisper.engine_name() != "local" or self.max_workers is not None:
            return self
        return replace(self, max_workers=max(1, int(cores)))

    def runs_model(self) -> bool:
        """Where the weights are local."""
        return self.whisper.engine_name() == "local"

    def alike(self) -> str:
        """The key under which the results are kept: weights, options, versions."""
        return fingerprint(self.whisper.create_engine())


Rows = tuple[int, pa.RecordBatch]
"""Transcripts, and where they stand among the others."""


@dataclass
class Tokenize:
    """Split transcripts into words, some thousand at a time; in ``workers`` processes where all are at hand."""

    options: TokenizeOptions
    workers: int | None

    @staticmethod
    def items(transcripts: pa.Table) -> list[Rows]:
        """The transcripts as items."""
        return list(enumerate(transcripts.to_batches(JOB_ROWS)))

    def apply(self, items: Iterable[Rows], tell: Tell) -> Generator[tuple[int, pa.Table], None, None]:
        """The words of each batch; of all of them at once where they are at hand."""
        if not isinstance(items, Sequence):
            for number, batch in items:
                yield number, tokenize(pa.Table.from_batches([batch]), self.options)
        elif items:
            transcripts = pa.Table.from_batches([batch for _, batch in items])
            yield 0, tokenize_in_workers(transcripts, self.options, self.workers)

    def name(self, item: Rows) -> int:
        """Its place."""
        return item[0]

    def name_of(self, result: tuple[int, pa.Table]) -> int:
        """The place of its item."""
        return result[0]

    def together(self, item: Rows) -> int:
        """Every batch by itself."""
        return item[0]

    def lost(self, item: Rows, reason: str) -> Any:
        """There are no words to be had without the work.

        Raises:
            FileFailed: always.
        """
        raise FileFailed(f"transcripts {item[0] * JOB_ROWS} ff. cannot be split into words: {reason}")

    def figures(self) -> dict[str, float]:
        """Nothing is counted."""
        return {}

    def within(self, cores: float) -> Tokenize:
        """A worker is one process."""
        return self

    def runs_model(self) -> bool:
        """Rules, no weights."""
        return False

    def alike(self) -> str:
        """Which rules each language has follows from the versions of the libraries."""
        return repr(self.options)
