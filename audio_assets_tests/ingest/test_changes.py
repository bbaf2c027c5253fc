"""What a complete listing says against the stored rows."""

from __future__ import annotations

import unicodedata

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from audio_assets.ingest.changes import diff
from audio_assets.ingest.listing import RemoteObject

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


def listed(key: str, etag: str = "e", size: int = 1) -> RemoteObject:
    return RemoteObject(key, etag, size, None)


def test_each_object_is_new_overwritten_unchanged_or_vanished() -> None:
    changes = diff([listed("a.wav"), listed("b.wav", "other"), listed("d.wav")], stored(a="e", b="e", c="e"))
    assert changes.new == [listed("d.wav")]
    assert changes.overwritten == [listed("b.wav", "other")]
    assert changes.unchanged == [(listed("a.wav"), "a.wav")]
    assert changes.vanished == ["c.wav"]


def test_another_size_is_a_change_even_with_the_same_etag() -> None:
    assert diff([listed("a.wav", size=2)], stored(a="e")).overwritten == [listed("a.wav", size=2)]


def test_the_other_spelling_of_a_key_is_the_same_object() -> None:
    changes = diff([listed(NFC)], table({NFD: ("e", 1)}))
    assert changes.unchanged == [(listed(NFC), NFD)]
    assert not changes.vanished


def test_an_object_overwritten_under_the_other_spelling_replaces_its_row() -> None:
    changes = diff([listed(NFC, "other")], table({NFD: ("e", 1)}))
    assert (changes.overwritten, changes.replaced, changes.vanished) == ([listed(NFC, "other")], [NFD], [])


def test_a_server_that_keeps_both_spellings_apart_has_two_objects() -> None:
    both = table({NFC: ("e", 1), NFD: ("e", 1)})
    assert len(diff([listed(NFC), listed(NFD)], both).unchanged) == 2
    assert diff([listed(NFC)], both).vanished == [NFD]


KEYS = st.sampled_from(["a.wav", "b.wav", NFC, NFD, "e\u0301.wav", "\u00e9.wav"])
OBJECTS = st.dictionaries(KEYS, st.tuples(st.sampled_from(["x", "y"]), st.sampled_from([1, 2])))


@given(OBJECTS, OBJECTS)
def test_every_object_and_every_row_is_accounted_for_once(
    now: dict[str, tuple[str, int]], before: dict[str, tuple[str, int]]
) -> None:
    changes = diff([listed(key, *identity) for key, identity in now.items()], table(before))
    kept = [found for found, _ in changes.unchanged]
    assert sorted(f.key for f in [*changes.new, *changes.overwritten, *kept]) == sorted(now)
    rows = [id for _, id in changes.unchanged] + changes.vanished + changes.replaced
    rows += [f.key for f in changes.overwritten if f.key in before]
    assert sorted(rows) == sorted(before)
    for found, id in changes.unchanged:
        assert before[id] == now[found.key]
        assert unicodedata.normalize("NFC", id) == unicodedata.normalize("NFC", found.key)
