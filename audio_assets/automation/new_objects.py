"""The sensor that lists the bucket: new and overwritten objects."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable

import dagster as dg
import pyarrow as pa

from audio_assets import schemas
from audio_assets.automation.jobs import prefix_job
from audio_assets.automation.runs import MAX_RUN_REQUESTS
from audio_assets.ingest.listing import RemoteObject, list_objects
from audio_assets.partitions import PARTITIONS_NAME, partition_key_for, prefix_of, prefix_partitions
from audio_assets.resources.duckdb_io import PartitionedDuckDBIOManager
from audio_assets.resources.home import HomeResource
from audio_assets.resources.r2 import R2Resource
from audio_assets.settings import sensors_on


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


@dg.sensor(
    job=prefix_job,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING if sensors_on() else dg.DefaultSensorStatus.STOPPED,
)
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
