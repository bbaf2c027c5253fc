"""R2 prefix <-> partition key."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audio_assets.partitions import partition_key_for, prefix_for, prefix_of

KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.mark.parametrize(
    ("key", "depth", "prefix"),
    [
        ("calls/2024/01/a.wav", 1, "calls/"),
        ("calls/2024/01/a.wav", 2, "calls/2024/"),
        ("calls/a.wav", 2, "calls/"),
        ("a.wav", 1, ""),
        ("calls/a.wav", 0, ""),
        ("/a.wav", 1, "/"),
        ("a//b.wav", 2, "a//"),
    ],
)
def test_an_object_belongs_to_the_prefix_of_its_first_folders(key: str, depth: int, prefix: str) -> None:
    assert prefix_of(key, depth) == prefix


def test_both_spellings_of_an_accent_belong_to_one_prefix() -> None:
    nfc, nfd = (unicodedata.normalize(form, "café/a.wav") for form in ("NFC", "NFD"))
    assert nfc != nfd
    assert prefix_of(nfc, 1) == prefix_of(nfd, 1)


def test_a_negative_depth_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        prefix_of("a/b.wav", -1)


@pytest.mark.parametrize(
    ("prefix", "key"),
    [
        ("calls/2024/", "calls/2024"),
        ("", "_root_"),
        ("_root_/", "%5Froot_"),
        ("/", "%2F"),
        ("日本語/", "日本語"),
        ("a...b/", "a%2E%2E%2Eb"),
        ("../", "%2E%2E"),
        ("50% off/", "50%25 off"),
        ("tab\there/", "tab%09here"),
        (" a /", "%20a%20"),
    ],
)
def test_partition_keys_are_readable_and_safe(prefix: str, key: str) -> None:
    assert partition_key_for(prefix) == key
    assert prefix_for(key) == prefix


@given(KEYS, st.integers(0, 4))
def test_every_prefix_round_trips_through_its_partition_key(key: str, depth: int) -> None:
    prefix = prefix_of(key, depth)
    carried = partition_key_for(prefix)
    assert prefix_for(carried) == prefix
    # What Dagster and its UI cannot carry: ranges, control characters, an empty key.
    assert carried and ".." not in carried and carried.isprintable() and carried == carried.strip()


@given(KEYS, KEYS, st.integers(0, 4))
def test_different_prefixes_have_different_partition_keys(a: str, b: str, depth: int) -> None:
    first, second = prefix_of(a, depth), prefix_of(b, depth)
    assert (first == second) == (partition_key_for(first) == partition_key_for(second))


@pytest.mark.parametrize("key", ["", "a...b", "%zz", "a%2Fb"])
def test_a_key_that_no_prefix_has_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="not a partition key"):
        prefix_for(key)


def test_a_prefix_without_its_slash_is_refused_with_the_right_spelling() -> None:
    with pytest.raises(ValueError, match="use 'calls/'"):
        partition_key_for("calls")
