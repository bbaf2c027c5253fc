"""What a file is that is not taken in: its first bytes tell, so that its row can say what to do about it."""

from __future__ import annotations

from typing import IO

CONVERT = "convert it to WAV or FLAC"
AGAIN = "upload the recording itself"
UNKNOWN = f"if it plays elsewhere, {CONVERT}"
"""What to do about a file of which nothing is known."""

_FORMATS: dict[bytes, str] = {
    b".snd": "AU",
    b"#!AMR": "AMR",
    b"caff": "CAF",
    b"FLV\x01": "Flash Video",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "Windows Media",
    b"wvpk": "WavPack",
    b"MAC ": "Monkey's Audio",
    b"\x0b\x77": "AC-3",
    b".RMF": "RealMedia",
}
_FORMS: dict[bytes, str] = {b"AIFF": "AIFF", b"AIFC": "AIFF", b"AVI ": "AVI"}
"""Of RIFF and its elder brother, whose fourth to eighth byte are a length."""

_NO_SOUND: dict[bytes, str] = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file that it points to",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "compressed with gzip",
    b"7z\xbc\xaf": "a 7-Zip archive",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"#EXTM3U": "a playlist, which holds no sound",
    b"MThd": "MIDI, which holds notes and no sound",
    b"<": "a web page or XML, as servers send it in place of a file",
    b"{": "JSON, as servers send it in place of a file",
}

_APPLE_DOUBLE = b"\x00\x05\x16\x07"

_TS_PACKET = 188
_LOOK_BYTES = 4 * _TS_PACKET
_MOST_BOXES = 1000


def known_as(file: IO[bytes]) -> str | None:
    """What the file is and what to do about it, in a clause; None if its beginning tells nothing."""
    file.seek(0)
    head = file.read(_LOOK_BYTES)
    for sign, name in _FORMATS.items():
        if head.startswith(sign):
            return f"{name}, which is not taken in; {CONVERT}"
    if head[:4] in (b"FORM", b"RIFF") and head[8:12] in _FORMS:
        return f"{_FORMS[head[8:12]]}, which is not taken in; {CONVERT}"
    if len(head) == _LOOK_BYTES and set(head[::_TS_PACKET]) == {0x47}:
        return f"MPEG-TS, which is not taken in; {CONVERT}"
    for sign, what in _NO_SOUND.items():
        if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(sign):
            return f"{what}; {AGAIN}"
    if head.startswith(_APPLE_DOUBLE):
        return "what macOS keeps beside a file (._name), which holds no sound; exclude such objects"
    if head[4:8] == b"ftyp" and not _has_index(file):
        return "an MP4 without its index (moov), cut short or never finished; upload it again, or repair it"
    return None


def _has_index(file: IO[bytes]) -> bool:
    at, size = 0, file.seek(0, 2)
    for _ in range(_MOST_BOXES):
        file.seek(at)
        head = file.read(16)
        if head[4:8] == b"moov":
            return True
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if length < 8 or at + length >= size:
            return False
        at += length
    return False
