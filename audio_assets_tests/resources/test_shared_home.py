"""A home in a bucket: which of several runs stands."""

from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest

from audio_assets import schemas
from audio_assets.demo_server import WeedServer
from audio_assets.errors import SupersededError
from audio_assets.resources.duckdb_io import PartitionedDuckDBIOManager
from audio_assets.resources.home import HomeResource
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


def test_exports_of_a_run_that_was_overtaken_are_not_put_over_newer_ones(objects: Objects) -> None:
    home, manager = HomeResource(), PartitionedDuckDBIOManager()
    old, new = (manager.fence(run, None) for run in ("export-old", "export-new"))

    def publish(text: str, number: int | None) -> None:
        for name in ("a.json", "b.json"):
            path = home.paths().exports / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        home.publish(home.paths().exports, number)

    publish("old", old)
    publish("new", new)
    with pytest.raises(SupersededError, match="exports"):
        publish("woke up", old)
    assert {body for name in objects.names("exports") for body, _ in [objects.get(name) or (b"", "")]} == {b"new"}
    publish("new again", new)

    objects.delete("fences/whole.json")
    publish("after the counter was lost", manager.fence("export-next", None))


def test_a_run_that_is_overtaken_while_it_publishes_stops(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    home, manager = HomeResource(), PartitionedDuckDBIOManager()
    old, new = (manager.fence(run, None) for run in ("halfway-old", "halfway-new"))
    exports = home.paths().exports
    exports.mkdir(parents=True)
    upload, uploaded = Objects.upload, list[str]()

    def overtaken(self: Objects, path: Path, name: str) -> None:
        upload(self, path, name)
        uploaded.append(name)
        if len(uploaded) == 1:
            home.publish(exports, new)

    for name in ("a.json", "b.json"):
        (exports / name).write_text("x")
    monkeypatch.setattr(Objects, "upload", overtaken)
    with pytest.raises(SupersededError):
        home.publish(exports, old)
    assert uploaded == ["exports/a.json", "exports/a.json", "exports/b.json"]
