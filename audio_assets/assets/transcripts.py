"""`transcripts`: what Whisper heard in each recording of the prefix."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import dagster as dg
import pyarrow as pa
from pydantic import Field

from audio_assets import checks, schemas, settings
from audio_assets.assets.common import (
    OWNERS,
    WAREHOUSE,
    errors_metadata,
    merge,
    partition_of,
    preview,
    readable_errors,
    status_metadata,
    table_metadata,
    table_type,
)
from audio_assets.errors import SupersededError
from audio_assets.partitions import prefix_for, prefix_partitions
from audio_assets.resources.duckdb_io import PartitionedDuckDBIOManager
from audio_assets.resources.home import HomeResource
from audio_assets.resources.mapper import MapperResource, Results
from audio_assets.resources.progress import AudioMinutes, Progress
from audio_assets.resources.r2 import R2Resource
from audio_assets.resources.stages import Budget, Transcribe
from audio_assets.resources.whisper import WhisperResource
from audio_assets.speech.decode import Limits
from audio_assets.speech.ledger import Account, bring_up_to_date, money_metadata
from audio_assets.speech.transcribe import AudioFile
from audio_assets.storage.content import content_version

RAW_COLUMNS = ["id", "etag", "size_bytes", "last_modified", "sha256", "duration_s", "status", "error"]

VERSIONED = ["id", "sha256", "transcription", "language", "speech_s", "fingerprint", "status", "error"]
"""The columns that make the data version: what a run finds in the cache puts nothing that follows out of date."""

POOL = "transcription"
"""Where an instance limits its pools: partitions that are transcribed at once."""

BACKFILL_TAG = "dagster/backfill"
"""Dagster's mark on the runs of one backfill."""


class TranscriptsConfig(dg.Config):
    """How to transcribe the recordings of a prefix."""

    batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Windows, pieces of up to 25 s of speech, that the local engine decodes in one call; by default "
        "what the whisper resource says.",
    )
    max_workers: int | None = Field(
        default=None, ge=1, description="Transcriptions at once; by default what suits the engine and the machine."
    )
    no_cache: bool = Field(
        default=False, description="Transcribe anew what is in the cache. The new results are stored all the same."
    )
    limit: int | None = Field(
        default=None, ge=0, description="With no_cache: transcribe anew only the first so many recordings in key order."
    )
    key_prefixes: list[str] = Field(
        default=[], description="With no_cache: transcribe anew only recordings whose key starts with one of these."
    )
    fresh_ids: list[str] = Field(
        default=[], description="Transcribe these recordings anew, whatever the cache holds; all others as usual."
    )
    max_cost_usd: float | None = Field(
        default=None,
        ge=0,
        description="Most that this run, or all runs of a backfill together, may spend on an API, in US dollars. What "
        "does not fit is put off, as deferred.",
    )
    max_duration_s: float | None = Field(
        default=None,
        gt=0,
        description="Longest recording, in seconds; a longer one is invalid. By default AUDIO_ASSETS_MAX_DURATION_S.",
    )
    max_bytes: int | None = Field(
        default=None, gt=0, description="Largest file, in bytes; by default AUDIO_ASSETS_MAX_BYTES."
    )
    max_decode_s: float | None = Field(
        default=None,
        gt=0,
        description="Most seconds that decoding one file may take; by default AUDIO_ASSETS_MAX_DECODE_S.",
    )

    def limits(self) -> Limits:
        """What a file may cost before it is refused.

        Raises:
            SettingsError: a variable of the environment is set to something it cannot be.
        """
        found = settings.load()
        return Limits(
            max_duration_s=self.max_duration_s or found.audio_assets_max_duration_s,
            max_bytes=self.max_bytes or found.audio_assets_max_bytes,
            max_decode_s=self.max_decode_s or found.audio_assets_max_decode_s,
        )


@dg.asset(
    partitions_def=prefix_partitions,
    ins={"raw_audio": dg.AssetIn(metadata={"columns": RAW_COLUMNS})},
    group_name="speech",
    pool=POOL,
    owners=OWNERS,
    kinds={"openai", "duckdb", "parquet"},
    metadata=table_metadata(schemas.TRANSCRIPTS),
    dagster_type=table_type(schemas.TRANSCRIPTS),
    io_manager_key=WAREHOUSE,
    check_specs=checks.specs("transcripts"),
    description=schemas.TRANSCRIPTS.description
    + " Results are kept by content: the same bytes, model and options are never transcribed twice.",
)
def transcripts(
    context: dg.AssetExecutionContext,
    config: TranscriptsConfig,
    raw_audio: pa.Table,
    whisper: WhisperResource,
    r2: R2Resource,
    home: HomeResource,
    mapper: MapperResource,
    warehouse: dg.ResourceParam[PartitionedDuckDBIOManager],
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult:
    """Transcribe what the cache does not hold, and give each object of `raw_audio` its row."""
    started = time.monotonic()
    with readable_errors():
        partition = partition_of(context)
        prefix = prefix_for(partition)
        rows = raw_audio.to_pylist()
        previous = warehouse.store().read(schemas.TRANSCRIPTS, [partition])
        mirror = home.mirror()
        files = [
            AudioFile(
                r["id"], mirror.path_for(r["id"]), r["sha256"], r["etag"], r["size_bytes"] or 0, r["last_modified"]
            )
            for r in rows
            if r["status"] == "ok"
        ]
        done: dict[str, dict[str, Any]] = {}
        money, redone = Account().figures(), 0
        fresh_ids = _fresh_ids(files, config)
        if fresh_ids:
            # Other prefixes may hold the same bytes.
            home.unsettle()
        if files:
            stage = Transcribe(
                prefix,
                home,
                r2,
                whisper,
                Budget(config.max_cost_usd, context.run.run_id, context.run.tags.get(BACKFILL_TAG)),
                batch_size=config.batch_size,
                max_workers=config.max_workers,
                fresh_ids=fresh_ids,
                limits=config.limits(),
            )
            durations_s = {r["id"]: r["duration_s"] or 0.0 for r in rows if r["status"] == "ok"}
            with progress.task(f"transcripts {partition}", "min", context.log.info) as task:
                minutes = AudioMinutes(task, durations_s)
                results = mapper.map(stage, files, lambda heard: minutes.heard(*heard))
                with _recorded(context, results, home, warehouse):
                    for result in results:
                        done[result.id] = result.row(prefix)
                        minutes.finished(result.id, result.cached)
                money = results.figures()
                redone = int(money.pop("redone", 0))
        kept = {r["id"]: r for r in previous.to_pylist()} if any(r["status"] == "gone" for r in rows) else {}
        table = schemas.TRANSCRIPTS.from_rows([done.get(r["id"]) or _without_result(r, prefix, kept) for r in rows])
    new = [r for r in done.values() if not r["cached"]]
    elapsed_s = time.monotonic() - started
    fresh_s = sum(r["duration_s"] or 0.0 for r in new)
    return dg.MaterializeResult(
        value=table,
        # Without, Dagster would take the same audio and the same code for the same text, whatever the model.
        data_version=dg.DataVersion(content_version(table, VERSIONED)),
        check_results=checks.check_transcripts(table, raw_audio, previous),
        metadata=merge(
            {
                "files_transcribed": len(new),
                "files_cached": len(done) - len(new),
                "audio_minutes": round(sum(r["duration_s"] or 0.0 for r in done.values()) / 60, 2),
                "speech_minutes": round(sum(r["speech_s"] or 0.0 for r in done.values()) / 60, 2),
                **money_metadata(money, config.max_cost_usd),
                "elapsed_s": round(elapsed_s, 3),
                "audio_s_per_s": round(fresh_s / max(elapsed_s, 1e-3), 3),
                "files_per_s": round(len(done) / max(elapsed_s, 1e-3), 3),
                **({"files_done_again": redone} if redone else {}),
                "preview": preview(table, ["id", "transcription", "language", "cached", "status", "error"]),
                **errors_metadata(table),
            },
            status_metadata(table),
        ),
    )


@contextmanager
def _recorded(
    context: dg.AssetExecutionContext,
    results: Results[Any],
    home: HomeResource,
    warehouse: PartitionedDuckDBIOManager,
) -> Iterator[None]:
    """Close ``results`` at the end; when the step fails, put its requests on record, since no later step will."""
    try:
        with closing(results):
            yield
    except Exception:
        if results.figures()["attempts"]:
            key, store = context.partition_key, warehouse.store()
            number = warehouse.fence(context.run.run_id, key)
            home.pull_ledger(prefix_for(key))
            recorded = store.read(schemas.TRANSCRIPTION_LEDGER, [key]).to_pylist()
            rows = bring_up_to_date(home.paths().ledger, prefix_for(key), recorded, time.time(), home.drop_journal)
            # What a newer run has published stands; the next one takes up the journals.
            with suppress(SupersededError):
                store.write(schemas.TRANSCRIPTION_LEDGER, schemas.TRANSCRIPTION_LEDGER.from_rows(rows), key, number)
                context.log_event(dg.AssetMaterialization("transcription_ledger", partition=key))
        raise


def _fresh_ids(files: list[AudioFile], config: TranscriptsConfig) -> frozenset[str]:
    """The recordings for which the cache is not to be trusted."""
    if not config.no_cache:
        return frozenset(config.fresh_ids)
    wanted = tuple(config.key_prefixes)
    chosen = sorted(f.id for f in files if not wanted or f.id.startswith(wanted))
    return frozenset(chosen[: config.limit])


def _without_result(raw: dict[str, Any], prefix: str, kept: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The row of an object that has nothing to transcribe: it carries the status of `raw_audio`."""
    if raw["status"] == "gone" and raw["id"] in kept:
        return {**kept[raw["id"]], "status": "gone", "error": raw["error"], "cached": True}
    return {
        "id": raw["id"],
        "prefix": prefix,
        "sha256": raw["sha256"],
        "duration_s": raw["duration_s"],
        "segments": [],
        "flags": [],
        "cached": False,
        "status": raw["status"],
        "error": raw["error"],
    }
