"""One look at the whole bucket, as a digest for each prefix; resumable, for buckets that take longer than a tick.

The digest of a prefix is a sum over its objects, so that the order of a listing does not matter, nor where it was
interrupted: two sets of objects have the same digest if, and only if, keys (in NFC), ETags and sizes are the same.
Times play no part: clocks that are off, equal times and late keys cannot hide a change.
"""

from __future__ import annotations

import datetime
import hashlib
import time
import unicodedata
from dataclasses import dataclass, field
from typing import Any

from audio_assets.ingest.listing import is_audio
from audio_assets.ingest.pages import list_pages
from audio_assets.partitions import prefix_of

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
    """A listing of the bucket: the audio of each prefix, as far as ``after``, the last key that was seen.

    ``keys`` counts every object, audio or not, and ``pages`` the requests.
    """

    digests: dict[str, int] = field(default_factory=dict)
    after: str = ""
    keys: int = 0
    pages: int = 0
    complete: bool = False

    def go_on(self, client: Any, bucket: str, depth: int, until: float | None = None) -> None:
        """List until the end, or until the monotonic clock shows ``until``, at least one page.

        Raises:
            SettingsError: the bucket, the credentials or the endpoint are wrong.
            AudioAssetsError: the server failed in another way; what was seen before stays.
        """
        for page in list_pages(client, bucket, start_after=self.after):
            for key, etag, size in zip(page.keys, page.etags, page.sizes, strict=True):
                if is_audio(key):
                    add(self.digests, prefix_of(key, depth), object_digest(key, etag, size))
            self.keys += len(page.keys)
            self.pages += 1
            self.after = page.keys[-1] if page.keys else self.after
            if until is not None and page.next_token is not None and time.monotonic() > until:
                return
        self.complete = True


@dataclass(frozen=True)
class BucketCount:
    """How much is in the bucket: ``keys`` of all kinds, ``recent`` ones written since a time, audio ``prefixes``."""

    keys: int
    recent: int
    prefixes: int


def count_objects(client: Any, bucket: str, depth: int, since: datetime.datetime) -> BucketCount:
    """Count by one listing of the whole bucket; memory grows with prefixes, not with objects.

    Raises:
        SettingsError: the bucket, the credentials or the endpoint are wrong.
        AudioAssetsError: the server failed in another way.
    """
    keys = recent = 0
    prefixes: set[str] = set()
    # A listing's times are ISO 8601 in UTC: their texts are in the order of time.
    oldest = since.astimezone(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
    for page in list_pages(client, bucket):
        keys += len(page.keys)
        recent += sum(modified >= oldest for modified in page.modified)
        prefixes.update(prefix_of(key, depth) for key in page.keys if is_audio(key))
    return BucketCount(keys, recent, len(prefixes))
