"""The prefixes of a bucket that hold audio, found by listing folder by folder and many folders at a time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from audio_assets.ingest.bucket_scan import add, object_digest
from audio_assets.ingest.listing import PrefixListing
from audio_assets.ingest.pages import Page
from audio_assets.ingest.selection import EMPTY, OVERSIZED, Selection
from audio_assets.ingest.sweep import Sweep
from audio_assets.partitions import partition_key_for, prefix_of


@dataclass(frozen=True)
class Discovery:
    """What a look at the bucket found: prefixes in their order, and what was counted and passed over, by kind.

    ``requests`` pages were asked for.
    """

    prefixes: list[PrefixListing]
    passed_over: Counter[str] = field(default_factory=Counter)
    requests: int = 0


def discover(
    client: Any, bucket: str, depth: int, selection: Selection | None = None, *, count: bool = True
) -> Discovery:
    """The prefixes at ``depth`` that hold objects which count.

    Folders are told apart by the delimiter, down to ``depth``; objects that lie higher belong to the folder they lie
    in, the root included. Then each folder is listed, several at a time.

    Args:
        client: a boto3 S3 client.
        bucket: name of the bucket.
        depth: folders of a key that make its partition.
        selection: which objects count; by default every audio file.
        count: list every folder to its end and count. Without, a folder's listing ends with its first audio file, so
            that a bucket of millions costs some requests for each folder; counts are None then.

    Raises:
        SettingsError: the bucket, the credentials or the endpoint are wrong.
        AudioAssetsError: the server failed in another way.
    """
    selection = selection or Selection()
    sweep = Sweep.below("", depth)
    tally: Counter[str] = Counter()
    totals: dict[str, list[int]] = {}
    digests: dict[str, int] = {}
    requests = 0

    def enough(prefix: str, page: Page) -> bool:
        # A part that holds many prefixes, since there are too many to tell apart, is listed to its end.
        return not count and prefix.count("/") >= depth and any(map(selection.wants, page.keys))

    for _, page in sweep.pages(client, bucket, enough=enough):
        requests += 1
        for key, etag, size in zip(page.keys, page.etags, page.sizes, strict=True):
            if not selection.count(key, tally):
                continue
            prefix = prefix_of(key, depth)
            total = totals.setdefault(prefix, [0, 0])
            total[0] += 1
            total[1] += size
            if count:
                add(digests, prefix, object_digest(key, etag, size))
                tally[EMPTY] += size == 0
                tally[OVERSIZED] += selection.max_object_bytes is not None and size > selection.max_object_bytes
    found = [
        PrefixListing(prefix, partition_key_for(prefix), n, size, f"{digests[prefix]:032x}")
        if count
        else PrefixListing(prefix, partition_key_for(prefix), None, None)
        for prefix, (n, size) in sorted(totals.items())
    ]
    return Discovery(found, tally if count else Counter(), requests)
