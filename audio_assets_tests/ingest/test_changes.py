"""What a complete listing says against the stored rows."""

from __future__ import annotations

import unicodedata

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from audio_assets.ingest.changes import diff
from audio_assets.ingest.listing import Listing

NFC, NFD = "Zo\u00eb.wav", "Zoe\u0308.wav"


def stored(**etags: str) -> pa.Table:
    return table({f"{name}.wav": (etag, 1) for name, etag in etags.items()})


def table(rows: dict[str, tuple[str, int]]) -> pa.Table:
    return pa.table(
        {
            "id": pa.array(list(rows), pa.string()),
            "etag": pa.array([etag for etag, _ in rows.values()], pa.string()),
            "size_bytes": pa.array([size for _, size in rows.values()], pa.int64()),
        }
    )


def listing(*objects: tuple[str, str, int]) -> Listing:
    keys, etags, sizes = (list(column) for column in zip(*objects, strict=True)) if objects else ([], [], [])
    return Listing(keys, etags, sizes, [""] * len(keys))


def test_each_object_is_new_overwritten_unchanged_or_vanished() -> None:
    now = listing(("a.wav", "e", 1), ("b.wav", "other", 1), ("d.wav", "e", 1))
    changes = diff(now, stored(a="e", b="e", c="e"))
    assert (changes.new, changes.overwritten, changes.unchanged) == ([2], [1], [0])
    assert (changes.vanished, changes.respelled, changes.replaced) == (["c.wav"], {}, [])


def test_another_size_is_a_change_even_with_the_same_etag() -> None:
    assert diff(listing(("a.wav", "e", 2)), stored(a="e")).overwritten == [0]


def test_a_row_without_an_etag_is_of_another_object() -> None:
    rows = table({"a.wav": ("e", 1)}).set_column(1, "etag", pa.array([None], pa.string()))
    changes = diff(listing(("a.wav", "e", 1)), rows)
    assert (changes.overwritten, changes.new, changes.vanished) == ([0], [], [])


def test_the_other_spelling_of_a_key_is_the_same_object() -> None:
    changes = diff(listing((NFC, "e", 1)), table({NFD: ("e", 1)}))
    assert (changes.unchanged, changes.respelled) == ([0], {0: NFD})
    assert not changes.vanished


def test_an_object_overwritten_under_the_other_spelling_replaces_its_row() -> None:
    changes = diff(listing((NFC, "other", 1)), table({NFD: ("e", 1)}))
    assert (changes.overwritten, changes.replaced, changes.vanished) == ([0], [NFD], [])


def test_a_server_that_keeps_both_spellings_apart_has_two_objects() -> None:
    both = table({NFC: ("e", 1), NFD: ("e", 1)})
    assert len(diff(listing((NFC, "e", 1), (NFD, "e", 1)), both).unchanged) == 2
    assert diff(listing((NFC, "e", 1)), both).vanished == [NFD]


def test_rows_in_several_chunks_and_none_at_all_are_compared() -> None:
    chunks = pa.concat_tables([stored(a="e"), stored(b="e")])
    assert diff(listing(("b.wav", "e", 1)), chunks).vanished == ["a.wav"]
    assert diff(listing(), chunks).vanished == ["a.wav", "b.wav"]
    assert diff(listing(("b.wav", "e", 1)), table({})).new == [0]


KEYS = st.sampled_from(["a.wav", "b.wav", NFC, NFD, "e\u0301.wav", "\u00e9.wav"])
OBJECTS = st.dictionaries(KEYS, st.tuples(st.sampled_from(["x", "y"]), st.sampled_from([1, 2])))


@given(OBJECTS, OBJECTS)
def test_every_object_and_every_row_is_accounted_for_once(
    now: dict[str, tuple[str, int]], before: dict[str, tuple[str, int]]
) -> None:
    keys = list(now)
    changes = diff(listing(*((key, *identity) for key, identity in now.items())), table(before))
    assert sorted([*changes.new, *changes.overwritten, *changes.unchanged]) == list(range(len(now)))
    ids = {at: changes.respelled.get(at, keys[at]) for at in changes.unchanged}
    rows = [*ids.values(), *changes.vanished, *changes.replaced]
    rows += [keys[at] for at in changes.overwritten if keys[at] in before]
    assert sorted(rows) == sorted(before)
    for at, id in ids.items():
        assert before[id] == now[keys[at]]
        assert unicodedata.normalize("NFC", id) == unicodedata.normalize("NFC", keys[at])
