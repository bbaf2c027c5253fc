"""Assembly: which assets, checks, jobs, schedules and sensors there are, and which resources they use.

Loading it needs no environment and no network; a setting that is missing is reported by the run that needs it.
"""

from typing import Any

import dagster as dg

from audio_assets.assets.corpus import corpus_export, corpus_report, corpus_summary
from audio_assets.assets.insight import prefix_keywords, prefix_statistics
from audio_assets.assets.model_retirement import transcripts_model_retirement
from audio_assets.assets.prefix_drift import prefix_drift
from audio_assets.assets.r2_prefixes import r2_prefixes
from audio_assets.assets.raw_audio import raw_audio
from audio_assets.assets.summaries import prefix_summary, token_frequency
from audio_assets.assets.tokens import tokens
from audio_assets.assets.transcript_quality import transcript_quality
from audio_assets.assets.transcription_ledger import transcription_ledger
from audio_assets.assets.transcription_plan import transcription_plan
from audio_assets.assets.transcripts import transcripts
from audio_assets.automation import (
    corpus_job,
    corpus_schedule,
    discover_job,
    discover_schedule,
    new_r2_objects_sensor,
    nightly_schedule,
    prefix_job,
    r2_event_sensor,
    run_failure_sensor,
)
from audio_assets.resources.duckdb_io import PartitionedDuckDBIOManager
from audio_assets.resources.event_queue import EventQueueResource
from audio_assets.resources.home import HomeResource
from audio_assets.resources.mapper import MapperResource
from audio_assets.resources.progress import LogProgress
from audio_assets.resources.r2 import R2Resource
from audio_assets.resources.whisper import WhisperResource

ASSETS = [
    r2_prefixes,
    raw_audio,
    transcription_plan,
    transcripts,
    transcription_ledger,
    tokens,
    transcript_quality,
    prefix_summary,
    token_frequency,
    prefix_statistics,
    prefix_drift,
    prefix_keywords,
    corpus_summary,
    corpus_report,
    corpus_export,
]


def build_definitions(**resources: Any) -> dg.Definitions:
    """The definitions, with some resources replaced: ``build_definitions(whisper=WhisperResource(engine="local"))``."""
    whisper = resources.pop("whisper", None) or WhisperResource()
    # An upgrade that hears otherwise makes transcripts out of date; the UI says so of each partition.
    versioned = transcripts.map_asset_specs(lambda spec: spec.replace_attributes(code_version=whisper.code_version()))
    return dg.Definitions(
        assets=[versioned if asset is transcripts else asset for asset in ASSETS],
        asset_checks=[transcripts_model_retirement],
        jobs=[discover_job, prefix_job, corpus_job],
        schedules=[discover_schedule, nightly_schedule, corpus_schedule],
        sensors=[new_r2_objects_sensor, r2_event_sensor, run_failure_sensor],
        resources={
            "r2": R2Resource(),
            "whisper": whisper,
            "event_queue": EventQueueResource(),
            "home": HomeResource(),
            "mapper": MapperResource(),
            "warehouse": PartitionedDuckDBIOManager(),
            "progress": dg.ResourceDefinition.hardcoded_resource(LogProgress(), LogProgress.__doc__),
            **resources,
        },
        # A process for each step costs more than most steps here; partitions run in parallel as runs.
        executor=dg.in_process_executor,
    )


defs = build_definitions()
