"""`transcription_plan`: what it would cost to transcribe what is not transcribed yet, by engine and model."""

from dataclasses import asdict

import dagster as dg
import pyarrow as pa

from audio_assets import schemas, settings
from audio_assets.assets.common import OWNERS, WAREHOUSE, preview, readable_errors, table_metadata
from audio_assets.assets.raw_audio import raw_audio
from audio_assets.crashes import CrashMarks
from audio_assets.resources.duckdb_io import PartitionedDuckDBIOManager
from audio_assets.resources.home import HomeResource
from audio_assets.resources.whisper import WhisperResource
from audio_assets.speech.estimate import Candidate


@dg.asset(
    deps=[raw_audio],
    group_name="speech",
    owners=OWNERS,
    kinds={"duckdb"},
    metadata=table_metadata(schemas.TRANSCRIPTION_PLAN),
    io_manager_key=WAREHOUSE,
    description=schemas.TRANSCRIPTION_PLAN.description + " Materializing it spends nothing.",
)
def transcription_plan(
    context: dg.AssetExecutionContext,
    whisper: WhisperResource,
    home: HomeResource,
    warehouse: dg.ResourceParam[PartitionedDuckDBIOManager],
) -> dg.MaterializeResult[pa.Table]:
    """Estimate every model over the recordings that `raw_audio` holds."""
    with readable_errors():
        warehouse.fence(context.run.run_id, None)
        columns = ["id", "sha256", "size_bytes", "duration_s", "status"]
        rows = warehouse.store().read(schemas.RAW_AUDIO, columns=columns).to_pylist()
        mirror = home.mirror()
        limits = settings.load()
        longest_s, most_bytes = limits.audio_assets_max_duration_s, limits.audio_assets_max_bytes
        candidates = [
            Candidate(
                r["id"],
                r["sha256"],
                r["duration_s"] or 0.0,
                r["sha256"],
                mirror.path_for(r["id"]),
                over_limit=(r["duration_s"] or 0.0) > longest_s or (r["size_bytes"] or 0) > most_bytes,
            )
            for r in rows
            if r["status"] == "ok"
        ]
        with CrashMarks(home.paths().crash_marks) as marks:
            estimates, chosen = whisper.estimates(candidates, home.cache(), marks)
        table = schemas.TRANSCRIPTION_PLAN.from_rows([{**asdict(e), "chosen": e == chosen} for e in estimates])
    return dg.MaterializeResult(
        value=table,
        metadata={
            "files": chosen.files,
            "files_duplicate": chosen.duplicates,
            "files_cached": chosen.cached,
            "files_to_transcribe": chosen.to_transcribe,
            "hours": round(chosen.hours, 3),
            "silence_hours": round(chosen.silence_hours, 3),
            **({} if chosen.cost_usd is None else {"cost_usd": round(chosen.cost_usd, 4)}),
            "preview": preview(table, ["engine", "model", "chosen", "to_transcribe", "hours", "cost_usd", "retires"]),
        },
    )
