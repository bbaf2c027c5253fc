"""What a complete listing says against the stored rows: new, overwritten, unchanged and vanished objects.

An object is its key in NFC (both spellings are one object on R2), its ETag and its size. Times play no part: equal
times, clocks that differ and objects that appear late change nothing.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from audio_assets.ingest.listing import RemoteObject


@dataclass(frozen=True)
class Changes:
    """The objects of a listing by what became of them; ``replaced`` and ``vanished`` are ids of stored rows.

    ``unchanged`` pairs each object with the id of its row, which is its key but for the spelling. ``replaced`` are
    rows of overwritten objects whose key is spelled in another way now: they make room for the new row.
    """

    new: list[RemoteObject]
    overwritten: list[RemoteObject]
    unchanged: list[tuple[RemoteObject, str]]
    vanished: list[str]
    replaced: list[str]


def diff(listed: Iterable[RemoteObject], stored: pa.Table) -> Changes:
    """Compare a *complete* listing with ``stored``, which has the columns id, etag and size_bytes of `raw_audio`."""
    known = dict(
        zip(
            stored.column("id").to_pylist(),
            zip(stored.column("etag").to_pylist(), stored.column("size_bytes").to_pylist(), strict=True),
            strict=True,
        )
    )
    new: list[RemoteObject] = []
    overwritten: list[RemoteObject] = []
    unchanged: list[tuple[RemoteObject, str]] = []
    for found in listed:
        identity = known.pop(found.key, None)
        if identity is None:
            new.append(found)
        elif identity == (found.etag, found.size_bytes):
            unchanged.append((found, found.key))
        else:
            overwritten.append(found)
    replaced: list[str] = []
    if new and known:
        spelled = {_nfc(id): id for id in known if not id.isascii()}
        strangers, new = new, []
        for found in strangers:
            id = None if found.key.isascii() else spelled.pop(_nfc(found.key), None)
            if id is None:
                new.append(found)
            elif known.pop(id) == (found.etag, found.size_bytes):
                unchanged.append((found, id))
            else:
                overwritten.append(found)
                replaced.append(id)
    return Changes(new, overwritten, unchanged, list(known), replaced)


def _nfc(key: str) -> str:
    return unicodedata.normalize("NFC", key)
