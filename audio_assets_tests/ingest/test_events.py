"""What a queue message says, and which messages are no events of our bucket."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audio_assets.ingest.event_inbox import EventInbox
from audio_assets.ingest.events import CREATING, DELETING, MalformedEvent, parse_event
from audio_assets.resources.event_queue import _message

EVENT: dict[str, Any] = {
    "account": "abc",
    "action": "PutObject",
    "bucket": "recordings",
    "object": {"key": "calls/a.wav", "size": 65536, "eTag": "c846ff7a18f28c2e262116d6e8719ef0"},
    "eventTime": "2026-11-24T19:36:44.379Z",
}


def parse(event: object, **changes: Any) -> Any:
    body = json.dumps({**EVENT, **changes} if event is EVENT else event)
    return parse_event(base64.b64encode(body.encode()).decode(), "abc", "recordings")


def test_an_event_says_what_happened_to_which_object() -> None:
    event = parse(EVENT)
    assert (event.action, event.key, event.size_bytes) == ("PutObject", "calls/a.wav", 65536)
    assert event.etag == "c846ff7a18f28c2e262116d6e8719ef0"
    assert event.is_audio and not event.is_deletion


@pytest.mark.parametrize("action", CREATING + DELETING)
def test_every_documented_action_is_known(action: str) -> None:
    assert parse(EVENT, action=action, object={"key": "a.wav"}).is_deletion == (action in DELETING)


def test_a_body_may_be_json_as_it_is() -> None:
    assert parse_event(json.dumps(EVENT), "abc", "recordings") == parse(EVENT)


def test_the_same_event_told_twice_has_one_id_whatever_the_order_of_its_members() -> None:
    backwards = dict(reversed(EVENT.items()))
    assert parse(EVENT).id == parse(backwards).id
    assert parse(EVENT).id != parse(EVENT, eventTime="2026-11-24T19:36:44.380Z").id


def test_keys_of_every_script_and_form_come_through() -> None:
    for key in ("Gespräche/a.wav", "通话/录音.mp3", "a b/ c.wav", "x/\x00.wav", "/a.wav", "100%.wav"):
        assert parse(EVENT, object={"key": key}).key == key


def test_an_event_that_is_nested_too_deeply_is_malformed_and_set_aside_without_its_body(tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    body = {**EVENT, "extra": deep}
    with pytest.raises(MalformedEvent, match="nested too deeply"):
        parse_event(body, "abc", "recordings")
    inbox = EventInbox(tmp_path)
    assert inbox.set_aside([{"id": "m", "reason": "nested", "attempts": 1, "body": body}], 0.0) == 1
    assert json.loads(inbox.malformed_file.read_text(encoding="utf-8"))["body"] is None


def test_a_message_is_named_in_whole_characters_whatever_the_queue_says() -> None:
    assert _message({"id": "a\ud800", "lease_id": "l", "body": ""}).id == "a\\ud800"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"account": "other"}, "another account, 'other'"),
        ({"bucket": "other"}, "another bucket, 'other'"),
        ({"bucket": None}, "another bucket"),
        ({"action": "RenameObject"}, "unknown action 'RenameObject'"),
        ({"action": ["PutObject"]}, "unknown action"),
        ({"object": None}, "names no object"),
        ({"object": {"key": 7}}, "names no key"),
        ({"object": {"key": ""}}, "names no key"),
        ({"object": {"key": "a\ud800.wav"}}, "not Unicode"),
        ({"object": {"key": "a" * 1025}}, "1025 bytes"),
    ],
)
def test_what_is_no_event_of_ours_says_why(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(MalformedEvent, match=reason):
        parse(EVENT, **changes)


@pytest.mark.parametrize(
    "body", [None, 7, "", "%%%", "e30", "{", "{" + '"a":[' * 50_000, "bm90IGpzb24=", "W10=", "/w=="]
)
def test_bodies_that_are_no_json_object_are_malformed(body: object) -> None:
    with pytest.raises(MalformedEvent):
        parse_event(body, "abc", "recordings")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(list(EVENT)), inner),
)


@given(st.text() | JSON.map(json.dumps) | st.dictionaries(st.sampled_from(list(EVENT)), JSON).map(json.dumps))
def test_no_body_whatever_does_anything_but_parse_or_be_malformed(body: str) -> None:
    try:
        parse_event(body, "abc", "recordings")
    except MalformedEvent as error:
        assert str(error)
