"""`r2_prefixes`: what prefixes the bucket has. Materializing it registers them as partitions."""

from dataclasses import asdict

import dagster as dg
from pydantic import Field

from audio_assets import schemas
from audio_assets.assets.common import (
    EXCLUDE,
    INCLUDE,
    OWNERS,
    WAREHOUSE,
    preview,
    readable_errors,
    table_metadata,
    table_type,
)
from audio_assets.ingest.discovery import Discovery, discover
from audio_assets.ingest.intake import mirror_prefixes
from audio_assets.ingest.listing import PrefixListing
from audio_assets.partitions import PARTITIONS_NAME
from audio_assets.resources.duckdb_io import PartitionedDuckDBIOManager
from audio_assets.resources.home import HomeResource
from audio_assets.resources.r2 import R2Resource

REGISTER_CHUNK = 10_000
"""Dagster adds partitions in one statement; above this many it gets slow."""


class R2PrefixesConfig(dg.Config):
    """Where to look for prefixes, and which objects count."""

    skip_ingestion: bool = Field(
        default=False, description="Look at the audio that lies in the mirror folder instead of the bucket."
    )
    count_objects: bool = Field(
        default=True,
        description="List every prefix to its end and count its objects. Without, a prefix's listing ends with its "
        "first audio file: quick, and the counts are null.",
    )
    include: list[str] | None = Field(default=None, description=INCLUDE)
    exclude: list[str] | None = Field(default=None, description=EXCLUDE)


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
    context: dg.AssetExecutionContext,
    config: R2PrefixesConfig,
    r2: R2Resource,
    home: HomeResource,
    warehouse: dg.ResourceParam[PartitionedDuckDBIOManager],
) -> dg.MaterializeResult:
    """List the bucket (or the mirror) and register its prefixes as partitions."""
    with readable_errors():
        selection = home.selection(config.include, config.exclude)
        if config.skip_ingestion:
            found = Discovery(mirror_prefixes(home.mirror(), home.depth(), selection))
        else:
            r2.check()
            home.claim(r2.bucket_name())
            warehouse.fence(context.run.run_id, None)
            found = discover(r2.get_client(), r2.bucket_name(), home.depth(), selection, count=config.count_objects)
        added = register(context.instance, found.prefixes)
        table = schemas.R2_PREFIXES.from_rows([asdict(p) for p in found.prefixes])
    context.log.info(f"{len(found.prefixes)} prefixes, {len(added)} of them new, {found.requests} list requests")
    counted: dict[str, float] = {}
    if None not in table.column("object_count").to_pylist():
        counted = {
            "audio_objects": sum(table.column("object_count").to_pylist()),
            "size_mb": round(sum(table.column("size_bytes").to_pylist()) / 1e6, 3),
        }
    return dg.MaterializeResult(
        value=table,
        metadata={
            "prefixes": len(found.prefixes),
            "prefixes_new": len(added),
            **counted,
            **found.passed_over,
            "list_requests": found.requests,
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
