"""A home in a bucket: which of several runs stands."""

from pathlib import Path

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
