"""When things run: jobs, schedules and sensors."""

from audio_assets.automation.events import r2_event_sensor
from audio_assets.automation.failures import run_failure_sensor
from audio_assets.automation.jobs import corpus_job, discover_job, prefix_job
from audio_assets.automation.new_objects import new_r2_objects_sensor
from audio_assets.automation.runs import MAX_RUN_REQUESTS
from audio_assets.automation.schedules import corpus_schedule, discover_schedule, nightly_schedule

__all__ = [
    "MAX_RUN_REQUESTS",
    "corpus_job",
    "corpus_schedule",
    "discover_job",
    "discover_schedule",
    "new_r2_objects_sensor",
    "nightly_schedule",
    "prefix_job",
    "r2_event_sensor",
    "run_failure_sensor",
]
