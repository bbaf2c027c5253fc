"""The IO manager: assets hand in tables and get tables; partition files and the warehouse do the rest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from dagster import ConfigurableIOManager, InputContext, MetadataValue, OutputContext
from pydantic import Field

from audio_assets import schemas, settings
from audio_assets.errors import SchemaError

if TYPE_CHECKING:
    from audio_assets.storage.partition_files import PartitionStore
    from audio_assets.storage.warehouse import Warehouse


class PartitionedDuckDBIOManager(ConfigurableIOManager):
    """Stores each asset as the table of its name: one Parquet file per partition, followed by a DuckDB warehouse.

    An asset returns a `pyarrow.Table` or a `pandas.DataFrame` with the columns that `schemas.py` gives for the last
    part of its key. An input is loaded as its annotation says: `pyarrow.Table` (the default), `pandas.DataFrame`, or
    `duckdb.DuckDBPyRelation`, which reads nothing before it is used. Only the partitions asked for are read, and only
    the columns named in the input's metadata.

    Example:
        .. code-block:: python

            @asset(ins={"transcripts": AssetIn(metadata={"columns": ["id", "transcription"]})})
            def tokens(transcripts: pa.Table) -> pa.Table: ...

            Definitions([tokens], resources={"io_manager": PartitionedDuckDBIOManager()})
    """

    database: str | None = Field(
        default=None, description="Path of the DuckDB database; by default warehouse.duckdb under AUDIO_ASSETS_HOME."
    )
    tables_root: str | None = Field(
        default=None,
        description="Where the partition files lie: a directory, s3://bucket/folder or r2://bucket/folder;"
        " by default tables/ under AUDIO_ASSETS_HOME.",
    )
    lock_timeout_s: float = Field(
        default=10.0,
        ge=0,
        description="Seconds to wait for other writers and readers before loading is left to the next writer.",
    )

    def store(self) -> PartitionStore:
        """The partition files."""
        from audio_assets.storage.partition_files import PartitionStore

        return PartitionStore(self.tables_root or settings.home().tables)

    def warehouse(self) -> Warehouse:
        """The database that follows them."""
        from audio_assets.storage.warehouse import Warehouse

        path = Path(self.database).expanduser().absolute() if self.database else settings.home().warehouse
        return Warehouse(path, self.store(), self.lock_timeout_s)

    def handle_output(self, context: OutputContext, obj: Any) -> None:
        """Write the partition, bring the warehouse in step, and say so in the materialization's metadata."""
        if obj is None:
            return
        table = _table_for(context)
        data = _as_arrow(table, obj)
        partition = context.asset_partition_key if table.partitioned else None
        warehouse = self.warehouse()
        written = warehouse.store.write(table, data, partition)
        refresh = warehouse.refresh([table.name])
        for skipped in refresh.skipped:
            context.log.warning("skipped: %s", skipped.reason)
        count = "dagster/partition_row_count" if partition is not None else "dagster/row_count"
        context.add_output_metadata(
            {
                count: written.row_count,
                "dagster/table_name": table.name,
                "dagster/uri": MetadataValue.text(written.uri),
                "size_bytes": written.size_bytes,
                "warehouse": f"deferred: {refresh.deferred}" if refresh.deferred else "loaded",
            }
        )

    def load_input(self, context: InputContext) -> Any:
        """The columns and partitions asked for, in the type that the input is annotated with."""
        table = _table_for(context)
        columns = (context.definition_metadata or {}).get("columns")
        partitions = list(context.asset_partition_keys) if table.partitioned and context.has_asset_partitions else None
        wanted = context.dagster_type.typing_type
        data = self.store().read(table, partitions, columns)
        if getattr(wanted, "__name__", "") == "DuckDBPyRelation":
            import duckdb

            return duckdb.connect().from_arrow(data)
        if getattr(wanted, "__name__", "") == "DataFrame":
            return data.to_pandas()
        return data


def _table_for(context: OutputContext | InputContext) -> schemas.Table:
    name = context.asset_key.path[-1]
    if name not in schemas.TABLES:
        raise SchemaError(f"asset {context.asset_key.to_user_string()}: no table {name!r} in audio_assets/schemas.py")
    return schemas.TABLES[name]


def _as_arrow(table: schemas.Table, obj: Any) -> pa.Table:
    if isinstance(obj, pa.Table):
        return obj
    if type(obj).__name__ == "DataFrame" and type(obj).__module__.startswith("pandas"):
        missing = [name for name in obj.columns if name not in table.column_names]
        if missing:
            raise SchemaError(f"table {table.name}: unknown columns {missing}; see audio_assets/schemas.py")
        schema = pa.schema([table.schema.field(name) for name in obj.columns])
        try:
            return pa.Table.from_pandas(obj, schema=schema, preserve_index=False).replace_schema_metadata(None)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise SchemaError(f"table {table.name}: a value does not fit its column: {error}") from error
    raise SchemaError(f"table {table.name}: got a {type(obj).__name__}; return a pyarrow.Table or a pandas.DataFrame")
