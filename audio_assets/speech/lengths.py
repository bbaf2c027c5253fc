"""How long a recording should be by what its own file says, as far as that was counted and is no estimate."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av.container import InputContainer

TOLERANCE_S = 1.0
FILM_TOLERANCE_SHARE = 0.02

_MATROSKA, _MP4 = "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2"

_MATROSKA_BETWEEN_BYTES = 200
"""More than the headers of blocks and clusters that lie between two blocks of sound: these have some 60 bytes."""

_MOST_CHUNKS = 1000
_MOST_FMT_BYTES = 1024
_LOOK_BYTES = 4096

_TRACK_DURATION = re.compile(r"(\d{1,6}):(\d{2}):(\d{2}(?:\.\d{1,9})?)", re.ASCII)

_OGG_TAIL_BYTES = 2 * (27 + 255 + 255 * 255)
"""Two pages of the greatest size: the last one that is whole, and one that was cut."""
_OGG_LAST = 4

_OPEN_LENGTH = 0xFFFFFFFF

_OPEN_LENGTHS = (range(0x7FFFF000, 0x80000001), range(0xFFFFF000, _OPEN_LENGTH + 1))
"""What writers that cannot seek give as the length of a WAV's sound: SoX and eSpeak 0x7FFFF000, arecord 0x80000000,
FFmpeg 0xFFFFFFFF, others the most that there can be less their header."""

_WAV_TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LIST")
"""What is put behind a WAV, and with a wrong length at times."""

_WAV_PLAIN = (1, 3, 6, 7, 0xFFFE)
"""Formats of WAV whose samples stand by themselves, so that they can be read on from anywhere."""

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
    found = [_track_s(container, stream)]
    if stream.duration is not None and stream.time_base is not None:
        found.append(float(stream.duration * stream.time_base))
    elif container.duration is not None:
        found.append(float(container.duration) / 1_000_000)
    return min((seconds for seconds in found if seconds is not None), default=None)


def _track_s(container: InputContainer, stream: Any) -> float | None:
    """Seconds of one track by the tags of a Matroska file; its header states those of all of them together.

    FFmpeg gives these to every stream: for a film they are the picture's.
    """
    if container.format.name != _MATROSKA:
        return None
    for name, value in stream.metadata.items():
        told = _TRACK_DURATION.fullmatch(value) if name == "DURATION" or name.startswith("DURATION-") else None
        if told is not None:
            return 3600.0 * int(told[1]) + 60.0 * int(told[2]) + float(told[3])
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


def may_leave_out(container: InputContainer, skipped_bytes: int) -> bool:
    """Whether a whole file of this kind may have holes in its timestamps; in others they are what damage left.

    FFmpeg skips what is damaged in Matroska without a word: there bytes without sound lie in such a hole. Those of a
    picture may, too.
    """
    if container.format.name == _MATROSKA:
        return skipped_bytes <= _MATROSKA_BETWEEN_BYTES or len(container.streams) > 1
    return container.format.name == _MP4


def is_counted(container: InputContainer) -> bool:
    """Whether a file has no timestamps, so that FFmpeg counts its frames."""
    return container.format.name in ("mp3", "aac")


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
    """Whether a WAV, MP4 or Ogg file ends before its own end mark, or goes on where FFmpeg does not, and says nothing.

    The first has fewer bytes than its header promises, or behind them a file of another form that is not read; the
    second has another one behind it; the last has a last page that is not marked as the last.
    """
    if container.format.name == "wav":
        return _wav_ends_early(path)
    if container.format.name == _MP4:
        return _mp4_is_followed(path)
    return container.format.name == "ogg" and _ogg_ends_early(path)


def goes_on(path: Path) -> bool:
    """Whether there is sound in a WAV behind the end that its header states, which FFmpeg must be told to ignore.

    So it is where a recorder died before it wrote the length anew, and in files that were put together.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        sound = _wav_sound(file)
        if sound is None or sound.format not in _WAV_PLAIN:
            return False
        if sound.length is None:
            # FFmpeg takes a length of zero for a mistake, but not that of RF64.
            return sound.wide
        return _behind(file, sound) == _MORE


_MORE, _ANOTHER = "more", "another"
"""What may lie behind the sound of a WAV: more of it, or that of a file of another form."""


@dataclass(frozen=True)
class _WavSound:
    """Where a WAV has its sound, in bytes; ``length`` is None where it is open."""

    header: bytes
    start: int
    length: int | None
    wide: bool

    @property
    def format(self) -> int:
        return int.from_bytes(self.header[:2], "little")

    @property
    def bytes_per_s(self) -> int:
        return int.from_bytes(self.header[8:12], "little")


def _wav_sound(file: IO[bytes]) -> _WavSound | None:
    """The sound of the WAV that begins at the position of ``file``; None if there is none."""
    head = file.read(12)
    wide = head[:4] in (b"RF64", b"BW64")
    if not (wide or head[:4] == b"RIFF") or head[8:] != b"WAVE":
        return None
    header, wide_length = b"", 0
    for _ in range(_MOST_CHUNKS):
        chunk = file.read(8)
        length = int.from_bytes(chunk[4:], "little")
        if chunk[:4] == b"data":
            if wide and length == _OPEN_LENGTH:
                length = wide_length
            elif any(length in lengths for lengths in _OPEN_LENGTHS):
                length = 0
            return _WavSound(header, file.tell(), length or None, wide)
        at = file.tell()
        if chunk[:4] == b"fmt ":
            header = file.read(min(length, _MOST_FMT_BYTES))
        elif chunk[:4] == b"ds64":
            wide_length = int.from_bytes(file.read(16)[8:], "little")
        file.seek(at + length + length % 2)
    return None


def _behind(file: IO[bytes], sound: _WavSound) -> str | None:
    """What follows the sound of a WAV beside chunks and tags, if it is a second of it at least."""
    size = file.seek(0, 2)
    at = sound.start + (sound.length or 0)
    for _ in range(_MOST_CHUNKS):
        if size - at < max(1, sound.bytes_per_s) * TOLERANCE_S:
            break
        file.seek(at)
        head = file.read(_LOOK_BYTES)
        if (at - sound.start) % 2 and not head[0]:
            # What has an odd length is padded, but not by all writers.
            at, head = at + 1, head[1:]
        if head[:4] in (b"RIFF", b"RF64", b"BW64"):
            file.seek(at)
            next_ = _wav_sound(file)
            if next_ is not None:
                return _MORE if next_.header == sound.header else _ANOTHER
        length = int.from_bytes(head[4:8], "little")
        if not (head[:4].isascii() and head[:4].decode("ascii").isprintable()) or at + 8 + length > size + 1:
            return None if head.startswith(_WAV_TAGS) or not any(head) else _MORE
        at += 8 + length
    return None


def _wav_ends_early(path: Path) -> bool:
    with path.open("rb") as file:
        sound = _wav_sound(file)
        if sound is None or sound.length is None:
            return False
        return sound.start + sound.length > path.stat().st_size or _behind(file, sound) == _ANOTHER


def _mp4_is_followed(path: Path) -> bool:
    """Whether there is a second header, of which there is one to a file: FFmpeg reads what belongs to the first."""
    headers = at = 0
    with path.open("rb") as file:
        for _ in range(_MOST_CHUNKS):
            file.seek(at)
            head = file.read(16)
            headers += head[4:8] == b"moov"
            size = int.from_bytes(head[:4], "big")
            if size == 1:
                size = int.from_bytes(head[8:], "big")
            if headers > 1 or size < 8:
                break
            at += size
    return headers > 1


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


def tag_end(packet: Any) -> int:
    """Where the ID3v2 tag ends with which a packet of an MP3 begins; 0 if it begins with none."""
    head = bytes(packet)[:10] if packet.size >= 10 else b""
    return packet.pos + _id3_bytes(head) if head[:3] == b"ID3" and packet.pos is not None else 0


def _id3_bytes(head: bytes) -> int:
    size = 0
    for byte in head[6:]:
        size = size << 7 | byte & 0x7F
    return len(head) + size + (10 if head[5] & 0x10 else 0)


def _skip_id3(file: IO[bytes]) -> None:
    """Go to what lies behind the ID3v2 tags at the start."""
    while (head := file.read(10))[:3] == b"ID3" and len(head) == 10:
        file.seek(_id3_bytes(head) - len(head), 1)
    file.seek(-len(head), 1)
