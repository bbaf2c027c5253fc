"""Samples as the compressed bytes that go to an endpoint."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass

import numpy as np

from audio_assets.speech.capabilities import FLAC, OPUS
from audio_assets.speech.engine import SAMPLE_RATE_HZ, Samples

SIGNAL_TO_NOISE_DB = 40.0
"""Rounding noise of `encode_near_lossless` lies at least so far below each quarter of a second: too low to be heard
under speech. Benchmarks/README.md has the word error rates at other values."""

BLOCK = 4096
"""Samples that libFLAC codes together at 16 kHz: low bits that are zero in all of a block cost nothing."""

OPUS_BITS_PER_S = 48_000
"""A sixth of 16-bit samples at 16 kHz."""

_OPUS_OPTIONS = {
    # Libopus's least effort: measured at a fifth of the time of its best, to no loss that a model would notice.
    "application": "audio",
    "compression_level": "0",
    # Fewer packets to hand over, each of three transforms.
    "frame_duration": "60",
}

_FULL_SCALE = 32768.0

_turn = threading.Lock()
"""One thread encodes at a time, hundreds of seconds of speech a second. Fifty at once would keep the event loop from
sending what is ready, and take three times the CPU with Opus, which gives Python's lock back at every packet."""


@dataclass(frozen=True)
class Compressed:
    """A file for an endpoint: its bytes, the name whose extension tells the format, and its media type.

    ``form`` is how it was made: one of `capabilities.AUDIO_FORMATS`.
    """

    data: bytes
    name: str
    media_type: str
    form: str


def compress(samples: Samples, form: str) -> Compressed:
    """Mono float32 samples at 16 kHz, shape (n,), in the format ``form`` of `capabilities.AUDIO_FORMATS`."""
    with _turn:
        if form == OPUS:
            return Compressed(encode_opus(samples), "clip.ogg", "audio/ogg", form)
        data = encode_flac(samples) if form == FLAC else encode_near_lossless(samples)
        return Compressed(data, "clip.flac", "audio/flac", form)


def encode_flac(samples: Samples) -> bytes:
    """Mono 16 kHz samples as a 16-bit FLAC file, about half the size of WAV."""
    return _flac(np.rint(samples * (_FULL_SCALE - 1)), np.float32(_FULL_SCALE - 1))


def encode_near_lossless(samples: Samples) -> bytes:
    """Mono 16 kHz samples as a 16-bit FLAC file, about 2/7 the size of WAV.

    Each block is rounded to a power of two that keeps the rounding's noise, ``step / sqrt(12)``, at
    `SIGNAL_TO_NOISE_DB` below the block's root mean square: what FLAC spends most bits on is the noise of the
    recording. Quiet blocks stay as they are.
    """
    scaled = samples * np.float32(_FULL_SCALE - 1)
    starts = np.arange(0, len(scaled), BLOCK)
    lengths = np.diff(np.append(starts, len(scaled)))
    power = np.add.reduceat(np.square(scaled, dtype=np.float64), starts) / lengths
    coarsest = np.sqrt(12 * power) * 10 ** (-SIGNAL_TO_NOISE_DB / 20)
    steps = np.exp2(np.floor(np.log2(np.maximum(coarsest, 1.0)))).astype(np.float32)
    step = np.repeat(steps, lengths)
    return _flac(np.rint(scaled / step) * step, np.float32(_FULL_SCALE) - step)


def _flac(pcm: Samples, top: Samples | np.float32) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    data = np.clip(pcm, -_FULL_SCALE, top).astype(np.int16)
    soundfile.write(buffer, data, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def encode_opus(samples: Samples) -> bytes:
    """Mono 16 kHz samples as an Ogg Opus file at `OPUS_BITS_PER_S`."""
    import av

    buffer = io.BytesIO()
    pcm = np.clip(np.rint(samples * 32767.0), -32768, 32767).astype(np.int16)
    with av.open(buffer, "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=SAMPLE_RATE_HZ, options=_OPUS_OPTIONS)
        stream.layout = "mono"
        stream.bit_rate = OPUS_BITS_PER_S
        frame = av.AudioFrame.from_ndarray(pcm.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        frame.pts = 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return buffer.getvalue()
