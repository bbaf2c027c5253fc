"""What a complete listing says against the stored rows: new, overwritten, unchanged and vanished objects.

An object is its key in NFC (both spellings are one object on R2), its ETag and its size. Times play no part: equal
times, clocks that differ and objects that appear late change nothing.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from audio_assets.ingest.listing import Listing


@dataclass(frozen=True)
class Changes:
    """Places in a listing by what became of the objects there; ``replaced`` and ``vanished`` are ids of stored rows.

    The row of an ``unchanged`` object has its key as id, or else the id in ``respelled``. ``replaced`` are rows of
    overwritten objects whose key is spelled in another way now: they make room for the new row.
    """

    new: list[int]
    overwritten: list[int]
    unchanged: list[int]
    respelled: dict[int, str]
    vanished: list[str]
    replaced: list[str]


def diff(listed: Listing, stored: pa.Table) -> Changes:
    """Compare a *complete* listing with ``stored``, which has the columns id, etag and size_bytes of `raw_audio`."""
    keys = pa.array(listed.keys, pa.string())
    ids, etags, sizes = (stored.column(name).combine_chunks() for name in ("id", "etag", "size_bytes"))
    # The row of each object, null for none: a hash join.
    row = pc.index_in(keys, value_set=ids)
    same = pc.and_(
        pc.equal(etags.take(row), pa.array(listed.etags, pa.string())),
        pc.equal(sizes.take(row), pa.array(listed.sizes, pa.int64())),
    )
    same = pc.fill_null(same, False)
    unchanged = _places(same)
    overwritten = _places(pc.and_not(pc.is_valid(row), same))
    new = _places(pc.is_null(row))
    left = ids.filter(pc.invert(pc.is_in(ids, value_set=keys))).to_pylist()

    respelled: dict[int, str] = {}
    replaced: list[str] = []
    if new and left:
        spelled = {_nfc(id): id for id in left if not id.isascii()}
        strangers, new = new, []
        found: set[str] = set()
        for at in strangers:
            key = listed.keys[at]
            id = None if key.isascii() else spelled.pop(_nfc(key), None)
            if id is None:
                new.append(at)
                continue
            found.add(id)
            there = ids.index(id).as_py()
            if (etags[there].as_py(), sizes[there].as_py()) == (listed.etags[at], listed.sizes[at]):
                unchanged.append(at)
                respelled[at] = id
            else:
                overwritten.append(at)
                replaced.append(id)
        left = [id for id in left if id not in found]
    return Changes(new, overwritten, unchanged, respelled, left, replaced)


def _places(mask: pa.BooleanArray) -> list[int]:
    places: list[int] = pc.indices_nonzero(mask).to_pylist()
    return places


def _nfc(key: str) -> str:
    return unicodedata.normalize("NFC", key)
