"""`transcripts_model_retirement`: warns before the model that transcribes is shut down."""

from datetime import datetime, timezone

import dagster as dg

from audio_assets.assets.common import readable_errors
from audio_assets.assets.transcripts import transcripts
from audio_assets.resources.whisper import WhisperResource
from audio_assets.speech.retirement import WARN_DAYS


@dg.asset_check(
    asset=transcripts,
    description=f"The model is not shut down: warns {WARN_DAYS} days ahead, fails after the day. "
    "The endpoint's own announcement counts, else OpenAI's published one.",
)
def transcripts_model_retirement(whisper: WhisperResource) -> dg.AssetCheckResult:
    """Ask the endpoint when it will shut the model down."""
    with readable_errors():
        found = whisper.retirement(datetime.now(timezone.utc).date())
    severity = dg.AssetCheckSeverity.ERROR if found.state == "over" else dg.AssetCheckSeverity.WARN
    return dg.AssetCheckResult(
        passed=found.state == "ok",
        severity=severity,
        description=found.line(),
        metadata={
            "model": found.model,
            "source": found.source,
            **({} if found.day is None else {"shutdown": found.day.isoformat(), "days_left": found.days_left or 0}),
        },
    )
