"""The stories of the sensor that lists the bucket, told with a real S3 server."""

import datetime
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import pytest

from audio_assets.automation import MAX_RUN_REQUESTS, new_objects, new_r2_objects_sensor, r2_event_sensor
from audio_assets.demo import demo_objects
from audio_assets.demo_server import WeedServer
from audio_assets.errors import SettingsError
from audio_assets.ingest import bucket_scan
from audio_assets.ingest.intake import ingest_prefix
from audio_assets.ingest.listing_state import RETIRED_AT_ONCE, ListingState, PrefixState, compare
from audio_assets.ingest.mirror import Mirror
from audio_assets.partitions import PARTITIONS_NAME, prefix_for
from audio_assets.resources.duckdb_io import PartitionedDuckDBIOManager
from audio_assets.resources.home import HomeResource
from audio_assets.resources.r2 import R2Resource
from audio_assets.schemas import RAW_AUDIO
from audio_assets.settings import Home, sensors_on
from audio_assets.storage.partition_files import PartitionStore
from audio_assets_tests.automation.conftest import Result, Tick, launch, requests
from audio_assets_tests.conftest import r2_environment
from audio_assets_tests.ingest.conftest import remove_bucket

CLIP = next(o.body for o in demo_objects() if o.key.endswith(".ogg"))
OTHER_CLIP = next(o.body for o in demo_objects() if o.key.endswith("08.mp3"))


class Bucket:
    """An empty bucket of this test's own."""

    def __init__(self, client: Any, name: str) -> None:
        self.client, self.name = client, name

    def put(self, *keys: str, body: bytes = CLIP) -> None:
        for key in keys:
            self.client.put_object(Bucket=self.name, Key=key, Body=body)

    def delete(self, *keys: str) -> None:
        for key in keys:
            self.client.delete_object(Bucket=self.name, Key=key)


@pytest.fixture
def bucket(weed: WeedServer, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Bucket]:
    name = f"sensor-{abs(hash(request.node.name)) % 10**8}"
    client = weed.client()
    client.create_bucket(Bucket=name)
    for variable, value in {**r2_environment(weed), "R2_BUCKET": name}.items():
        monkeypatch.setenv(variable, value)
    yield Bucket(client, name)
    remove_bucket(weed, name)


@pytest.fixture
def tick(bucket: Bucket, instance: dg.DagsterInstance) -> Tick:
    """Evaluate the sensor, and do with its partitions what the daemon does. No run is made."""

    def evaluate() -> Result:
        result = new_r2_objects_sensor(
            dg.build_sensor_context(instance=instance),
            r2=R2Resource(),
            home=HomeResource(),
            warehouse=PartitionedDuckDBIOManager(),
        )
        assert isinstance(result, dg.SensorResult | dg.SkipReason)
        if isinstance(result, dg.SensorResult):
            for request in result.dynamic_partitions_requests or []:
                if isinstance(request, dg.AddDynamicPartitionsRequest):
                    instance.add_dynamic_partitions(PARTITIONS_NAME, list(request.partition_keys))
                else:
                    for key in request.partition_keys:
                        instance.delete_dynamic_partition(PARTITIONS_NAME, key)
        return result

    return evaluate


Ingest = Callable[[dict[str, str]], None]


@pytest.fixture
def ingest(bucket: Bucket, instance: dg.DagsterInstance, home: Home) -> Ingest:
    """Do what the runs that the sensor asked for do first: bring mirror and `raw_audio` in step with the bucket."""
    store = PartitionStore(home.tables)

    def run(asked: dict[str, str]) -> None:
        for partition in asked:
            previous = store.read(RAW_AUDIO, [partition])
            prefix = prefix_for(partition)
            done = ingest_prefix(bucket.client, bucket.name, prefix, 1, Mirror(home.audio), previous)
            store.write(RAW_AUDIO, done.table, partition)
        launch(instance, asked)

    return run


def test_an_empty_bucket_asks_for_nothing(tick: Tick) -> None:
    assert isinstance(tick(), dg.SkipReason)


def test_the_first_object_registers_its_prefix_and_asks_for_one_run(
    tick: Tick, bucket: Bucket, instance: dg.DagsterInstance
) -> None:
    bucket.put("calls/a.ogg")
    assert list(requests(tick())) == ["calls"]
    assert instance.get_dynamic_partitions(PARTITIONS_NAME) == ["calls"]


def test_what_was_taken_in_is_not_new_and_what_comes_after_it_is(tick: Tick, bucket: Bucket, ingest: Ingest) -> None:
    bucket.put("calls/a.ogg", "lectures/b.ogg")
    ingest(requests(tick()))
    assert isinstance(tick(), dg.SkipReason), "nothing new"
    bucket.put("calls/a.ogg", body=OTHER_CLIP)
    assert list(requests(tick())) == ["calls"], "overwritten"
    bucket.put("lectures/c.ogg")
    both = requests(tick())
    assert sorted(both) == ["calls", "lectures"], "both: the first was not launched yet"
    ingest(both)
    assert isinstance(tick(), dg.SkipReason)


def test_two_new_prefixes_are_two_runs_whatever_they_hold(tick: Tick, bucket: Bucket) -> None:
    bucket.put("calls/a.ogg", "calls/b.ogg", "lectures/c.ogg", "at-the-root.ogg")
    assert sorted(requests(tick())) == ["_root_", "calls", "lectures"]


def test_an_object_that_vanished_is_a_change_and_its_prefix_stays_while_it_has_rows(
    tick: Tick, bucket: Bucket, ingest: Ingest, instance: dg.DagsterInstance
) -> None:
    bucket.put("calls/a.ogg")
    ingest(requests(tick()))
    bucket.delete("calls/a.ogg")
    ingest(requests(tick()))
    for _ in range(3):
        assert isinstance(tick(), dg.SkipReason)
    assert instance.get_dynamic_partitions(PARTITIONS_NAME) == ["calls"]


def test_a_prefix_without_objects_and_rows_is_retired_after_two_looks(
    tick: Tick, bucket: Bucket, instance: dg.DagsterInstance
) -> None:
    instance.add_dynamic_partitions(PARTITIONS_NAME, ["never-there", "somebody's own..."])
    assert isinstance(tick(), dg.SkipReason)
    assert isinstance(tick(), dg.SensorResult)
    assert instance.get_dynamic_partitions(PARTITIONS_NAME) == ["somebody's own..."]
    bucket.put("never-there/a.ogg")
    assert list(requests(tick())) == ["never-there"]


def test_a_bucket_that_was_emptied_is_retired_over_several_ticks() -> None:
    registered = {f"p{n:05d}/" for n in range(2 * RETIRED_AT_ONCE + 1)}
    states: dict[str, PrefixState] = {}
    retired: list[int] = []
    for now in range(6):
        found = compare(
            {},
            states,
            registered=registered,
            is_busy=lambda prefix: False,
            has_run=lambda key: False,
            limit=1,
            now=now,
        )
        retired.append(len(found.retired))
        registered -= set(found.retired)
    assert retired == [0, RETIRED_AT_ONCE, RETIRED_AT_ONCE, 1, 0, 0]


def test_a_prefix_whose_rows_were_forgotten_is_retired(
    tick: Tick, bucket: Bucket, ingest: Ingest, instance: dg.DagsterInstance, home: Home
) -> None:
    bucket.put("calls/a.ogg")
    ingest(requests(tick()))
    bucket.delete("calls/a.ogg")
    ingest(requests(tick()))
    PartitionStore(home.tables).delete(RAW_AUDIO, "calls")
    while instance.get_dynamic_partitions(PARTITIONS_NAME):
        tick()
    bucket.put("calls/a.ogg")
    assert list(requests(tick())) == ["calls"], "it may come back"


def test_a_change_is_asked_for_once_however_many_ticks_see_it(
    tick: Tick, bucket: Bucket, instance: dg.DagsterInstance
) -> None:
    bucket.put("calls/a.ogg")
    launch(instance, requests(tick()), dg.DagsterRunStatus.FAILURE)
    for _ in range(3):
        assert isinstance(tick(), dg.SkipReason)
    bucket.put("calls/b.ogg")
    assert list(requests(tick())) == ["calls"], "another change is another request"


def test_what_dagster_did_not_take_over_is_asked_for_again_with_the_same_key(tick: Tick, bucket: Bucket) -> None:
    bucket.put("calls/a.ogg")
    assert requests(tick()) == requests(tick())


def test_a_change_that_was_undone_and_comes_back_is_another(
    tick: Tick, bucket: Bucket, ingest: Ingest, instance: dg.DagsterInstance
) -> None:
    keys = []
    for _ in range(2):
        bucket.put("calls/a.ogg")
        asked = requests(tick())
        ingest(asked)
        bucket.delete("calls/a.ogg")
        undone = requests(tick())
        ingest(undone)
        keys += [asked["calls"], undone["calls"]]
    assert len(set(keys)) == 4


def test_while_a_prefix_is_worked_on_its_changes_wait(tick: Tick, bucket: Bucket, instance: dg.DagsterInstance) -> None:
    bucket.put("calls/a.ogg")
    launch(instance, requests(tick()), dg.DagsterRunStatus.STARTED)
    bucket.put("calls/b.ogg")
    result = tick()
    assert isinstance(result, dg.SkipReason) and "1 prefixes wait" in str(result.skip_message)
    [run] = instance.get_runs()
    instance.delete_run(run.run_id)
    assert list(requests(tick())) == ["calls"]


def test_objects_that_do_not_count_are_no_news_and_rows_of_them_no_difference(
    tick: Tick, bucket: Bucket, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUDIO_ASSETS_EXCLUDE", "*.draft.ogg, drafts/*")
    bucket.put("calls/a.draft.ogg", "drafts/b.ogg")
    assert isinstance(tick(), dg.SkipReason)
    monkeypatch.setenv("AUDIO_ASSETS_EXCLUDE", "")
    asked = requests(tick())
    assert sorted(asked) == ["calls", "drafts"]
    ingest(asked)
    assert isinstance(tick(), dg.SkipReason)
    # What is in the tables and no longer counts is neither new nor gone.
    monkeypatch.setenv("AUDIO_ASSETS_EXCLUDE", "*.draft.ogg, drafts/*")
    assert isinstance(tick(), dg.SkipReason)
    bucket.put("calls/c.ogg")
    assert list(requests(tick())) == ["calls"]


def test_a_large_bucket_is_listed_prefix_by_prefix_and_gone_on_with(
    tick: Tick, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_scan, "KEYS_PER_PAGE", 1)
    monkeypatch.setattr(new_objects, "WORKING_S", 0.0)
    bucket.put(*(f"p{n}/{m:02}.wav" for n in range(3) for m in range(12)), body=b"x")
    monkeypatch.setattr(new_objects, "WORKING_S", 40.0)
    assert sorted(requests(tick())) == ["p0", "p1", "p2"]
    prefixes: set[str] = set()
    get_client = R2Resource.get_client

    def watched(self: R2Resource) -> Any:
        client = get_client(self)
        client.meta.events.register(
            "provide-client-params.s3.ListObjectsV2", lambda params, **_: prefixes.add(params["Prefix"])
        )
        return client

    monkeypatch.setattr(R2Resource, "get_client", watched)
    monkeypatch.setattr(new_objects, "WORKING_S", 0.0)
    bucket.put("p3/a.wav", "p1/new.wav", body=b"x")
    ticks = 0
    while isinstance(result := tick(), dg.SkipReason):
        assert "Listing the bucket" in str(result.skip_message)
        ticks += 1
    assert (ticks, prefixes) == (4, {"", "p0/", "p1/", "p2/", "p3/"})
    assert {"p1", "p3"} <= requests(result).keys()


def test_files_that_are_not_audio_are_no_news(tick: Tick, bucket: Bucket) -> None:
    bucket.put("calls/readme.txt", body=b"hello")
    assert isinstance(tick(), dg.SkipReason)


def test_a_tick_is_capped_and_the_next_one_carries_on(tick: Tick, bucket: Bucket, instance: dg.DagsterInstance) -> None:
    bucket.put(*(f"p{n:03}/a.wav" for n in range(MAX_RUN_REQUESTS + 20)), body=b"x")
    first = requests(tick())
    launch(instance, first)
    second = requests(tick())
    launch(instance, second)
    assert (len(first), len(second)) == (MAX_RUN_REQUESTS, 20)
    assert first.keys() | second.keys() == {f"p{n:03}" for n in range(MAX_RUN_REQUESTS + 20)}
    assert isinstance(tick(), dg.SkipReason)


@pytest.mark.parametrize("skew", [datetime.timedelta(days=-1), datetime.timedelta(days=1), None])
def test_clocks_that_are_off_and_equal_times_lose_nothing(
    tick: Tick,
    bucket: Bucket,
    ingest: Ingest,
    monkeypatch: pytest.MonkeyPatch,
    skew: datetime.timedelta | None,
) -> None:
    """The server's times are a day off, the other way at every listing, or all the same second (None)."""
    get_client = R2Resource.get_client
    turn = [1]

    def shifted(response_dict: dict[str, Any], **_: Any) -> None:
        turn[0] = -turn[0]

        def other(match: re.Match[bytes]) -> bytes:
            told = datetime.datetime.fromisoformat(match[1].decode().replace("Z", "+00:00"))
            now = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc) if skew is None else told + skew * turn[0]
            return f"<LastModified>{now:%Y-%m-%dT%H:%M:%S}.000Z</LastModified>".encode()

        response_dict["body"], count = re.subn(b"<LastModified>(.*?)</LastModified>", other, response_dict["body"])
        assert count

    def with_other_times(self: R2Resource) -> Any:
        client = get_client(self)
        client.meta.events.register("before-parse.s3.ListObjectsV2", shifted)
        return client

    monkeypatch.setattr(R2Resource, "get_client", with_other_times)
    bucket.put("calls/a.ogg")
    ingest(requests(tick()))
    bucket.put("calls/b.ogg")
    ingest(requests(tick()))
    bucket.put("calls/a.ogg", body=OTHER_CLIP)
    ingest(requests(tick()))
    assert isinstance(tick(), dg.SkipReason)


def test_a_listing_that_takes_longer_than_a_tick_is_gone_on_with(
    tick: Tick, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    get_client = R2Resource.get_client
    listed: list[str | None] = []

    def two_a_page(params: dict[str, Any], **_: Any) -> None:
        listed.append(params.get("StartAfter"))
        params["MaxKeys"] = 2

    def paging(self: R2Resource) -> Any:
        client = get_client(self)
        client.meta.events.register("provide-client-params.s3.ListObjectsV2", two_a_page)
        return client

    monkeypatch.setattr(R2Resource, "get_client", paging)
    monkeypatch.setattr(new_objects, "WORKING_S", 0.0)
    bucket.put(*(f"p{n}/a.wav" for n in range(5)), body=b"x")
    results = [tick(), tick(), tick()]
    assert [type(r) for r in results] == [dg.SkipReason, dg.SkipReason, dg.SensorResult]
    assert list(dict.fromkeys(listed)) == [None, "p1/a.wav", "p3/a.wav"]
    assert sorted(requests(results[2])) == [f"p{n}" for n in range(5)]


def test_tables_that_take_longer_than_a_tick_are_gone_on_with(
    tick: Tick, bucket: Bucket, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PartitionStore(home.tables)
    for n in range(3):
        row = {"id": f"p{n}/a.wav", "prefix": f"p{n}/", "metadata": [], "status": "gone"}
        store.write(RAW_AUDIO, RAW_AUDIO.from_rows([row]), f"p{n}")
    monkeypatch.setattr(new_objects, "_READ_AT_ONCE", 2)
    monkeypatch.setattr(new_objects, "WORKING_S", 0.0)
    first = tick()
    assert isinstance(first, dg.SkipReason) and "1 partitions are left" in str(first.skip_message)
    assert "Nothing new" in str(tick().skip_message)  # type: ignore[union-attr]


def test_only_tables_that_were_written_since_are_read_again(
    tick: Tick, bucket: Bucket, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("calls/a.ogg", "lectures/b.ogg")
    ingest(requests(tick()))
    tick()
    bucket.put("calls/c.ogg")
    ingest(requests(tick()))
    read: list[Any] = []
    original = PartitionStore.read

    def spy(self: PartitionStore, table: Any, partitions: Any = None, *rest: Any, **more: Any) -> Any:
        read.append(partitions)
        return original(self, table, partitions, *rest, **more)

    monkeypatch.setattr(PartitionStore, "read", spy)
    tick()
    assert read == [["calls"]]


def test_a_wrong_setting_fails_the_tick_and_is_named(tick: Tick, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("R2_BUCKET")
    with pytest.raises(Exception, match="R2_BUCKET is not set"):
        tick()


def test_a_wrong_key_is_told_without_the_code_and_the_libraries_that_noticed_it(
    bucket: Bucket, tick: Tick, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("R2_SECRET_ACCESS_KEY", "another")
    with pytest.raises(SettingsError, match="R2_SECRET_ACCESS_KEY does not belong") as told:
        tick()
    assert told.value.__suppress_context__ and told.value.__cause__ is None
    assert told.traceback[-1].path.name == "runs.py"


DRIVER = """
import os, sys, json
import dagster as dg
from audio_assets.automation import new_r2_objects_sensor
from audio_assets.resources.duckdb_io import PartitionedDuckDBIOManager
from audio_assets.resources.home import HomeResource
from audio_assets.resources.r2 import R2Resource

def tick():
    with dg.instance_for_test() as instance:
        return new_r2_objects_sensor(
            dg.build_sensor_context(instance=instance), r2=R2Resource(), home=HomeResource(),
            warehouse=PartitionedDuckDBIOManager(),
        )

for point in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        os.environ["AUDIO_ASSETS_CRASH_AT"] = point
        tick()
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), f"not killed at {point}"
print(json.dumps({r.partition_key: r.run_key for r in tick().run_requests}))
"""


def test_a_tick_that_is_killed_at_any_point_loses_nothing_and_doubles_nothing(bucket: Bucket, home: Home) -> None:
    bucket.put("calls/a.ogg", "lectures/b.ogg")
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, "objects:listed", "objects:asked"],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    asked = json.loads(done.stdout.splitlines()[-1])
    assert sorted(asked) == ["calls", "lectures"]
    # The keys are those that the killed tick had decided on: runs it may have started are not started again.
    remembered = ListingState(home.sensors).load()
    assert {p.removesuffix("/"): s.run_key for p, s in remembered.items()} == asked


def test_the_sensors_are_off_until_they_are_switched_on_or_a_setting_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    sensors = [new_r2_objects_sensor, r2_event_sensor]
    assert {s.default_status for s in sensors} == {dg.DefaultSensorStatus.STOPPED}
    code = "from audio_assets.definitions import defs; print(*((s.name, s.default_status.value) for s in defs.sensors))"
    code += "; print(*(s.minimum_interval_seconds for s in defs.sensors if s.name == 'new_r2_objects_sensor'))"
    environment = {**os.environ, "AUDIO_ASSETS_SENSORS": "on", "AUDIO_ASSETS_LISTING_INTERVAL_S": "600"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    statuses, interval_s = done.stdout.splitlines()
    assert (statuses.count("RUNNING"), interval_s) == (3, "600")
    monkeypatch.setenv("AUDIO_ASSETS_SENSORS", "perhaps")
    assert not sensors_on(), "definitions load whatever is set"
