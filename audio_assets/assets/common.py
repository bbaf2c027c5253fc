"""What every asset shares: its columns for the UI, its metadata, and errors a person can read."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dagster as dg
import pyarrow as pa

from audio_assets import schemas
from audio_assets.errors import AudioAssetsError
from audio_assets.summary.preview import markdown_table

OWNERS = ["team:speech-data"]
WAREHOUSE = "warehouse"
"""Resource key of the DuckDB IO manager. Every table asset names it: no default, so never Dagster's pickles."""

EXIT_CODE = "exit_code"
"""Metadata key of a failure: what a command line should exit with."""

_DAGSTER_TYPES = {"string": "string", "int64": "int", "double": "float", "bool": "bool"}


def table_metadata(table: schemas.Table) -> dict[str, Any]:
    """Definition metadata of a table asset: its column schema and its name in the warehouse."""
    columns = [
        dg.TableColumn(
            c.name,
            type=_DAGSTER_TYPES.get(str(c.type), str(c.type)),
            description=c.description,
            constraints=dg.TableColumnConstraints(nullable=c.nullable, unique=table.key == (c.name,)),
        )
        for c in table.columns
    ]
    return {"dagster/column_schema": dg.TableSchema(columns), "dagster/table_name": table.name}


def preview(data: pa.Table, columns: list[str]) -> dg.MarkdownMetadataValue:
    """A few rows as a table for the UI."""
    return dg.MetadataValue.md(markdown_table(data, columns))


def status_counts(data: pa.Table) -> dict[str, int]:
    """How many rows have each status, in the order of `schemas.STATUSES`, zeros left out."""
    counts = {r["values"]: r["counts"] for r in data.column("status").combine_chunks().value_counts().to_pylist()}
    return {s: counts[s] for s in schemas.STATUSES if s in counts}


def status_metadata(data: pa.Table) -> dict[str, int]:
    """`status_counts` as metadata, so that the UI plots each status over time."""
    return {f"status_{status}": n for status, n in status_counts(data).items()}


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turn this package's errors into a Dagster failure that shows one line and is not retried."""
    try:
        yield
    except AudioAssetsError as error:
        raise dg.Failure(
            description=str(error),
            metadata={"error": type(error).__name__, EXIT_CODE: error.exit_code},
            allow_retries=False,
        ) from error


def merge(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of several sources as one dict."""
    return {k: v for part in parts for k, v in part.items()}
