"""The event sensor's stories, told with a queue server that speaks the documented contract."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from audio_assets.automation import r2_event_sensor
from audio_assets.automation.runs import MAX_RUN_REQUESTS
from audio_assets.doctor import diagnose
from audio_assets.ingest.event_inbox import REMEMBERED_S, EventInbox
from audio_assets.partitions import PARTITIONS_NAME
from audio_assets.resources.event_queue import EventQueueResource
from audio_assets.resources.home import HomeResource
from audio_assets.resources.r2 import R2Resource
from audio_assets.settings import Home
from audio_assets_tests.automation.conftest import Result, Tick, launch, requests
from audio_assets_tests.queue_server import TOKEN, QueueServer

BUCKET = "recordings"


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Iterator[QueueServer]:
    with QueueServer() as server:
        for name, value in {**server.settings, "R2_BUCKET": BUCKET}.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def tick(queue: QueueServer, instance: dg.DagsterInstance) -> Tick:
    """Evaluate the sensor, and register the partitions that it asks for. No run is made: that is the daemon's part."""

    def evaluate() -> Result:
        result = r2_event_sensor(
            dg.build_sensor_context(instance=instance),
            event_queue=EventQueueResource(visibility_timeout_s=30, timeout_s=30),
            r2=R2Resource(),
            home=HomeResource(),
        )
        assert isinstance(result, dg.SensorResult | dg.SkipReason)
        if isinstance(result, dg.SensorResult):
            for request in result.dynamic_partitions_requests or []:
                instance.add_dynamic_partitions(PARTITIONS_NAME, list(request.partition_keys))
        return result

    return evaluate


def test_a_queue_with_nothing_in_it_asks_for_nothing(tick: Tick) -> None:
    assert isinstance(tick(), dg.SkipReason)


def test_a_new_object_registers_its_prefix_and_asks_for_one_run(
    tick: Tick, queue: QueueServer, instance: dg.DagsterInstance
) -> None:
    queue.notify(BUCKET, "calls/a.wav")
    assert list(requests(tick())) == ["calls"]
    assert instance.get_dynamic_partitions(PARTITIONS_NAME) == ["calls"]
    assert queue.left() == 0


def test_what_dagster_has_a_run_for_is_not_asked_for_again(
    tick: Tick, queue: QueueServer, instance: dg.DagsterInstance
) -> None:
    queue.notify(BUCKET, "calls/a.wav")
    launch(instance, requests(tick()))
    assert isinstance(tick(), dg.SkipReason)


def test_what_dagster_did_not_take_over_is_asked_for_again_with_the_same_key(tick: Tick, queue: QueueServer) -> None:
    queue.notify(BUCKET, "calls/a.wav")
    first = requests(tick())
    queue.notify(BUCKET, "calls/b.wav")
    assert requests(tick()) == first


def test_a_run_that_was_made_and_never_launched_is_asked_for_again(
    tick: Tick, queue: QueueServer, instance: dg.DagsterInstance
) -> None:
    queue.notify(BUCKET, "calls/a.wav")
    first = requests(tick())
    launch(instance, first, dg.DagsterRunStatus.NOT_STARTED)
    assert requests(tick()) == first


def test_many_events_of_one_prefix_are_one_run(tick: Tick, queue: QueueServer) -> None:
    for number in range(250):
        queue.notify(BUCKET, f"calls/{number}.wav")
    queue.notify(BUCKET, "at-the-root.wav")
    assert sorted(requests(tick())) == ["_root_", "calls"]
    assert queue.left() == 0


def test_deletions_lead_to_a_run_too(tick: Tick, queue: QueueServer) -> None:
    queue.notify(BUCKET, "calls/a.wav", action="DeleteObject")
    queue.notify(BUCKET, "lectures/a.wav", action="LifecycleDeletion")
    assert sorted(requests(tick())) == ["calls", "lectures"]


def test_events_of_files_that_are_not_audio_are_taken_off_the_queue_and_forgotten(
    tick: Tick, queue: QueueServer
) -> None:
    queue.notify(BUCKET, "calls/readme.txt")
    assert isinstance(tick(), dg.SkipReason)
    assert queue.left() == 0


def test_events_of_objects_that_are_left_out_ask_for_nothing(
    tick: Tick, queue: QueueServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUDIO_ASSETS_EXCLUDE", "drafts/*")
    queue.notify(BUCKET, "drafts/a.wav")
    queue.notify(BUCKET, "calls/a.wav")
    assert list(requests(tick())) == ["calls"]
    assert queue.left() == 0


def test_an_acknowledgement_that_is_lost_makes_the_event_come_again_and_changes_nothing(
    tick: Tick, queue: QueueServer, instance: dg.DagsterInstance
) -> None:
    queue.notify(BUCKET, "calls/a.wav")
    original = queue.ack
    queue.ack = lambda request: {"ackCount": 0, "retryCount": 0, "warnings": []}  # type: ignore[method-assign]
    launch(instance, requests(tick()))
    queue.ack = original  # type: ignore[method-assign]
    assert queue.left() == 1
    queue.pass_time(31)
    assert isinstance(tick(), dg.SkipReason), "the event was handled: its coming again asks for nothing"
    assert queue.left() == 0


def test_a_refused_acknowledgement_does_not_keep_the_run_waiting(tick: Tick, queue: QueueServer) -> None:
    queue.notify(BUCKET, "calls/a.wav")
    pull = queue.pull

    def then_fail(request: dict[str, object]) -> dict[str, object]:
        queue.faults = [503]
        return pull(request)

    queue.pull = then_fail  # type: ignore[method-assign]
    assert list(requests(tick())) == ["calls"]
    assert queue.left() == 1


def test_the_same_event_sent_twice_asks_once(tick: Tick, queue: QueueServer, instance: dg.DagsterInstance) -> None:
    queue.notify(BUCKET, "calls/a.wav", eventTime="2026-11-24T10:00:00.000Z")
    launch(instance, requests(tick()))
    queue.notify(BUCKET, "calls/a.wav", eventTime="2026-11-24T10:00:00.000Z")
    assert isinstance(tick(), dg.SkipReason)


def test_an_object_overwritten_again_and_again_is_a_change_each_time(
    tick: Tick, queue: QueueServer, instance: dg.DagsterInstance
) -> None:
    keys = []
    for etag in ("1" * 32, "2" * 32, "1" * 32):
        queue.notify(BUCKET, "calls/a.wav", etag=etag, eventTime=f"2026-11-24T10:00:0{len(keys)}.000Z")
        asked = requests(tick())
        launch(instance, asked)
        keys.append(asked["calls"])
    assert len(set(keys)) == 3


def test_while_a_prefix_is_worked_on_its_events_wait_for_one_run_after_it(
    tick: Tick, queue: QueueServer, instance: dg.DagsterInstance
) -> None:
    queue.notify(BUCKET, "calls/a.wav")
    first = requests(tick())
    launch(instance, first, dg.DagsterRunStatus.STARTED)
    for number in range(3):
        queue.notify(BUCKET, f"calls/more-{number}.wav")
        result = tick()
        assert isinstance(result, dg.SkipReason) and "1 prefixes wait" in str(result.skip_message)
    [run] = instance.get_runs()
    instance.delete_run(run.run_id)
    launch(instance, first)
    later = requests(tick())
    assert list(later) == ["calls"] and later != first


def test_a_tick_is_capped_and_the_next_one_carries_on(
    tick: Tick, queue: QueueServer, instance: dg.DagsterInstance
) -> None:
    for number in range(MAX_RUN_REQUESTS + 20):
        queue.notify(BUCKET, f"p{number:03}/a.wav")
    first = requests(tick())
    launch(instance, first)
    second = requests(tick())
    assert (len(first), len(second)) == (MAX_RUN_REQUESTS, 20)
    assert not first.keys() & second.keys()


def test_malformed_messages_are_set_aside_with_their_reason_and_hold_nothing_up(
    tick: Tick, queue: QueueServer, home: Home
) -> None:
    queue.send("{not json")
    queue.send("plain words", content_type="text")
    queue.notify("another-bucket", "calls/a.wav")
    queue.notify(BUCKET, "calls/a.wav", account="somebody-else")
    queue.notify(BUCKET, "calls/a.wav", action="RestoreObject")
    queue.notify(BUCKET, "calls/b.wav")
    assert list(requests(tick())) == ["calls"]
    assert queue.left() == 0
    inbox = EventInbox(home.sensors)
    assert inbox.malformed_count() == 5
    lines = [json.loads(line) for line in inbox.malformed_file.read_text(encoding="utf-8").splitlines()]
    assert [line["reason"].split(",")[0] for line in lines] == [
        "not JSON",
        "neither JSON nor JSON in base64",
        "of another bucket",
        "of another account",
        "unknown action 'RestoreObject'",
    ]
    assert all(line["id"] and line["body"] for line in lines)


def test_a_malformed_message_that_comes_again_is_counted_once(tick: Tick, queue: QueueServer, home: Home) -> None:
    queue.send("{not json")
    queue.ack = lambda request: {"ackCount": 0, "retryCount": 0, "warnings": []}  # type: ignore[method-assign]
    tick()
    queue.pass_time(31)
    tick()
    assert EventInbox(home.sensors).malformed_count() == 1


def test_without_a_queue_the_sensor_says_so_and_does_nothing(tick: Tick, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("R2_EVENTS_QUEUE_ID")
    result = tick()
    assert isinstance(result, dg.SkipReason) and "R2_EVENTS_QUEUE_ID is not set" in str(result.skip_message)


def test_a_token_that_is_refused_fails_the_tick_and_names_the_setting(
    tick: Tick, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "wrong-token")
    with pytest.raises(Exception, match="CLOUDFLARE_API_TOKEN is not accepted") as refused:
        tick()
    assert "wrong-token" not in str(refused.value) and TOKEN not in str(refused.value)


def test_a_queue_that_is_down_does_not_hold_up_what_is_in_the_inbox(tick: Tick, queue: QueueServer) -> None:
    queue.notify(BUCKET, "calls/a.wav")
    first = requests(tick())
    queue.faults = [503]
    assert requests(tick()) == first


def test_what_was_done_is_remembered_for_as_long_as_a_queue_keeps_messages(tmp_path: Path) -> None:
    inbox = EventInbox(tmp_path)
    inbox.store([("event", "calls/")], now=0.0)
    inbox.done([wish.run_key for wish in inbox.ask(1, lambda prefix: False)], now=1.0)
    inbox.forget_old(now=REMEMBERED_S)
    assert inbox.store([("event", "calls/")], now=2.0) == 0
    inbox.forget_old(now=REMEMBERED_S + 2)
    assert inbox.store([("event", "calls/")], now=3.0) == 1


KILL_POINTS = ["events:malformed-written", "events:pulled", "events:stored", "events:acknowledged", "events:asked"]
DRIVER = """
import os, sys, time, json
import dagster as dg
from audio_assets.automation import r2_event_sensor
from audio_assets.resources.event_queue import EventQueueResource
from audio_assets.resources.home import HomeResource
from audio_assets.resources.r2 import R2Resource

def tick():
    with dg.instance_for_test() as instance:
        return r2_event_sensor(
            dg.build_sensor_context(instance=instance), event_queue=EventQueueResource(visibility_timeout_s=0.3),
            r2=R2Resource(), home=HomeResource(),
        )

for point in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        os.environ["AUDIO_ASSETS_CRASH_AT"] = point
        tick()
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), f"not killed at {point}"
    time.sleep(0.4)  # until what the killed tick had leased comes again
print(json.dumps([r.partition_key for r in tick().run_requests]))
"""


def test_a_tick_that_is_killed_at_any_point_loses_nothing_and_doubles_nothing(queue: QueueServer, home: Home) -> None:
    for number in range(5):
        queue.notify(BUCKET, f"p{number}/a.wav")
    queue.send("{not json")
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *KILL_POINTS], env=os.environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(done.stdout.splitlines()[-1])) == [f"p{n}" for n in range(5)]
    assert queue.left() == 0
    assert EventInbox(home.sensors).malformed_count() == 1


def test_doctor_tells_of_malformed_messages(tick: Tick, queue: QueueServer) -> None:
    queue.send("{not json")
    tick()
    [finding] = [f for f in diagnose() if f.subject == "events"]
    assert (finding.state, finding.text[:10]) == ("note", "1 messages")
