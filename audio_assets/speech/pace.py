"""How fast an endpoint may be asked: what the user allows, what its headers say, and what its refusals teach.

A request starts when all of these agree: the user's ceilings on requests and seconds of audio per minute; the number
that may be in flight, which grows while all goes well and shrinks when the server says 429; the server's own account
of its limit in ``x-ratelimit-*`` headers; and, without such headers, the rate at which it accepted requests before it
refused one.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

FIRST_BURST = 8
FIRST_GAP_S = 0.002
"""Before the first answer, so many requests start at once and the others one by one: a server that refuses does so at
once, and is heard before the rest is sent; one that does not has all of them soon."""

SHRINK = 0.7
"""What is left of the requests in flight after a 429."""

LEARNED_SHARE = 0.95
"""Of the rate that was accepted before a 429: just below the limit, or every second would end in another 429."""

GROWTH_PER_S = 0.01
"""How fast a learned rate creeps up again, to notice when the limit was raised."""

WORTH_KNOWING = 0.25
"""Share of a limit that must be used up before it slows anything down."""

REFILL_SHARE = 0.98
"""Of the rate that the headers tell: the server's clock and ours do not agree to the last request."""

_TICK = 1e-6
"""Shorter waits are rounding."""

_HORIZON_S = 60.0
_SHORTEST_HORIZON_S = 1.0
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}


class Pace:
    """Admits requests to one endpoint. Used from one event loop.

    ``workers`` is the most that may be in flight; the ceilings are per minute, None for none.
    """

    def __init__(
        self,
        workers: int,
        requests_per_minute: float | None = None,
        audio_s_per_minute: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._most = workers
        self._clock = clock
        self._request_gap_s = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._audio_gap = 60.0 / audio_s_per_minute if audio_s_per_minute else 0.0
        self._next_request = self._next_audio = self._next_first = 0.0
        self._queue = asyncio.Lock()
        self._changed = asyncio.Event()
        self._shrunk_at = float("-inf")
        self._allowed = float(workers)
        self._rate: float | None = None
        self._rate_at = self._next_by_rate = 0.0
        self._accepted: deque[float] = deque()
        self._first_start: float | None = None
        self._tokens: float | None = None
        self._refill = self._limit = self._tokens_at = 0.0
        self._started: deque[float] = deque()
        self.in_flight = 0
        self.not_before = 0.0

    @property
    def allowed(self) -> int:
        """Requests that may be in flight now."""
        return int(self._allowed)

    def wake(self) -> None:
        """Let whoever waits look again."""
        self._changed.set()

    async def enter(self, audio_s: float, check: Callable[[float], None]) -> float:
        """Wait for this request's turn; gives the time of its start, for `leave`.

        ``check`` is called with the seconds until the server takes requests again, each time before waiting and
        before starting; what it raises ends the wait.
        """
        # One at a time: whoever came first is admitted first, and only one task wakes for each change.
        async with self._queue:
            while True:
                now = self._clock()
                check(self.not_before - now)
                wait_s = self._wait_s(now)
                if wait_s <= _TICK and self.in_flight < self.allowed:
                    return self._start(now, audio_s)
                self._changed.clear()
                try:
                    await asyncio.wait_for(self._changed.wait(), wait_s if wait_s > _TICK else None)
                except asyncio.TimeoutError:
                    continue

    def leave(self) -> None:
        """The request has its answer, or none will come."""
        self.in_flight -= 1
        self.wake()

    def accepted(self, started: float, headers: Mapping[str, str]) -> None:
        """The server did the work of a request that started at ``started``."""
        now = self._clock()
        self._accepted.append(now)
        room = self._read_headers(started, now, headers)
        # Before the first 429, or when the headers show room, one more for each answer doubles the flight each time
        # round; otherwise it takes a whole round to add one.
        fast = self._shrunk_at == float("-inf") or (room is not None and room > self._allowed)
        self._allowed = min(float(self._most), self._allowed + (1.0 if fast else 1.0 / self._allowed))
        self.wake()

    def limited(self, started: float, headers: Mapping[str, str], pause_s: float) -> float | None:
        """The server answered 429; gives the seconds it asks to wait, None if it does not say.

        ``pause_s`` is how long nothing starts when the server does not say.
        """
        now = self._clock()
        after_s = retry_after_s(headers)
        self.hold(now + (pause_s if after_s is None else after_s))
        # The requests that were under way together are refused together: one lesson, not many.
        if started > self._shrunk_at:
            self._shrunk_at = now
            self._allowed = max(1.0, self._allowed * SHRINK)
            if self._read_headers(started, now, headers) is None:
                self._rate = None
                self._rate_at = self.not_before
        return after_s

    def hold(self, until: float) -> None:
        """Start nothing before this time."""
        self.not_before = max(self.not_before, until)

    # -- when the next request may start

    def _wait_s(self, now: float) -> float:
        wait_s = max(self.not_before, self._next_request, self._next_audio, self._next_first) - now
        rate = self._learned_rate(now)
        if rate is not None:
            wait_s = max(wait_s, self._next_by_rate - now)
        if self._tokens is not None:
            tokens = self._tokens + self._refill * (now - self._tokens_at)
            if tokens < 1 - _TICK:
                wait_s = max(wait_s, (1 - tokens) / self._refill)
        return wait_s

    def _start(self, now: float, audio_s: float) -> float:
        self.in_flight += 1
        if self._first_start is None:
            self._first_start = now
        if len(self._started) >= FIRST_BURST and not self._accepted:
            self._next_first = now + FIRST_GAP_S
        self._next_request = max(now, self._next_request) + self._request_gap_s
        self._next_audio = max(now, self._next_audio) + self._audio_gap * audio_s
        rate = self._learned_rate(now)
        if rate is not None:
            # Starts that a busy event loop delayed are made up for, a tenth of a second's worth at most.
            self._next_by_rate = max(now - 0.1, self._next_by_rate) + 1 / rate
        if self._tokens is not None:
            self._tokens = min(self._limit, self._tokens + self._refill * (now - self._tokens_at)) - 1
            self._tokens_at = now
        self._started.append(now)
        while self._started and self._started[0] < now - _HORIZON_S:
            self._started.popleft()
        return now

    def _learned_rate(self, now: float) -> float | None:
        """Requests a second, learned from what was accepted before the last 429; None as long as there was none."""
        if self._tokens is not None or self._shrunk_at == float("-inf"):
            return None
        if self._rate is None:
            # The answers to what was in flight at the 429 must be in, or too few are counted.
            if now < self._rate_at:
                return None
            while self._accepted and self._accepted[0] < self._shrunk_at - _HORIZON_S:
                self._accepted.popleft()
            since = max(self._first_start or 0.0, self._shrunk_at - _HORIZON_S)
            horizon_s = max(_SHORTEST_HORIZON_S, self._shrunk_at - since)
            recent = sum(1 for t in self._accepted if t >= self._shrunk_at - horizon_s)
            if not recent:
                return None
            self._rate = LEARNED_SHARE * recent / horizon_s
            self._rate_at = now
        return self._rate * (1 + GROWTH_PER_S * max(0.0, now - self._rate_at))

    def _read_headers(self, started: float, now: float, headers: Mapping[str, str]) -> float | None:
        """Take over the server's own account of its limit; gives the requests it has left, None if it does not say."""
        limit = _number(headers.get("x-ratelimit-limit-requests"))
        remaining = _number(headers.get("x-ratelimit-remaining-requests"))
        reset_s = reset_after_s(headers.get("x-ratelimit-reset-requests"))
        if limit is None or remaining is None or reset_s is None or limit < 1:
            return None
        # A bucket that is full again in reset_s refills this fast. The server rounds what is left down; when little is
        # missing, that would spoil the estimate.
        if reset_s > 0 and limit - remaining >= max(2.0, WORTH_KNOWING * limit):
            self._refill = REFILL_SHARE * (limit - remaining - 0.5) / reset_s
        if not self._refill:
            return remaining
        # What was started since the server counted is not in its count yet, and answers come in any order: the lower of
        # the two accounts holds, and it heals as it refills.
        later = sum(1 for t in self._started if t > started)
        left = min(limit, remaining + self._refill * (now - started)) - later
        if self._tokens is not None:
            left = min(left, self._tokens + self._refill * (now - self._tokens_at))
        self._tokens, self._tokens_at, self._limit = left, now, limit
        return max(0.0, left)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that ``Retry-After`` asks for, given as a number or as an HTTP date; None without a usable header."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = str(headers.get("retry-after") or "").strip()
    if not value:
        return None
    number = _number(value)
    if number is not None:
        return number
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=timezone.utc)
    return max(0.0, (when - datetime.now(timezone.utc)).total_seconds())


def reset_after_s(value: str | None) -> float | None:
    """Seconds of a rate header such as ``6m0s``, ``120ms`` or ``1``; None if it is none.

    >>> reset_after_s("1h2m3.5s")
    3723.5
    """
    text = (value or "").strip()
    if not text or not re.fullmatch(f"(?:{_DURATION.pattern})+", text):
        return None
    return sum(float(number) * _UNITS_S[unit] for number, unit in _DURATION.findall(text))


def _number(value: str | None) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return max(0.0, number) if abs(number) != float("inf") and number == number else None
