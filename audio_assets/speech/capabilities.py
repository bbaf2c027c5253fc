"""What each transcription model takes, gives and costs: the only place that knows models by name.

Prices, limits, parameters and shutdown dates are those that OpenAI publishes (November 2026).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import date

MAX_REQUEST_BYTES = 26_214_400
"""OpenAI's limit on a whole request: 25 MiB."""

NEAR_LOSSLESS, FLAC, OPUS = "near-lossless", "flac", "opus"
AUDIO_FORMATS = (NEAR_LOSSLESS, FLAC, OPUS)
"""How audio may be compressed on its way: FLAC of rounded samples at less than a third of the size of WAV, FLAC without
loss at about half, Opus at a sixth and several times the CPU."""


@dataclass(frozen=True)
class TokenPrices:
    """US dollars per token, for models that are billed by tokens."""

    audio_usd: float
    text_usd: float
    output_usd: float


@dataclass(frozen=True)
class Capabilities:
    """What one model's endpoint takes and gives.

    ``max_s`` is the longest audio of one request. ``max_output_tokens`` is where the model's text ends, finished or
    not. ``formats`` are those of `AUDIO_FORMATS` that the endpoint reads, the one to choose first; every endpoint reads
    FLAC. ``retires`` is the announced day of shutdown. ``scores`` says whether segments carry Whisper's confidence.
    """

    response_format: str
    segments: bool
    words: bool
    max_s: float
    price_usd_per_minute: float | None
    scores: bool = False
    logprobs: bool = False
    speakers: bool = False
    language: bool = True
    prompt: bool = True
    keywords: bool = False
    formats: tuple[str, ...] = AUDIO_FORMATS
    max_bytes: int = MAX_REQUEST_BYTES
    max_output_tokens: int | None = None
    tokens: TokenPrices | None = None
    chunking: str | None = None
    retires: date | None = None

    def most_usd(self, seconds: float) -> float | None:
        """The most that a request of so many seconds may cost: what a budget reserves. None without a known price.

        Seconds are billed whole. A model that is billed by tokens may write up to its last token.
        """
        if self.price_usd_per_minute is None:
            return None
        spare = (self.max_output_tokens or 0) * self.tokens.output_usd if self.tokens else 0.0
        return self.price_usd_per_minute * math.ceil(seconds) / 60 + spare

    def likely_usd(self, seconds: float) -> float | None:
        """What a request of so many seconds probably costs. None without a known price."""
        return None if self.price_usd_per_minute is None else self.price_usd_per_minute * math.ceil(seconds) / 60

    def abilities(self) -> dict[str, bool]:
        """What a user would miss if it went away, in words."""
        return {
            "segment times": self.segments,
            "word times": self.words,
            "confidence of segments": self.scores or self.logprobs,
            "no_speech and compression scores": self.scores,
            "speakers": self.speakers,
            "language setting": self.language,
            "prompt": self.prompt,
            "keywords": self.keywords,
        }


_RETIRES = date(2027, 2, 26)
_TOKENS = 2000

CAPABILITIES: dict[str, Capabilities] = {
    # whisper-1 windows long audio itself; ten minutes keep a lost request cheap.
    "whisper-1": Capabilities("verbose_json", True, True, 600.0, 0.006, scores=True, retires=_RETIRES),
    # Ten minutes of dense speech can pass these models' 2,000 output tokens and end the text early.
    "gpt-4o-transcribe": Capabilities(
        "json",
        False,
        False,
        300.0,
        0.006,
        logprobs=True,
        max_output_tokens=_TOKENS,
        tokens=TokenPrices(6e-6, 2.5e-6, 10e-6),
        retires=_RETIRES,
    ),
    "gpt-4o-mini-transcribe": Capabilities(
        "json",
        False,
        False,
        300.0,
        0.003,
        logprobs=True,
        max_output_tokens=_TOKENS,
        tokens=TokenPrices(3e-6, 1.25e-6, 5e-6),
        retires=_RETIRES,
    ),
    "gpt-4o-transcribe-diarize": Capabilities(
        "diarized_json",
        True,
        False,
        300.0,
        0.006,
        speakers=True,
        prompt=False,
        chunking="auto",
        max_output_tokens=_TOKENS,
        tokens=TokenPrices(6e-6, 2.5e-6, 10e-6),
        retires=_RETIRES,
    ),
    "gpt-transcribe": Capabilities("json", False, False, 300.0, 0.0045, keywords=True),
}
"""By model name."""

DEFAULT = "whisper-1"
SUCCESSOR = "gpt-transcribe"
"""What OpenAI names as the successor of all models that retire."""

COMPATIBLE = Capabilities("verbose_json", True, False, 600.0, None, scores=True)
"""Any other model: compatible servers run Whisper and answer like whisper-1. Their price is unknown."""


_SNAPSHOT = re.compile(r"-\d{4}-\d{2}-\d{2}$")


def of(model: str) -> Capabilities:
    """The capabilities of a model by name; a dated snapshot has those of its model."""
    return CAPABILITIES.get(_SNAPSHOT.sub("", model), COMPATIBLE)
