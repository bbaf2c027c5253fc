"""What runs by the clock."""

from collections.abc import Iterator

import dagster as dg

from audio_assets.automation.jobs import corpus_job, discover_job, prefix_job
from audio_assets.partitions import PARTITIONS_NAME

discover_schedule = dg.ScheduleDefinition(
    name="discover_schedule",
    job=discover_job,
    cron_schedule="30 2 * * *",
    execution_timezone="UTC",
    description="Every night at 2:30 UTC: list the bucket and register its prefixes as partitions.",
)


@dg.schedule(cron_schedule="0 3 * * *", target=prefix_job, execution_timezone="UTC")
def nightly_schedule(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
    """Every night at 3:00 UTC: bring every prefix up to date.

    It catches what a sensor cannot know: deleted objects, files that failed, ticks that were missed.
    """
    night = context.scheduled_execution_time.date().isoformat()
    for partition in context.instance.get_dynamic_partitions(PARTITIONS_NAME):
        yield dg.RunRequest(run_key=f"{partition}:{night}", partition_key=partition)


corpus_schedule = dg.ScheduleDefinition(
    name="corpus_schedule",
    job=corpus_job,
    cron_schedule="0 6 * * *",
    execution_timezone="UTC",
    description="Every morning at 6:00 UTC, after the nightly runs: refresh summary, report and exports.",
)
