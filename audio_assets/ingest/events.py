"""R2 event notifications: what a message of the bucket's queue says.

The format is Cloudflare's: https://developers.cloudflare.com/r2/buckets/event-notifications/. A message is believed
only when it is about our account and our bucket; everything else is `MalformedEvent`, with a reason.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass

from audio_assets.ingest.listing import is_audio

CREATING = ("PutObject", "CopyObject", "CompleteMultipartUpload")
DELETING = ("DeleteObject", "LifecycleDeletion")

KEY_MAX_BYTES = 1024
"""R2's limit of an object's key."""

_QUOTE = 80


class MalformedEvent(ValueError):
    """A message that is no event of our bucket; the text says why, in a few words."""


@dataclass(frozen=True)
class ObjectEvent:
    """One object was written or deleted.

    ``id`` is the same whenever the same event is told again. ``etag`` and ``size_bytes`` are None for deletions.
    """

    id: str
    action: str
    key: str
    etag: str | None
    size_bytes: int | None
    event_time: str | None

    @property
    def is_deletion(self) -> bool:
        """Whether the object is gone."""
        return self.action in DELETING

    @property
    def is_audio(self) -> bool:
        """Whether the object's name is one of a recording."""
        return is_audio(self.key)


def parse_event(body: object, account: str, bucket: str) -> ObjectEvent:
    """The event in the body of a queue message, which is JSON, in base64 or as it is.

    Args:
        body: as the queue hands it over.
        account: the Cloudflare account whose events count.
        bucket: the bucket whose events count.

    Raises:
        MalformedEvent: it is not JSON, not an event, or one of another account or bucket.
    """
    event = _json(body)
    if not isinstance(event, dict):
        raise MalformedEvent("not a JSON object")
    if event.get("account") != account:
        raise MalformedEvent(f"of another account, {_short(event.get('account'))}")
    if event.get("bucket") != bucket:
        raise MalformedEvent(f"of another bucket, {_short(event.get('bucket'))}")
    action = event.get("action")
    if action not in CREATING + DELETING:
        raise MalformedEvent(f"unknown action {_short(action)}")
    described = event.get("object")
    if not isinstance(described, dict):
        raise MalformedEvent("names no object")
    key = described.get("key")
    if not isinstance(key, str) or not key:
        raise MalformedEvent("names no key")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise MalformedEvent("its key is not Unicode text") from None
    if size > KEY_MAX_BYTES:
        raise MalformedEvent(f"its key has {size} bytes; R2 allows {KEY_MAX_BYTES}")
    try:
        # The order of the members says nothing, so that two spellings of one event are one.
        told = json.dumps(event, sort_keys=True)
    except (ValueError, RecursionError):
        raise MalformedEvent("nested too deeply, or with numbers too large") from None
    return ObjectEvent(
        id=hashlib.sha256(told.encode()).hexdigest(),
        action=action,
        key=key,
        etag=_text(described.get("eTag")),
        size_bytes=described["size"] if isinstance(described.get("size"), int) else None,
        event_time=_text(event.get("eventTime")),
    )


def _json(body: object) -> object:
    if isinstance(body, dict):
        return body
    if not isinstance(body, str):
        raise MalformedEvent("its body is not text")
    text = body
    # `{` is no letter of base64, so the two cannot be mistaken for each other.
    if not body.lstrip().startswith("{"):
        try:
            text = base64.b64decode(body, validate=True).decode()
        except (binascii.Error, ValueError):
            raise MalformedEvent("neither JSON nor JSON in base64") from None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise MalformedEvent("not JSON") from None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _QUOTE else shown[:_QUOTE] + "…"
