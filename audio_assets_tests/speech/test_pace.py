"""How requests are spaced: in simulated time, so that minutes pass at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from audio_assets.speech.pace import Pace, reset_after_s


class FastLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


class Server:
    """Accepts ``rate`` requests a second (a bucket of one second's worth) and ``most`` at once."""

    def __init__(
        self,
        clock: Callable[[], float],
        rate: float = 1e9,
        most: int = 10**9,
        latency_s: float = 0.3,
        headers: bool = False,
    ):
        self.clock, self.rate, self.most, self.latency_s, self.headers = clock, rate, most, latency_s, headers
        self.level, self.at = rate, 0.0
        self.in_flight = self.ok = self.refused = self.peak = 0
        self.starts: deque[float] = deque()
        self.busy_s = 0.0

    async def ask(self) -> tuple[bool, dict[str, str]]:
        now = self.clock()
        self.starts.append(now)
        self.level = min(self.rate, self.level + (now - self.at) * self.rate)
        self.at = now
        good = self.level >= 1 and self.in_flight < self.most
        if good:
            self.level -= 1
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)
            headers = self._headers()
            await asyncio.sleep(self.latency_s)
            self.busy_s += self.latency_s
            self.in_flight -= 1
            self.ok += 1
            return True, headers
        self.refused += 1
        return False, self._headers()

    def _headers(self) -> dict[str, str]:
        if not self.headers:
            return {}
        return {
            "x-ratelimit-limit-requests": f"{self.rate:.0f}",
            "x-ratelimit-remaining-requests": f"{int(self.level)}",
            "x-ratelimit-reset-requests": f"{(self.rate - self.level) / self.rate * 1000:.0f}ms",
        }


async def send_all(pace: Pace, server: Server, count: int, audio_s: float = 1.0) -> None:
    async def one() -> None:
        while True:
            started = await pace.enter(audio_s, lambda wait_s: None)
            try:
                good, headers = await server.ask()
                if good:
                    pace.accepted(started, headers)
                    return
                pace.limited(started, headers, 0.5)
            finally:
                pace.leave()
            await asyncio.sleep(0.5)

    await asyncio.gather(*(one() for _ in range(count)))


def simulate(work: Callable[[Callable[[], float]], Coroutine[Any, Any, Any]]) -> Any:
    loop = FastLoop()
    try:
        return loop.run_until_complete(work(loop.time))
    finally:
        loop.close()


def test_the_workers_are_busy_when_nothing_limits_them():
    async def story(clock):
        server = Server(clock)
        await send_all(Pace(50, clock=clock), server, 500)
        return server, clock()

    server, seconds = simulate(story)
    assert server.peak == 50, "never more than the workers"
    assert server.busy_s / (50 * seconds) >= 0.9


@pytest.mark.parametrize("headers", [True, False], ids=["with-rate-headers", "without"])
def test_a_rate_limit_is_used_up_and_hardly_ever_met(headers):
    async def story(clock):
        server = Server(clock, rate=20, headers=headers)
        await send_all(Pace(50, clock=clock), server, 500)
        return server, clock()

    server, seconds = simulate(story)
    assert server.ok / seconds >= 0.95 * 20
    assert server.refused / (server.ok + server.refused) < 0.02


def test_fewer_go_at_once_after_a_429_and_more_again_later():
    async def story(clock):
        pace = Pace(50, clock=clock)
        server = Server(clock, most=10)
        await send_all(pace, server, 400)
        return server, pace

    server, pace = simulate(story)
    assert server.peak == 10
    assert server.refused < 0.15 * 400
    assert pace.allowed > 10


def test_the_ceiling_on_requests_is_never_passed_in_any_minute():
    async def story(clock):
        server = Server(clock)
        await send_all(Pace(50, requests_per_minute=30, clock=clock), server, 90)
        return server

    starts = list(simulate(story).starts)
    assert max(sum(1 for t in starts if s <= t < s + 60) for s in starts) <= 30
    assert starts[-1] == pytest.approx(89 * 2.0, abs=1.0), "and it is used"


def test_the_ceiling_on_audio_counts_its_seconds():
    async def story(clock):
        server = Server(clock)
        await send_all(Pace(50, audio_s_per_minute=600, clock=clock), server, 20, audio_s=60.0)
        return server

    starts = list(simulate(story).starts)
    assert starts[-1] == pytest.approx(19 * 6.0, abs=0.5)


def test_waiting_costs_no_turns_of_the_loop():
    async def story(clock):
        looked = 0

        def check(wait_s: float) -> None:
            nonlocal looked
            looked += 1

        pace = Pace(4, clock=clock)
        pace.hold(clock() + 100)
        await pace.enter(1.0, check)
        return looked, clock()

    looked, seconds = simulate(story)
    assert seconds >= 100 and looked <= 3


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("6m0s", 360), ("120ms", 0.12), ("1", 1), ("1h2m", 3720), ("soon", None), ("", None), (None, None)],
)
def test_the_reset_header_is_read(text, seconds):
    assert reset_after_s(text) == seconds
