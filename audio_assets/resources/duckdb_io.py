"""The IO manager: assets hand in tables and get tables; partition files and the warehouse do the rest."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from dagster import ConfigurableIOManager, Failure, InitResourceContext, InputContext, MetadataValue, OutputContext
from pydantic import Field

from audio_assets import schemas, settings
from audio_assets.errors import SchemaError, StorageError, SupersededError
from audio_assets.partitions import prefix_for
from audio_assets.resources.home import HomeResource
from audio_assets.resources.run_config import refuse_in_run_config

if TYPE_CHECKING:
    from audio_assets.storage.objects import Objects
    from audio_assets.storage.partition_files import PartitionFile, PartitionStore, Unreadable
    from audio_assets.storage.warehouse import Warehouse

_fences: dict[tuple[str, str | None], int] = {}
"""The number of each run of a partition in this process. A run that goes on in another process has another."""
_fences_lock = threading.Lock()

FILE_IDENTITY = "file_identity"
"""Materialization metadata: the `PartitionFile.identity` of what was written."""

UNCHANGED = "unchanged"
"""Output metadata: True says that the rows are those that are stored, and that their file is to stay as it is."""


class PartitionedDuckDBIOManager(ConfigurableIOManager):
    """Stores each asset as the table of its name: one Parquet file per partition, followed by a DuckDB warehouse.

    An asset returns a `pyarrow.Table` or a `pandas.DataFrame` with the columns that `schemas.py` gives for the last
    part of its key. An input is loaded as its annotation says: `pyarrow.Table` (the default), `pandas.DataFrame`, or
    `duckdb.DuckDBPyRelation`, which reads nothing before it is used. Only the partitions asked for are read, and only
    the columns named in the input's metadata.

    For example:

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

    def setup_for_execution(self, context: InitResourceContext) -> None:
        """Refuse a run that would send what is stored elsewhere.

        Raises:
            SettingsError: the run's configuration says where that is.
        """
        refuse_in_run_config(context, {"tables_root": "AUDIO_ASSETS_HOME"}, type(self))

    def store(self) -> PartitionStore:
        """The partition files."""
        from audio_assets.storage.partition_files import PartitionStore

        return PartitionStore(self.tables_root or settings.home().record)

    def objects(self) -> Objects | None:
        """What all machines share, where the home is in a bucket."""
        return HomeResource().objects() if self.tables_root is None else None

    def fence(self, run_id: str, partition: str | None) -> int | None:
        """The number of this run of a partition, in this process: what it publishes gives way to a greater one's.

        Without a partition, of the tables that have none. To be asked for before anything is read. None where the home
        is a directory.

        Raises:
            SettingsError: the bucket cannot be written.
            StorageError: it failed in another way.
        """
        objects = self.objects()
        if objects is None:
            return None
        with _fences_lock:
            if (run_id, partition) not in _fences:
                from audio_assets.storage import published
                from audio_assets.storage.partition_files import file_name_for

                # What lies there may have come from another home, or outlived its counter.
                above = self.store().number(partition)
                if partition is None:
                    above = max(above, published.claimed(objects))
                # No partition's file is called like that.
                name = "whole" if partition is None else file_name_for(partition)
                _fences[run_id, partition] = objects.next_number(f"fences/{name}.json", above)
            return _fences[run_id, partition]

    def publish(self) -> str | None:
        """Bring the warehouse up to date and publish it; its URL, None where the home is a directory.

        Raises:
            SupersededError: a newer one was published meanwhile.
        """
        objects = self.objects()
        if objects is None:
            return None
        from audio_assets.storage import published

        number = objects.next_number("fences/warehouse.json", published.number(objects))
        warehouse = self.warehouse()
        warehouse.refresh()
        return f"{objects.shown}/{published.publish(objects, warehouse.path, number)}"

    def warehouse(self) -> Warehouse:
        """The database that follows them."""
        from audio_assets.storage.warehouse import Warehouse

        path = Path(self.database).expanduser().absolute() if self.database else settings.home().warehouse
        objects = self.objects()
        if objects is not None and not path.exists():
            from audio_assets.storage import published

            # What was published spares this machine to load every partition.
            published.fetch(objects, path)
        return Warehouse(path, self.store(), self.lock_timeout_s)

    def handle_output(self, context: OutputContext, obj: Any) -> None:
        """Write the partition, bring the warehouse in step, and say so in the materialization's metadata."""
        if obj is None:
            return
        table = _table_for(context)
        data = _as_arrow(table, obj)
        store = self.store()

        def write(rows: pa.Table, partition: str | None) -> PartitionFile:
            return store.write(table, rows, partition, self.fence(context.run_id, partition))

        try:
            kept = _kept(context, store, table)
            if kept is not None:
                written = [kept]
            elif not table.partitioned:
                written = [write(data, None)]
            elif len(context.asset_partition_keys) == 1:
                written = [write(data, context.asset_partition_keys[0])]
            else:
                parts = _split(table, data, context.asset_partition_keys)
                written = [write(part, key) for key, part in parts.items()]
        except SupersededError as error:
            raise Failure(str(error), metadata={"exit_code": error.exit_code}, allow_retries=False) from error
        if self.objects() is not None:
            # One publisher loads for all: a machine of the cluster may never load another partition.
            self._describe(context, table, data, written, "left to the publisher")
            return
        refresh = self.warehouse().refresh([table.name])
        for skipped in refresh.skipped:
            context.log.warning(f"left out of the warehouse: {skipped.reason}")
        if refresh.deferred:
            say = context.log.warning if refresh.refused else context.log.info
            say(f"the rows are stored; the warehouse follows later: {refresh.deferred}")
        state = f"deferred: {refresh.deferred}" if refresh.deferred else "loaded"
        self._describe(context, table, data, written, state)

    def _describe(
        self, context: OutputContext, table: schemas.Table, data: pa.Table, written: list[PartitionFile], state: str
    ) -> None:
        count = "dagster/partition_row_count" if table.partitioned else "dagster/row_count"
        context.add_output_metadata(
            {
                count: data.num_rows,
                "dagster/table_name": table.name,
                "dagster/uri": MetadataValue.text(written[0].uri if len(written) == 1 else self.store().root),
                "size_bytes": sum(file.size_bytes for file in written),
                **({FILE_IDENTITY: written[0].identity} if len(written) == 1 else {}),
                "warehouse": state,
            }
        )

    def load_input(self, context: InputContext) -> Any:
        """The columns and partitions asked for, in the type that the input is annotated with.

        Of several partitions, those whose file is damaged are left out with a warning; a single one fails the step, as
        does one that was never written.
        """
        table = _table_for(context)
        columns = (context.definition_metadata or {}).get("columns")
        partitions = list(context.asset_partition_keys) if table.partitioned and context.has_asset_partitions else None
        warn = None if partitions is not None and len(partitions) == 1 else lambda bad: _warn(context, bad)
        wanted = getattr(context.dagster_type.typing_type, "__name__", "")
        store = self.store()
        if partitions is not None and len(partitions) == 1 and context.step_context is not None:
            self.fence(context.step_context.run_id, partitions[0])
        if wanted == "DuckDBPyRelation":
            import duckdb

            relation = duckdb.connect().from_arrow(store.dataset(table, partitions, on_unreadable=warn))
            return relation.select(*columns) if columns else relation
        data = store.read(table, partitions, columns, on_unreadable=warn)
        if not data.num_rows and partitions is not None and len(partitions) == 1:
            _make_sure_it_was_made(store, table, partitions[0])
        return data.to_pandas() if wanted == "DataFrame" else data


def _kept(context: OutputContext, store: PartitionStore, table: schemas.Table) -> PartitionFile | None:
    """The stored file of the partition, when the asset says that nothing about it changed."""
    unchanged = context.output_metadata.get(UNCHANGED)
    if unchanged is None or unchanged.value is not True or len(context.asset_partition_keys) != 1:
        return None
    return store.find(table, context.asset_partition_keys[0])


def _make_sure_it_was_made(store: PartitionStore, table: schemas.Table, partition: str) -> None:
    """What was never made must not look like a prefix without objects: what follows would be made of nothing."""
    if store.find(table, partition) is None:
        raise Failure(
            f"{table.name} of partition {partition!r} is needed and was never made; materialize {table.name} first, or "
            "run prefix_job, which makes all in turn",
            metadata={"exit_code": StorageError.exit_code},
            allow_retries=False,
        )


def _warn(context: InputContext, bad: Unreadable) -> None:
    context.log.warning(f"left out: {bad.reason}")


def _split(table: schemas.Table, data: pa.Table, keys: Sequence[str]) -> dict[str, pa.Table]:
    """The rows of each partition of a run over several, by their ``prefix``."""
    import pyarrow.compute as pc

    prefixes = {prefix_for(key): key for key in keys}
    strange = [p for p in data.column("prefix").unique().to_pylist() if p not in prefixes]
    if strange:
        raise SchemaError(f"table {table.name}: rows of prefix {strange[0]!r}, which is not a partition of this run")
    return {key: data.filter(pc.equal(data.column("prefix"), prefix)) for prefix, key in prefixes.items()}


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
