"""The engine for OpenAI-compatible ``/v1/audio/transcriptions`` endpoints.

One retry layer, here: the SDK's own is switched off, since it repeats paid requests after a timeout and gives up on
long waits. An answer is believed only when its type and its text are what the model promises.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import numpy as np

from audio_assets.errors import FileDeferred, FileError, FileFailed, SettingsError
from audio_assets.speech.decode import encode_flac
from audio_assets.speech.engine import (
    SAMPLE_RATE_HZ,
    Clip,
    ClipResult,
    Samples,
    Segment,
    WindowPlan,
    Word,
    fingerprint_of,
)
from audio_assets.speech.judge import compression_ratio
from audio_assets.speech.languages import code_of

if TYPE_CHECKING:
    from openai import AsyncOpenAI

ENGINE_VERSION = 1
"""Raised whenever requests or the reading of answers change the text."""

MAX_REQUEST_BYTES = 26_214_400
"""OpenAI's limit on a whole request: 25 MiB."""

_FORM_BYTES = 65_536
"""Room for everything in a request that is not audio."""

_QUOTE = 200
_T = TypeVar("_T")


@dataclass(frozen=True)
class Capabilities:
    """What one model's endpoint takes and gives."""

    response_format: str
    segments: bool
    words: bool
    max_s: float
    price_usd_per_minute: float | None
    language: bool = True
    prompt: bool = True
    max_bytes: int = MAX_REQUEST_BYTES
    chunking: str | None = None
    retires: str | None = None


_RETIRES = "2027-02-26"

CAPABILITIES: dict[str, Capabilities] = {
    # whisper-1 windows long audio itself; ten minutes keep a lost request cheap.
    "whisper-1": Capabilities("verbose_json", True, True, 600.0, 0.006, retires=_RETIRES),
    # Ten minutes of dense speech can pass these models' 2,000 output tokens and end the text early.
    "gpt-4o-transcribe": Capabilities("json", False, False, 300.0, 0.006, retires=_RETIRES),
    "gpt-4o-mini-transcribe": Capabilities("json", False, False, 300.0, 0.003, retires=_RETIRES),
    "gpt-4o-transcribe-diarize": Capabilities(
        "json", False, False, 300.0, 0.006, prompt=False, chunking="auto", retires=_RETIRES
    ),
    "gpt-transcribe": Capabilities("json", False, False, 300.0, 0.0045),
}
"""By model name. Prices and limits are OpenAI's published ones of November 2026."""

COMPATIBLE = Capabilities("verbose_json", True, False, 600.0, None)
"""Any other model: compatible servers run Whisper and answer like whisper-1. Their price is unknown."""


@dataclass(frozen=True)
class OpenAIOptions:
    """How to reach the endpoint, how patient to be, and what to ask for."""

    model: str = "whisper-1"
    api_key: str | None = field(default=None, repr=False)
    base_url: str | None = None
    language: str | None = None
    prompt: str | None = None
    word_timestamps: bool = False
    workers: int = 8
    attempts: int = 5
    deadline_s: float = 120.0
    """On top of this, a request may take as long as its audio lasts."""
    longest_wait_s: float = 120.0
    """A Retry-After beyond this puts the file off to the next run."""
    first_backoff_s: float = 0.5
    split_channels: bool = False


class _TransientError(Exception):
    """Worth another attempt, ``after_s`` seconds from now if the server said so."""

    def __init__(self, reason: str, after_s: float | None = None, *, limited: bool = False):
        super().__init__(reason)
        self.after_s = after_s
        self.limited = limited


class _TooLargeError(Exception):
    """The endpoint refuses the size of the request."""


class OpenAIEngine:
    """Sends each clip as FLAC, several at once, and checks what comes back.

    Raises:
        SettingsError: there is no key for OpenAI's own endpoint.
    """

    name = "openai"

    def __init__(self, options: OpenAIOptions):
        if not options.api_key and not options.base_url:
            raise SettingsError(
                "OPENAI_API_KEY is not set: the openai engine needs it. Set it in the environment or in .env, "
                "or use WHISPER_ENGINE=local"
            )
        self.options = options
        self.model = options.model
        self.language = options.language
        self.capabilities = CAPABILITIES.get(options.model, COMPATIBLE)
        self.parallelism = options.workers
        self.batch_size = 1
        # Requests are billed by length: silence of more than two seconds is not sent.
        self.plan = WindowPlan(self.capabilities.max_s, cut_silence_s=2.0, split_channels=options.split_channels)
        self._doom: SettingsError | None = None
        self._not_before = 0.0
        self._start_lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: AsyncOpenAI | None = None

    def fingerprint(self) -> str:
        """SHA-256 of endpoint, model, options that shape the text, and version."""
        o = self.options
        return fingerprint_of(
            {
                "engine": self.name,
                "version": ENGINE_VERSION,
                "endpoint": (o.base_url or "").rstrip("/"),
                "model": o.model,
                "language": o.language,
                "prompt": o.prompt,
                "words": o.word_timestamps and self.capabilities.words,
            }
        )

    def transcribe(self, clips: Sequence[Clip]) -> Iterator[ClipResult | FileError]:
        """One outcome per clip, in order."""
        for clip in clips:
            try:
                yield self._run(self._clip(clip.samples))
            except FileError as error:
                yield error

    # -- one clip

    async def _clip(self, samples: Samples) -> ClipResult:
        audio = encode_flac(samples)
        if len(audio) + _FORM_BYTES <= self.capabilities.max_bytes:
            try:
                return await self._request(audio, len(samples) / SAMPLE_RATE_HZ)
            except _TooLargeError as error:
                if len(samples) < 2 * SAMPLE_RATE_HZ:
                    raise FileFailed(
                        f"{self._where} refuses even two seconds of audio as too large: {error}"
                    ) from error
        cut = quietest(samples)
        parts = [(0.0, await self._clip(samples[:cut])), (cut / SAMPLE_RATE_HZ, await self._clip(samples[cut:]))]
        costs = [p.cost_usd for _, p in parts]
        return ClipResult(
            tuple(s.shifted(offset_s) for offset_s, p in parts for s in p.segments),
            parts[0][1].language,
            parts[0][1].language_probability,
            None if any(c is None for c in costs) else sum(c or 0.0 for c in costs),
        )

    async def _request(self, audio: bytes, duration_s: float) -> ClipResult:
        from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt
        from tenacity.wait import wait_exponential, wait_random

        first_s = self.options.first_backoff_s
        backoff = wait_exponential(multiplier=first_s, max=30.0) + wait_random(0, first_s)

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked_s = error.after_s if isinstance(error, _TransientError) else None
            return backoff(state) if asked_s is None else asked_s

        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(_TransientError),
                stop=stop_after_attempt(self.options.attempts),
                wait=wait,
                reraise=True,
            ):
                with attempt:
                    return await self._attempt(audio, duration_s)
        except _TransientError as error:
            reason = f"{self._where}: {error}; gave up after {self.options.attempts} attempts; the next run tries again"
            raise (FileDeferred(reason) if error.limited else FileFailed(reason)) from error
        raise FileFailed(f"{self._where}: no attempt was made; set attempts to at least 1")

    async def _attempt(self, audio: bytes, duration_s: float) -> ClipResult:
        import openai

        await self._turn()
        deadline_s = self.options.deadline_s + duration_s
        try:
            # The SDK's timeout is per read: a byte now and then outlives it. This one is for the whole answer.
            response = await asyncio.wait_for(self._post(audio, deadline_s), deadline_s)
        except (asyncio.TimeoutError, openai.APITimeoutError):
            raise _TransientError(f"no answer within {deadline_s:.0f} s") from None
        except openai.APIConnectionError as error:
            raise _TransientError(f"connection lost ({_short(error.__cause__ or error)})") from error
        except openai.APIStatusError as error:
            raise self._status_error(error) from error
        except openai.OpenAIError as error:
            raise _TransientError(f"unusable answer ({_short(error)})") from error
        return self._read(response.content, response.headers.get("content-type", ""), duration_s)

    async def _post(self, audio: bytes, deadline_s: float) -> Any:
        able, options = self.capabilities, self.options
        fields: dict[str, Any] = {
            "file": ("clip.flac", audio, "audio/flac"),
            "model": self.model,
            "response_format": able.response_format,
        }
        if able.language and options.language:
            fields["language"] = options.language
        if able.prompt and options.prompt:
            fields["prompt"] = options.prompt
        if able.chunking:
            fields["chunking_strategy"] = able.chunking
        if able.words and options.word_timestamps:
            fields["timestamp_granularities"] = ["segment", "word"]
        assert self._client is not None  # noqa: S101 - set before the loop runs anything
        raw = await self._client.audio.transcriptions.with_raw_response.create(**fields, timeout=deadline_s)
        return raw.http_response

    async def _turn(self) -> None:
        """Wait until the server takes requests again; never send one that cannot succeed."""
        if self._doom is not None:
            raise self._doom
        wait_s = self._not_before - time.monotonic()
        if wait_s > self.options.longest_wait_s:
            raise FileDeferred(f"{self._where} asks to wait {wait_s:.0f} s; the next run tries again")
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        if self._doom is not None:
            raise self._doom

    def _status_error(self, error: Any) -> Exception:
        status = int(error.status_code)
        code = str(getattr(error, "code", None) or "")
        reason = f"answers {status}: {_short(error)}"
        if status == 401:
            return self._dooms(f"OPENAI_API_KEY is refused: {self._where} {reason}; set a valid key")
        if status == 403:
            return self._dooms(
                f"OPENAI_API_KEY has no right to transcribe: {self._where} {reason}; check the key's project"
            )
        if code == "insufficient_quota" or "insufficient_quota" in str(error):
            return self._dooms(f"OPENAI_API_KEY has no credit left: {self._where} {reason}; add credit, then run again")
        about_model = code == "model_not_found" or "model" in str(getattr(error, "param", None) or "")
        if status == 404 or (status == 400 and about_model):
            return self._dooms(
                f"WHISPER_MODEL {self.model!r} or OPENAI_BASE_URL is wrong: {self._where} {reason}; correct the setting"
            )
        if status == 413:
            return _TooLargeError(reason)
        if status == 429:
            after_s = retry_after_s(error.response.headers)
            if after_s is not None:
                self._not_before = max(self._not_before, time.monotonic() + after_s)
                if after_s > self.options.longest_wait_s:
                    return FileDeferred(f"{self._where} asks to wait {after_s:.0f} s; the next run tries again")
            return _TransientError(reason, after_s, limited=True)
        if status in (408, 409) or status >= 500:
            after_s = retry_after_s(error.response.headers)
            if after_s is not None and after_s > self.options.longest_wait_s:
                return FileDeferred(f"{self._where} asks to wait {after_s:.0f} s; the next run tries again")
            return _TransientError(reason, after_s)
        return FileFailed(f"{self._where} {reason}; check that the recording plays")

    def _dooms(self, message: str) -> SettingsError:
        self._doom = SettingsError(message)
        return self._doom

    def _read(self, body: bytes, content_type: str, duration_s: float) -> ClipResult:
        """Check an answer of status 200 and turn it into a result."""
        try:
            answer = json.loads(body)
        except ValueError:
            kind = content_type.split(";")[0] or "no content type"
            raise _TransientError(f"answers 200 with {kind} that is not JSON: {_quote(body)}") from None
        if not isinstance(answer, dict) or not isinstance(answer.get("text"), str):
            raise _TransientError(f"answers 200 without a text: {_quote(body)}")
        text: str = answer["text"].strip()
        segments = _segments(answer, duration_s) if self.capabilities.segments else None
        if segments is None:
            if self.capabilities.segments and answer.get("segments"):
                raise _TransientError(f"answers 200 with segments that cannot be read: {_quote(body)}")
            ratio = compression_ratio(text)
            segments = [Segment(0.0, duration_s, text, None, None, ratio)] if text else []
        language = answer.get("language")
        return ClipResult(
            tuple(segments),
            (code_of(language) if isinstance(language, str) else None) or self.options.language,
            None,
            self._cost_usd(answer, duration_s),
        )

    def _cost_usd(self, answer: dict[str, Any], duration_s: float) -> float | None:
        price = self.capabilities.price_usd_per_minute
        if price is None:
            return None
        usage = answer.get("usage")
        seconds = usage.get("seconds") if isinstance(usage, dict) and usage.get("type") == "duration" else None
        return price * (float(seconds) if isinstance(seconds, int | float) else duration_s) / 60

    # -- the event loop that the SDK's client lives in

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        with self._start_lock:
            if self._loop is None:
                from openai import AsyncOpenAI

                self._client = AsyncOpenAI(
                    api_key=self.options.api_key or "none", base_url=self.options.base_url, max_retries=0
                )
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="openai-requests", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """Close the connections. The engine cannot be used afterwards."""
        with self._start_lock:
            loop, client = self._loop, self._client
            if loop is None or client is None or loop.is_closed():
                return
            asyncio.run_coroutine_threadsafe(client.close(), loop).result(10)
            loop.call_soon_threadsafe(loop.stop)
            while loop.is_running():
                time.sleep(0.01)
            loop.close()

    @property
    def _where(self) -> str:
        return urlsplit(self.options.base_url).netloc if self.options.base_url else "api.openai.com"


def quietest(samples: Samples) -> int:
    """The sample in the middle half where a tenth of a second is quietest: the best place to cut in two."""
    step = SAMPLE_RATE_HZ // 10
    low, high = len(samples) // 4, len(samples) - len(samples) // 4
    frames = samples[low : low + (high - low) // step * step].reshape(-1, step)
    if not len(frames):
        return len(samples) // 2
    return low + int(np.argmin(np.square(frames, dtype=np.float64).sum(axis=1))) * step + step // 2


def retry_after_s(headers: Any) -> float | None:
    """Seconds that ``Retry-After`` asks for, given as a number or as an HTTP date; None without a usable header."""
    value = str(headers.get("retry-after") or "").strip()
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=timezone.utc)
    return max(0.0, (when - datetime.now(timezone.utc)).total_seconds())


def _segments(answer: dict[str, Any], duration_s: float) -> list[Segment] | None:
    """The timed segments of a verbose answer, or None if they are absent or not what they should be."""
    found = answer.get("segments")
    if not isinstance(found, list) or not found:
        return None
    words = _words(answer.get("words"))
    segments = []
    for entry in found:
        if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
            return None
        start_s, end_s = _number(entry.get("start")), _number(entry.get("end"))
        if start_s is None or end_s is None or end_s < start_s:
            return None
        inside = None
        if words is not None:
            inside = tuple(w for w in words if start_s <= (w.start_s + w.end_s) / 2 < max(end_s, start_s + 1e-3))
        segments.append(
            Segment(
                min(start_s, duration_s),
                min(end_s, duration_s),
                entry["text"],
                _number(entry.get("avg_logprob")),
                _number(entry.get("no_speech_prob")),
                _number(entry.get("compression_ratio")),
                inside,
            )
        )
    # The text is what was paid for: segments that leave a part of it out are not to be trusted.
    kept = "".join("".join(s.text.split()) for s in segments)
    return segments if len(kept) >= 0.9 * len("".join(str(answer["text"]).split())) else None


def _words(found: Any) -> list[Word] | None:
    if not isinstance(found, list):
        return None
    words = []
    for entry in found:
        start_s, end_s = _number(entry.get("start")), _number(entry.get("end"))
        if start_s is not None and end_s is not None and isinstance(entry.get("word"), str):
            words.append(Word(start_s, end_s, entry["word"], _number(entry.get("probability"))))
    return words


def _number(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
    return float(value) if good else None


def _quote(body: bytes) -> str:
    return repr(body[: 4 * _QUOTE].decode("utf-8", "replace")[:_QUOTE])


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:_QUOTE] or type(error).__name__
