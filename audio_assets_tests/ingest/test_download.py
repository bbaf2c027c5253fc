from __future__ import annotations

import hashlib
import os
from datetime import datetime, timezone
from typing import Any

import pytest

from audio_assets.errors import FileFailed, SettingsError
from audio_assets.ingest import download as download_module
from audio_assets.ingest.download import ObjectGone, download
from audio_assets.ingest.get_object import Answer, get_object
from audio_assets.ingest.listing import RemoteObject, list_objects
from audio_assets.ingest.mirror import STATE_DIRECTORY, Mirror, ObjectState
from audio_assets_tests.ingest.conftest import Bucket, plain_client
from audio_assets_tests.ingest.faulty import FaultyServer

KEY = "calls/a.wav"
CONTENT = bytes(range(256)) * 1500


@pytest.fixture(params=["in memory", "in its file"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How an object of `CONTENT`'s size is received; what comes of it is the same."""
    assert len(CONTENT) <= download_module._WHOLE_BYTES
    if request.param == "in its file":
        monkeypatch.setattr(download_module, "_WHOLE_BYTES", 0)
    return str(request.param)


def listed(server: FaultyServer, key: str = KEY) -> RemoteObject:
    return RemoteObject(key, server.etags[key], len(server.objects[key]), datetime(2026, 1, 2, tzinfo=timezone.utc))


def fetch(client: Any, found: RemoteObject, mirror: Mirror) -> ObjectState:
    return download(client, "b", found, mirror, first_wait_s=0.001)


def assert_nothing_stored(mirror: Mirror) -> None:
    assert list(mirror.files()) == []
    assert mirror.state(KEY) is None
    assert not list(mirror.root.rglob("*.part"))


def test_bytes_hash_headers_and_metadata_arrive(bucket: Bucket, mirror: Mirror) -> None:
    etag = bucket.put(KEY, CONTENT, ContentType="audio/x-wav", Metadata={"speaker": "seven", "site": "north"})
    (found,) = list_objects(bucket.client, bucket.name)
    state = download(bucket.client, bucket.name, found, mirror)
    assert mirror.path_for(KEY).read_bytes() == CONTENT
    assert state == mirror.state(KEY)
    assert (state.etag, state.size_bytes) == (etag, len(CONTENT))
    assert state.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert state.content_type == "audio/x-wav"
    assert state.metadata == {"speaker": "seven", "site": "north"}
    assert state.last_modified == found.last_modified
    assert mirror.holds(found)


@pytest.mark.parametrize(
    "faults",
    [
        [500, 500],
        [503],
        [429],
        ["reset"],
        ["short"],
        ["short without length"],
        ["corrupt"],
        ["overlong"],
        [500, "short", "reset", "corrupt"],
    ],
    ids=str,
)
def test_a_passing_fault_is_got_over(
    faulty: FaultyServer, faulty_client: Any, mirror: Mirror, faults: list[int | str]
) -> None:
    faulty.put(KEY, CONTENT)
    faulty.faults[KEY] = list(faults)
    state = fetch(faulty_client, listed(faulty), mirror)
    assert mirror.path_for(KEY).read_bytes() == CONTENT
    assert state.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert faulty.gets(KEY) == len(faults) + 1


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (500, "InternalError"),
        ("reset", "download failed 5 times"),
        ("corrupt", "the bytes have MD5"),
    ],
)
def test_a_lasting_fault_is_given_up_and_leaves_nothing(
    faulty: FaultyServer, faulty_client: Any, mirror: Mirror, fault: int | str, reason: str
) -> None:
    faulty.put(KEY, CONTENT)
    faulty.faults[KEY] = [fault] * 100
    with pytest.raises(FileFailed, match=reason) as raised:
        fetch(faulty_client, listed(faulty), mirror)
    assert raised.value.status == "failed"
    assert "\n" not in str(raised.value)
    assert faulty.gets(KEY) == 5
    assert_nothing_stored(mirror)


@pytest.mark.parametrize("fault", ["short", "short without length"])
def test_the_next_try_asks_for_the_rest_only(
    faulty: FaultyServer, faulty_client: Any, mirror: Mirror, fault: str
) -> None:
    faulty.put(KEY, CONTENT)
    faulty.faults[KEY] = [fault, fault]
    state = fetch(faulty_client, listed(faulty), mirror)
    half = len(CONTENT) // 2
    assert faulty.starts == [(KEY, 0), (KEY, half), (KEY, half + half // 2)]
    assert mirror.path_for(KEY).read_bytes() == CONTENT
    assert state.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert not list(mirror.root.rglob("*.part"))


def test_the_next_run_goes_on_where_the_last_one_gave_up(
    faulty: FaultyServer, faulty_client: Any, mirror: Mirror
) -> None:
    faulty.put(KEY, CONTENT)
    faulty.faults[KEY] = ["short"]
    with pytest.raises(FileFailed, match="download failed 1 times"):
        download(faulty_client, "b", listed(faulty), mirror, attempts=1)
    assert list(mirror.files()) == []
    fetch(faulty_client, listed(faulty), Mirror(mirror.root))
    assert faulty.starts == [(KEY, 0), (KEY, len(CONTENT) // 2)]
    assert mirror.path_for(KEY).read_bytes() == CONTENT


def test_the_real_server_sends_the_rest_too(bucket: Bucket, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put(KEY, CONTENT)
    (found,) = list_objects(bucket.client, bucket.name)
    with pytest.raises(RuntimeError), mirror.storing(KEY, f"{found.etag} {found.size_bytes}") as part:
        os.write(part.handle, CONTENT[:1000])
        raise RuntimeError
    sent: list[str] = []

    def asked(*arguments: Any) -> Answer:
        answer = get_object(*arguments)
        sent.append(answer.content_range)
        return answer

    monkeypatch.setattr("audio_assets.ingest.download.get_object", asked)
    download(bucket.client, bucket.name, found, mirror)
    assert sent == [f"bytes 1000-{len(CONTENT) - 1}/{len(CONTENT)}"]
    assert mirror.path_for(KEY).read_bytes() == CONTENT


def test_bytes_kept_from_a_broken_try_are_checked_with_the_rest(
    faulty: FaultyServer, faulty_client: Any, mirror: Mirror
) -> None:
    faulty.put(KEY, CONTENT)
    found = listed(faulty)
    with pytest.raises(RuntimeError), mirror.storing(KEY, f"{found.etag} {found.size_bytes}") as part:
        os.write(part.handle, b"rotten" * 100)
        raise RuntimeError
    fetch(faulty_client, found, mirror)
    assert faulty.starts == [(KEY, 600), (KEY, 0)]
    assert mirror.path_for(KEY).read_bytes() == CONTENT


def test_a_server_that_sends_everything_instead_of_the_rest_is_understood(
    faulty: FaultyServer, faulty_client: Any, mirror: Mirror
) -> None:
    faulty.put(KEY, CONTENT)
    faulty.faults[KEY] = ["short", "no range"]
    fetch(faulty_client, listed(faulty), mirror)
    assert mirror.path_for(KEY).read_bytes() == CONTENT


@pytest.mark.parametrize("faults", [["other range"], ["short", "other range"]])
def test_another_piece_than_was_asked_for_is_not_taken_for_the_beginning(
    faulty: FaultyServer, faulty_client: Any, mirror: Mirror, faults: list[int | str]
) -> None:
    # The ETag of an upload in parts is no hash of the bytes: nothing else would notice.
    faulty.put(KEY, CONTENT, etag="0123456789abcdef0123456789abcdef-2")
    faulty.faults[KEY] = list(faults)
    fetch(faulty_client, listed(faulty), mirror)
    assert mirror.path_for(KEY).read_bytes() == CONTENT


def test_the_rest_of_an_overwritten_object_is_never_mixed_with_old_bytes(
    faulty: FaultyServer, faulty_client: Any, mirror: Mirror
) -> None:
    faulty.put(KEY, CONTENT)
    found = listed(faulty)
    faulty.faults[KEY] = ["short"]
    with pytest.raises(FileFailed):
        download(faulty_client, "b", found, mirror, attempts=1)
    new = CONTENT[::-1] + b"new"
    faulty.put(KEY, new)
    state = fetch(faulty_client, found, mirror)
    assert mirror.path_for(KEY).read_bytes() == new
    assert (state.etag, state.sha256) == (hashlib.md5(new).hexdigest(), hashlib.sha256(new).hexdigest())
    assert not list(mirror.root.rglob("*.part"))


def test_a_trickle_ends_with_the_deadline_of_the_object(
    faulty: FaultyServer, faulty_client: Any, mirror: Mirror
) -> None:
    faulty.put(KEY, CONTENT)
    faulty.faults[KEY] = ["trickle"] * 100
    with pytest.raises(FileFailed, match=r"not downloaded within 0 s: .* the next run goes on there"):
        download(faulty_client, "b", listed(faulty), mirror, deadline_s=0.2)
    assert faulty.gets(KEY) == 1


def test_a_file_has_the_time_of_its_object(bucket: Bucket, mirror: Mirror) -> None:
    bucket.put(KEY, CONTENT)
    (found,) = list_objects(bucket.client, bucket.name)
    download(bucket.client, bucket.name, found, mirror)
    assert found.last_modified is not None
    assert mirror.path_for(KEY).stat().st_mtime == pytest.approx(found.last_modified.timestamp())


def test_a_failed_refresh_keeps_the_old_file(faulty: FaultyServer, faulty_client: Any, mirror: Mirror) -> None:
    faulty.put(KEY, b"old")
    fetch(faulty_client, listed(faulty), mirror)
    faulty.put(KEY, b"new")
    faulty.faults[KEY] = [500] * 100
    with pytest.raises(FileFailed):
        fetch(faulty_client, listed(faulty), mirror)
    assert mirror.path_for(KEY).read_bytes() == b"old"
    assert mirror.state(KEY).etag == hashlib.md5(b"old").hexdigest()  # type: ignore[union-attr]


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_stop_everything_at_once(
    faulty: FaultyServer, faulty_client: Any, mirror: Mirror, status: int
) -> None:
    faulty.put(KEY, CONTENT)
    faulty.faults[KEY] = [status]
    with pytest.raises(SettingsError, match="R2_ACCESS_KEY_ID"):
        fetch(faulty_client, listed(faulty), mirror)
    assert faulty.gets(KEY) == 1
    assert_nothing_stored(mirror)


def test_a_clock_that_is_off_stops_everything_at_once_and_is_named(
    faulty: FaultyServer, faulty_client: Any, mirror: Mirror
) -> None:
    faulty.put(KEY, CONTENT)
    faulty.faults[KEY] = ["clock"] * 10
    with pytest.raises(SettingsError, match="the clock of this machine is too far"):
        fetch(faulty_client, listed(faulty), mirror)
    assert faulty.gets(KEY) == 1
    assert_nothing_stored(mirror)


def test_an_etag_that_is_no_md5_is_not_compared(faulty: FaultyServer, faulty_client: Any, mirror: Mirror) -> None:
    faulty.put(KEY, CONTENT, etag="9b2cf535f27731c974343645a3985328-3")
    assert fetch(faulty_client, listed(faulty), mirror).etag == "9b2cf535f27731c974343645a3985328-3"


def test_a_weak_etag_is_that_of_the_same_object(faulty: FaultyServer, faulty_client: Any, mirror: Mirror) -> None:
    faulty.put(KEY, CONTENT)
    faulty.faults[KEY] = ["weak"]
    assert fetch(faulty_client, listed(faulty), mirror).etag == faulty.etags[KEY]
    assert faulty.requests == [("GET", KEY)]


def test_an_object_overwritten_after_the_listing_is_taken_as_it_is_now(bucket: Bucket, mirror: Mirror) -> None:
    bucket.put(KEY, b"as listed")
    (found,) = list_objects(bucket.client, bucket.name)
    etag = bucket.put(KEY, b"overwritten since")
    state = download(bucket.client, bucket.name, found, mirror)
    assert (state.etag, state.size_bytes) == (etag, len(b"overwritten since"))
    assert mirror.path_for(KEY).read_bytes() == b"overwritten since"


@pytest.mark.parametrize(
    ("headers", "what"),
    [
        ({"ETag": None}, "does not say what it is now"),
        ({"Last-Modified": "yesterday"}, "cannot be looked up: Invalid timestamp"),
        ({"Last-Modified": None}, None),
    ],
    ids=["no etag", "no time", "time missing"],
)
def test_an_overwritten_object_of_which_the_bucket_says_too_little_costs_no_other_file(
    faulty: FaultyServer, faulty_client: Any, mirror: Mirror, headers: dict[str, str | None], what: str | None
) -> None:
    faulty.put(KEY, CONTENT)
    found = listed(faulty)
    faulty.put(KEY, CONTENT + b"more")
    faulty.headers = headers
    if what is None:
        state = fetch(faulty_client, found, mirror)
        assert (state.size_bytes, state.last_modified) == (len(CONTENT) + 4, None)
        return
    with pytest.raises(FileFailed, match=what):
        fetch(faulty_client, found, mirror)


def test_an_object_deleted_after_the_listing_is_gone(bucket: Bucket, mirror: Mirror) -> None:
    bucket.put(KEY, b"as listed")
    (found,) = list_objects(bucket.client, bucket.name)
    bucket.delete(KEY)
    with pytest.raises(ObjectGone):
        download(bucket.client, bucket.name, found, mirror)
    assert_nothing_stored(mirror)


def test_an_object_that_keeps_changing_is_left_for_the_next_run(
    faulty: FaultyServer, faulty_client: Any, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty.put(KEY, CONTENT)
    found = listed(faulty)

    def overwritten(*arguments: Any) -> Answer:
        faulty.put(KEY, faulty.objects[KEY] + b"more")
        return get_object(*arguments)

    monkeypatch.setattr("audio_assets.ingest.download.get_object", overwritten)
    with pytest.raises(FileFailed, match="keeps changing"):
        fetch(faulty_client, found, mirror)
    assert faulty.requests == [("GET", KEY), ("HEAD", KEY), ("GET", KEY)]
    assert_nothing_stored(mirror)


def test_a_bucket_deleted_meanwhile_stops_everything(odd_server: str, mirror: Mirror) -> None:
    client = plain_client(odd_server)
    with pytest.raises(SettingsError, match="R2_BUCKET 'not-there' does not exist"):
        download(client, "not-there", RemoteObject(KEY, "0" * 32, 1, None), mirror)
    client.close()


def test_keys_like_those_of_the_mirrors_own_files_do_it_no_harm(bucket: Bucket, mirror: Mirror) -> None:
    key = f"{STATE_DIRECTORY}/objects/a.wav"
    bucket.put(key, b"x")
    (found,) = list_objects(bucket.client, bucket.name)
    download(bucket.client, bucket.name, found, mirror)
    assert list(mirror.files()) == [key]
    assert mirror.holds(found)
