"""`raw_audio`: the prefix's objects, downloaded, verified and probed."""

from collections.abc import Sequence

import dagster as dg
from pydantic import Field

from audio_assets import checks, schemas, settings
from audio_assets.assets.common import (
    EXCLUDE,
    INCLUDE,
    OWNERS,
    WAREHOUSE,
    errors_metadata,
    merge,
    partition_of,
    preview,
    readable_errors,
    status_metadata,
    table_metadata,
    table_type,
)
from audio_assets.assets.r2_prefixes import r2_prefixes
from audio_assets.ingest.intake import IntakeOptions, IntakeProgress, Taken, Task, ingest_mirror, ingest_prefix
from audio_assets.partitions import prefix_for, prefix_partitions
from audio_assets.resources.duckdb_io import UNCHANGED, PartitionedDuckDBIOManager
from audio_assets.resources.home import HomeResource
from audio_assets.resources.mapper import MapperResource, Results
from audio_assets.resources.progress import Progress
from audio_assets.resources.r2 import R2Resource
from audio_assets.resources.stages import TakeIn
from audio_assets.storage.content import content_version

VERSIONED = ["id", "etag", "size_bytes", "sha256", "status", "error"]
"""The columns that make the data version: everything else follows from them."""


class RawAudioConfig(dg.Config):
    """How to take in the objects of a prefix."""

    batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Objects that are fetched, or wait to be looked at, at a time. By default up to 256 wait.",
    )
    max_workers: int | None = Field(
        default=None, ge=1, description="Downloads at once. By default AUDIO_ASSETS_DOWNLOADS."
    )
    limit: int | None = Field(
        default=None,
        ge=0,
        description="Take in only the first so many objects in key order. Rows of other objects stay as they are.",
    )
    key_prefixes: list[str] = Field(
        default=[],
        description="Take in only objects whose key starts with one of these. Rows of other objects stay as they are.",
    )
    include: list[str] | None = Field(default=None, description=INCLUDE + " Rows of other objects stay as they are.")
    exclude: list[str] | None = Field(default=None, description=EXCLUDE + " Their rows stay as they are.")
    max_object_bytes: int | None = Field(
        default=None,
        ge=0,
        description="Do not fetch larger objects; their rows are `invalid`, with the reason. By default "
        "AUDIO_ASSETS_MAX_BYTES.",
    )
    skip_ingestion: bool = Field(
        default=False, description="Take the audio that lies in the mirror folder; R2 is not asked."
    )


@dg.asset(
    partitions_def=prefix_partitions,
    deps=[r2_prefixes],
    group_name="ingest",
    owners=OWNERS,
    kinds={"r2", "duckdb", "parquet"},
    metadata=table_metadata(schemas.RAW_AUDIO),
    dagster_type=table_type(schemas.RAW_AUDIO),
    io_manager_key=WAREHOUSE,
    check_specs=checks.specs("raw_audio"),
    description=schemas.RAW_AUDIO.description + " The bytes lie in the mirror folder, as a copy of the bucket's tree.",
)
def raw_audio(
    context: dg.AssetExecutionContext,
    config: RawAudioConfig,
    r2: R2Resource,
    home: HomeResource,
    mapper: MapperResource,
    warehouse: dg.ResourceParam[PartitionedDuckDBIOManager],
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult:
    """Bring the mirror up to date with the prefix and describe each object in a row."""
    with readable_errors():
        partition = partition_of(context)
        prefix = prefix_for(partition)
        warehouse.fence(context.run.run_id, partition)
        previous = warehouse.store().read(schemas.RAW_AUDIO, [partition])
        options = IntakeOptions(
            batch_size=config.batch_size,
            max_workers=config.max_workers or settings.load().audio_assets_downloads,
            limit=config.limit,
            key_prefixes=tuple(config.key_prefixes),
            selection=home.selection(config.include, config.exclude, config.max_object_bytes),
            scratch=home.paths().shared is not None,
        )
        with progress.task(f"raw_audio {partition}", "files", context.log.info) as task:

            def on_progress(p: IntakeProgress) -> None:
                task.update(p.done, p.total, f"{p.bytes_downloaded / 1e6:.1f} MB downloaded")

            def spread(tasks: Sequence[Task]) -> Results[Taken]:
                return mapper.map(TakeIn(prefix, home, options, None if config.skip_ingestion else r2), tasks)

            if config.skip_ingestion:
                intake = ingest_mirror(home.mirror(), prefix, home.depth(), previous, options, on_progress, spread)
            else:
                if home.paths().shared is not None or not home.paths().bucket.exists():
                    # Only a bucket that can be read is noted as this home's; later the listing itself tells.
                    r2.check()
                home.claim(r2.bucket_name())
                intake = ingest_prefix(
                    r2.get_client(),
                    r2.bucket_name(),
                    prefix,
                    home.depth(),
                    home.mirror(),
                    previous,
                    options,
                    on_progress,
                    spread,
                    home.budget(),
                )
    table = intake.table
    if not table.num_rows:
        # A prefix may vanish while its run is queued; one that was misspelt looks the same.
        context.log.warning(
            f"no audio lies under {prefix!r}: the tables of this partition have no rows. r2_prefixes registers the "
            "prefixes that hold some"
        )
    return dg.MaterializeResult(
        value=table,
        data_version=dg.DataVersion(content_version(table, VERSIONED)),
        check_results=checks.check_raw_audio(table, previous),
        metadata=merge(
            {
                UNCHANGED: not intake.changed,
                "objects_listed": intake.listed,
                "objects_selected": intake.selected,
                "objects_downloaded": intake.downloaded,
                "objects_skipped": intake.skipped,
                **intake.passed_over,
                "downloaded_mb": round(intake.bytes_downloaded / 1e6, 3),
                "audio_minutes": round(sum(table.column("duration_s").drop_null().to_pylist()) / 60, 2),
                "preview": preview(table, ["id", "codec", "duration_s", "status", "error"]),
                **errors_metadata(table),
            },
            status_metadata(table),
        ),
    )
