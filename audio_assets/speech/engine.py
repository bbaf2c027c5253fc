"""What every speech recogniser takes and gives.

The pipeline cuts the speech of each file into windows and hands them over as clips; an engine returns one result per
clip, in the order of the clips, with times relative to the clip's first sample. It never sees silence alone.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from audio_assets.errors import FileError

SAMPLE_RATE_HZ = 16_000
"""The rate that Whisper and Silero VAD were trained at; everything is decoded to it."""

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Word:
    """One word with its times in seconds and its probability, 0 to 1."""

    start_s: float
    end_s: float
    word: str
    probability: float | None


@dataclass(frozen=True)
class Segment:
    """A timed piece of text. Scores are null where the engine does not give them.

    ``channel`` counts from 0 and is null unless channels were transcribed apart; ``language`` is that of its window,
    ISO 639-1; ``flags`` are those of `judge.FLAGS`.
    """

    start_s: float
    end_s: float
    text: str
    avg_logprob: float | None = None
    no_speech_prob: float | None = None
    compression_ratio: float | None = None
    words: tuple[Word, ...] | None = None
    channel: int | None = None
    language: str | None = None
    flags: tuple[str, ...] = ()

    def shifted(self, offset_s: float) -> Segment:
        """The same segment ``offset_s`` seconds later."""
        words = None
        if self.words is not None:
            words = tuple(Word(w.start_s + offset_s, w.end_s + offset_s, w.word, w.probability) for w in self.words)
        return replace(self, start_s=self.start_s + offset_s, end_s=self.end_s + offset_s, words=words)


class SharedLanguage:
    """The language of one recording: found on its first windows, used for the rest of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: tuple[str, float] | None = None

    def get(self) -> tuple[str, float] | None:
        """ISO 639-1 code and probability, or None as long as no window was heard."""
        with self._lock:
            return self._found

    def settle(self, language: str, probability: float) -> tuple[str, float]:
        """Set the language unless another window has done so; returns what holds."""
        with self._lock:
            if self._found is None:
                self._found = (language, probability)
            return self._found


@dataclass(frozen=True)
class Clip:
    """A window of one recording: mono float32 samples at 16 kHz, in [-1, 1].

    ``speech`` are the spans, in seconds from the clip's first sample, where voice activity detection hears speech;
    empty when nobody looked. ``sha256`` is that of the recording's bytes and ``window`` the clip's name
    among its windows; '' when they are not known.
    """

    id: str
    samples: Samples
    start_s: float = 0.0
    language: SharedLanguage = field(default_factory=SharedLanguage)
    speech: tuple[tuple[float, float], ...] = ()
    sha256: str = ""
    window: str = ""

    @property
    def speech_s(self) -> float:
        """Seconds of speech in it; all of it when nobody looked."""
        return sum(b - a for a, b in self.speech) if self.speech else self.duration_s

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / SAMPLE_RATE_HZ


@dataclass(frozen=True)
class ClipResult:
    """What an engine heard in one clip. Times are relative to the clip."""

    segments: tuple[Segment, ...]
    language: str | None = None
    language_probability: float | None = None
    cost_usd: float | None = 0.0
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class WindowPlan:
    """How an engine likes its windows.

    A window ends where silence is at least ``cut_silence_s`` long; it is never longer than ``max_s`` and then ends at
    its best pause. ``pad_s`` of sound is kept on both sides of the speech. With ``split_channels`` each channel has
    windows of its own: for calls that were recorded with one speaker to a channel.
    """

    max_s: float
    cut_silence_s: float
    pad_s: float = 0.4
    split_channels: bool = False


class Timings:
    """Seconds spent per stage, summed over threads, and how often windows were decoded again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.seconds: dict[str, float] = {}
        self.windows = 0
        self.retried = 0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to ``name``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def count(self, windows: int, retried: int) -> None:
        """Count decoded windows."""
        with self._lock:
            self.windows += windows
            self.retried += retried


def fingerprint_of(parts: dict[str, Any]) -> str:
    """SHA-256, hexadecimal, of JSON with sorted keys."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode("utf-8")).hexdigest()


class Engine(Protocol):
    """A speech recogniser. ``transcribe`` may be called from ``parallelism`` threads at once."""

    name: str
    """``local`` or ``openai``."""
    model: str
    """The model's name, as rows show it."""
    language: str | None
    """The language that the settings ask for, ISO 639-1; None to detect it."""
    plan: WindowPlan
    batch_size: int
    """Clips that one call takes at best; 1 if it takes no more."""
    parallelism: int
    """Calls that may run at once."""

    def fingerprint(self) -> str:
        """SHA-256, hexadecimal, of everything in the engine that shapes its text."""
        ...

    def transcribe(self, clips: Sequence[Clip]) -> Iterator[ClipResult | FileError]:
        """One outcome per clip, in order.

        Raises:
            SettingsError: nothing can be transcribed with these settings: bad key, no quota, no such model.
        """
        ...
