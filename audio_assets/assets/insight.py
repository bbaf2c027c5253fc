"""`prefix_statistics` and `prefix_keywords`: what a prefix is about, and how it is spread."""

import dagster as dg
import pyarrow as pa

from audio_assets import schemas
from audio_assets.assets.common import (
    OWNERS,
    WAREHOUSE,
    figures,
    partition_of,
    pictures,
    plot_theme,
    preview,
    readable_errors,
    table_metadata,
    table_type,
)
from audio_assets.assets.summaries import token_frequency
from audio_assets.partitions import prefix_for, prefix_partitions
from audio_assets.resources.duckdb_io import PartitionedDuckDBIOManager
from audio_assets.summary import insight, plots


@dg.asset(
    partitions_def=prefix_partitions,
    ins={"tokens": dg.AssetIn(metadata={"columns": ["id", "tokens"]})},
    group_name="summary",
    owners=OWNERS,
    kinds={"duckdb", "matplotlib"},
    metadata=table_metadata(schemas.PREFIX_STATISTICS),
    dagster_type=table_type(schemas.PREFIX_STATISTICS),
    io_manager_key=WAREHOUSE,
    description=schemas.PREFIX_STATISTICS.description,
)
def prefix_statistics(
    context: dg.AssetExecutionContext, tokens: pa.Table, transcript_quality: pa.Table
) -> dg.MaterializeResult:
    """Compute bigrams, vocabulary growth, distributions, languages and grades."""
    with readable_errors():
        table = insight.prefix_statistics(prefix_for(partition_of(context)), tokens, transcript_quality)
        theme, rows = plot_theme(), table.to_pylist()
        heaps = {r["statistic"]: r["value"] for r in rows if r["statistic"].startswith("heaps_")}
        drawn = pictures(
            plot_vocabulary_growth=plots.vocabulary_growth(
                [(r["count"], round(r["value"])) for r in rows if r["statistic"] == "vocabulary_growth"],
                (heaps["heaps_k"], heaps["heaps_beta"]) if len(heaps) == 2 else None,
                theme,
            ),
            plot_speaking_rate=plots.rate_histogram(
                [60 * rate for rate in transcript_quality.column("words_per_s").drop_null().to_pylist()], theme
            ),
        )
    return dg.MaterializeResult(
        value=table,
        metadata={
            **figures(heaps),
            **drawn,
            "preview": preview(table, ["statistic", "item", "count", "files", "value"]),
        },
    )


@dg.asset(
    deps=[token_frequency],
    group_name="corpus",
    owners=OWNERS,
    kinds={"duckdb"},
    metadata=table_metadata(schemas.PREFIX_KEYWORDS),
    dagster_type=table_type(schemas.PREFIX_KEYWORDS),
    io_manager_key=WAREHOUSE,
    description=schemas.PREFIX_KEYWORDS.description,
)
def prefix_keywords(
    context: dg.AssetExecutionContext, warehouse: dg.ResourceParam[PartitionedDuckDBIOManager]
) -> dg.MaterializeResult:
    """Find the words that set each prefix apart."""
    with readable_errors():
        warehouse.fence(context.run.run_id, None)
    with readable_errors(), warehouse.warehouse().connect() as connection:
        table = insight.keywords(connection)
    return dg.MaterializeResult(
        value=table, metadata={"preview": preview(table, ["prefix", "rank", "token", "tf_idf", "count"])}
    )
