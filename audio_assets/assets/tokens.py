"""`tokens`: the words of each transcript of the prefix."""

import dagster as dg
import pyarrow as pa

from audio_assets import checks, schemas
from audio_assets.assets.common import OWNERS, WAREHOUSE, preview, readable_errors, table_metadata, table_type
from audio_assets.partitions import prefix_partitions
from audio_assets.text.tokenize import tokenize


@dg.asset(
    partitions_def=prefix_partitions,
    group_name="text",
    owners=OWNERS,
    kinds={"spacy", "duckdb", "parquet"},
    metadata=table_metadata(schemas.TOKENS),
    dagster_type=table_type(schemas.TOKENS),
    io_manager_key=WAREHOUSE,
    check_specs=checks.specs("tokens"),
    description=schemas.TOKENS.description,
)
def tokens(context: dg.AssetExecutionContext, transcripts: pa.Table) -> dg.MaterializeResult:
    """Split each transcript into normalized words."""
    with readable_errors():
        table = tokenize(transcripts)
    words = table.column("tokens").combine_chunks()
    return dg.MaterializeResult(
        value=table,
        check_results=checks.check_tokens(table, transcripts),
        metadata={
            "words": len(words.flatten()),
            "preview": preview(table, ["id", "language", "tokens", "content_tokens"]),
        },
    )
