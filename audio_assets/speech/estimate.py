"""What transcribing would take and cost, for any number of engines. Spends nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from audio_assets.crashes import CrashMarks
from audio_assets.errors import FileError
from audio_assets.speech.cache import TranscriptCache
from audio_assets.speech.decode import AudioStream, Limits, trial_of
from audio_assets.speech.engine import Engine
from audio_assets.speech.openai_api import OpenAIEngine
from audio_assets.speech.transcribe import fingerprint
from audio_assets.speech.vad import Windower

LISTENED_FILES = 20
LISTENED_S = 600.0
"""Silence is measured in so many recordings, of so many seconds at most in all, spread evenly over the content."""


@dataclass(frozen=True)
class Candidate:
    """A recording that could be transcribed.

    ``content`` is equal for equal bytes. ``sha256`` and ``path`` are None as long as it was not downloaded. One that is
    ``over_limit`` is never transcribed, and still taken from the cache.
    """

    id: str
    content: str
    duration_s: float
    sha256: str | None = None
    path: Path | None = None
    over_limit: bool = False


@dataclass(frozen=True)
class Silence:
    """How much of the audio would not be sent: a share of its length, measured in ``files`` recordings.

    Below 0 when channels are sent apart and together are longer than the recording.
    """

    share: float
    files: int


@dataclass(frozen=True)
class Estimate:
    """What one engine would have to do: a row of `schemas.TRANSCRIPTION_PLAN`, but for ``chosen``."""

    engine: str
    model: str
    files: int
    duplicates: int
    cached: int
    to_transcribe: int
    hours: float
    silence_hours: float
    silence_files: int
    price_usd_per_minute: float | None
    cost_usd: float | None
    retires: str | None


def estimate(candidates: Sequence[Candidate], engine: Engine, cache: TranscriptCache, silence: Silence) -> Estimate:
    """What ``engine`` would do about ``candidates``; ``silence`` is what `measure_silence` found in them.

    Equal bytes are transcribed once. Seconds are counted per recording, rounded up, as they are billed.
    """
    unique = {c.content for c in candidates}
    missing = _missing(candidates, engine, cache)
    todo = [c for c in missing if not c.over_limit]
    seconds = sum(c.duration_s for c in todo)
    able = engine.capabilities if isinstance(engine, OpenAIEngine) else None
    costs = [0.0 if able is None else able.likely_usd(c.duration_s * (1 - silence.share)) for c in todo]
    price = 0.0 if able is None else able.price_usd_per_minute
    return Estimate(
        engine=engine.name,
        model=engine.model,
        files=len(candidates),
        duplicates=len(candidates) - len(unique),
        cached=len(unique) - len(missing),
        to_transcribe=len(todo),
        hours=seconds / 3600,
        silence_hours=seconds * max(0.0, silence.share) / 3600,
        silence_files=silence.files,
        price_usd_per_minute=price,
        cost_usd=None if price is None else sum(c or 0.0 for c in costs),
        retires=able.retires.isoformat() if able and able.retires else None,
    )


def pending(candidates: Sequence[Candidate], engine: Engine, cache: TranscriptCache) -> list[Candidate]:
    """The candidates that would be transcribed, one of each content."""
    return [c for c in _missing(candidates, engine, cache) if not c.over_limit]


def _missing(candidates: Sequence[Candidate], engine: Engine, cache: TranscriptCache) -> list[Candidate]:
    """The candidates that the cache does not hold, one of each content."""
    unique = {c.content: c for c in reversed(candidates)}
    key = fingerprint(engine)
    return [c for c in unique.values() if c.sha256 is None or cache.get(c.sha256, key) is None]


def measure_silence(candidates: Iterable[Candidate], engine: Engine, marks: CrashMarks) -> Silence:
    """Listen to a sample of the recordings that are here, and see how much of them the engine would be sent.

    Without any recording here the share is 0: the estimate is then an upper bound. ``marks`` tell the next process of
    which recording this one died.
    """
    here = [c for c in candidates if c.path is not None and c.path.is_file()]
    # A hash is as good as a lottery, and gives the same sample the next time.
    here.sort(key=lambda c: hashlib.sha256(c.content.encode()).digest())
    heard_s = sent_s = 0.0
    files = 0
    for candidate in here[:LISTENED_FILES]:
        assert candidate.path is not None  # noqa: S101 - chosen so above
        name = candidate.sha256 or candidate.content
        if files and heard_s + candidate.duration_s > LISTENED_S:
            continue
        try:
            trial = trial_of(candidate.path, Limits(), split_channels=engine.plan.split_channels)
            with marks.around(name, *trial):
                duration_s, window_s = listen(candidate.path, engine)
        except FileError:
            continue
        heard_s += duration_s
        sent_s += window_s
        files += 1
    return Silence(1 - sent_s / heard_s if heard_s else 0.0, files)


def listen(path: Path, engine: Engine) -> tuple[float, float]:
    """Seconds of a recording, and seconds of the windows that the engine would be sent.

    Raises:
        InvalidAudio: it cannot be decoded.
    """
    sent_s = 0.0
    with AudioStream(path, split_channels=engine.plan.split_channels) as stream:
        windowers = [Windower(engine.plan) for _ in range(stream.channels)]
        for block in stream.blocks():
            for channel, windower in enumerate(windowers):
                sent_s += sum(w.duration_s for w in windower.push(block if block.ndim == 1 else block[channel]))
        sent_s += sum(w.duration_s for each in windowers for w in each.finish())
    return stream.duration_s, sent_s
