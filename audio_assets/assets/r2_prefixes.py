"""`r2_prefixes`: what prefixes the bucket has. Materializing it registers them as partitions."""

import dagster as dg
from pydantic import Field

from audio_assets import schemas
from audio_assets.assets.common import OWNERS, WAREHOUSE, preview, readable_errors, table_metadata, table_type
from audio_assets.ingest.intake import mirror_prefixes
from audio_assets.ingest.listing import PrefixListing, discover_prefixes, list_objects
from audio_assets.partitions import PARTITIONS_NAME
from audio_assets.resources.home import HomeResource
from audio_assets.resources.r2 import R2Resource

REGISTER_CHUNK = 10_000
"""Dagster adds partitions in one statement; above this many it gets slow."""


class R2PrefixesConfig(dg.Config):
    """Where to look for prefixes."""

    skip_ingestion: bool = Field(
        default=False, description="Look at the audio that lies in the mirror folder instead of the bucket."
    )


@dg.asset(
    group_name="ingest",
    owners=OWNERS,
    kinds={"r2", "duckdb"},
    metadata=table_metadata(schemas.R2_PREFIXES),
    dagster_type=table_type(schemas.R2_PREFIXES),
    io_manager_key=WAREHOUSE,
    description=schemas.R2_PREFIXES.description
    + " Materialize it first: it lists the bucket and registers each prefix as a partition.",
)
def r2_prefixes(
    context: dg.AssetExecutionContext, config: R2PrefixesConfig, r2: R2Resource, home: HomeResource
) -> dg.MaterializeResult:
    """List the bucket (or the mirror) and register its prefixes as partitions."""
    with readable_errors():
        if config.skip_ingestion:
            found = mirror_prefixes(home.mirror(), home.depth())
        else:
            r2.check()
            home.claim(r2.bucket_name())
            found = discover_prefixes(list_objects(r2.get_client(), r2.bucket_name()), home.depth())
        added = register(context.instance, found)
        table = schemas.R2_PREFIXES.from_rows(
            [
                {
                    "prefix": p.prefix,
                    "partition": p.partition,
                    "object_count": p.object_count,
                    "size_bytes": p.size_bytes,
                }
                for p in found
            ]
        )
    context.log.info(f"{len(found)} prefixes, {len(added)} of them new")
    return dg.MaterializeResult(
        value=table,
        metadata={
            "prefixes": len(found),
            "new_partitions": len(added),
            "audio_objects": sum(p.object_count for p in found),
            "size_mb": round(sum(p.size_bytes for p in found) / 1e6, 3),
            "preview": preview(table, ["partition", "object_count", "size_bytes"]),
        },
    )


def register(instance: dg.DagsterInstance, found: list[PrefixListing]) -> list[str]:
    """Make every prefix a partition; returns the partition keys that were not there before."""
    known = set(instance.get_dynamic_partitions(PARTITIONS_NAME))
    new = [p.partition for p in found if p.partition not in known]
    for start in range(0, len(new), REGISTER_CHUNK):
        instance.add_dynamic_partitions(PARTITIONS_NAME, new[start : start + REGISTER_CHUNK])
    return new
