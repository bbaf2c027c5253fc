"""What every asset shares: its columns for the UI, its metadata, and errors a person can read."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from audio_assets import schemas, settings
from audio_assets.errors import (
    AudioAssetsError,
    BusyError,
    NoSuchPrefixError,
    PartitionKeyError,
    SettingsError,
    machine_trouble,
)
from audio_assets.partitions import PARTITIONS_NAME
from audio_assets.storage import validation
from audio_assets.summary import plots
from audio_assets.summary.preview import markdown_table, png_markdown

OWNERS = ["team:speech-data"]
WAREHOUSE = "warehouse"
"""Resource key of the DuckDB IO manager. Every table asset names it: no default, so never Dagster's pickles."""

INCLUDE = (
    "Only objects whose whole key matches one of these globs count; `*` crosses `/`. By default AUDIO_ASSETS_INCLUDE."
)
EXCLUDE = "Objects whose key matches one of these globs do not count. By default AUDIO_ASSETS_EXCLUDE."

EXIT_CODE = "exit_code"
"""Metadata key of a failure: what a command line should exit with."""

_WITH_UNIT = {
    "vocabulary": "vocabulary_words",
    "vocabulary_new": "vocabulary_new_words",
    "vocabulary_lost": "vocabulary_lost_words",
    "avg_logprob_p10": "avg_logprob_p10_nats",
}
"""Columns whose unit is told by their description, where there is only a name to tell it."""

_DAGSTER_TYPES = {"string": "string", "int64": "int", "double": "float", "bool": "bool"}


def table_metadata(table: schemas.Table) -> dict[str, Any]:
    """Definition metadata of a table asset: its column schema and its name in the warehouse."""
    return {"dagster/column_schema": _table_schema(table), "dagster/table_name": table.name}


def table_type(table: schemas.Table) -> dg.DagsterType:
    """The type of a table asset's value: an Arrow table that keeps the contract of ``table``, which the UI lists.

    Not `dagster_pandera`'s type: it takes data frames only, and would import pandas and pandera with the definitions.
    """

    def check(context: dg.TypeCheckContext, value: object) -> dg.TypeCheck:
        if not isinstance(value, pa.Table):
            return dg.TypeCheck(False, description=f"{table.name} must be a pyarrow.Table, not {type(value).__name__}")
        finding = validation.schema_conforms(table, value)
        return dg.TypeCheck(finding.passed, description=finding.description)

    return dg.DagsterType(
        check, name=f"{table.name}_table", typing_type=pa.Table, metadata={"schema": _table_schema(table)}
    )


def _table_schema(table: schemas.Table) -> dg.TableSchema:
    columns = [
        dg.TableColumn(
            c.name,
            type=_type_name(c.type),
            description=c.description + _fields(c.type),
            constraints=dg.TableColumnConstraints(
                nullable=c.nullable, unique=table.key == (c.name,), other=_bounds(*c.bounds)
            ),
        )
        for c in table.columns
    ]
    return dg.TableSchema(columns)


def _type_name(kind: pa.DataType) -> str:
    """The type as the UI's narrow column holds it: without the fields of a struct."""
    if pa.types.is_list(kind):
        return f"list<{_type_name(kind.value_type)}>"
    return "struct" if pa.types.is_struct(kind) else _DAGSTER_TYPES.get(str(kind), str(kind))


def _fields(kind: pa.DataType) -> str:
    item = kind.value_type if pa.types.is_list(kind) else kind
    return f" ({', '.join(field.name for field in item)})" if pa.types.is_struct(item) else ""


def _bounds(least: float | None, greatest: float | None) -> list[str]:
    return ([] if least is None else [f">= {least:g}"]) + ([] if greatest is None else [f"<= {greatest:g}"])


def preview(data: pa.Table, columns: list[str]) -> dg.MarkdownMetadataValue:
    """A few rows as a table for the UI."""
    return dg.MetadataValue.md(markdown_table(data, columns))


def errors_metadata(data: pa.Table) -> dict[str, dg.MarkdownMetadataValue]:
    """The first rows of which something is wrong, as metadata; what vanished from the bucket is no error.

    The preview has the first rows of all, and the one that a user looks for is rarely among them.
    """
    wrong = data.filter(pc.is_valid(pc.field("error")) & (pc.field("status") != "gone"))
    return {"errors": preview(wrong, ["id", "status", "error"])} if wrong.num_rows else {}


def plot_theme() -> plots.Theme:
    """The colours of the pictures in the UI.

    Raises:
        SettingsError: ``AUDIO_ASSETS_PLOT_THEME`` names none.
    """
    return plots.THEMES[settings.load().audio_assets_plot_theme]


def pictures(**drawn: bytes) -> dict[str, dg.MarkdownMetadataValue]:
    """Pictures as metadata; the names are what the UI calls them."""
    return {
        name: dg.MetadataValue.md(png_markdown(png, name.replace("_", " ").capitalize())) for name, png in drawn.items()
    }


def status_metadata(data: pa.Table) -> dict[str, int]:
    """How many rows have each status, as metadata, so that the UI plots each over time."""
    return {f"files_{status}": n for status, n in validation.status_counts(data).items()}


def figures(row: Mapping[str, Any]) -> dict[str, int | float]:
    """The numbers of a row as metadata: each with its unit in its name, without digits that nobody measured."""
    return {
        _WITH_UNIT.get(name, name): round(value, 4) if isinstance(value, float) else value
        for name, value in row.items()
        if isinstance(value, int | float)
    }


def partition_of(context: dg.AssetExecutionContext) -> str:
    """The partition key that a run is for. Dagster itself looks after the work, and tells it in pages.

    Raises:
        PartitionKeyError: it is for none, for several, or for one that is not registered.
    """
    name = context.asset_key.to_user_string()
    if context.has_partition_key_range and not context.has_partition_key:
        raise PartitionKeyError(
            f"{name} takes one partition a run, and this run has a range of them; launch it as a backfill with "
            "multiple runs"
        )
    if not context.has_partition_key:
        raise PartitionKeyError(
            f"{name} has a partition for each prefix, and this run names none; choose one (on the command line: "
            "dagster asset materialize --partition)"
        )
    partition: str = context.partition_key
    if not context.instance.has_dynamic_partition(PARTITIONS_NAME, partition):
        raise PartitionKeyError(
            f"{partition!r} is not registered as a partition in this DAGSTER_HOME; materialize r2_prefixes "
            "first, which registers the bucket's prefixes"
        )
    return partition


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turn this package's errors into a Dagster failure that shows one line and is not retried."""
    try:
        yield
    except (SettingsError, NoSuchPrefixError, PartitionKeyError, BusyError) as error:
        # The line says it all; where in the code it was noticed is pages that hide it.
        raise _failure(error) from None
    except AudioAssetsError as error:
        raise _failure(error) from error
    except OSError as error:
        trouble = machine_trouble(error)
        if trouble is None:
            raise
        raise _failure(trouble) from error


def _failure(error: AudioAssetsError) -> dg.Failure:
    return dg.Failure(
        description=str(error),
        metadata={"error": type(error).__name__, EXIT_CODE: error.exit_code},
        allow_retries=False,
    )


def merge(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of several sources as one dict."""
    return {k: v for part in parts for k, v in part.items()}
