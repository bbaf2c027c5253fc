"""What runs by the clock."""

from collections.abc import Iterator

import dagster as dg

from audio_assets.automation.jobs import corpus_job, discover_job, prefix_job
from audio_assets.automation.reconcile import to_reconcile
from audio_assets.partitions import PARTITIONS_NAME
from audio_assets.resources.duckdb_io import PartitionedDuckDBIOManager
from audio_assets.resources.home import HomeResource

discover_schedule = dg.ScheduleDefinition(
    name="discover_schedule",
    job=discover_job,
    cron_schedule="30 2 * * *",
    execution_timezone="UTC",
    description="Every night at 2:30 UTC: list the bucket and register its prefixes as partitions.",
)


@dg.schedule(
    cron_schedule="0 3 * * *",
    target=prefix_job,
    execution_timezone="UTC",
    description="Every night at 3:00 UTC: bring the prefixes up to date that changed or have unfinished files, as told "
    "by the listing of discover_schedule; without a recent one, every prefix.",
)
def nightly_schedule(
    context: dg.ScheduleEvaluationContext,
    home: HomeResource,
    warehouse: dg.ResourceParam[PartitionedDuckDBIOManager],
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Every night at 3:00 UTC: bring the prefixes up to date that changed or have unfinished files.

    It catches what a sensor cannot know: deleted objects, files that failed, ticks that were missed. What changed is
    told by the listing that `discover_schedule` made before; without a recent one every prefix is asked for.
    """
    night = context.scheduled_execution_time.date().isoformat()
    registered = list(context.instance.get_dynamic_partitions(PARTITIONS_NAME))
    found = to_reconcile(context.instance, registered, home, warehouse, context.log.warning)
    if found.everything:
        context.log.warning(f"every prefix is asked for: {found.everything}; discover_schedule lists the bucket")
    if not found.partitions:
        yield dg.SkipReason("Every prefix is up to date.")
    for partition in found.partitions:
        yield dg.RunRequest(run_key=f"{partition}:{night}", partition_key=partition)


corpus_schedule = dg.ScheduleDefinition(
    name="corpus_schedule",
    job=corpus_job,
    cron_schedule="0 6 * * *",
    execution_timezone="UTC",
    description="Every morning at 6:00 UTC, after the nightly runs: refresh summary, report and exports.",
)
