"""`prefix_summary` and `token_frequency`: a prefix in figures."""

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
from audio_assets.partitions import prefix_for, prefix_partitions
from audio_assets.summary import plots, statistics

_RAW_COLUMNS = {"columns": ["id", "prefix", "status", "duration_s"]}


@dg.asset(
    partitions_def=prefix_partitions,
    ins={"raw_audio": dg.AssetIn(metadata=_RAW_COLUMNS)},
    group_name="summary",
    owners=OWNERS,
    kinds={"duckdb", "matplotlib"},
    metadata=table_metadata(schemas.PREFIX_SUMMARY),
    dagster_type=table_type(schemas.PREFIX_SUMMARY),
    io_manager_key=WAREHOUSE,
    description=schemas.PREFIX_SUMMARY.description,
)
def prefix_summary(
    context: dg.AssetExecutionContext, raw_audio: pa.Table, transcripts: pa.Table, tokens: pa.Table
) -> dg.MaterializeResult:
    """Compute the prefix's figures and draw its distributions."""
    with readable_errors():
        table = statistics.summarize_prefix(prefix_for(partition_of(context)), raw_audio, transcripts, tokens)
        row = table.to_pylist()[0]
        theme = plot_theme()
        drawn = pictures(
            plot_durations=plots.duration_histogram(transcripts.column("duration_s").drop_null().to_pylist(), theme),
            plot_words=plots.words_histogram([len(t) for t in tokens.column("tokens").to_pylist() if t], theme),
        )
    return dg.MaterializeResult(
        value=table,
        metadata={
            **figures(row),
            **drawn,
            "preview": preview(table, ["prefix", "files", "files_ok", "hours", "words", "vocabulary"]),
        },
    )


@dg.asset(
    partitions_def=prefix_partitions,
    group_name="summary",
    owners=OWNERS,
    kinds={"duckdb", "matplotlib"},
    metadata=table_metadata(schemas.TOKEN_FREQUENCY),
    dagster_type=table_type(schemas.TOKEN_FREQUENCY),
    io_manager_key=WAREHOUSE,
    description=schemas.TOKEN_FREQUENCY.description,
)
def token_frequency(context: dg.AssetExecutionContext, tokens: pa.Table) -> dg.MaterializeResult:
    """Count the prefix's words and draw the most frequent."""
    with readable_errors():
        table = statistics.count_tokens(prefix_for(partition_of(context)), tokens)
        frequent = statistics.top_words(table)
        theme = plot_theme()
        drawn = pictures(
            plot_top_words=plots.top_tokens(frequent, theme=theme),
            plot_word_cloud=plots.word_cloud(dict(frequent), theme=theme),
        )
    return dg.MaterializeResult(
        value=table,
        metadata={
            **figures({"vocabulary": table.num_rows}),
            **drawn,
            "preview": preview(table, ["token", "count", "document_count"]),
        },
    )
