"""What the bytes of a file are: container, codec, rate, channels, length. Content decides, never the name."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from audio_assets.errors import FileFailed, InvalidAudio
from audio_assets.ingest.signatures import UNKNOWN, known_as

PROBE_VERSION = 1
"""To be raised with every change after which a file may be audio that was none before, FFmpeg's included: a run then
looks once more at what an earlier version refused."""

FORMATS = ("wav", "w64", "nistsphere", "mp3", "flac", "ogg", "aac", "mov", "matroska")
"""FFmpeg demuxers that may look at a file. Those that open other files or addresses (concat, hls, …) are not here."""

MOST_S = 60.0
"""What looking at one file may take: a start of nothing but empty chunks would keep FFmpeg for hours."""

_MOST_PACKETS = 200  # of a file's start, to find one that decodes
_NO_FILE = "the file is not in the mirror; fetch it again"


@dataclass(frozen=True)
class Probe:
    """What the header says. Names are FFmpeg's; ``duration_s`` is None where the header states no length.

    For MP3 without a Xing header and for raw AAC the length is FFmpeg's estimate from the bit rate.
    """

    container: str
    codec: str
    sample_rate_hz: int
    channels: int
    duration_s: float | None


class _Nameless:
    """A file without a name: FFmpeg would otherwise take its extension as evidence of the format."""

    def __init__(self, file: IO[bytes]) -> None:
        self._read = file.read
        self.seek = file.seek
        self.tell = file.tell
        self._until = time.monotonic() + MOST_S
        self.too_slow = False

    def read(self, size: int) -> bytes:
        # An error would be printed by PyAV, every time that FFmpeg tries again.
        self.too_slow |= time.monotonic() > self._until
        return b"" if self.too_slow else self._read(size)


def probe(path: Path) -> Probe:
    """Look at the start of the file at ``path`` and decode one frame of its audio stream, the default one of several.

    No other file and no address is ever opened, whatever the content asks for.

    Raises:
        InvalidAudio: zero bytes, not one of `FORMATS`, no audio stream, or nothing in it decodes.
        FileFailed: the file is missing, cannot be read, or takes longer than `MOST_S`.
    """
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise InvalidAudio("the file has zero bytes")
            file.seek(0)
            return _probe(file)
    except FileNotFoundError:
        raise FileFailed(_NO_FILE) from None
    except OSError as error:
        raise FileFailed(f"the file cannot be read: {error.strerror or error}") from error


def _probe(file: IO[bytes]) -> Probe:
    nameless = _Nameless(file)
    try:
        return _look(file, nameless)
    except InvalidAudio as error:
        if nameless.too_slow:
            raise FileFailed(f"looking at its start takes longer than {MOST_S:g} s; convert the file") from error
        raise


def _look(file: IO[bytes], nameless: _Nameless) -> Probe:
    import av

    try:
        container = av.open(
            nameless,
            # The second list is of addresses: a file object needs none. The lengths in a WAV are those of its beginning
            # where its writer died; RF64 of a writer that cannot seek states none at all.
            options={"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "none", "ignore_length": "1"},
            metadata_errors="replace",
        )
    except (av.error.FFmpegError, ValueError, EOFError) as error:
        what = known_as(file)
        told = f"it is {what}" if what is not None else f"{_reason(error)}; {UNKNOWN}"
        raise InvalidAudio(f"not audio in a known format: {told}") from error
    with container:
        streams = container.streams.audio
        if not streams:
            raise InvalidAudio(f"holds no audio stream ({container.format.name})")
        # As the decoder chooses among several.
        chosen = next((each for each in streams if each.disposition & av.stream.Disposition.default), streams[0])
        return _first_frame(av, container, chosen)


def _first_frame(av: Any, container: Any, stream: Any) -> Probe:
    codec = stream.codec_context
    if codec is None:
        raise InvalidAudio("its audio codec is unknown")
    reason = "it holds no audio"
    packets = container.demux(stream)
    for _ in range(_MOST_PACKETS):
        try:
            packet = next(packets, None)
            frames = packet.decode() if packet is not None else []
        except (av.error.FFmpegError, EOFError) as error:
            reason = _reason(error)
            # FFmpeg goes on behind what is damaged, as the decoder does.
            packets = container.demux(stream)
            continue
        if packet is None:
            break
        if frames:
            return Probe(
                container=container.format.name,
                codec=codec.codec.canonical_name,
                sample_rate_hz=frames[0].sample_rate,
                channels=frames[0].layout.nb_channels,
                duration_s=_duration_s(av, container, stream),
            )
    raise InvalidAudio(f"a {container.format.name} header, but nothing decodes: {reason}")


def _duration_s(av: Any, container: Any, stream: Any) -> float | None:
    if stream.duration is not None and stream.time_base is not None:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        seconds = container.duration / av.time_base
    else:
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:200]


if __name__ == "__main__":
    # The trial of a file on which a run has died: `PATH`.
    import sys

    from audio_assets.crashes import alone

    alone()
    probe(Path(sys.argv[1]))
