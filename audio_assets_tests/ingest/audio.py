"""Small real audio files, made on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np

TONE_HZ = 440
# extension -> (encoder, container, the sample rate the encoder wants)
_ENCODERS = {
    ".wav": ("pcm_s16le", "wav", 16_000),
    ".flac": ("flac", "flac", 16_000),
    ".mp3": ("libmp3lame", "mp3", 16_000),
    ".m4a": ("aac", "ipod", 16_000),
    ".mp4": ("aac", "mp4", 16_000),
    ".aac": ("aac", "adts", 16_000),
    ".ogg": ("libopus", "ogg", 48_000),
    ".opus": ("libopus", "ogg", 48_000),
    ".webm": ("libopus", "webm", 48_000),
}


def write_tone(
    path: Path,
    seconds: float = 1.0,
    channels: int = 1,
    level: float = 0.2,
    codec: str | None = None,
    format: str | None = None,
) -> Path:
    """A tone in the format that the extension names, or in another one."""
    import av

    encoder, container, rate = _ENCODERS[path.suffix.lower()]
    if codec is not None and format is not None:
        encoder, container, rate = codec, format, 44_100
    layout = {1: "mono", 2: "stereo"}[channels]
    tone = level * np.sin(2 * np.pi * TONE_HZ * np.arange(round(seconds * rate)) / rate)
    samples = np.repeat((tone * 32767).astype(np.int16), channels)[None, :]
    frame = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout)
    frame.sample_rate = rate
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(encoder, rate=rate, layout=layout)
        resampler = av.AudioResampler(format=stream.format, layout=layout, rate=rate)
        for converted in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(converted))
        output.mux(stream.encode(None))
    return path


def tone(directory: Path, extension: str = ".wav", **options: float) -> bytes:
    """The bytes of `write_tone`."""
    return write_tone(directory / f"tone{extension}", **options).read_bytes()


def write_silent_video(path: Path) -> Path:
    """A video without a sound track."""
    import av

    with av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(5):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        output.mux(stream.encode(None))
    return path
