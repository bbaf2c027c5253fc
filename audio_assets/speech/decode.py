"""Audio files to mono 16 kHz samples, block by block, within limits.

Only known containers are opened, and only as local files: a playlist or script that wears an audio extension cannot
make FFmpeg open another file or a socket.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from audio_assets.errors import InvalidAudio
from audio_assets.speech import lengths
from audio_assets.speech.clock import Clock
from audio_assets.speech.engine import SAMPLE_RATE_HZ, Samples
from audio_assets.speech.mixing import energy_of, mixed

if TYPE_CHECKING:
    from av.container import InputContainer

FORMATS = "wav,w64,nistsphere,mp3,flac,mov,ogg,matroska,aac"
"""FFmpeg demuxers that may open a file: those of ingestion's extensions, and none that refers to other files. NIST
SPHERE is called ``.wav`` in corpora of speech such as TIMIT."""

BLOCK_S = 30.0
"""Length of the blocks that `AudioStream.blocks` gives: long enough to be cheap, short enough for flat memory."""

CLIP_LEVEL = 0.995
CLIP_SHARE = 0.001
"""Clipped: at least one sample in a thousand sits at full scale; undistorted speech has none to a few."""

LOUDEST = 4.0
"""Samples are held within this, 12 dB over full scale: floats and resamplers pass 1 by a little, damage by far more."""

WILD_SHARE = 0.01
"""A file of floats is on the scale of integers, or another, when so many of its samples lie beyond `LOUDEST`."""

_MOST_BAD = 1000
"""Damaged packets in a row after which the rest of a file is given up."""

_TRIAL_S = 60.0
"""What a trial may take beyond the time for decoding: an interpreter has to start."""

_APART, _MIXED = "apart", "mixed"
"""What a trial does with channels."""


@dataclass(frozen=True)
class Limits:
    """What a single file may cost before it is refused. ``max_decode_s`` counts decoding alone, not what is done with
    the blocks meanwhile.
    """

    max_duration_s: float = 12 * 3600.0
    max_bytes: int = 2 << 30
    max_decode_s: float = 1800.0


@dataclass(frozen=True)
class Audio:
    """A decoded file: ``samples`` is float32 mono at 16 kHz, shape (n,), full scale at 1 and none beyond `LOUDEST`."""

    samples: Samples
    duration_s: float
    truncated: bool
    clipped: bool


class AudioStream:
    """A file that is decoded as it is read. Use as a context manager and iterate `blocks` once.

    Of several audio tracks it is that number ``track``, the default one first; None for the first that holds speech.
    ``duration_s``, ``truncated`` and ``clipped`` are final after the last block.
    """

    def __init__(
        self, path: Path, limits: Limits | None = None, *, split_channels: bool = False, track: int | None = None
    ):
        self._path = path
        self._track = track
        self._limits = limits or Limits()
        self._split = split_channels
        self._container: InputContainer | None = None
        self._stream: Any = None
        self.channels = 1
        self.header_duration_s: float | None = None
        self.duration_s = 0.0
        self.truncated = False
        self._full_scale: Counter[int] = Counter()
        self._wild = 0.0
        self._floats = False
        self._energy = 0.0
        self._samples = 0
        self._damaged = False
        self._holey = False
        self._tolerance_s = lengths.TOLERANCE_S
        self._early = False
        self._unread = False
        self._goes_on = False
        self._skipped_bytes = 0

    @property
    def clipped(self) -> bool:
        """Whether in some channel so many samples sit at full scale that the recording was overdriven."""
        return self._samples > 0 and max(self._full_scale.values(), default=0) >= CLIP_SHARE * self._samples

    @property
    def loudness_dbfs(self) -> float | None:
        """Root mean square of all channels that were decoded, in dB against full scale; None for digital silence."""
        mean = self._energy / self._samples if self._samples else 0.0
        return 10 * math.log10(mean) if mean > 0 else None

    def __enter__(self) -> AudioStream:
        self._open()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None

    def _open(self) -> None:
        import av

        try:
            size = self._path.stat().st_size
        except OSError as error:
            raise InvalidAudio(f"cannot be read: {error.strerror}; run the ingestion again") from error
        if size == 0:
            raise InvalidAudio("zero bytes; upload the recording again")
        if size > self._limits.max_bytes:
            raise InvalidAudio(
                f"{size} bytes is over the limit of {self._limits.max_bytes}; raise max_bytes or split the file"
            )
        started = time.monotonic()
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
        try:
            self._goes_on = lengths.goes_on(self._path)
            if self._goes_on:
                options["ignore_length"] = "1"
            # The file: prefix keeps a name with a colon from being read as another protocol.
            name = f"file:{self._path.absolute()}"
            # The second timeout is for reading, which `_in_time` has an eye on.
            patience = (self._limits.max_decode_s, None)
            self._container = av.open(name, options=options, metadata_errors="ignore", timeout=patience)
        except (av.FFmpegError, ValueError, OSError) as error:
            if time.monotonic() - started > self._limits.max_decode_s:
                raise self._too_slow() from error
            raise InvalidAudio(f"not audio that can be decoded ({_reason(error)})") from error
        try:
            tracks = _tracks(self._container)
            if not tracks:
                raise InvalidAudio("holds no audio stream")
            self._stream = stream = tracks[self._chosen(len(tracks))]
            if stream.codec_context is None:
                raise InvalidAudio("its audio codec is unknown")
            self.header_duration_s = lengths.stated_s(self._path, self._container, stream)
            self._tolerance_s = lengths.tolerance_s(self._container, stream, self.header_duration_s or 0.0)
            self._early = lengths.ends_early(self._path, self._container)
            self._floats = stream.codec_context.name.startswith("pcm_f")
            if self._split:
                self.channels = max(1, int(stream.channels))
            if self.header_duration_s is not None:
                self._check_duration(self.header_duration_s)
        except InvalidAudio:
            self.__exit__()
            raise
        except OSError as error:
            self.__exit__()
            raise InvalidAudio(f"cannot be read: {_reason(error)}; run the ingestion again") from error

    def _chosen(self, count: int) -> int:
        if self._track is None and count > 1:
            from audio_assets.speech import tracks

            self._track = tracks.with_speech(self._path, self._limits, count)
        return self._track or 0

    def _check_duration(self, duration_s: float) -> None:
        if duration_s > self._limits.max_duration_s:
            raise InvalidAudio(
                f"{duration_s:.0f} s is over the limit of {self._limits.max_duration_s:.0f} s; "
                "raise max_duration_s or split the file"
            )

    def _check_scale(self) -> None:
        # Codecs make such samples of damaged packets; only floats can be on another scale as a whole.
        if self._floats and self._wild > WILD_SHARE * self._samples:
            raise InvalidAudio("its samples go far beyond full scale; bring them to -1 to 1 and upload it again")

    def blocks(self) -> Iterator[Samples]:
        """Float32 blocks of about `BLOCK_S`, shape (n,), or (channels, n) when the channels are kept apart.

        Raises:
            InvalidAudio: nothing can be decoded, or a limit is passed.
        """
        pending: list[Samples] = []
        held = 0
        for piece in self._in_time(self._pieces()):
            pending.append(piece)
            held += piece.shape[-1]
            if held >= BLOCK_S * SAMPLE_RATE_HZ:
                self._check_scale()
                yield np.concatenate(pending, axis=-1)
                pending, held = [], 0
        self._check_scale()
        if held:
            yield np.concatenate(pending, axis=-1)
        if self._samples == 0:
            raise InvalidAudio("no audio in it could be decoded")
        self.duration_s = self._samples / SAMPLE_RATE_HZ
        short_s = (self.header_duration_s or 0.0) - self.duration_s
        self.truncated = self._damaged or self._holey or short_s > self._tolerance_s or self._early

    def _in_time(self, pieces: Iterator[Samples]) -> Iterator[Samples]:
        spent_s = 0.0
        while True:
            started = time.monotonic()
            piece = next(pieces, None)
            spent_s += time.monotonic() - started
            if spent_s > self._limits.max_decode_s:
                raise self._too_slow()
            if piece is None:
                return
            yield piece

    def _too_slow(self) -> InvalidAudio:
        return InvalidAudio(
            f"decoding takes longer than {self._limits.max_decode_s:g} s; raise max_decode_s or convert the file"
        )

    def _plain_pcm(self) -> Iterator[Samples] | None:
        """A faster way through the commonest files: WAV and FLAC that are mono 16 kHz already and undamaged.

        libsndfile decodes them at a fifth of the price. It knows nothing of files that end early, so a file whose
        length is not what its header says is left to FFmpeg, as is everything that would have to be resampled, and what
        lies behind the end that the header of a FLAC states: another FLAC, or a recording that went on.
        """
        import soundfile

        if self._container is None or self._container.format.name not in ("wav", "flac") or self._goes_on:
            return None
        codec = self._stream.codec_context
        if codec.sample_rate != SAMPLE_RATE_HZ or codec.channels != 1 or self._split or self.header_duration_s is None:
            return None
        try:
            raw = self._path.open("rb")
        except OSError:
            return None
        try:
            file = soundfile.SoundFile(raw.fileno(), closefd=False)
        except soundfile.SoundFileError:
            raw.close()
            return None
        if abs(file.frames - self.header_duration_s * SAMPLE_RATE_HZ) > 1 or self._early:
            file.close()
            raw.close()
            return None
        return self._read_plain(file, raw)

    def _read_plain(self, file: Any, raw: IO[bytes]) -> Iterator[Samples]:
        """The samples of a file, up to the first damage or the stated end: `_samples` says how far that was."""
        import soundfile

        with raw, file:
            while self._samples < file.frames:
                try:
                    # A second at a time: what is read before a damaged place need not be read again.
                    data = file.read(min(file.frames - self._samples, SAMPLE_RATE_HZ), dtype="float32")
                except soundfile.SoundFileError:
                    data = ()
                if not len(data):
                    self._damaged = True
                    return
                yield self._account(data)
            # Behind the last chunk of a WAV there may be others; a FLAC is read in pieces of 8 KiB to its end.
            read_bytes, size = os.lseek(raw.fileno(), 0, os.SEEK_CUR), os.fstat(raw.fileno()).st_size
            self._unread = file.format == "FLAC" and read_bytes < size

    def _pieces(self) -> Iterator[Samples]:
        plain = self._plain_pcm()
        if plain is not None:
            yield from plain
            if not self._damaged and not self._unread:
                return
        pieces = self._beyond(self._samples, self._resampled())
        yield from pieces if self._split else mixed(pieces)

    def _beyond(self, given: int, pieces: Iterator[Samples]) -> Iterator[Samples]:
        """``pieces`` counted, without the samples that were ``given`` already: empty as long as these last."""
        for piece in pieces:
            left = piece[..., min(given, piece.shape[-1]) :]
            given -= piece.shape[-1] - left.shape[-1]
            yield self._account(left)

    def _resampled(self) -> Iterator[Samples]:
        import av

        assert self._container is not None, "use AudioStream as a context manager"  # noqa: S101 - misuse, not input
        stated = self._stream.layout.name if self._split else None
        span_s = lengths.span_s(self._container, self.header_duration_s)
        clock = Clock(*span_s, counted=lengths.is_counted(self._container))
        resampler, form = None, None
        for frame in self._frames(clock):
            missing = clock.missing_before(frame)
            # A damaged or hostile file may change its form half-way; a resampler that has nothing to do lets it pass.
            if resampler is None or missing or form != (frame.format.name, frame.layout.name, frame.sample_rate):
                if resampler is not None:
                    for piece in resampler.resample(None):
                        yield self._take(piece)
                # FFmpeg would mix channels louder than they are, and not at all where it does not know their places.
                layout = stated or frame.layout.name
                resampler = av.AudioResampler(format="flt", layout=layout, rate=SAMPLE_RATE_HZ)
                form = (frame.format.name, frame.layout.name, frame.sample_rate)
            if missing:
                self._damaged |= not lengths.may_leave_out(self._container, self._skipped_bytes)
                yield from self._silence(missing, frame)
            # Timestamps with holes would make the resampler insert or drop sound.
            frame.pts = None
            try:
                resampled = resampler.resample(frame)
            except (av.FFmpegError, ValueError) as error:
                raise InvalidAudio(f"cannot be resampled ({_reason(error)})") from error
            for piece in resampled:
                yield self._take(piece)
        if resampler is not None:
            for piece in resampler.resample(None):
                yield self._take(piece)

    def _silence(self, samples: int, frame: Any) -> Iterator[Samples]:
        """As much silence, by seconds, in the channels that the pieces of ``frame`` will have."""
        channels = self.channels if self._split else frame.layout.nb_channels
        shape = (channels,) if self._split or channels > 1 else ()
        for start in range(0, samples, SAMPLE_RATE_HZ):
            yield np.zeros((*shape, min(SAMPLE_RATE_HZ, samples - start)), np.float32)

    def _frames(self, clock: Clock) -> Iterator[Any]:
        import av

        assert self._container is not None  # noqa: S101 - see _pieces
        packets = iter(self._container.demux(self._stream))
        bad = tag_end = 0
        block, read_to = None, 0
        while True:
            in_tag = False
            try:
                packet = next(packets)
                if packet.pos is not None:
                    # Several packets of Matroska may share a block, and have its place.
                    if packet.pos != block:
                        self._skipped_bytes = 0 if block is None else packet.pos - read_to
                        block = read_to = packet.pos
                    read_to += packet.size
                if self._container.format.name == "mp3":
                    # Files that were put together have tags in them, with pictures.
                    tag_end = max(tag_end, lengths.tag_end(packet))
                    in_tag = packet.pos is not None and packet.pos < tag_end
                frames = packet.decode()
            except StopIteration:
                return
            except (av.FFmpegError, ValueError, OSError) as error:
                if in_tag:
                    clock.set_by_next()
                    continue
                self._damaged = True
                bad += 1
                # FFmpeg goes on behind a damaged packet; a file of nothing but damage must not be read for ever.
                if isinstance(error, av.error.InvalidDataError) and bad < _MOST_BAD:
                    packets = iter(self._container.demux(self._stream))
                    continue
                return
            if in_tag:
                # What a picture has that looks like sound.
                clock.set_by_next()
                continue
            if frames:
                bad = 0
            yield from frames

    def _take(self, frame: Any) -> Samples:
        # Packed samples: PyAV reads the planes of eight channels and more from memory that is not the frame's.
        data: Samples = frame.to_ndarray().reshape(-1, frame.layout.nb_channels)
        return np.ascontiguousarray(data.T) if self._split or data.shape[1] > 1 else data.reshape(-1)

    def _account(self, data: Samples) -> Samples:
        """Count samples, those at full scale too, and take out what is no number or absurd."""
        peak = max(float(data.max(initial=0.0)), -float(data.min(initial=0.0)))
        # Asked this way round because nothing holds for NaN.
        if not peak <= LOUDEST:
            data = self._tamed(data)
        if not peak < CLIP_LEVEL:
            counts = np.count_nonzero(np.abs(data) >= CLIP_LEVEL, axis=-1)
            self._full_scale.update(dict(enumerate(np.atleast_1d(counts).tolist())))
        self._energy += float(np.mean(energy_of(data)))
        self._samples += data.shape[-1]
        self._check_duration(self._samples / SAMPLE_RATE_HZ)
        return data

    def _tamed(self, data: Samples) -> Samples:
        self._wild += float(np.count_nonzero(np.abs(data) > LOUDEST)) / (data.shape[0] if data.ndim > 1 else 1)
        # What was there instead of them is lost.
        self._holey |= bool(np.isnan(data).any())
        return np.clip(np.nan_to_num(data, nan=0.0), -LOUDEST, LOUDEST)


def _tracks(container: InputContainer) -> list[Any]:
    """The audio streams in the order in which players choose them: those that are marked as default come first."""
    from av.stream import Disposition

    return sorted(container.streams.audio, key=lambda each: not each.disposition & Disposition.default)


def trial_of(path: Path, limits: Limits, *, split_channels: bool = False) -> tuple[list[str], float]:
    """A command that decodes a whole file, for `CrashMarks.around`, and the seconds that it may take."""
    figures = [str(limit) for limit in (limits.max_duration_s, limits.max_bytes, limits.max_decode_s)]
    command = ["audio_assets.speech.decode", str(path), *figures, _APART if split_channels else _MIXED]
    return command, _TRIAL_S + limits.max_decode_s


def decode(path: Path, limits: Limits | None = None) -> Audio:
    """Decode a whole file into memory; for files that may be long use `AudioStream`.

    Raises:
        InvalidAudio: the bytes are not audio that can be decoded, or a limit is passed.
    """
    with AudioStream(path, limits) as stream:
        samples = np.concatenate(list(stream.blocks()))
        return Audio(samples, stream.duration_s, stream.truncated, stream.clipped)


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0][:120]


def _try(path: str, max_duration_s: str, max_bytes: str, max_decode_s: str, channels: str) -> None:
    """What the command of `trial_of` does."""
    limits = Limits(float(max_duration_s), int(max_bytes), float(max_decode_s))
    with AudioStream(Path(path), limits, split_channels=channels == _APART) as stream:
        for _ in stream.blocks():
            pass


if __name__ == "__main__":
    import sys

    from audio_assets.crashes import alone

    alone()
    _try(*sys.argv[1:])
