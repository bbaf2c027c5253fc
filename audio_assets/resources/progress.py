"""How far a step is: log lines in Dagster, bars on a terminal.

Dagster shows no progress of a step in flight other than its log, so a line appears every few seconds or percent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

LOG_INTERVAL_S = 5.0
LOG_SHARE = 0.05
"""A log line appears after this many seconds or this share of the work, whichever comes first."""

LOG_MIN_INTERVAL_S = 1.0
"""But never more often than this: a log line is an event in Dagster's database."""


class Task(Protocol):
    """One piece of work in progress."""

    def update(self, done: float, total: float, note: str = "") -> None:
        """``done`` of ``total`` units are finished; ``note`` is a short remark such as a speed."""
        ...


class Progress(Protocol):
    """Shows tasks to whoever watches."""

    def task(self, label: str, unit: str, log: Callable[[str], None]) -> AbstractContextManager[Task]:
        """Show one task for as long as the context is open; ``log`` takes a line for the step's log."""
        ...


class LogTask:
    """Turns progress into an occasional line: ``transcripts calls/: 37/120 files · 1.8x realtime · ETA 4 m``."""

    def __init__(self, label: str, unit: str, log: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        self._label, self._unit, self._log, self._clock = label, unit, log, clock
        self._started = self._last_time = clock()
        self._last_share = 0.0

    def update(self, done: float, total: float, note: str = "") -> None:
        """Log a line if enough time or work has passed since the last one."""
        now = self._clock()
        # Sums of minutes end a rounding error short of their total.
        share = 1.0 if done >= total * (1 - 1e-9) else done / total
        waited = now - self._last_time
        due = waited >= LOG_INTERVAL_S or (share - self._last_share >= LOG_SHARE and waited >= LOG_MIN_INTERVAL_S)
        if not due and share < 1.0:
            return
        if share <= self._last_share and share >= 1.0:
            return
        self._last_time, self._last_share = now, share
        parts = [f"{self._label}: {format_amount(done, total, self._unit)}"]
        if note:
            parts.append(note)
        if 0 < share < 1:
            parts.append(f"ETA {format_duration((now - self._started) * (1 - share) / share)}")
        self._log(" · ".join(parts))


class AudioMinutes:
    """Progress through recordings in minutes of audio, window by window: a recording may be hours long.

    ``durations_s`` are the recordings' lengths by id, in seconds; the speed counts what was not known before.
    """

    def __init__(self, task: Task, durations_s: Mapping[str, float], clock: Callable[[], float] = time.monotonic):
        self._task, self._durations_s, self._clock = task, durations_s, clock
        self._started = clock()
        self._total_s = sum(durations_s.values())
        self._parts_s: dict[str, float] = {}
        self._done_s = self._fresh_s = 0.0
        self._files = 0

    def heard(self, id: str, seconds: float, known: bool) -> None:
        """So many more seconds of the recording are done; ``known`` says that an earlier run did them."""
        before = self._parts_s.get(id, 0.0)
        # The length that a header tells may be an estimate.
        after = min(before + seconds, self._durations_s[id])
        self._parts_s[id] = after
        self._add(after - before, known)

    def finished(self, id: str, known: bool) -> None:
        """The recording is done, with whatever silence it ends in."""
        self._files += 1
        self._add(self._durations_s[id] - self._parts_s.pop(id, 0.0), known)

    def _add(self, seconds: float, known: bool) -> None:
        self._done_s += seconds
        self._fresh_s += 0.0 if known else seconds
        if self._files < len(self._durations_s) and self._done_s >= self._total_s > 0:
            # The last recording has yet to be put together; its end is the end.
            return
        note = f"{self._files}/{len(self._durations_s)} files"
        if self._fresh_s:
            note += f" · {self._fresh_s / max(self._clock() - self._started, 1e-3):.1f}x realtime"
        self._task.update(self._done_s / 60, self._total_s / 60, note)


class LogProgress:
    """Progress as log lines; what runs under Dagster use."""

    @contextmanager
    def task(self, label: str, unit: str, log: Callable[[str], None]) -> Iterator[Task]:
        """Log lines for one task."""
        yield LogTask(label, unit, log)


def format_amount(done: float, total: float, unit: str) -> str:
    """How much is done: whole files, tenths of anything else.

    >>> format_amount(3, 12, "files"), format_amount(0.25, 1.5, "min")
    ('3/12 files', '0.2/1.5 min')
    """
    digits = 0 if unit == "files" else 1
    return f"{done:.{digits}f}/{total:.{digits}f} {unit}"


def format_duration(seconds: float) -> str:
    """A length of time in the two units that matter: ``41 s``, ``4 m 10 s``, ``3 h 5 m``.

    >>> format_duration(41.2), format_duration(250), format_duration(11100)
    ('41 s', '4 m 10 s', '3 h 5 m')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} m"
