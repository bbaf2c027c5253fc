"""Pages of a listing: what boto3's own paginator says of the same bucket, whatever the keys are."""

from __future__ import annotations

import gc
import itertools
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from audio_assets.errors import AudioAssetsError, SettingsError
from audio_assets.ingest.listing import objects_of
from audio_assets.ingest.pages import Page, _uncollected, list_pages, parse_page
from audio_assets_tests.ingest.conftest import Bucket, plain_client
from audio_assets_tests.ingest.faulty import FaultyServer

KEYS = [
    "a b.wav",
    "a+b.wav",
    "a%2Bb.wav",
    "a%b.wav",
    "a&b;<c>\"'.wav",
    "tab\t.wav",
    "🎙/会議.wav",
    "Zoe\u0308.wav",
    "Zo\u00eb.wav",
    "x//y.wav",
    " lead.wav",
    "calls/",
]


@pytest.mark.parametrize("on", [True, False])
def test_the_garbage_collector_is_left_as_it_was_whatever_the_page(on: bool) -> None:
    was = gc.isenabled()
    incomplete = b"<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>"
    try:
        (gc.enable if on else gc.disable)()
        assert parse_page(b"<ListBucketResult/>") is not None
        with pytest.raises(AudioAssetsError):
            parse_page(incomplete)
        assert gc.isenabled() == on
    finally:
        (gc.enable if was else gc.disable)()


def test_the_garbage_collector_stays_out_until_the_last_of_two_pages_is_read() -> None:
    assert gc.isenabled()
    first, second = _uncollected(), _uncollected()
    with first:
        second.__enter__()
    try:
        assert not gc.isenabled()
    finally:
        second.__exit__(None, None, None)
    assert gc.isenabled()


def test_odd_keys_are_read_as_the_paginator_reads_them(odd_server: str) -> None:
    client = plain_client(odd_server)
    client.create_bucket(Bucket="odd-pages")
    for number, key in enumerate(KEYS):
        client.put_object(Bucket="odd-pages", Key=key, Body=b"x" * number)
    theirs = client.list_objects_v2(Bucket="odd-pages")["Contents"]
    (page,) = list_pages(client, "odd-pages")
    assert sorted(page.keys) == sorted(KEYS)
    assert list(zip(page.keys, page.etags, page.sizes, strict=True)) == [
        (entry["Key"], entry["ETag"].strip('"'), entry["Size"]) for entry in theirs
    ]
    client.close()


def test_the_real_server_is_read_as_the_paginator_reads_it(bucket: Bucket) -> None:
    keys = ["a b.wav", "a+b.wav", "a%2Bb.wav", "a&b.wav", "🎙/会議.wav", "x/y/z.wav"]
    for key in keys:
        bucket.put(key, b"x")
    bucket.client.meta.events.register(
        "provide-client-params.s3.ListObjectsV2", lambda params, **_: params.update(MaxKeys=2)
    )
    ours = list(list_pages(bucket.client, bucket.name))
    theirs = list(bucket.client.get_paginator("list_objects_v2").paginate(Bucket=bucket.name))
    assert len(ours) == len(theirs) == 3
    assert [k for page in ours for k in page.keys] == [e["Key"] for page in theirs for e in page["Contents"]]
    assert {k for page in ours for k in page.keys} == set(keys)


def test_a_delimiter_gives_folders(bucket: Bucket) -> None:
    for key in ("calls/1.wav", "talks/a b/2.wav", "root.wav"):
        bucket.put(key, b"x")
    (page,) = list_pages(bucket.client, bucket.name, delimiter="/")
    assert (page.keys, page.folders) == (["root.wav"], ["calls/", "talks/"])


def test_a_client_that_listed_pages_still_answers_others_with_dictionaries(bucket: Bucket) -> None:
    bucket.put("a.wav", b"x")
    inside, done = threading.Event(), threading.Event()

    def slow() -> None:
        for _ in list_pages(bucket.client, bucket.name):
            inside.set()
            done.wait(10)

    thread = threading.Thread(target=slow)
    thread.start()
    inside.wait(10)
    try:
        assert bucket.client.list_objects_v2(Bucket=bucket.name)["Contents"][0]["Key"] == "a.wav"
    finally:
        done.set()
        thread.join()


ENTRY = (
    "<Contents><Key>a</Key><ETag>e</ETag><Size>{}</Size><LastModified>2026-01-02T03:04:05Z</LastModified></Contents>"
)
PAGE = "<ListBucketResult><IsTruncated>{}</IsTruncated>{}</ListBucketResult>"


@pytest.mark.parametrize(
    ("listing", "reason"),
    [
        (PAGE.format("true", ""), "ended the listing half-way"),
        (PAGE.format("true", "<NextContinuationToken>same</NextContinuationToken>"), "goes in circles"),
        (PAGE.format("false", "<Contents><Key>a.wav</Key></Contents>"), "without key, ETag, size or time"),
        (PAGE.format("", ENTRY.format(1) * 1000), "ended the listing half-way"),
        (PAGE.format("perhaps", ENTRY.format(1)), "ended the listing half-way"),
        (PAGE.format("", "<NextContinuationToken>same</NextContinuationToken>"), "goes in circles"),
        (PAGE.format("false", ENTRY.format("409+")), "a size that is none"),
        (PAGE.format("false", ENTRY.format("-1")), "a size that is none"),
        (PAGE.format("false", ENTRY.format("9" * 30)), "a size that is none"),
    ],
)
def test_a_listing_that_is_not_whole_is_an_error_and_never_taken_for_all_there_is(
    faulty: FaultyServer, faulty_client: Any, listing: str, reason: str
) -> None:
    faulty.listing = listing
    with pytest.raises(AudioAssetsError, match=reason):
        list(list_pages(faulty_client, "b"))


@pytest.mark.parametrize("damage", ["\x01.wav</Key>", ""], ids=["control character", "broken off"])
def test_a_page_that_is_no_xml_is_not_blamed_on_the_endpoint(
    faulty: FaultyServer, faulty_client: Any, damage: str
) -> None:
    faulty.listing = PAGE.format("false", ENTRY.format(1)).partition("</Key>")[0] + damage
    with pytest.raises(AudioAssetsError, match="a page of the listing of 'b' cannot be read") as told:
        list(list_pages(faulty_client, "b"))
    assert not isinstance(told.value, SettingsError)


def test_a_listing_that_goes_in_a_wider_circle_ends_as_well() -> None:
    tokens = itertools.cycle(["first", "second", "third"])

    class Client:
        meta = SimpleNamespace(events=SimpleNamespace(register=lambda *_, **__: None), endpoint_url="https://r2")

        def list_objects_v2(self, **_: str) -> dict[str, Any]:
            return {"AudioAssetsPage": Page([], [], [], [], [], next(tokens))}

    with pytest.raises(AudioAssetsError, match="goes in circles"):
        for _ in itertools.islice(list_pages(Client(), "b"), 10):
            pass


def test_a_server_that_does_not_say_whether_more_follows_is_believed_on_a_short_page() -> None:
    page = parse_page(PAGE.format("", ENTRY.format(1)).encode())
    assert page is not None
    assert (page.keys, page.next_token) == (["a"], None)


def test_a_weak_etag_is_listed_without_its_mark() -> None:
    weak = ENTRY.format(1).replace("<ETag>e<", "<ETag>W/&quot;e&quot;<")
    page = parse_page(PAGE.format("false", weak).encode())
    assert page is not None and page.etags == ["e"]


@pytest.mark.parametrize("told", ["", "yesterday", "2026-99-02T03:04:05Z", "9" * 400])
def test_a_time_that_is_none_is_an_error_that_names_it(told: str) -> None:
    page = parse_page(PAGE.format("false", ENTRY.format(1)).replace("2026-01-02T03:04:05Z", told).encode())
    assert page is not None
    with pytest.raises(AudioAssetsError, match="a time that is none"):
        list(objects_of(page, lambda key: True))


@pytest.mark.parametrize("body", [b"", b"<html>", b"<Error><Code>SlowDown</Code></Error>", b"\xff\xfe"])
def test_what_is_no_page_is_left_for_others_to_judge(body: bytes) -> None:
    assert parse_page(body) is None


def test_keys_are_unquoted_only_where_the_server_says_that_it_quoted_them() -> None:
    entry = (
        "<Contents><Key>a%2Fb+c%0D%0A%F0%9F%8E%99</Key><Size>1</Size><ETag>x</ETag>"
        "<LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
    )
    plain = parse_page(PAGE.format("false", entry).encode())
    quoted = parse_page(PAGE.format("false", "<EncodingType>url</EncodingType>" + entry).encode())
    assert plain is not None and plain.keys == ["a%2Fb+c%0D%0A%F0%9F%8E%99"]
    assert quoted is not None and quoted.keys == ["a/b c\r\n🎙"]
