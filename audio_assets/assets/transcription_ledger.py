"""`transcription_ledger`: every request that was sent to a transcription API for recordings of the prefix."""

import time

import dagster as dg
import pyarrow as pa

from audio_assets import schemas
from audio_assets.assets.common import OWNERS, WAREHOUSE, partition_of, preview, readable_errors, table_metadata
from audio_assets.assets.transcripts import transcripts
from audio_assets.partitions import prefix_for, prefix_partitions
from audio_assets.resources.duckdb_io import PartitionedDuckDBIOManager
from audio_assets.resources.home import HomeResource
from audio_assets.speech.ledger import bring_up_to_date


@dg.asset(
    partitions_def=prefix_partitions,
    deps=[transcripts],
    group_name="speech",
    owners=OWNERS,
    kinds={"openai", "duckdb", "parquet"},
    metadata=table_metadata(schemas.TRANSCRIPTION_LEDGER),
    io_manager_key=WAREHOUSE,
    description=schemas.TRANSCRIPTION_LEDGER.description
    + " Requests of runs that were killed are in it, with what they may have cost.",
)
def transcription_ledger(
    context: dg.AssetExecutionContext,
    home: HomeResource,
    warehouse: dg.ResourceParam[PartitionedDuckDBIOManager],
) -> dg.MaterializeResult[pa.Table]:
    """Bring what is on record together with what the journals hold."""
    with readable_errors():
        partition = partition_of(context)
        prefix, root = prefix_for(partition), home.paths().ledger
        warehouse.fence(context.run.run_id, partition)
        home.pull_ledger(prefix)
        recorded = warehouse.store().read(schemas.TRANSCRIPTION_LEDGER, [partition]).to_pylist()
        ordered = bring_up_to_date(root, prefix, recorded, time.time(), home.drop_journal)
        table = schemas.TRANSCRIPTION_LEDGER.from_rows(ordered)
    mine = [row for row in ordered if row["run"] == context.run.run_id]
    return dg.MaterializeResult(
        value=table,
        metadata={
            "requests": len(mine),
            "cost_usd": round(sum(row["cost_usd"] or 0.0 for row in mine), 9),
            "uncertain_usd": round(sum(row["uncertain_usd"] for row in mine), 9),
            "cost_usd_ever": round(sum(row["cost_usd"] or 0.0 for row in ordered), 9),
            "preview": preview(table, ["id", "seconds", "attempts", "cost_usd", "uncertain_usd", "status", "error"]),
        },
    )
