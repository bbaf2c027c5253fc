"""One cap for several runs, such as those of a backfill: a file that all of them read and write under a lock."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from audio_assets.storage import atomic


@dataclass(frozen=True)
class Money:
    """US dollars that count as spent, and dollars that are set aside for requests under way."""

    spent_usd: float = 0.0
    reserved_usd: float = 0.0


class SharedCap:
    """The part of one run in a common account. ``path`` names the account, ``run`` the run.

    What a killed run had set aside stays counted: it may have been billed.
    """

    def __init__(self, path: Path, run: str):
        self._path = path
        self._run = run
        self._lock = FileLock(path.with_suffix(".lock"))
        path.parent.mkdir(parents=True, exist_ok=True)

    def others(self) -> Money:
        """What all the other runs have spent and set aside."""
        with self._lock:
            return self._sum(self._read())

    def take(self, mine: Money, cap_usd: float) -> bool:
        """Write down ``mine`` if it fits into the cap together with the others'; gives whether it does."""
        with self._lock:
            runs = self._read()
            others = self._sum(runs)
            if others.spent_usd + others.reserved_usd + mine.spent_usd + mine.reserved_usd > cap_usd:
                return False
            self._write({**runs, self._run: mine})
            return True

    def settle(self, mine: Money) -> None:
        """Write down what became of a reservation."""
        with self._lock:
            self._write({**self._read(), self._run: mine})

    def _sum(self, runs: dict[str, Money]) -> Money:
        others = [money for run, money in runs.items() if run != self._run]
        return Money(sum(m.spent_usd for m in others), sum(m.reserved_usd for m in others))

    def _read(self) -> dict[str, Money]:
        try:
            return {run: Money(*amounts) for run, amounts in json.loads(self._path.read_text("utf-8")).items()}
        except FileNotFoundError:
            return {}

    def _write(self, runs: dict[str, Money]) -> None:
        atomic.write_bytes(
            self._path, json.dumps({run: [m.spent_usd, m.reserved_usd] for run, m in runs.items()}).encode()
        )
