from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from audio_assets.errors import SettingsError
from audio_assets.ingest.listing import (
    PrefixListing,
    RemoteObject,
    discover_prefixes,
    holds_any,
    is_audio,
    list_objects,
    list_prefix,
)
from audio_assets.ingest.pages import Page
from audio_assets.ingest.remote_errors import settings_error
from audio_assets_tests.ingest.conftest import Bucket, plain_client
from audio_assets_tests.ingest.faulty import FaultyServer


@pytest.mark.parametrize(
    "key", ["a.wav", "a.MP3", "x/a.b.Flac", "a.m4a", "a.ogg", "a.opus", "a.webm", "a.aac", "a.mp4"]
)
def test_audio_is_told_by_extension_in_any_case(key: str) -> None:
    assert is_audio(key)


@pytest.mark.parametrize(
    "key", ["", "wav", "a.txt", "a.wav.txt", "a.wav/", "folder/", "a.mp3.gz", "a\0b.wav", "a\0/b.wav"]
)
def test_other_keys_are_not_audio(key: str) -> None:
    assert not is_audio(key)


def test_a_listing_tells_key_etag_size_and_time_of_audio_only(bucket: Bucket) -> None:
    etag = bucket.put("calls/a.wav", b"12345")
    bucket.put("calls/notes.txt", b"x")
    bucket.put("calls/", b"")
    (found,) = list_objects(bucket.client, bucket.name)
    assert (found.key, found.etag, found.size_bytes) == ("calls/a.wav", etag, 5)
    assert found.last_modified is not None
    assert found.last_modified.utcoffset() is not None


def test_a_listing_goes_on_over_all_pages(bucket: Bucket) -> None:
    keys = [f"a/{i}.wav" for i in range(7)]
    for key in keys:
        bucket.put(key, b"x")

    def two_a_page(params: dict[str, Any], **_: Any) -> None:
        params["MaxKeys"] = 2

    bucket.client.meta.events.register("provide-client-params.s3.ListObjectsV2", two_a_page)
    assert [found.key for found in list_objects(bucket.client, bucket.name)] == keys


def test_a_prefix_is_any_string(bucket: Bucket) -> None:
    for key in ("calls/1.wav", "calls/2.wav", "callsigns.wav", "other.wav"):
        bucket.put(key, b"x")
    assert [o.key for o in list_objects(bucket.client, bucket.name, "call")] == [
        "calls/1.wav",
        "calls/2.wav",
        "callsigns.wav",
    ]
    assert [o.key for o in list_objects(bucket.client, bucket.name, "calls/1")] == ["calls/1.wav"]


KEYS = ["a.wav", "calls/b.wav", "calls/2024/c.wav", "calls/2024/01/d.wav", "talks/e.wav"]


@pytest.mark.parametrize(
    ("depth", "partitions"),
    [
        (0, {"": KEYS}),
        (
            1,
            {
                "": ["a.wav"],
                "calls/": ["calls/2024/01/d.wav", "calls/2024/c.wav", "calls/b.wav"],
                "talks/": ["talks/e.wav"],
            },
        ),
        (
            2,
            {
                "": ["a.wav"],
                "calls/": ["calls/b.wav"],
                "calls/2024/": ["calls/2024/01/d.wav", "calls/2024/c.wav"],
                "talks/": ["talks/e.wav"],
            },
        ),
    ],
)
def test_partitions_share_out_the_bucket(bucket: Bucket, depth: int, partitions: dict[str, list[str]]) -> None:
    for key in KEYS:
        bucket.put(key, b"xy")
    found = discover_prefixes(list_objects(bucket.client, bucket.name), depth)
    assert {p.prefix: p.object_count for p in found} == {prefix: len(keys) for prefix, keys in partitions.items()}
    for prefix, keys in partitions.items():
        assert [o.key for o in list_prefix(bucket.client, bucket.name, prefix, depth)] == sorted(keys)


def test_prefixes_are_sorted_and_counted() -> None:
    objects = [RemoteObject(key, "e", size, None) for key, size in (("b/1.wav", 5), ("a.wav", 1), ("b/x/2.wav", 7))]
    assert discover_prefixes(objects, 1) == [PrefixListing("", "_root_", 1, 1), PrefixListing("b/", "b", 2, 12)]
    assert discover_prefixes([], 1) == []


def test_nfc_and_nfd_spellings_of_a_folder_are_one_partition(odd_server: str) -> None:
    client = plain_client(odd_server)
    client.create_bucket(Bucket="spellings")
    keys = ["Zo\u00eb/a.wav", "Zoe\u0308/b.wav"]
    for key in keys:
        client.put_object(Bucket="spellings", Key=key, Body=b"x")
    (prefix,) = discover_prefixes(list_objects(client, "spellings"), 1)
    assert prefix.prefix == "Zo\u00eb/"
    assert sorted(o.key for o in list_prefix(client, "spellings", prefix.prefix, 1)) == sorted(keys)
    client.close()


def test_folders_are_found_however_their_names_are_spelled(odd_server: str) -> None:
    """NFC takes some letters apart, which keyboards write as one; and folders came from different machines."""
    client = plain_client(odd_server)
    client.create_bucket(Bucket="letters")
    keys = [
        "\u09a2\u09be-\u09dc/a.wav",
        "\u0915\u093f-\u0958/b.wav",
        "Zo\u00eb/Zoe\u0308/c.wav",
        "Zoe\u0308/Zo\u00eb/d.wav",
    ]
    for key in keys:
        client.put_object(Bucket="letters", Key=key, Body=b"x")
    prefixes = discover_prefixes(list_objects(client, "letters"), 2)
    assert len(prefixes) == 3
    found = [o.key for p in prefixes for o in list_prefix(client, "letters", p.prefix, 2)]
    assert sorted(found) == sorted(keys)
    client.close()


def test_whether_a_prefix_holds_what_is_wanted_is_told_for_any_string(bucket: Bucket) -> None:
    bucket.put("a/notes.txt", b"x")
    bucket.put("a/Zo\u00eb.wav", b"x")
    prefixes = ["", "a", "a/", "a/Zo\u00eb", "a/notes", "b", "/"]
    assert [p for p in prefixes if holds_any(bucket.client, bucket.name, p)] == ["", "a", "a/", "a/Zo\u00eb"]
    assert not holds_any(bucket.client, bucket.name, "a/", lambda key: False)


def test_a_key_that_two_pages_repeat_is_listed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def pages(*_: Any, **__: Any) -> Iterator[Page]:
        for keys in (["calls/1.wav", "calls/2.wav"], ["calls/2.wav", "calls/3.wav"]):
            yield Page(keys, ["e"] * 2, [1] * 2, ["2026-01-02T03:04:05Z"] * 2, [], None)

    monkeypatch.setattr("audio_assets.ingest.listing.list_pages", pages)
    assert list_prefix(None, "b", "calls/", 1).keys == ["calls/1.wav", "calls/2.wav", "calls/3.wav"]


def test_a_missing_bucket_names_its_setting(bucket: Bucket) -> None:
    with pytest.raises(SettingsError, match="R2_BUCKET 'not-there' does not exist"):
        list(list_objects(bucket.client, "not-there"))


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (301, "PermanentRedirect", "must be addressed using the specified endpoint"),
        (307, "TemporaryRedirect", "re-send this request to the specified temporary endpoint"),
        (400, "AuthorizationHeaderMalformed", "the region 'auto' is wrong; expecting 'eu-west-1'"),
        (400, "IllegalLocationConstraintException", "incompatible for the region specific endpoint"),
    ],
)
def test_a_bucket_of_another_region_names_the_endpoint_and_not_the_key(status: int, code: str, message: str) -> None:
    told: Any = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    found = settings_error(ClientError(told, "ListObjectsV2"), bucket="b", endpoint="https://here")
    assert isinstance(found, SettingsError)
    assert f"R2_ENDPOINT_URL https://here is not where bucket 'b' is (HTTP {status} {code}: {message}" in str(found)


def test_an_endpoint_where_nothing_listens_names_its_setting() -> None:
    client = plain_client("http://127.0.0.1:9")
    with pytest.raises(SettingsError, match=r"R2_ENDPOINT_URL http://127\.0\.0\.1:9 cannot be reached"):
        list(list_objects(client, "b"))


def test_an_endpoint_that_is_no_s3_server_names_its_setting(faulty: FaultyServer, faulty_client: Any) -> None:
    faulty.listing = "<!doctype html><html><body><br>Welcome</html>"
    with pytest.raises(SettingsError, match=r"R2_ENDPOINT_URL .* does not answer like an S3 server"):
        list(list_objects(faulty_client, "b"))
