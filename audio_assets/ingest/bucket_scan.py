"""One look at the whole bucket, as a digest for each prefix; resumable, for buckets that take longer than a tick.

The digest of a prefix is a sum over its objects, so that the order of a listing does not matter, nor where it was
interrupted: two sets of objects have the same digest if, and only if, keys (in NFC), ETags and sizes are the same.
Times play no part: clocks that are off, equal times and late keys cannot hide a change.
"""

from __future__ import annotations

import datetime
import hashlib
import unicodedata
from dataclasses import dataclass, field
from typing import Any

from audio_assets.ingest.listing import is_audio
from audio_assets.ingest.selection import Selection
from audio_assets.ingest.sweep import Sweep
from audio_assets.partitions import prefix_of

KEYS_PER_PAGE = 1000
"""Most that a server gives at once."""

_MODULUS = 1 << 128


def object_digest(key: str, etag: str | None, size_bytes: int | None) -> int:
    """What one object adds to the digest of its prefix: 128 bits."""
    name = key if key.isascii() else unicodedata.normalize("NFC", key)
    told = f"{name}\0{etag}\0{size_bytes}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(told, digest_size=16).digest(), "big")


def add(digests: dict[str, int], prefix: str, digest: int) -> None:
    """Add one object to the digest of its prefix."""
    digests[prefix] = (digests.get(prefix, 0) + digest) % _MODULUS


@dataclass
class BucketScan:
    """A listing of the bucket: the objects that count of each prefix, as far as the ``sweep`` has come.

    ``keys`` counts every object, of any kind, and ``pages`` the requests.
    """

    sweep: Sweep
    digests: dict[str, int] = field(default_factory=dict)
    keys: int = 0
    pages: int = 0

    @staticmethod
    def begin(depth: int, last: tuple[int, int] = (0, 0)) -> BucketScan:
        """A scan from the start. ``last`` are the keys and prefixes of the last complete one, as far as it is known."""
        return BucketScan(Sweep.below("", depth if folders_apart(*last) else 0))

    @property
    def complete(self) -> bool:
        """Whether the whole bucket was listed."""
        return self.sweep.complete

    @property
    def tells_folders_apart(self) -> bool:
        """Whether prefixes are listed each by itself."""
        return any(part.levels for part in self.sweep.parts.values())

    def go_on(
        self, client: Any, bucket: str, depth: int, until: float | None = None, selection: Selection | None = None
    ) -> None:
        """List until the end, or until the monotonic clock shows ``until``, at least one page.

        Raises:
            SettingsError: the bucket, the credentials or the endpoint are wrong.
            AudioAssetsError: the server failed in another way; what was seen before stays.
        """
        wants = selection.wants if selection is not None and selection.narrows else is_audio
        for _, page in self.sweep.pages(client, bucket, until=until):
            for key, etag, size in zip(page.keys, page.etags, page.sizes, strict=True):
                if wants(key):
                    add(self.digests, prefix_of(key, depth), object_digest(key, etag, size))
            self.keys += len(page.keys)
            self.pages += 1


def folders_apart(keys: int, prefixes: int) -> bool:
    """Whether a scan of such a bucket is to list each prefix by itself, several at a time.

    That is quicker, and costs a page more for each prefix: it is done where these are a tenth of the pages at most.
    """
    return prefixes > 1 and prefixes * 10 <= keys // KEYS_PER_PAGE


def requests_of_a_scan(keys: int, prefixes: int) -> int:
    """List requests that a scan of so many objects in so many prefixes takes: an estimate from above."""
    return max(1, -(-keys // KEYS_PER_PAGE)) + (prefixes + 1 if folders_apart(keys, prefixes) else 0)


@dataclass(frozen=True)
class BucketCount:
    """How much is in the bucket: ``keys`` of all kinds, ``recent`` ones written since a time, audio ``prefixes``."""

    keys: int
    recent: int
    prefixes: int


def count_objects(
    client: Any, bucket: str, depth: int, since: datetime.datetime, selection: Selection | None = None
) -> BucketCount:
    """Count by one listing of the whole bucket; memory grows with prefixes, not with objects.

    Raises:
        SettingsError: the bucket, the credentials or the endpoint are wrong.
        AudioAssetsError: the server failed in another way.
    """
    keys = recent = 0
    prefixes: set[str] = set()
    wants = (selection or Selection()).wants
    # A listing's times are ISO 8601 in UTC: their texts are in the order of time.
    oldest = since.astimezone(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
    for _, page in Sweep.below("", depth).pages(client, bucket):
        keys += len(page.keys)
        recent += sum(modified >= oldest for modified in page.modified)
        prefixes.update(prefix_of(key, depth) for key in page.keys if wants(key))
    return BucketCount(keys, recent, len(prefixes))
