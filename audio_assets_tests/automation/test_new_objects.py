"""When things run: the sensor's stories, told with a real S3 server, and the schedules."""

import datetime
from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import pytest

from audio_assets.automation import (
    MAX_RUN_REQUESTS,
    changed_objects,
    corpus_schedule,
    discover_schedule,
    new_r2_objects_sensor,
    nightly_schedule,
    run_key,
)
from audio_assets.definitions import build_definitions
from audio_assets.demo import demo_objects
from audio_assets.demo_server import WeedServer
from audio_assets.ingest.listing import RemoteObject
from audio_assets.partitions import PARTITIONS_NAME
from audio_assets.resources.duckdb_io import PartitionedDuckDBIOManager
from audio_assets.resources.home import HomeResource
from audio_assets.resources.r2 import R2Resource
from audio_assets.schemas import RAW_AUDIO
from audio_assets_tests.conftest import r2_environment

CLIP = next(o.body for o in demo_objects() if o.key.endswith(".ogg"))
OTHER_CLIP = next(o.body for o in demo_objects() if o.key.endswith("08.mp3"))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as instance:
        yield instance


@pytest.fixture
def bucket(weed: WeedServer, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    """An empty bucket of this test's own; gives ``put(key, body)``."""
    name = f"sensor-{abs(hash(request.node.name)) % 10**8}"
    client = weed.client()
    client.create_bucket(Bucket=name)
    for variable, value in r2_environment(weed).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("R2_BUCKET", name)

    def put(key: str, body: bytes = CLIP) -> None:
        client.put_object(Bucket=name, Key=key, Body=body)

    return put


Tick = Callable[[], "dg.SensorResult | dg.SkipReason"]


@pytest.fixture
def tick(bucket: Any, instance: dg.DagsterInstance) -> Tick:
    """Evaluate the sensor as the daemon does, the cursor included, and register the partitions that it asks for."""
    cursor: list[str | None] = [None]

    def evaluate() -> dg.SensorResult | dg.SkipReason:
        context = dg.build_sensor_context(instance=instance, cursor=cursor[0])
        result = new_r2_objects_sensor(
            context, r2=R2Resource(), home=HomeResource(), warehouse=PartitionedDuckDBIOManager()
        )
        if isinstance(result, dg.SensorResult):
            cursor[0] = result.cursor
            for request in result.dynamic_partitions_requests or []:
                instance.add_dynamic_partitions(PARTITIONS_NAME, list(request.partition_keys))
        assert isinstance(result, dg.SensorResult | dg.SkipReason)
        return result

    return evaluate


def partitions(result: dg.SensorResult | dg.SkipReason) -> list[str]:
    assert isinstance(result, dg.SensorResult), result
    return [str(request.partition_key) for request in result.run_requests or []]


def ingest(instance: dg.DagsterInstance, partition: str) -> None:
    """Do what the run that the sensor asked for does first."""
    job = build_definitions().resolve_job_def("prefix_job")
    done = job.execute_in_process(
        instance=instance, partition_key=partition, asset_selection=[dg.AssetKey("raw_audio")]
    )
    assert done.success


def test_an_empty_bucket_asks_for_nothing(tick: Tick) -> None:
    assert isinstance(tick(), dg.SkipReason)


def test_the_first_object_registers_its_prefix_and_asks_for_one_run(
    tick: Tick, bucket: Any, instance: dg.DagsterInstance
) -> None:
    bucket("calls/a.ogg")
    assert partitions(tick()) == ["calls"]
    assert instance.get_dynamic_partitions(PARTITIONS_NAME) == ["calls"]


def test_what_was_taken_in_is_not_new(tick: Tick, bucket: Any, instance: dg.DagsterInstance) -> None:
    bucket("calls/a.ogg")
    tick()
    ingest(instance, "calls")
    assert isinstance(tick(), dg.SkipReason)


def test_two_new_prefixes_are_two_runs_whatever_they_hold(tick: Tick, bucket: Any) -> None:
    for key in ("calls/a.ogg", "calls/b.ogg", "lectures/c.ogg", "at-the-root.ogg"):
        bucket(key)
    assert sorted(partitions(tick())) == ["_root_", "calls", "lectures"]


def test_an_overwritten_object_is_a_change(tick: Tick, bucket: Any, instance: dg.DagsterInstance) -> None:
    bucket("calls/a.ogg")
    bucket("lectures/b.ogg")
    for partition in partitions(tick()):
        ingest(instance, partition)
    bucket("calls/a.ogg", OTHER_CLIP)
    assert partitions(tick()) == ["calls"]


def test_the_same_change_has_the_same_run_key_and_another_change_another(tick: Tick, bucket: Any) -> None:
    bucket("calls/a.ogg")
    first, again = tick(), tick()
    bucket("calls/b.ogg")
    later = tick()
    keys = [[r.run_key for r in result.run_requests or []] for result in (first, again, later)]  # type: ignore[union-attr]
    assert keys[0] == keys[1] != keys[2]


def test_files_that_are_not_audio_are_no_news(tick: Tick, bucket: Any) -> None:
    bucket("calls/readme.txt", b"hello")
    assert isinstance(tick(), dg.SkipReason)


def test_a_tick_is_capped_and_the_next_one_carries_on(tick: Tick, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [RemoteObject(f"p{n:03}/a.wav", "etag", 1, None) for n in range(MAX_RUN_REQUESTS + 20)]
    monkeypatch.setattr("audio_assets.automation.new_objects.list_objects", lambda client, bucket: iter(listed))
    first, second = partitions(tick()), partitions(tick())
    assert len(first) == len(second) == MAX_RUN_REQUESTS
    assert set(first) | set(second) == {f"p{n:03}" for n in range(MAX_RUN_REQUESTS + 20)}


def test_equal_times_and_old_times_do_not_hide_a_change() -> None:
    stored = RAW_AUDIO.from_rows([{"id": "a/1.wav", "prefix": "a/", "etag": "x", "status": "ok"}]).select(
        ["id", "etag"]
    )
    long_ago = datetime.datetime(2001, 1, 1, tzinfo=datetime.timezone.utc)
    listed = [RemoteObject("a/1.wav", "x", 1, None), RemoteObject("b/2.wav", "y", 1, long_ago)]
    assert list(changed_objects(listed, stored, 1)) == ["b/"]


def test_the_run_key_tells_a_key_from_an_etag() -> None:
    one, other = RemoteObject("a/b", "c", 1, None), RemoteObject("a/bc", "", 1, None)
    assert run_key("a/", [one]) != run_key("a/", [other])


def test_a_wrong_setting_fails_the_tick_and_is_named(tick: Tick, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("R2_BUCKET")
    with pytest.raises(Exception, match="R2_BUCKET is not set"):
        tick()


def test_every_night_every_prefix_is_brought_up_to_date(instance: dg.DagsterInstance) -> None:
    instance.add_dynamic_partitions(PARTITIONS_NAME, ["calls", "lectures"])
    night = datetime.datetime(2026, 11, 23, 3, tzinfo=datetime.timezone.utc)
    definitions = build_definitions()
    context = dg.build_schedule_context(
        instance=instance, scheduled_execution_time=night, repository_def=definitions.get_repository_def()
    )
    requests = nightly_schedule.evaluate_tick(context).run_requests
    assert requests is not None
    assert [r.partition_key for r in requests] == ["calls", "lectures"]
    assert len({r.run_key for r in requests}) == 2


def test_nothing_runs_by_itself_until_it_is_switched_on() -> None:
    assert new_r2_objects_sensor.default_status == dg.DefaultSensorStatus.STOPPED
    for schedule in (discover_schedule, nightly_schedule, corpus_schedule):
        assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
