"""Cloudflare Queues, pulled from a loopback server that speaks their contract."""

from collections.abc import Iterator

import pytest

from audio_assets.errors import SettingsError
from audio_assets.resources.event_queue import EventQueueError, EventQueueResource
from audio_assets_tests.queue_server import ACCOUNT, QUEUE, TOKEN, QueueServer


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Iterator[QueueServer]:
    with QueueServer() as server:
        for name, value in server.settings.items():
            monkeypatch.setenv(name, value)
        yield server


def test_a_pulled_message_is_leased_until_it_is_acknowledged(queue: QueueServer) -> None:
    sent = queue.notify("b", "calls/a.wav")
    resource = EventQueueResource()
    [message] = resource.pull()
    assert (message.id, message.attempts) == (sent, 1)
    assert resource.pull() == []
    resource.acknowledge([message.lease_id])
    assert queue.acknowledged == [sent]


def test_a_message_that_was_not_acknowledged_comes_again(queue: QueueServer) -> None:
    queue.notify("b", "calls/a.wav")
    resource = EventQueueResource(visibility_timeout_s=30)
    [first] = resource.pull()
    queue.pass_time(31)
    [again] = resource.pull()
    assert (again.id, again.attempts) == (first.id, 2)
    assert again.lease_id != first.lease_id
    resource.acknowledge([first.lease_id])
    assert queue.left() == 1, "a lease that has ended acknowledges nothing"


def test_a_batch_has_at_most_a_hundred_messages_and_so_has_an_acknowledgement(queue: QueueServer) -> None:
    for number in range(130):
        queue.notify("b", f"calls/{number}.wav")
    resource = EventQueueResource()
    batches = [resource.pull(), resource.pull()]
    assert list(map(len, batches)) == [100, 30]
    resource.acknowledge([m.lease_id for batch in batches for m in batch])
    assert queue.left() == 0


@pytest.mark.parametrize(
    ("status", "named"),
    [
        (401, "CLOUDFLARE_API_TOKEN is not accepted"),
        (403, "CLOUDFLARE_API_TOKEN may not"),
        (404, "R2_EVENTS_QUEUE_ID fedcba"),
        (400, "R2_EVENTS_QUEUE_ID .*HTTP pull consumer"),
        ("redirect", "CLOUDFLARE_BASE_URL"),
        ("html", "CLOUDFLARE_BASE_URL"),
    ],
)
def test_a_refusal_is_one_line_that_names_the_setting(queue: QueueServer, status: int | str, named: str) -> None:
    queue.faults = [status]
    with pytest.raises(SettingsError, match=named) as refused:
        EventQueueResource().pull()
    assert "\n" not in str(refused.value)
    assert TOKEN not in str(refused.value)
    assert len(queue.requests) == 1, "neither tried again nor sent elsewhere"


def test_a_wrong_token_and_a_wrong_queue_are_told_apart(queue: QueueServer) -> None:
    with pytest.raises(SettingsError, match=r"CLOUDFLARE_API_TOKEN is not accepted .*Authentication error"):
        EventQueueResource(api_token="wrong").pull()
    with pytest.raises(SettingsError, match=r"R2_EVENTS_QUEUE_ID other is not there .*Queue does not exist"):
        EventQueueResource(queue_id="other").pull()


@pytest.mark.parametrize("fault", [429, 500, 503, "lost answer", "hang", "trickle"])
def test_a_queue_in_trouble_is_tried_again_by_the_next_tick(queue: QueueServer, fault: int | str) -> None:
    queue.notify("b", "calls/a.wav")
    queue.faults = [fault]
    resource = EventQueueResource(timeout_s=0.5, visibility_timeout_s=30)
    with pytest.raises(EventQueueError, match="the next tick tries again"):
        resource.pull()
    queue.pass_time(31)
    assert len(EventQueueResource(visibility_timeout_s=30).pull()) == 1


def test_nobody_listening_is_one_line() -> None:
    resource = EventQueueResource(queue_id=QUEUE, account_id=ACCOUNT, api_token=TOKEN, base_url="http://127.0.0.1:9")
    with pytest.raises(EventQueueError, match="no connection") as refused:
        resource.pull()
    assert TOKEN not in str(refused.value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("R2_EVENTS_QUEUE_ID", "../../user"),
        ("R2_ACCOUNT_ID", "a/b"),
        ("CLOUDFLARE_API_TOKEN", "two words"),
        ("CLOUDFLARE_BASE_URL", "http://api.cloudflare.com/client/v4"),
        ("CLOUDFLARE_BASE_URL", "nowhere"),
        ("CLOUDFLARE_BASE_URL", "http://127.0.0.1@example.com/"),
    ],
)
def test_a_setting_that_cannot_be_right_is_named_and_nothing_is_sent(
    queue: QueueServer, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=f"^{variable}"):
        EventQueueResource().pull()
    assert queue.requests == []


@pytest.mark.parametrize("variable", ["R2_EVENTS_QUEUE_ID", "R2_ACCOUNT_ID", "CLOUDFLARE_API_TOKEN"])
def test_a_missing_setting_is_named(queue: QueueServer, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.delenv(variable)
    with pytest.raises(SettingsError, match=f"^{variable} is not set"):
        EventQueueResource().pull()


def test_the_token_is_not_in_the_resources_repr() -> None:
    resource = EventQueueResource(api_token=TOKEN)
    assert TOKEN not in repr(resource) + str(resource) + str(resource.model_dump())
