"""What is fuzzed: code that reads what strangers wrote. A target takes any bytes and returns, or there is a fault."""

from __future__ import annotations

import base64
import os
import tempfile
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from audio_assets import partitions
from audio_assets.errors import AudioAssetsError, FileFailed, InvalidAudio
from audio_assets.ingest.event_inbox import EventInbox
from audio_assets.ingest.events import KEY_MAX_BYTES, MalformedEvent, parse_event
from audio_assets.ingest.listing import objects_of
from audio_assets.ingest.mirror import Mirror
from audio_assets.ingest.pages import parse_page
from audio_assets.ingest.probe import probe
from audio_assets.speech.decode import AudioStream, Limits
from audio_assets.speech.engine import SAMPLE_RATE_HZ

ROOT = Path("/mirror")
LONGEST_NAME_BYTES = 255
LIMITS = Limits(max_duration_s=20.0, max_bytes=1 << 20, max_decode_s=10.0)
ACCOUNT, BUCKET = "account", "bucket"


def key_codec(data: bytes) -> None:
    """A key becomes a path inside the mirror and comes back; a prefix becomes a partition key and comes back."""
    key = data[:KEY_MAX_BYTES].decode("utf-8", "replace")
    while len(key.encode()) > KEY_MAX_BYTES:
        key = key[:-1]
    mirror = Mirror(ROOT, frozenset())
    if key:
        path = mirror.path_for(key)
        relative = path.relative_to(ROOT)
        assert Path(os.path.normpath(path)) == path and relative.parts, key
        assert all(0 < len(os.fsencode(part)) <= LONGEST_NAME_BYTES for part in relative.parts), key
        assert not any(character in part for part in relative.parts for character in "\x00\n\\"), key
        assert mirror.key_for(path) == key
    for depth in (0, 1, 3):
        prefix = partitions.prefix_of(key, depth)
        name = partitions.partition_key_for(prefix)
        assert partitions.prefix_for(name) == unicodedata.normalize("NFC", prefix), key
        assert ".." not in name and "\n" not in name and "\x00" not in name, key
    # The other way round: what is no name of ours is refused, never guessed at.
    with suppress(ValueError):
        assert partitions.partition_key_for(partitions.prefix_for(key)) == key
    if key and not key.startswith("/"):
        with suppress(ValueError):
            assert mirror.path_for(mirror.key_for(ROOT / key)) == ROOT / key


def event(data: bytes) -> None:
    """A message of the queue is an event of our bucket, or is set aside with a reason; either way it can be kept."""
    try:
        text = data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        text = data.decode("utf-8", "replace")
    inbox = _inbox()
    for body in (text, base64.b64encode(data).decode()):
        try:
            found = parse_event(body, ACCOUNT, BUCKET)
        except MalformedEvent as error:
            reason = str(error)
            assert reason and reason.isprintable(), reason
            inbox.set_aside([{"id": reason, "reason": reason, "body": body}], 0.0)
            continue
        assert found.key and len(found.key.encode()) <= KEY_MAX_BYTES
        inbox.store([(found.id, partitions.prefix_of(found.key, 1))], 0.0)
        assert found.is_deletion in (True, False) and found.is_audio in (True, False)


def page(data: bytes) -> None:
    """A page of a listing is read, is no page, or is refused; columns are equally long."""
    with suppress(AudioAssetsError):
        found = parse_page(data)
        if found is not None:
            columns = (found.keys, found.etags, found.sizes, found.modified)
            assert len({len(column) for column in columns}) == 1
            assert all(o.size_bytes >= 0 and o.last_modified is not None for o in objects_of(found, lambda key: True))


def decoder(data: bytes) -> None:
    """A file is decoded within its limits, or is not audio; the header's reader and the decoder both survive it."""
    path = _scratch() / "fuzzed.mp3"
    path.write_bytes(data)
    with suppress(InvalidAudio, FileFailed):
        found = probe(path)
        assert found.sample_rate_hz > 0 and found.channels > 0
    for split in (False, True):
        with suppress(InvalidAudio), AudioStream(path, LIMITS, split_channels=split) as stream:
            count = 0
            for block in stream.blocks():
                count += block.shape[-1]
                assert block.ndim == (2 if stream.channels > 1 else 1) or split
                assert count <= (LIMITS.max_duration_s + 60) * SAMPLE_RATE_HZ
                assert abs(block).max(initial=0.0) < float("inf")
            assert count and stream.duration_s > 0


TARGETS: dict[str, Callable[[bytes], None]] = {
    "key-codec": key_codec,
    "event": event,
    "page": page,
    "decoder": decoder,
}


@cache
def _directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(
        prefix="audio-assets-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None
    )


def _scratch() -> Path:
    return Path(_directory().name)


@cache
def _inbox() -> EventInbox:
    return EventInbox(_scratch() / "sensors")
