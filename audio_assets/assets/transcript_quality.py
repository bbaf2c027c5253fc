"""`transcript_quality`: how far each transcript of the prefix can be trusted, and why."""

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from audio_assets import schemas
from audio_assets.assets.common import (
    OWNERS,
    WAREHOUSE,
    pictures,
    plot_theme,
    preview,
    readable_errors,
    table_metadata,
    table_type,
)
from audio_assets.partitions import prefix_partitions
from audio_assets.summary import plots, quality


@dg.asset(
    partitions_def=prefix_partitions,
    ins={
        "transcripts": dg.AssetIn(metadata={"columns": quality.COLUMNS}),
        "tokens": dg.AssetIn(metadata={"columns": ["id", "tokens"]}),
    },
    group_name="summary",
    owners=OWNERS,
    kinds={"duckdb", "matplotlib", "parquet"},
    metadata=table_metadata(schemas.TRANSCRIPT_QUALITY),
    dagster_type=table_type(schemas.TRANSCRIPT_QUALITY),
    io_manager_key=WAREHOUSE,
    description=schemas.TRANSCRIPT_QUALITY.description,
)
def transcript_quality(
    context: dg.AssetExecutionContext, transcripts: pa.Table, tokens: pa.Table
) -> dg.MaterializeResult:
    """Grade each transcript, with the reason."""
    with readable_errors():
        table = quality.grade_transcripts(transcripts, tokens)
        theme = plot_theme()
        drawn = pictures(
            plot_score=plots.score_histogram(table.column("score").drop_null().to_pylist(), theme),
            plot_confidence=plots.confidence_histogram(table.column("confidence").drop_null().to_pylist(), theme),
        )
    found = {str(r["values"]): int(r["counts"]) for r in pc.value_counts(table.column("grade").drop_null()).to_pylist()}
    uncovered = [span for spans in table.column("uncovered").to_pylist() for span in spans or []]
    return dg.MaterializeResult(
        value=table,
        metadata={
            **{f"files_grade_{grade}": found.get(grade, 0) for grade in schemas.GRADES},
            "uncovered_spans": len(uncovered),
            "uncovered_s": round(sum(span["end_s"] - span["start_s"] for span in uncovered), 1),
            **drawn,
            "preview": preview(table.sort_by("score"), ["id", "grade", "score", "reason"]),
        },
    )
