"""`corpus_summary`, `corpus_report`, `corpus_export`: all prefixes together."""

import dagster as dg
import pyarrow as pa
from pydantic import Field

from audio_assets import schemas, settings
from audio_assets.assets.common import (
    OWNERS,
    WAREHOUSE,
    figures,
    pictures,
    plot_theme,
    preview,
    readable_errors,
    table_metadata,
    table_type,
)
from audio_assets.assets.insight import prefix_keywords
from audio_assets.assets.summaries import prefix_summary, token_frequency
from audio_assets.assets.tokens import tokens
from audio_assets.assets.transcript_quality import transcript_quality
from audio_assets.assets.transcripts import transcripts
from audio_assets.errors import SettingsError
from audio_assets.resources.duckdb_io import PartitionedDuckDBIOManager
from audio_assets.resources.home import HomeResource
from audio_assets.resources.r2 import R2Resource
from audio_assets.resources.report import MAX_LINK_HOURS, write_report
from audio_assets.storage.exports import FORMATS, check_choice, export_corpus
from audio_assets.summary import plots, statistics

# Refreshes when a prefix changed and no other prefix is on its way: one refresh for a burst of runs.
WHEN_PREFIXES_CHANGED = (
    dg.AutomationCondition.any_deps_updated().since_last_handled().with_label("a prefix was updated")
    & ~dg.AutomationCondition.any_deps_in_progress()
    & ~dg.AutomationCondition.in_progress()
)


@dg.asset(
    deps=[prefix_summary, token_frequency],
    group_name="corpus",
    owners=OWNERS,
    kinds={"duckdb", "matplotlib"},
    metadata=table_metadata(schemas.CORPUS_SUMMARY),
    dagster_type=table_type(schemas.CORPUS_SUMMARY),
    io_manager_key=WAREHOUSE,
    automation_condition=WHEN_PREFIXES_CHANGED,
    description=schemas.CORPUS_SUMMARY.description,
)
def corpus_summary(
    context: dg.AssetExecutionContext, warehouse: dg.ResourceParam[PartitionedDuckDBIOManager]
) -> dg.MaterializeResult:
    """Aggregate all prefixes in SQL."""
    with readable_errors():
        warehouse.fence(context.run.run_id, None)
    with readable_errors(), warehouse.warehouse().connect() as connection:
        table = statistics.summarize_corpus(connection)
        frequent = statistics.corpus_top_words(connection)
        theme = plot_theme()
        drawn = pictures(
            plot_top_words=plots.top_tokens(frequent, theme=theme),
            plot_word_cloud=plots.word_cloud(dict(frequent), theme=theme),
        )
    row = table.to_pylist()[0]
    return dg.MaterializeResult(
        value=table,
        metadata={
            **figures(row),
            **drawn,
            "preview": preview(table, ["prefixes", "files", "files_ok", "hours", "words", "vocabulary"]),
        },
    )


class CorpusReportConfig(dg.Config):
    """How the report's players reach the recordings."""

    link_hours: float | None = Field(
        default=None,
        ge=0,
        le=MAX_LINK_HOURS,
        description="Hours for which the players read from the bucket, by presigned links: whoever has the page can "
        "then hear the recordings. 0: from the mirror beside the report. By default AUDIO_ASSETS_REPORT_LINK_HOURS.",
    )


@dg.asset(
    deps=[corpus_summary, transcripts, tokens, transcript_quality],
    group_name="corpus",
    owners=OWNERS,
    kinds={"duckdb", "html"},
    automation_condition=WHEN_PREFIXES_CHANGED,
    description="The report: one HTML file that opens from disk and asks the network for nothing.",
)
def corpus_report(
    context: dg.AssetExecutionContext,
    config: CorpusReportConfig,
    home: HomeResource,
    r2: R2Resource,
    warehouse: dg.ResourceParam[PartitionedDuckDBIOManager],
) -> dg.MaterializeResult[None]:
    """Write the report."""
    with readable_errors():
        number = warehouse.fence(context.run.run_id, None)
    with readable_errors(), warehouse.warehouse().connect() as connection:
        hours = settings.load().audio_assets_report_link_hours if config.link_hours is None else config.link_hours
        output = write_report(connection, home, r2, hours)
        published = home.publish(output.parent, number)
        shown = connection.sql(
            "SELECT id, transcription, language, status FROM transcripts ORDER BY id LIMIT 5"
        ).to_arrow_table()
        [(count,)] = connection.sql("SELECT count(*) FROM transcripts").fetchall()
    return dg.MaterializeResult(
        metadata={
            # No link: browsers open no file from a page of a server.
            "report": dg.MetadataValue.path(str(output)),
            "size_kb": round(output.stat().st_size / 1e3, 1),
            "dagster/row_count": count,
            **({} if published is None else {"published": published}),
            "preview": preview(shown, ["id", "transcription", "language", "status"]),
        }
    )


class CorpusExportConfig(dg.Config):
    """What to export."""

    formats: list[str] = Field(
        default=["json"], description=f"Formats to write, each to one file: {', '.join(FORMATS)}."
    )
    all_columns: bool = Field(default=False, description="Export every column instead of id, transcription and tokens.")
    include_partial: bool = Field(default=False, description="Export transcripts that are known to be incomplete too.")
    min_grade: str | None = Field(
        default=None, description="Export only transcripts of this grade or better: A, B, C, D or F. By default all."
    )

    def check(self) -> None:
        """Look for what is wrong before any work is done.

        Raises:
            SettingsError: something is asked for that does not exist; the message names the field.
        """
        try:
            check_choice(self.formats, self.min_grade)
        except ValueError as error:
            raise SettingsError(f"the run config of corpus_export: {error}") from None


@dg.asset(
    # The tables over all prefixes too: with the exports a home in a bucket publishes the warehouse, which holds them.
    deps=[transcripts, tokens, transcript_quality, corpus_summary, prefix_keywords],
    group_name="corpus",
    owners=OWNERS,
    kinds={"json", "parquet", "sqlite", "duckdb"},
    automation_condition=WHEN_PREFIXES_CHANGED,
    description="The corpus as files for other programs: JSON Lines, Parquet, SQLite, DuckDB.",
)
def corpus_export(
    context: dg.AssetExecutionContext,
    config: CorpusExportConfig,
    home: HomeResource,
    warehouse: dg.ResourceParam[PartitionedDuckDBIOManager],
) -> dg.MaterializeResult[None]:
    """Write the exports, each aside and then put in place."""
    left_out: list[str] = []
    with readable_errors():
        config.check()
        number = warehouse.fence(context.run.run_id, None)
        files = export_corpus(
            warehouse.store(),
            home.paths().exports,
            list(dict.fromkeys(config.formats)),
            all_columns=config.all_columns,
            include_partial=config.include_partial,
            min_grade=config.min_grade,
            on_unreadable=lambda bad: left_out.append(bad.reason),
        )
        urls = (home.publish(home.paths().exports, number), warehouse.publish())
        published = [url for url in urls if url is not None]
    for reason in left_out:
        context.log.warning(f"left out: {reason}")
    return dg.MaterializeResult(
        metadata={
            "directory": dg.MetadataValue.path(str(home.paths().exports)),
            "left_out": dg.MetadataValue.json(left_out),
            **({"published": dg.MetadataValue.json(published)} if published else {}),
            "dagster/row_count": files[0].row_count if files else 0,
            "preview": preview(
                pa.table(
                    {
                        "file": [f.path.name for f in files],
                        "rows": [f.row_count for f in files],
                        "size_kb": [round(f.size_bytes / 1e3, 1) for f in files],
                        # MANIFEST.json has all of it; a column of 64 characters ends beyond the page.
                        "sha256": [f"{f.sha256[:12]}…" for f in files],
                    }
                ),
                ["file", "rows", "size_kb", "sha256"],
            ),
        }
    )
