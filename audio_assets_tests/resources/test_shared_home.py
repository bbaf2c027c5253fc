"""A home in a bucket: which of several runs stands."""

from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest

from audio_assets import schemas
from audio_assets.demo_server import WeedServer
from audio_assets.resources.duckdb_io import PartitionedDuckDBIOManager
from audio_assets.storage.objects import Objects
from audio_assets_tests.storage.rows import tokens
from audio_assets_tests.storage.test_bucket import url

TOKENS = schemas.TOKENS


@pytest.fixture
def objects(weed: WeedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Objects:
    """The home that the environment names."""
    place = url(weed, f"shared-{tmp_path.name}")
    monkeypatch.setenv("AUDIO_ASSETS_HOME", place)
    monkeypatch.setenv("AUDIO_ASSETS_SCRATCH", str(tmp_path / "scratch"))
    return Objects(place)


def test_a_run_after_the_counter_was_lost_is_the_newest(objects: Objects) -> None:
    manager = PartitionedDuckDBIOManager()
    for run in ("lost-1", "lost-2", "lost-3"):
        number = manager.fence(run, "a")
        manager.store().write(TOKENS, tokens("a/", {"a/1": [run]}), "a", number)
    [counter] = objects.names("fences")
    objects.delete(counter)
    manager.store().write(TOKENS, tokens("a/", {"a/1": ["after"]}), "a", manager.fence("lost-4", "a"))
    assert manager.store().read(TOKENS, ["a"]).column("tokens").to_pylist() == [["after"]]


def test_the_warehouse_is_published_after_its_counter_was_lost(objects: Objects) -> None:
    manager = PartitionedDuckDBIOManager()
    assert [manager.publish() is not None for _ in range(2)] == [True, True]
    objects.delete("fences/warehouse.json")
    assert manager.publish() is not None


def test_a_run_over_all_prefixes_that_was_overtaken_is_refused(objects: Objects) -> None:
    manager = PartitionedDuckDBIOManager()
    made: list[bool] = []

    def run() -> bool:
        return dg.materialize([r2_prefixes], resources={"warehouse": manager}, raise_on_error=False).success

    @dg.asset(io_manager_key="warehouse")
    def r2_prefixes(context: dg.AssetExecutionContext) -> pa.Table:
        manager.fence(context.run.run_id, None)
        rows = []
        if not made:
            # Another run begins and ends meanwhile.
            made.append(False)
            made.append(run())
            rows = [{"prefix": "old/", "partition": "old"}]
        return schemas.R2_PREFIXES.from_rows(rows)

    assert run() is False
    assert made == [False, True]
    assert manager.store().read(schemas.R2_PREFIXES).num_rows == 0
