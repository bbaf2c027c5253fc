"""`prefix_drift`: what each materialization of a prefix's tokens changed."""

from datetime import datetime, timezone
from typing import Any

import dagster as dg
import pyarrow as pa

from audio_assets import schemas
from audio_assets.assets.common import (
    OWNERS,
    WAREHOUSE,
    figures,
    partition_of,
    preview,
    readable_errors,
    table_metadata,
    table_type,
)
from audio_assets.assets.tokens import DRIFT, tokens
from audio_assets.partitions import prefix_for, prefix_partitions
from audio_assets.resources.duckdb_io import PartitionedDuckDBIOManager
from audio_assets.summary import insight


@dg.asset(
    partitions_def=prefix_partitions,
    deps=[tokens],
    group_name="summary",
    owners=OWNERS,
    kinds={"duckdb", "parquet"},
    metadata=table_metadata(schemas.PREFIX_DRIFT),
    dagster_type=table_type(schemas.PREFIX_DRIFT),
    io_manager_key=WAREHOUSE,
    description=schemas.PREFIX_DRIFT.description,
)
def prefix_drift(
    context: dg.AssetExecutionContext, warehouse: dg.ResourceParam[PartitionedDuckDBIOManager]
) -> dg.MaterializeResult:
    """Add what Dagster's history says about the tokens to what is on record."""
    with readable_errors():
        partition = partition_of(context)
        warehouse.fence(context.run.run_id, partition)
        recorded = warehouse.store().read(schemas.PREFIX_DRIFT, [partition])
        table = insight.drift_history(recorded, _found(context))
    latest = table.to_pylist()[-1] if table.num_rows else {}
    shown = table.sort_by([("materialized_at", "descending")])
    return dg.MaterializeResult(
        value=table,
        metadata={
            **figures(latest),
            "preview": preview(shown, [n for n in table.column_names if n not in ("prefix", "run")]),
        },
    )


def _found(context: dg.AssetExecutionContext) -> pa.Table:
    """What the materializations that Dagster knows of changed."""
    past = context.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=tokens.key, asset_partitions=[context.partition_key]), limit=insight.DRIFT_ROWS
    )
    rows: list[dict[str, Any]] = []
    for record in past.records:
        event = record.asset_materialization
        said = (
            {k[len(DRIFT) :].removesuffix("_words"): v.value for k, v in event.metadata.items() if k.startswith(DRIFT)}
            if event
            else {}
        )
        if said:
            at = datetime.fromtimestamp(record.timestamp, timezone.utc)
            prefix = prefix_for(context.partition_key)
            rows.append({"prefix": prefix, "materialized_at": at, "run": record.run_id, **said})
    return schemas.PREFIX_DRIFT.from_rows(rows)
