"""What lies in the bucket: its audio objects, and the prefixes that hold them."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from itertools import compress, product
from typing import Any, NamedTuple

from audio_assets.errors import AudioAssetsError
from audio_assets.ingest.pages import Page, list_pages
from audio_assets.partitions import partition_key_for, prefix_of

AUDIO_EXTENSIONS = (".wav", ".mp3", ".flac", ".m4a", ".ogg", ".opus", ".webm", ".aac", ".mp4")
"""Endings of the keys that are taken for audio, in lower case; upper case counts as well."""


class RemoteObject(NamedTuple):
    """One object as a listing tells it.

    ``etag`` has no quotes; it is None for a file that never came from a bucket. ``last_modified`` is in UTC.
    """

    key: str
    etag: str | None
    size_bytes: int
    last_modified: datetime | None


@dataclass(frozen=True)
class PrefixListing:
    """One prefix that holds audio: a row of `schemas.R2_PREFIXES`.

    ``object_count``, ``size_bytes`` and ``digest`` are None when its objects were not counted.
    """

    prefix: str
    partition: str
    object_count: int | None
    size_bytes: int | None
    digest: str | None = None


def is_audio(key: str) -> bool:
    """Whether the key ends like an audio file. "Directory" markers, which end in ``/``, never do.

    Nor does a key with a NUL count, which a listing can name where it is encoded: no table can hold it.
    """
    return key.lower().endswith(AUDIO_EXTENSIONS) and "\0" not in key


def list_objects(
    client: Any,
    bucket: str,
    prefix: str = "",
    *,
    delimiter: str = "",
    wants: Callable[[str], bool] = is_audio,
) -> Iterator[RemoteObject]:
    """The audio objects whose keys start with ``prefix``, in the order of the listing, page by page.

    Args:
        client: a boto3 S3 client.
        bucket: name of the bucket.
        prefix: any string; a folder ends in ``/``.
        delimiter: ``"/"`` leaves out what lies in folders below ``prefix``.
        wants: whether the object of a key is one; asked once for each key.

    Raises:
        SettingsError: the bucket, the credentials or the endpoint are wrong.
        AudioAssetsError: the server failed, or ended the listing half-way: what came is not all there is.
    """
    for page in list_pages(client, bucket, prefix, delimiter=delimiter):
        yield from objects_of(page, wants)


def holds_any(client: Any, bucket: str, prefix: str, wants: Callable[[str], bool] = is_audio) -> bool:
    """Whether there is an object whose key starts with ``prefix``, in NFC, and is wanted; listed to the first of them.

    Raises:
        SettingsError: the bucket, the credentials or the endpoint are wrong.
        AudioAssetsError: the server failed in another way.
    """

    def counts(key: str) -> bool:
        # Some servers take a leading slash for none.
        return unicodedata.normalize("NFC", key).startswith(prefix) and wants(key)

    return any(True for spelling in spellings_of(prefix) for _ in list_objects(client, bucket, spelling, wants=counts))


def objects_of(page: Page, wants: Callable[[str], bool] = is_audio) -> Iterator[RemoteObject]:
    """The objects of a page whose keys are wanted.

    Raises:
        AudioAssetsError: the time of one cannot be read.
    """
    for key, etag, size, modified in zip(page.keys, page.etags, page.sizes, page.modified, strict=True):
        if wants(key):
            yield RemoteObject(key, etag, size, _time(modified))


class Listing:
    """Objects as columns of equal length; ``listing[i]`` makes the i-th object.

    Of a large partition few objects are news: only those are made. Hundreds of thousands of small objects, which the
    garbage collector looks through again and again, would double the CPU that a listing takes.
    """

    def __init__(self, keys: list[str], etags: Sequence[str | None], sizes: list[int], modified: list[str]) -> None:
        self.keys, self.etags, self.sizes = keys, etags, sizes
        self._modified = modified

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, at: int) -> RemoteObject:
        """The object at a place.

        Raises:
            AudioAssetsError: its time cannot be read.
        """
        return RemoteObject(self.keys[at], self.etags[at], self.sizes[at], _time(self._modified[at]))

    def __iter__(self) -> Iterator[RemoteObject]:
        return (self[at] for at in range(len(self)))

    def at(self, places: Sequence[int]) -> Listing:
        """The objects at these places, in their order."""
        return Listing(
            [self.keys[i] for i in places],
            [self.etags[i] for i in places],
            [self.sizes[i] for i in places],
            [self._modified[i] for i in places],
        )


def list_prefix(
    client: Any, bucket: str, prefix: str, depth: int, *, passed: Callable[[str], object] | None = None
) -> Listing:
    """The audio objects of one partition, those whose `partitions.prefix_of` at ``depth`` is ``prefix``, by key.

    Args:
        client: a boto3 S3 client.
        bucket: name of the bucket.
        prefix: the partition's prefix, as `partitions.prefix_of` gives it.
        depth: folders that make a partition.
        passed: called with each key of the partition that is no audio.

    Raises:
        SettingsError: the bucket, the credentials or the endpoint are wrong.
        AudioAssetsError: the server failed, or ended the listing half-way.
    """
    # Below the full depth a partition holds only what lies directly in it; its subfolders are partitions of their own.
    delimiter = "/" if prefix.count("/") < depth else ""
    keys: list[str] = []
    etags: list[str] = []
    sizes: list[int] = []
    modified: list[str] = []
    for spelling in spellings_of(prefix):
        for page in list_pages(client, bucket, spelling, delimiter=delimiter):
            inside = [is_audio(key) and prefix_of(key, depth) == prefix for key in page.keys]
            if passed is not None and not all(inside):
                for key in page.keys:
                    if not is_audio(key) and prefix_of(key, depth) == prefix:
                        passed(key)
            keys += compress(page.keys, inside)
            etags += compress(page.etags, inside)
            sizes += compress(page.sizes, inside)
            modified += compress(page.modified, inside)
    found = Listing(keys, etags, sizes, modified)
    # What is spelled in several ways may be listed twice, and only the order of one listing is that of its keys. Some
    # servers repeat a key where one page ends and the next begins.
    places = sorted(range(len(keys)), key=keys.__getitem__)
    if len(set(keys)) < len(keys):
        places = [i for n, i in enumerate(places) if not n or keys[i] != keys[places[n - 1]]]
    return found if places == list(range(len(keys))) else found.at(places)


def spellings_of(prefix: str) -> list[str]:
    """The ways in which a prefix in NFC may be spelled in a bucket.

    R2 makes NFC of every key. Other servers keep NFC and NFD apart and list them apart; so they do with the letters
    of Indic and other scripts that NFC takes apart, as keyboards write them. Folders may have come from different
    machines, so each is spelled in its own way; within one name ways do not mix.
    """
    ways = [dict.fromkeys((n, unicodedata.normalize("NFD", n), _put_together(n))) for n in prefix.split("/")]
    return ["/".join(names) for names in product(*ways)]


def _put_together(name: str) -> str:
    """``name`` with the letters that have a code point of their own, which neither NFC nor NFD uses."""
    if name.isascii():
        return name
    for apart, letter in _letters_apart().items():
        name = name.replace(apart, letter)
    return name


@cache
def _letters_apart() -> dict[str, str]:
    """The letters that NFC takes apart, by what it makes of them."""
    letters = map(chr, range(0x80, 0x10000))
    apart = {unicodedata.normalize("NFC", letter): letter for letter in letters}
    return {made: letter for made, letter in apart.items() if len(made) > 1}


def discover_prefixes(objects: Iterable[RemoteObject], depth: int) -> list[PrefixListing]:
    """The prefixes at ``depth`` that hold ``objects``, sorted. Memory grows with prefixes, not with objects."""
    totals: dict[str, list[int]] = {}
    for found in objects:
        total = totals.setdefault(prefix_of(found.key, depth), [0, 0])
        total[0] += 1
        total[1] += found.size_bytes
    return [
        PrefixListing(prefix, partition_key_for(prefix), count, size)
        for prefix, (count, size) in sorted(totals.items())
    ]


def _time(text: str) -> datetime:
    """A time of a listing, in UTC."""
    try:
        # Python 3.10 does not know the Z.
        found = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)
    except ValueError:
        from botocore.utils import parse_timestamp

        try:
            found = parse_timestamp(text)
        except (ValueError, ArithmeticError, RuntimeError, OSError):
            raise AudioAssetsError(f"the listing has a time that is none, {text[:40]!r}; try again") from None
    return found.replace(tzinfo=timezone.utc) if found.tzinfo is None else found
