"""When things run: jobs, the nightly schedule, and the sensor on new objects."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator

import dagster as dg
import pyarrow as pa

from audio_assets import schemas
from audio_assets.ingest.listing import RemoteObject, list_objects
from audio_assets.partitions import PARTITIONS_NAME, partition_key_for, prefix_of, prefix_partitions
from audio_assets.resources.duckdb_io import PartitionedDuckDBIOManager
from audio_assets.resources.home import HomeResource
from audio_assets.resources.r2 import R2Resource

MAX_RUN_REQUESTS = 100
"""Run requests per tick. A tick must end within Dagster's 60 s; the rest is found again by the next tick."""

discover_job = dg.define_asset_job(
    "discover_job", selection=["r2_prefixes"], description="List the bucket and register its prefixes as partitions."
)
prefix_job = dg.define_asset_job(
    "prefix_job",
    selection=["raw_audio", "transcripts", "transcription_ledger", "tokens", "prefix_summary", "token_frequency"],
    description="Bring one prefix up to date, from its objects to its figures.",
)
corpus_job = dg.define_asset_job(
    "corpus_job",
    selection=["corpus_summary", "corpus_report", "corpus_export"],
    description="Refresh what is made of all prefixes: summary, report, exports.",
)


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


def changed_objects(listed: Iterable[RemoteObject], stored: pa.Table, depth: int) -> dict[str, list[RemoteObject]]:
    """The objects that are new or overwritten, by prefix: those whose key and ETag `raw_audio` does not hold.

    Comparing against stored rows, not against times, cannot miss an object that has an old or an equal timestamp.
    """
    known = dict(zip(stored.column("id").to_pylist(), stored.column("etag").to_pylist(), strict=True))
    changed: dict[str, list[RemoteObject]] = defaultdict(list)
    for obj in listed:
        if known.get(obj.key) != obj.etag:
            changed[prefix_of(obj.key, depth)].append(obj)
    return dict(changed)


def run_key(prefix: str, objects: Iterable[RemoteObject]) -> str:
    """A key that is the same for the same change, so that Dagster starts one run for it, however many ticks see it."""
    digest = hashlib.sha256(prefix.encode("utf-8", "surrogatepass"))
    for key, etag in sorted((o.key, o.etag) for o in objects):
        digest.update(f"\0{key}\0{etag}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


@dg.sensor(job=prefix_job, minimum_interval_seconds=60, default_status=dg.DefaultSensorStatus.STOPPED)
def new_r2_objects_sensor(
    context: dg.SensorEvaluationContext,
    r2: R2Resource,
    home: HomeResource,
    warehouse: dg.ResourceParam[PartitionedDuckDBIOManager],
) -> dg.SensorResult | dg.SkipReason:
    """New and overwritten objects in R2: registers new prefixes and asks for one run per changed prefix."""
    r2.check()
    stored = warehouse.store().read(schemas.RAW_AUDIO, columns=["id", "etag"])
    changed = changed_objects(list_objects(r2.get_client(), r2.bucket_name()), stored, home.depth())
    if not changed:
        return dg.SkipReason("Nothing new in the bucket.")
    # Where the last tick ended, so that prefixes whose runs keep failing cannot starve the others.
    after = context.cursor or ""
    requested = sorted(changed, key=lambda prefix: (prefix <= after, prefix))[:MAX_RUN_REQUESTS]
    known = set(context.instance.get_dynamic_partitions(PARTITIONS_NAME))
    new = [key for key in map(partition_key_for, requested) if key not in known]
    context.log.info(f"{sum(map(len, changed.values()))} objects changed in {len(changed)} prefixes, {len(new)} new")
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(run_key=run_key(prefix, changed[prefix]), partition_key=partition_key_for(prefix))
            for prefix in requested
        ],
        dynamic_partitions_requests=[prefix_partitions.build_add_request(new)] if new else [],
        cursor=requested[-1],
    )
