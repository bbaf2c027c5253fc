"""The prefixes of a bucket, found with a delimiter and listed several at a time."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

import pytest

from audio_assets.errors import SettingsError
from audio_assets.ingest import sweep
from audio_assets.ingest.bucket_scan import BucketScan, folders_apart, requests_of_a_scan
from audio_assets.ingest.discovery import Discovery, discover
from audio_assets.ingest.listing import discover_prefixes, list_objects
from audio_assets.ingest.selection import EMPTY, EXCLUDED, MARKERS, OTHER_FILES, OVERSIZED, Selection, passed_over
from audio_assets.ingest.sweep import Sweep
from audio_assets_tests.ingest.conftest import Bucket, plain_client

KEYS = ["a.wav", "calls/b.wav", "calls/2024/c.wav", "calls/2024/01/d.wav", "callsigns/x.wav", "talks/e.wav"]


def found(discovery: Discovery) -> dict[str, tuple[int | None, int | None]]:
    return {p.prefix: (p.object_count, p.size_bytes) for p in discovery.prefixes}


class Requests:
    """What a client asks for: prefix and delimiter of each list request."""

    def __init__(self, client: Any, page: int = 1000) -> None:
        self.made: list[tuple[str, str]] = []
        self._page = page
        client.meta.events.register("provide-client-params.s3.ListObjectsV2", self._note)

    def _note(self, params: dict[str, Any], **_: Any) -> None:
        self.made.append((params["Prefix"], params.get("Delimiter", "")))
        params["MaxKeys"] = self._page


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("page", [1000, 2])
def test_discovery_finds_what_a_listing_of_everything_finds(bucket: Bucket, depth: int, page: int) -> None:
    for key in KEYS:
        bucket.put(key, b"xy")
    Requests(bucket.client, page)
    flat = discover_prefixes(list_objects(bucket.client, bucket.name), depth)
    discovery = discover(bucket.client, bucket.name, depth)
    assert found(discovery) == {p.prefix: (p.object_count, p.size_bytes) for p in flat}
    assert [p.partition for p in discovery.prefixes] == [p.partition for p in flat]


def test_folders_are_found_level_by_level_with_the_delimiter(bucket: Bucket) -> None:
    for key in KEYS:
        bucket.put(key, b"x")
    requests = Requests(bucket.client)
    discover(bucket.client, bucket.name, 2)
    assert sorted(requests.made) == [
        ("", "/"),
        ("calls/", "/"),
        ("calls/2024/", ""),
        ("callsigns/", "/"),
        ("talks/", "/"),
    ]


def test_without_counting_a_prefix_costs_one_page_however_many_objects_it_has(bucket: Bucket) -> None:
    for n in range(20):
        bucket.put(f"calls/{n:02}.wav", b"x")
    for n in range(5):
        bucket.put(f"pictures/{n}.png", b"x")
    requests = Requests(bucket.client, page=2)
    discovery = discover(bucket.client, bucket.name, 1, count=False)
    assert found(discovery) == {"calls/": (None, None)}
    assert requests.made.count(("calls/", "")) <= 3
    assert discovery.prefixes[0].digest is None


def test_a_great_many_small_folders_are_listed_through_and_not_one_by_one(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "MANY_FOLDERS", 5)
    for n in range(12):
        bucket.put(f"p{n:02}/a.wav", b"x")
    bucket.put("root.wav", b"x")
    requests = Requests(bucket.client)
    assert len(discover(bucket.client, bucket.name, 1).prefixes) == 13
    assert requests.made == [("", "/"), ("", "")]
    assert len(discover(bucket.client, bucket.name, 1, count=False).prefixes) == 13


def test_several_prefixes_are_listed_at_a_time(bucket: Bucket) -> None:
    for n in range(sweep.LISTED_AT_ONCE):
        bucket.put(f"p{n}/a.wav", b"x")
    together = threading.Barrier(sweep.LISTED_AT_ONCE)

    def wait(params: dict[str, Any], **_: Any) -> None:
        if params["Prefix"]:
            together.wait(timeout=30)

    bucket.client.meta.events.register("provide-client-params.s3.ListObjectsV2", wait)
    assert len(discover(bucket.client, bucket.name, 1).prefixes) == sweep.LISTED_AT_ONCE


def test_a_folder_that_is_listed_sooner_than_the_page_that_tells_of_it_is_handed_over(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in KEYS:
        bucket.put(key, b"x")
    put = sweep._Listers._put

    def late(listers: Any, listed: Any) -> bool:
        if getattr(listed, "page", None) is not None and listed.page.folders:
            time.sleep(0.3)
        return put(listers, listed)

    monkeypatch.setattr(sweep._Listers, "_put", late)
    discovery = discover(bucket.client, bucket.name, 2)
    assert sum(p.object_count or 0 for p in discovery.prefixes) == len(KEYS)


def test_globs_decide_what_is_a_prefix_and_what_is_passed_over_is_counted(bucket: Bucket) -> None:
    for key, size in (("calls/a.wav", 1), ("calls/huge.wav", 9), ("calls/empty.wav", 0), ("drafts/b.wav", 1)):
        bucket.put(key, b"x" * size)
    bucket.put("calls/readme.txt", b"x")
    bucket.put("calls/new/", b"")
    discovery = discover(bucket.client, bucket.name, 1, Selection(exclude=("drafts/*",), max_object_bytes=8))
    assert found(discovery) == {"calls/": (3, 10)}
    assert discovery.passed_over == Counter({MARKERS: 1, OTHER_FILES: 1, EXCLUDED: 1, EMPTY: 1, OVERSIZED: 1})
    assert passed_over(discovery.passed_over) == [
        "1 directory markers",
        "1 other files",
        "1 excluded",
        "1 empty",
        "1 over the size limit",
    ]


def test_odd_folders_are_prefixes_too(odd_server: str) -> None:
    client = plain_client(odd_server)
    client.create_bucket(Bucket="odd-folders")
    keys = [
        "/a.wav",
        "//b.wav",
        "x//c.wav",
        "Zo\u00eb/d.wav",
        "Zoe\u0308/e.wav",
        "100%/f.wav",
        "a+b &/g.wav",
        "é/é.wav",
    ]
    for key in keys:
        client.put_object(Bucket="odd-folders", Key=key, Body=b"x")
    for depth in (1, 2, 3):
        flat = discover_prefixes(list_objects(client, "odd-folders"), depth)
        assert found(discover(client, "odd-folders", depth)) == {p.prefix: (p.object_count, p.size_bytes) for p in flat}
    client.close()


def test_the_digest_is_that_of_the_sensors_scan(bucket: Bucket) -> None:
    for key in KEYS:
        bucket.put(key, key.encode())
    scan = BucketScan.begin(1)
    scan.go_on(bucket.client, bucket.name, 1)
    assert {p.prefix: int(p.digest or "", 16) for p in discover(bucket.client, bucket.name, 1).prefixes} == scan.digests


@pytest.mark.parametrize("last", [(0, 0), (50_000, 4)])
def test_a_scan_that_is_interrupted_after_every_page_sees_every_object_once(
    bucket: Bucket, last: tuple[int, int]
) -> None:
    for n in range(4):
        for m in range(5):
            bucket.put(f"p{n}/{m}.wav", b"x")
    for m in range(3):
        bucket.put(f"r{m}.wav", b"x")
    whole = BucketScan.begin(1)
    whole.go_on(bucket.client, bucket.name, 1)
    Requests(bucket.client, page=2)
    scan = BucketScan.begin(1, last)
    for _ in range(100):
        if scan.complete:
            break
        # As the next tick finds it: nothing but what is noted in the parts.
        scan = BucketScan(Sweep(list(scan.sweep.parts.values())), scan.digests, scan.keys, scan.pages)
        scan.go_on(bucket.client, bucket.name, 1, until=0.0)
    assert (scan.complete, scan.digests, scan.keys) == (True, whole.digests, 23)
    assert scan.tells_folders_apart == (last != (0, 0))


def test_prefixes_are_listed_apart_where_that_costs_little() -> None:
    assert folders_apart(1_000_000, 100)
    assert not folders_apart(1_000_000, 101)
    assert not folders_apart(1_000_000, 1)
    assert requests_of_a_scan(1_000_000, 100) == 1101
    assert requests_of_a_scan(1_000_000, 5000) == 1000


def test_a_missing_bucket_ends_a_sweep_with_its_setting(bucket: Bucket) -> None:
    with pytest.raises(SettingsError, match="R2_BUCKET 'not-there' does not exist"):
        discover(bucket.client, "not-there", 1)
