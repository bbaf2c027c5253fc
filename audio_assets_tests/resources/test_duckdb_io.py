from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pandas as pd
import pyarrow as pa
import pytest

from audio_assets import schemas
from audio_assets.resources.duckdb_io import PartitionedDuckDBIOManager
from audio_assets.settings import Home
from audio_assets.storage import warehouse as module
from audio_assets.storage.partition_files import PartitionStore

PARTITIONS = dg.DynamicPartitionsDefinition(name="io_test")
TRANSCRIPTS = schemas.TRANSCRIPTS


def rows_of(key: str) -> list[dict[str, Any]]:
    return [
        {"id": f"{key}/{n}", "prefix": f"{key}/", "transcription": f"{key} {n}", "duration_s": n / 2, "status": "ok"}
        for n in range(3)
    ]


@dg.asset(partitions_def=PARTITIONS)
def transcripts(context: dg.AssetExecutionContext) -> pa.Table:
    return TRANSCRIPTS.from_rows(rows_of(context.partition_key))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    module._deferred_here.clear()
    with dg.DagsterInstance.ephemeral() as made:
        made.add_dynamic_partitions("io_test", ["a", "b", "x'; --"])
        yield made


def materialize(
    instance: dg.DagsterInstance, *assets: Any, key: str | None = None, only: str | None = None, **options: Any
) -> dg.ExecuteInProcessResult:
    return dg.materialize(
        list(assets),
        selection=only,
        partition_key=key,
        instance=instance,
        resources={"io_manager": PartitionedDuckDBIOManager(**options)},
    )


def metadata(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    (event,) = result.get_asset_materialization_events()
    return {name: value.value for name, value in event.materialization.metadata.items()}


def test_a_partition_is_stored_loaded_and_described(instance: dg.DagsterInstance, home: Home) -> None:
    said = metadata(materialize(instance, transcripts, key="a"))
    path = home.tables / "transcripts" / "a.parquet"
    (file,) = PartitionStore(home.tables).partitions(TRANSCRIPTS)
    assert said == {
        "file_identity": file.identity,
        "dagster/partition_row_count": 3,
        "dagster/table_name": "transcripts",
        "dagster/uri": str(path),
        "size_bytes": path.stat().st_size,
        "warehouse": "loaded",
    }
    with duckdb.connect(str(home.warehouse), read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM transcripts").fetchall() == [(3,)]


def test_materializing_again_replaces_the_partition_and_no_other(instance: dg.DagsterInstance, home: Home) -> None:
    for key in ("a", "b", "x'; --", "a"):
        materialize(instance, transcripts, key=key)
    with duckdb.connect(str(home.warehouse), read_only=True) as connection:
        found = connection.execute("SELECT _partition, count(*) FROM transcripts GROUP BY ALL ORDER BY ALL").fetchall()
    assert found == [("a", 3), ("b", 3), ("x'; --", 3)]


def test_an_unpartitioned_asset_is_stored_as_a_whole(instance: dg.DagsterInstance, home: Home) -> None:
    @dg.asset
    def r2_prefixes() -> pd.DataFrame:
        columns = {"object_count": [7], "prefix": ["a/"], "partition": ["a"], "digest": ["0f"], "size_bytes": [1]}
        return pd.DataFrame(columns)

    said = metadata(materialize(instance, r2_prefixes))
    assert said["dagster/row_count"] == 1
    assert PartitionedDuckDBIOManager().store().read(schemas.R2_PREFIXES).to_pylist() == [
        {"prefix": "a/", "partition": "a", "object_count": 7, "size_bytes": 1, "digest": "0f"}
    ]


def test_a_data_frame_may_leave_out_nothing_and_add_nothing(instance: dg.DagsterInstance) -> None:
    @dg.asset
    def r2_prefixes() -> pd.DataFrame:
        return pd.DataFrame({"prefix": ["a/"], "partition": ["a"], "objects": [7], "size_bytes": [1]})

    with pytest.raises(Exception, match="unknown columns"):
        materialize(instance, r2_prefixes)


def test_an_asset_without_a_table_says_where_tables_are_named(instance: dg.DagsterInstance) -> None:
    @dg.asset
    def unheard_of() -> pa.Table:
        return pa.table({})

    with pytest.raises(Exception, match=r"no table 'unheard_of' in audio_assets/schemas\.py"):
        materialize(instance, unheard_of)


def test_a_value_that_is_no_table_is_refused(instance: dg.DagsterInstance) -> None:
    @dg.asset
    def r2_prefixes() -> list[int]:
        return [1]

    with pytest.raises(Exception, match=r"got a list; return a pyarrow\.Table or a pandas\.DataFrame"):
        materialize(instance, r2_prefixes)


@pytest.mark.parametrize("wanted", [pa.Table, pd.DataFrame, duckdb.DuckDBPyRelation, None])
def test_an_input_comes_as_annotated_with_the_columns_and_partition_asked_for(
    instance: dg.DagsterInstance, wanted: Any
) -> None:
    seen: list[Any] = []

    def tokens(context: dg.AssetExecutionContext, transcripts: Any) -> pa.Table:
        if isinstance(transcripts, duckdb.DuckDBPyRelation):
            seen.append((type(transcripts), transcripts.columns, transcripts.fetchall()))
        elif isinstance(transcripts, pd.DataFrame):
            seen.append((type(transcripts), list(transcripts.columns), [tuple(r) for r in transcripts.to_numpy()]))
        else:
            found = [tuple(r.values()) for r in transcripts.to_pylist()]
            seen.append((type(transcripts), transcripts.column_names, found))
        return schemas.TOKENS.empty()

    if wanted is not None:
        tokens.__annotations__["transcripts"] = wanted
    else:
        del tokens.__annotations__["transcripts"]
    asset = dg.asset(
        partitions_def=PARTITIONS, ins={"transcripts": dg.AssetIn(metadata={"columns": ["duration_s", "id"]})}
    )(tokens)
    materialize(instance, transcripts, key="b")
    materialize(instance, transcripts, asset, key="a")
    columns = ["duration_s", "id"]
    assert seen == [(wanted or pa.Table, columns, [(0.0, "a/0"), (0.5, "a/1"), (1.0, "a/2")])]


def test_a_corpus_asset_gets_every_partition_as_a_relation_that_is_read_when_used(
    instance: dg.DagsterInstance, home: Home
) -> None:
    @dg.asset
    def corpus_summary(transcripts: duckdb.DuckDBPyRelation) -> None:
        assert transcripts.aggregate("count(*), max(duration_s)").fetchall() == [(6, 1.0)]
        assert transcripts.filter("id = 'b/1'").select("transcription").fetchall() == [("b 1",)]

    for key in "ab":
        materialize(instance, transcripts, key=key)
    assert materialize(instance, transcripts, corpus_summary, only="corpus_summary").success


def test_several_partitions_of_one_run_are_stored_apart(instance: dg.DagsterInstance, home: Home) -> None:
    @dg.asset(name="transcripts", partitions_def=PARTITIONS)
    def both(context: dg.AssetExecutionContext) -> pa.Table:
        return TRANSCRIPTS.from_rows([row for key in context.partition_keys for row in rows_of(key)])

    result = dg.materialize(
        [both],
        instance=instance,
        tags={"dagster/asset_partition_range_start": "a", "dagster/asset_partition_range_end": "b"},
        resources={"io_manager": PartitionedDuckDBIOManager()},
    )
    assert result.success
    store = PartitionedDuckDBIOManager().store()
    assert [(f.partition, f.row_count) for f in store.partitions(TRANSCRIPTS)] == [("a", 3), ("b", 3)]


def test_a_load_that_is_put_off_is_said_and_the_run_succeeds(instance: dg.DagsterInstance, home: Home) -> None:
    materialize(instance, transcripts, key="a")
    with duckdb.connect(str(home.warehouse), read_only=True):
        said = metadata(materialize(instance, transcripts, key="b", lock_timeout_s=0.1))
    assert said["warehouse"].startswith("deferred: somebody has warehouse.duckdb open")
    assert metadata(materialize(instance, transcripts, key="a"))["warehouse"] == "loaded"
    with duckdb.connect(str(home.warehouse), read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM transcripts").fetchall() == [(6,)]


def test_a_damaged_file_among_many_is_warned_of_and_a_single_one_fails(
    instance: dg.DagsterInstance, home: Home, capfd: pytest.CaptureFixture[str]
) -> None:
    counts: list[int] = []

    @dg.asset
    def corpus_summary(transcripts: pa.Table) -> None:
        counts.append(transcripts.num_rows)

    @dg.asset(partitions_def=PARTITIONS)
    def tokens(transcripts: pa.Table) -> pa.Table:
        return schemas.TOKENS.empty()

    for key in "ab":
        materialize(instance, transcripts, key=key)
    (home.tables / "transcripts" / "a.parquet").write_bytes(b"damaged")
    materialize(instance, transcripts, corpus_summary, only="corpus_summary")
    assert counts == [3]
    assert any("WARNING" in line and "a.parquet" in line for line in capfd.readouterr().err.splitlines())
    with pytest.raises(Exception, match=r"a\.parquet"):
        materialize(instance, transcripts, tokens, key="a", only="tokens")


def test_places_are_taken_from_the_configuration(tmp_path: Path) -> None:
    manager = PartitionedDuckDBIOManager(
        database=str(tmp_path / "other.duckdb"), tables_root=str(tmp_path / "other tables"), lock_timeout_s=3
    )
    assert manager.warehouse().path == tmp_path / "other.duckdb"
    assert manager.store().root == str(tmp_path / "other tables")
    assert manager.warehouse().lock_timeout_s == 3


def test_places_follow_the_environment_at_the_time_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = PartitionedDuckDBIOManager()
    monkeypatch.setenv("AUDIO_ASSETS_HOME", str(tmp_path / "later"))
    assert manager.warehouse().path == tmp_path / "later" / "warehouse.duckdb"
    assert manager.store().root == str(tmp_path / "later" / "tables")


def test_every_field_is_explained() -> None:
    assert all(field.description for field in PartitionedDuckDBIOManager.model_fields.values())
