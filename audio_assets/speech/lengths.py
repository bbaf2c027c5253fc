"""How long a recording should be by what its own file says, as far as that was counted and is no estimate."""

from __future__ import annotations

import re
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av.container import InputContainer

TOLERANCE_S = 1.0
FILM_TOLERANCE_SHARE = 0.02

_MATROSKA, _MP4 = "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2"

_OGG_TAIL_BYTES = 2 * (27 + 255 + 255 * 255)
"""Two pages of the greatest size: the last one that is whole, and one that was cut."""
_OGG_LAST = 4

_OPEN_LENGTH = 0xFFFFFFFF

_MP3_SEARCH_BYTES = 64 * 1024
"""As far as FFmpeg looks for the first frame of an MP3."""

_MP3_FRAME = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb].{2}", re.DOTALL)
"""The header of a frame of layer III; MPEG 2.5, 2 and 1 differ in the second byte."""

_MP3_RATES_HZ = (44_100, 48_000, 32_000)
"""Of MPEG 1; those of MPEG 2 are half of them, those of MPEG 2.5 a quarter."""


def stated_s(path: Path, container: InputContainer, stream: Any) -> float | None:
    """Seconds by the header; None where it says nothing.

    FFmpeg estimates the length of raw AAC, and of MP3 that does not count its frames, from the bit rate of the first of
    them: a recording that begins with silence would seem many times too long.
    """
    if container.format.name == "aac":
        return None
    if container.format.name == "mp3":
        return _mp3_s(path)
    if container.format.name == "ogg" and _start_s(container) > TOLERANCE_S:
        # A piece of a longer stream: the count on its last page is that of the whole stream.
        return None
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None:
        return float(container.duration) / 1_000_000
    return None


def span_s(container: InputContainer, stated_s: float | None) -> tuple[float, float | None]:
    """When the first and the last sound of a file may lie, by its own timestamps; the last None if nothing tells.

    Those of Matroska count from the beginning of the recording, so what lies before the first of them is missing. Other
    files begin where their first stream does, which may be anywhere, as in a piece of a longer broadcast.
    """
    start_s = _start_s(container)
    if stated_s is None or container.duration is None:
        return start_s, None
    end_s = container.duration / 1_000_000 + TOLERANCE_S
    return (min(0.0, start_s), end_s) if container.format.name == _MATROSKA else (start_s, start_s + end_s)


def may_leave_out(container: InputContainer) -> bool:
    """Whether a whole file of this kind may have holes in its timestamps; in others they are what damage left."""
    return container.format.name in (_MATROSKA, _MP4)


def _start_s(container: InputContainer) -> float:
    return (container.start_time or 0) / 1_000_000


def tolerance_s(container: InputContainer, stream: Any, duration_s: float) -> float:
    """By how much a whole file may fall short of `stated_s`: encoders round and pad by less.

    A share of the length is allowed only where that is the length of the whole container, which for a film is the
    picture's: its sound may end a little earlier.
    """
    counted = container.format.name == "mp3" or stream.duration is not None
    return TOLERANCE_S if counted else max(TOLERANCE_S, FILM_TOLERANCE_SHARE * duration_s)


def ends_early(path: Path, container: InputContainer) -> bool:
    """Whether a WAV or Ogg file ends before its own end mark, of which FFmpeg says nothing.

    The one has fewer bytes than its header promises, the other has a last page that is not marked as the last.
    """
    if container.format.name == "wav":
        return _wav_ends_early(path)
    return container.format.name == "ogg" and _ogg_ends_early(path)


def _wav_ends_early(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return False
        while len(chunk := file.read(8)) == 8:
            length = int.from_bytes(chunk[4:], "little")
            if chunk[:4] == b"data":
                # Writers that cannot seek leave the length open.
                return length != _OPEN_LENGTH and file.tell() + length > path.stat().st_size
            file.seek(length + length % 2, 1)
    return False


def _ogg_ends_early(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        start = max(0, size - _OGG_TAIL_BYTES)
        file.seek(start)
        tail = file.read()
    at = tail.rfind(b"OggS")
    while at >= 0:
        page = tail[at : at + 27]
        # By chance the four letters stand in sound too, but not with version 0 behind them and whole tables.
        if len(page) == 27 and page[4] == 0 and page[5] < 8:
            lengths = tail[at + 27 : at + 27 + page[26]]
            return not page[5] & _OGG_LAST or len(lengths) < page[26] or at + 27 + page[26] + sum(lengths) > len(tail)
        at = tail.rfind(b"OggS", 0, at)
    return True


def _mp3_s(path: Path) -> float | None:
    """Seconds by the count of frames that the first of them may carry (Xing, Info or VBRI), padding included."""
    with path.open("rb") as file:
        _skip_id3(file)
        head = file.read(_MP3_SEARCH_BYTES)
    for found in _MP3_FRAME.finditer(head):
        version, bits, mode = found[0][1] >> 3 & 3, found[0][2], found[0][3] >> 6
        if bits >> 4 == 15 or bits >> 2 & 3 == 3:
            # Neither the bit rate nor the sample rate is one: these bytes are something else.
            continue
        frames = _mp3_frames(head[found.start() :], mpeg1=version == 3, mono=mode == 3)
        halved = {3: 0, 2: 1, 0: 2}[version]
        rate_hz = _MP3_RATES_HZ[bits >> 2 & 3] >> halved
        return frames * (1152 if version == 3 else 576) / rate_hz if frames else None
    return None


def _mp3_frames(frame: bytes, *, mpeg1: bool, mono: bool) -> int | None:
    # The tag stands where the side information of a frame ends, or always 32 bytes behind the header.
    side = (17 if mono else 32) if mpeg1 else (9 if mono else 17)
    tag = frame[4 + side : 4 + side + 12]
    if tag[:4] in (b"Xing", b"Info") and tag[7:8] and tag[7] & 1:
        return int.from_bytes(tag[8:12], "big")
    tag = frame[36 : 36 + 18]
    return int.from_bytes(tag[14:18], "big") if tag[:4] == b"VBRI" else None


def _skip_id3(file: IO[bytes]) -> None:
    """Go to what lies behind the ID3v2 tags at the start."""
    while (head := file.read(10))[:3] == b"ID3" and len(head) == 10:
        size = 0
        for byte in head[6:]:
            size = size << 7 | byte & 0x7F
        footer = 10 if head[5] & 0x10 else 0
        file.seek(size + footer, 1)
    file.seek(-len(head), 1)
