"""The engine for OpenAI-compatible ``/v1/audio/transcriptions`` endpoints.

One retry layer, here: the SDK's own is switched off, since it repeats paid requests after a timeout and gives up on
long waits. An answer is believed only when its type and its text are what the model promises.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import copy
import json
import math
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import urlsplit

import numpy as np

from audio_assets import settings
from audio_assets.errors import FileDeferred, FileError, FileFailed, SettingsError
from audio_assets.speech import capabilities
from audio_assets.speech.cache import TranscriptCache
from audio_assets.speech.compress import Compressed, compress
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
from audio_assets.speech.languages import asked_of_a_server, code_of
from audio_assets.speech.ledger import Account, Request
from audio_assets.speech.pace import Pace
from audio_assets.speech.transcribe import clip_result

if TYPE_CHECKING:
    from openai import AsyncOpenAI

ENGINE_VERSION = 2
"""Raised whenever requests or the reading of answers change the text."""

_FORM_BYTES = 65_536
"""Room for everything in a request that is not audio."""

_ANSWER_BYTES = 32 << 20
"""Ten minutes of fast speech are some 100 kB of text, and less than 5 MB with every word timed."""

_SHORTEST_S = 2.0
"""A refusal of less than this is not about its size."""

_GRACE_S = 15.0
"""How long a run that ends waits for the answers to what it has sent."""

_CLOSE_S = 5.0

_AHEAD = 1 / 4
"""Of the requests in flight, so many clips more are compressed and wait for a place among them."""

_READ_BY_ALL = capabilities.NEAR_LOSSLESS
"""What is sent instead of a format that the endpoint refuses."""

_QUOTE = 200
_T = TypeVar("_T")


@dataclass(frozen=True)
class OpenAIOptions:
    """How to reach the endpoint, how patient to be, and what to ask for."""

    model: str = capabilities.DEFAULT
    api_key: str | None = field(default=None, repr=False)
    base_url: str | None = None
    language: str | None = None
    prompt: str | None = None
    keywords: tuple[str, ...] = ()
    word_timestamps: bool = False
    audio_format: str | None = None
    """One of `capabilities.AUDIO_FORMATS`; None for the first that the model's endpoint takes."""
    price_usd_per_minute: float | None = None
    """What the endpoint charges, where it is not OpenAI's price."""
    workers: int = 8
    requests_per_minute: float | None = None
    audio_s_per_minute: float | None = None
    attempts: int = 5
    deadline_s: float = 120.0
    """On top of this, a request may take as long as its audio lasts."""
    longest_wait_s: float = 120.0
    """A Retry-After beyond this puts the file off to the next run."""
    first_backoff_s: float = 0.5
    split_channels: bool = False


class _TransientError(Exception):
    """Worth another attempt, ``after_s`` seconds from now if the server said so.

    ``limited``: it was a rate limit. ``unreached``: no connection could be made. ``unanswered``: the server may have
    done the work, and billed it.
    """

    def __init__(
        self,
        reason: str,
        after_s: float | None = None,
        *,
        limited: bool = False,
        unreached: bool = False,
        unanswered: bool = False,
    ):
        super().__init__(reason)
        self.after_s = after_s
        self.limited = limited
        self.unreached = unreached
        self.unanswered = unanswered


class _TooLargeError(Exception):
    """The endpoint refuses the size of the request, or ended its text before the audio did."""


class _FormatRefusedError(Exception):
    """The endpoint refuses a request in a format of which it has taken none yet."""


class Pieces(Protocol):
    """Where the results of parts of a window survive a kill."""

    def get(self, sha256: str) -> dict[str, dict[str, Any]]:
        """What is stored of a recording, by name of the window."""
        ...

    def put(self, sha256: str, window: str, entry: dict[str, Any]) -> None:
        """Store the result of one piece; it is on disk when this returns."""
        ...


class CachedPieces:
    """Pieces beside the windows of the transcript cache: they go when the finished transcript comes."""

    def __init__(self, cache: TranscriptCache, fingerprint: str):
        self._cache = cache
        self._fingerprint = fingerprint

    def get(self, sha256: str) -> dict[str, dict[str, Any]]:
        """What is stored of a recording, by name of the window."""
        return self._cache.get_windows(sha256, self._fingerprint) if sha256 else {}

    def put(self, sha256: str, window: str, entry: dict[str, Any]) -> None:
        """Store the result of one piece."""
        if sha256:
            self._cache.put_window(sha256, self._fingerprint, window, entry)


class _Link:
    """What every run on one endpoint shares: the connections, the pace, and what was learned of the server."""

    def __init__(self, options: OpenAIOptions, max_bytes: int):
        self.pace = Pace(options.workers, options.requests_per_minute, options.audio_s_per_minute)
        self.max_bytes = max_bytes
        self.answered = False
        self.taken: set[str] = set()
        """Formats of audio that the endpoint has transcribed."""
        self.refused: set[str] = set()
        """Formats that it does not read."""
        self._options = options
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._client: AsyncOpenAI | None = None

    @property
    def client(self) -> AsyncOpenAI:
        assert self._client is not None  # noqa: S101 - made before anything runs in the loop
        return self._client

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        with self._lock:
            if self._loop is None:
                import httpx2
                from openai import AsyncOpenAI, DefaultAsyncHttpxClient

                # A fresh connection for each request: on one that is used again, an answer delivered twice would be
                # taken for the answer to the next request, and one that the server has dropped costs an attempt.
                limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
                # The SDK would follow a redirection, and send the recording along.
                http_client = DefaultAsyncHttpxClient(
                    limits=limits,
                    follow_redirects=False,
                    headers={"Accept-Encoding": "identity"},
                    event_hooks={"request": [_in_one_piece], "response": [_of_bounded_size]},
                )
                self._client = AsyncOpenAI(
                    api_key=self._options.api_key or "none",
                    base_url=self._options.base_url,
                    max_retries=0,
                    http_client=http_client,
                )
                # Imported by the SDK at first use, which would hold up the first requests.
                _ = self._client.audio.transcriptions
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="openai-requests", daemon=True)
                self._thread.start()
                atexit.register(self.close)
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def call_soon(self, work: Any) -> None:
        with self._lock:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(work)

    def close(self) -> None:
        """End what is under way and close the connections, a few seconds at most. Also called when the process ends."""
        atexit.unregister(self.close)
        with self._lock:
            loop, client, thread = self._loop, self._client, self._thread
            if loop is None or client is None or thread is None or loop.is_closed():
                return

            async def end() -> None:
                tasks = asyncio.all_tasks() - {asyncio.current_task()}
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await client.close()

            with suppress(concurrent.futures.TimeoutError):
                asyncio.run_coroutine_threadsafe(end(), loop).result(_CLOSE_S)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(_CLOSE_S)
            if not thread.is_alive():
                loop.close()


class OpenAIEngine:
    """Sends each clip compressed, several at once, and checks what comes back.

    An engine made by the constructor has no budget and keeps no book; `billed_to` gives one that has.

    Raises:
        SettingsError: there is no key for OpenAI's own endpoint, or the endpoint, language or format is not one.
    """

    name = "openai"

    def __init__(self, options: OpenAIOptions):
        if not options.api_key and not options.base_url:
            raise SettingsError(
                "OPENAI_API_KEY is not set: the openai engine needs it. Set it in the environment or in .env, "
                "or use WHISPER_ENGINE=local"
            )
        if options.base_url and (urlsplit(options.base_url).scheme not in ("http", "https") or not _host(options)):
            raise SettingsError(f"OPENAI_BASE_URL {options.base_url!r} is not an http(s) address; correct or unset it")
        if options.base_url:
            settings.require_secure(options.base_url, "OPENAI_BASE_URL")
        able = capabilities.of(options.model)
        if options.price_usd_per_minute is not None:
            able = replace(able, price_usd_per_minute=options.price_usd_per_minute, tokens=None)
        form = options.audio_format or able.formats[0]
        if form not in capabilities.AUDIO_FORMATS:
            raise SettingsError(f"audio_format {form!r} is unknown; use {_listed(capabilities.AUDIO_FORMATS)}")
        language = None if options.language is None else asked_of_a_server(options.language)
        self.options = options = replace(options, language=language)
        self.model = options.model
        self.language = language
        self.capabilities = able
        self.parallelism = options.workers + math.ceil(_AHEAD * options.workers)
        self.batch_size = 1
        # Requests are billed by length: silence of more than two seconds is not sent.
        self.plan = WindowPlan(able.max_s, cut_silence_s=2.0, split_channels=options.split_channels)
        self._format = form
        self._link = _Link(options, able.max_bytes)
        self._account = Account()
        self._pieces: Pieces | None = None
        self._halt = asyncio.Event()
        self._under_way: set[asyncio.Task[Any]] = set()

    def fingerprint(self) -> str:
        """SHA-256 of endpoint, model, options that shape the text, and version."""
        o = self.options
        return fingerprint_of(
            {
                "engine": self.name,
                "version": ENGINE_VERSION,
                "endpoint": (o.base_url or "").rstrip("/"),
                "model": o.model,
                "format": self._format,
                "language": o.language if self.capabilities.language else None,
                "prompt": o.prompt if self.capabilities.prompt else None,
                "keywords": o.keywords if self.capabilities.keywords else (),
                "words": o.word_timestamps and self.capabilities.words,
            }
        )

    def billed_to(self, account: Account, pieces: Pieces | None = None) -> OpenAIEngine:
        """The same engine, on the same connections, that spends from ``account`` and stores parts of windows.

        Raises:
            SettingsError: the account has a cap and the price of the model is unknown.
        """
        if account.cap_usd is not None and self.capabilities.price_usd_per_minute is None:
            raise SettingsError(
                f"--max-cost needs a price, and that of {self.model} at {self._where} is unknown; "
                "set OPENAI_PRICE_USD_PER_MINUTE (0 for a server of your own)"
            )
        engine = copy.copy(self)
        engine._account, engine._pieces, engine._halt, engine._under_way = account, pieces, asyncio.Event(), set()
        return engine

    def halt(self) -> None:
        """Send nothing more. What is under way is paid for, and its answers are still taken."""
        self._account.stopped = True

        def wake() -> None:
            self._halt.set()
            self._account.wake()
            self._link.pace.wake()
            # Answers that are on their way are paid for, but nobody waits for a server that has stalled.
            asyncio.get_running_loop().call_later(_GRACE_S, self._abandon)

        self._link.call_soon(wake)

    def _abandon(self) -> None:
        for task in self._under_way:
            task.cancel()

    def transcribe(self, clips: Sequence[Clip]) -> Iterator[ClipResult | FileError]:
        """One outcome per clip, in order."""
        for clip in clips:
            try:
                yield self._clip(clip, 0, len(clip.samples))
            except FileError as error:
                yield error

    def announced_shutdown(self) -> date | None:
        """The day of shutdown that the endpoint itself announces for the model; None if it names none."""
        import openai

        async def ask() -> Any:
            return await self._link.client.models.retrieve(self.model, timeout=10)

        try:
            answer = self._link.run(ask())
            return date.fromisoformat(str(answer.shutdown_date)[:10])
        except (openai.OpenAIError, ValueError, AttributeError):
            return None

    def close(self) -> None:
        """Close the connections. The engine cannot be used afterwards."""
        self._link.close()

    # -- one clip, in the caller's thread

    def _clip(self, clip: Clip, start: int, end: int) -> ClipResult:
        """Transcribe the samples from ``start`` to ``end``, in pieces where they are too large as a whole."""
        whole = start == 0 and end == len(clip.samples)
        offset = round(clip.start_s * SAMPLE_RATE_HZ)
        name = clip.window or f"{offset}-{offset + len(clip.samples)}"
        name += "" if whole else f"@{start}-{end}"
        stored = (self._pieces.get(clip.sha256) if self._pieces else {}).get(name, {})
        cut = stored.get("cut_at")
        if not isinstance(cut, int):
            result = clip_result(stored) if stored and not whole else None
            if result is not None:
                return result
            try:
                result = self._send(clip, clip.samples[start:end], name)
                if self._pieces and not whole:
                    self._pieces.put(clip.sha256, name, asdict(result))
                return result
            except _TooLargeError as error:
                if end - start < _SHORTEST_S * SAMPLE_RATE_HZ:
                    raise FileFailed(f"{self._where} refuses even {_SHORTEST_S:.0f} s of audio: {error}") from error
            cut = quietest(clip.samples[start:end])
            if self._pieces:
                # The next run does not ask again for what was refused.
                self._pieces.put(clip.sha256, name, {"cut_at": cut})
        first = self._clip(clip, start, start + cut)
        second = self._clip(clip, start + cut, end)
        costs = [first.cost_usd, second.cost_usd]
        return ClipResult(
            first.segments + tuple(s.shifted(cut / SAMPLE_RATE_HZ) for s in second.segments),
            first.language,
            first.language_probability,
            None if None in costs else sum(c or 0.0 for c in costs),
        )

    def _send(self, clip: Clip, samples: Samples, name: str) -> ClipResult:
        """Transcribe ``samples``, a part of the clip, in the format that the endpoint reads."""
        link = self._link
        form = self._format if self._format not in link.refused else _READ_BY_ALL

        def ask(form: str) -> ClipResult:
            audio = compress(samples, form)
            if len(audio.data) + _FORM_BYTES > link.max_bytes:
                raise _TooLargeError(f"{len(audio.data)} bytes")
            seconds = len(samples) / SAMPLE_RATE_HZ
            return link.run(self._request(audio, Request(clip.id, clip.sha256, name, seconds, self.model, self._where)))

        try:
            result = ask(form)
        except _FormatRefusedError:
            # It may be the recording that the endpoint does not like, so the other format has to be heard first.
            result = ask(_READ_BY_ALL)
            link.refused.add(form)
            return result
        link.taken.add(form)
        return result

    # -- one request, in the event loop

    async def _request(self, audio: Compressed, request: Request) -> ClipResult:
        from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt
        from tenacity.wait import wait_exponential, wait_random

        first_s = self.options.first_backoff_s
        backoff = wait_exponential(multiplier=first_s, max=30.0) + wait_random(0, first_s)
        began = time.monotonic()

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked_s = error.after_s if isinstance(error, _TransientError) else None
            return backoff(state) if asked_s is None else asked_s + first_s * float(np.random.random())

        status, reason = "interrupted", None
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(_TransientError),
                stop=stop_after_attempt(self.options.attempts),
                wait=wait,
                sleep=self._sleep,
                reraise=True,
            ):
                with attempt:
                    result = await self._attempt(audio, request)
                    status = "ok"
                    return result
            raise FileFailed(f"{self._where}: no attempt was made; set attempts to at least 1")
        except _TransientError as error:
            status, reason = "deferred" if error.limited else "failed", str(error)
            if error.unreached and not self._link.answered:
                raise self._unreachable(reason) from error
            text = f"{self._where}: {error}; gave up after {self.options.attempts} attempts; the next run tries again"
            raise (FileDeferred(text) if error.limited else FileFailed(text)) from error
        except _TooLargeError as error:
            status, reason = "cut", str(error)
            raise
        except _FormatRefusedError as error:
            status, reason = "failed", str(error)
            raise
        except (FileError, SettingsError) as error:
            status = error.status if isinstance(error, FileError) else "failed"
            reason = str(error)
            raise
        finally:
            if request.attempts:
                self._account.end(request, status, reason, time.monotonic() - began)

    async def _attempt(self, audio: Compressed, request: Request) -> ClipResult:
        """Send the request once, within the budget and at the endpoint's pace."""
        account, pace = self._account, self._link.pace
        at_risk_usd = self.capabilities.most_usd(request.seconds) or 0.0
        self._check(0.0)
        await account.reserve(at_risk_usd)
        try:
            started = await pace.enter(request.seconds, self._check)
            account.begin(request, at_risk_usd)
            task = asyncio.current_task()
            assert task is not None  # noqa: S101 - this runs in a task
            self._under_way.add(task)
            try:
                return await self._exchange(audio, request, started)
            except asyncio.CancelledError:
                account.lose(request, at_risk_usd)
                raise FileDeferred("the run ended before the answer came; the next run tries again") from None
            except _TransientError as error:
                if error.unanswered:
                    account.lose(request, at_risk_usd)
                raise
            finally:
                self._under_way.discard(task)
                pace.leave()
        finally:
            account.release(at_risk_usd)

    async def _exchange(self, audio: Compressed, request: Request, started: float) -> ClipResult:
        import openai

        deadline_s = self.options.deadline_s + request.seconds
        try:
            # The SDK's timeout is per read: a byte now and then outlives it. This one is for the whole answer.
            response = await asyncio.wait_for(self._post(audio, deadline_s), deadline_s)
        except (asyncio.TimeoutError, openai.APITimeoutError):
            raise _TransientError(f"no answer within {deadline_s:.0f} s", unanswered=True) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            unreached = type(cause).__name__ in ("ConnectError", "ConnectTimeout")
            raise _TransientError(
                f"connection {'refused' if unreached else 'lost'} ({self._short(cause)})",
                unreached=unreached,
                unanswered=not unreached,
            ) from error
        except openai.APIStatusError as error:
            self._link.answered = True
            raise self._status_error(error, audio, started) from self._cause(error)
        except openai.OpenAIError as error:
            text = f"unusable answer ({self._short(error)})"
            raise _TransientError(text, unanswered=True) from self._cause(error)
        self._link.answered = True
        self._link.pace.accepted(started, response.headers)
        request.request_id = response.headers.get("x-request-id") or request.request_id
        answer = self._checked(response.content, response.headers.get("content-type", ""))
        result = self._read(answer, request.seconds, response.content)
        self._account.pay(request, result.cost_usd)
        most = self.capabilities.max_output_tokens
        written = _usage(answer).get("output_tokens")
        if most is not None and isinstance(written, int) and written >= most:
            raise _TooLargeError(f"the text ends at the model's limit of {most} tokens")
        return result

    async def _post(self, audio: Compressed, deadline_s: float) -> Any:
        able, options = self.capabilities, self.options
        fields: dict[str, Any] = {
            "file": (audio.name, audio.data, audio.media_type),
            "model": self.model,
            "response_format": able.response_format,
        }
        if able.language and options.language:
            fields["language"] = options.language
        if able.prompt and options.prompt:
            fields["prompt"] = options.prompt
        if able.keywords and options.keywords:
            fields["keywords"] = list(options.keywords)
        if able.chunking:
            fields["chunking_strategy"] = able.chunking
        if able.logprobs:
            fields["include"] = ["logprobs"]
        if able.words and options.word_timestamps:
            fields["timestamp_granularities"] = ["segment", "word"]
        raw = await self._link.client.audio.transcriptions.with_raw_response.create(**fields, timeout=deadline_s)
        return raw.http_response

    def _check(self, wait_s: float) -> None:
        """Never send a request that cannot succeed; ``wait_s`` is how long the server asks to wait."""
        if self._account.doom is not None:
            raise self._account.doom
        if self._account.stopped:
            raise FileDeferred("the run ended before this was sent; the next run tries again")
        if wait_s > self.options.longest_wait_s:
            raise FileDeferred(f"{self._where} asks to wait {wait_s:.0f} s; the next run tries again")

    async def _sleep(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._halt.wait(), seconds)
        except asyncio.TimeoutError:
            return

    def _status_error(self, error: Any, audio: Compressed, started: float) -> Exception:
        from audio_assets.speech.pace import retry_after_s

        status = int(error.status_code)
        code = str(getattr(error, "code", None) or "")
        reason = f"answers {status}: {self._short(error)}"
        if 300 <= status < 400:
            return self._dooms(
                f"OPENAI_BASE_URL is wrong: {self._where} answers {status} and points elsewhere, where neither key nor "
                "recordings are sent; set the address of the API itself"
            )
        if status == 401:
            return self._dooms(f"OPENAI_API_KEY is refused: {self._where} {reason}; set a valid key")
        if status == 403:
            return self._dooms(
                f"OPENAI_API_KEY has no right to transcribe: {self._where} {reason}; check the key's project"
            )
        if code == "insufficient_quota" or "insufficient_quota" in str(error):
            return self._dooms(f"OPENAI_API_KEY has no credit left: {self._where} {reason}; add credit, then run again")
        about_model = code == "model_not_found" or "model" in str(getattr(error, "param", None) or "")
        if status in (404, 405) or (status == 400 and about_model):
            return self._dooms(
                f"WHISPER_MODEL {self.model!r} or OPENAI_BASE_URL is wrong: {self._where} {reason}; correct the setting"
            )
        if status == 413:
            self._link.max_bytes = min(self._link.max_bytes, max(_FORM_BYTES, len(audio.data)) + _FORM_BYTES - 1)
            return _TooLargeError(reason)
        if status == 429:
            after_s = self._link.pace.limited(started, error.response.headers, self.options.first_backoff_s)
        elif status in (408, 409) or status >= 500:
            after_s = retry_after_s(error.response.headers)
        elif audio.form != _READ_BY_ALL and audio.form not in self._link.taken:
            return _FormatRefusedError(reason)
        else:
            return FileFailed(f"{self._where} {reason}; check that the recording plays")
        if after_s is not None and after_s > self.options.longest_wait_s:
            return FileDeferred(f"{self._where} asks to wait {after_s:.0f} s; the next run tries again")
        return _TransientError(reason, after_s, limited=status == 429)

    def _unreachable(self, reason: str) -> SettingsError:
        if self.options.base_url:
            return self._dooms(
                f"OPENAI_BASE_URL {self.options.base_url} cannot be reached: {reason}; correct it or start the server"
            )
        return self._dooms(f"{self._where} cannot be reached: {reason}; check the network, or set OPENAI_BASE_URL")

    def _dooms(self, message: str) -> SettingsError:
        self._account.doom = SettingsError(message)
        self._link.pace.wake()
        return self._account.doom

    def _checked(self, body: bytes, content_type: str) -> dict[str, Any]:
        """The answer of status 200 as an object with a text.

        Raises:
            _TransientError: it is none. The work may have been done, and billed.
        """
        try:
            answer = json.loads(body)
        except ValueError:
            kind = content_type.split(";")[0] or "no content type"
            raise _TransientError(
                f"answers 200 with {kind} that is not JSON: {self._quote(body)}", unanswered=True
            ) from None
        if not isinstance(answer, dict) or not isinstance(answer.get("text"), str):
            raise _TransientError(f"answers 200 without a text: {self._quote(body)}", unanswered=True)
        return answer

    def _read(self, answer: dict[str, Any], duration_s: float, body: bytes) -> ClipResult:
        """Turn an answer into a result."""
        text: str = answer["text"].strip()
        segments = _segments(answer, duration_s) if self.capabilities.segments else None
        if segments is None:
            if self.capabilities.segments and answer.get("segments"):
                raise _TransientError(
                    f"answers 200 with segments that cannot be read: {self._quote(body)}", unanswered=True
                )
            ratio = compression_ratio(text)
            segments = [Segment(0.0, duration_s, text, _mean_logprob(answer), None, ratio)] if text else []
        return ClipResult(
            tuple(segments), _language(answer) or self.options.language, None, self._cost_usd(answer, duration_s)
        )

    def _cost_usd(self, answer: dict[str, Any], duration_s: float) -> float | None:
        """What the answer's ``usage`` costs; the length of the audio stands in for a usage that is not given."""
        able, usage = self.capabilities, _usage(answer)
        if able.price_usd_per_minute is None:
            return None
        if usage.get("type") == "tokens" and able.tokens is not None:
            details = usage.get("input_token_details")
            details = details if isinstance(details, dict) else {}
            text = _number(details.get("text_tokens")) or 0.0
            audio = _number(details.get("audio_tokens"))
            given, written = _number(usage.get("input_tokens")), _number(usage.get("output_tokens"))
            if written is not None and (audio is not None or given is not None):
                heard = audio if audio is not None else (given or 0.0) - text
                return heard * able.tokens.audio_usd + text * able.tokens.text_usd + written * able.tokens.output_usd
        seconds = _number(usage.get("seconds")) if usage.get("type") == "duration" else None
        return able.price_usd_per_minute * (duration_s if seconds is None else seconds) / 60

    @property
    def _where(self) -> str:
        return _host(self.options) or "api.openai.com"

    def _short(self, error: BaseException) -> str:
        return " ".join(self._without_key(str(error)).split())[:_QUOTE] or type(error).__name__

    def _quote(self, body: bytes) -> str:
        return repr(self._without_key(body[: 4 * _QUOTE].decode("utf-8", "replace"))[:_QUOTE])

    def _cause(self, error: Exception) -> Exception | None:
        """``error`` as the cause of ours, which Dagster's log shows in full, unless the key is in it."""
        return error if self._without_key(str(error)) == str(error) else None

    def _without_key(self, text: str) -> str:
        """A server may repeat in an answer what it was sent."""
        return text.replace(self.options.api_key, "***") if self.options.api_key else text


async def _in_one_piece(request: Any) -> None:
    """Join a form before it is sent: field by field it takes a dozen writes, which cost more than all the rest."""
    await request.aread()


async def _of_bounded_size(response: Any) -> None:
    """Read no more of an answer than any transcript has: a server that goes on for ever would fill the memory."""
    import httpx2

    encoding = response.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        # A few packed bytes may stand for gigabytes.
        raise httpx2.DecodingError(f"the answer is packed ({encoding[:20]}), which was not asked for")
    whole = response.stream

    class Bounded(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            came = 0
            async for block in whole:
                came += len(block)
                if came > _ANSWER_BYTES:
                    raise httpx2.DecodingError(f"the answer is longer than {_ANSWER_BYTES} bytes")
                yield block

        async def aclose(self) -> None:
            await whole.aclose()

    response.stream = Bounded()


def _host(options: OpenAIOptions) -> str:
    return urlsplit(options.base_url).netloc.rpartition("@")[2] if options.base_url else ""


def quietest(samples: Samples) -> int:
    """The sample in the middle half where a tenth of a second is quietest: the best place to cut in two."""
    step = SAMPLE_RATE_HZ // 10
    low, high = len(samples) // 4, len(samples) - len(samples) // 4
    frames = samples[low : low + (high - low) // step * step].reshape(-1, step)
    if not len(frames):
        return len(samples) // 2
    return low + int(np.argmin(np.square(frames, dtype=np.float64).sum(axis=1))) * step + step // 2


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


def _usage(answer: dict[str, Any]) -> dict[str, Any]:
    usage = answer.get("usage")
    return usage if isinstance(usage, dict) else {}


def _language(answer: dict[str, Any]) -> str | None:
    found = answer.get("language")
    several = answer.get("languages")
    if not isinstance(found, str) and isinstance(several, list) and several and isinstance(several[0], dict):
        found = several[0].get("code")
    return code_of(found) if isinstance(found, str) else None


def _mean_logprob(answer: dict[str, Any]) -> float | None:
    found = answer.get("logprobs")
    if not isinstance(found, list):
        return None
    values = [v for v in (_number(e.get("logprob")) for e in found if isinstance(e, dict)) if v is not None]
    return float(np.mean(values)) if values else None


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


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
