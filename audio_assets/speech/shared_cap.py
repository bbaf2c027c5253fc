"""One cap for several runs, such as those of a backfill: a file that all of them read and write under a lock."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from filelock import FileLock

from audio_assets.errors import SettingsError
from audio_assets.storage import atomic


@dataclass(frozen=True)
class Money:
    """US dollars that count as spent, and dollars that are set aside for requests under way."""

    spent_usd: float = 0.0
    reserved_usd: float = 0.0


class DamagedCapError(SettingsError):
    """An account that cannot be read (exit 4): whatever is left of the cap, nobody may spend it."""


class Objects(Protocol):
    """What an account in a bucket needs: see `audio_assets.storage.objects`."""

    def get(self, name: str) -> tuple[bytes, str] | None:
        """Bytes and ETag."""
        ...

    def put(self, name: str, body: bytes, *, replaces: str | None = None, is_new: bool = False) -> str | None:
        """Store under a condition; None when it does not hold."""
        ...


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
        """Write down what became of a reservation. A damaged account stays damaged: `take` refuses it."""
        with self._lock, suppress(DamagedCapError):
            self._write({**self._read(), self._run: mine})

    def _sum(self, runs: dict[str, Money]) -> Money:
        others = [money for run, money in runs.items() if run != self._run]
        return Money(sum(m.spent_usd for m in others), sum(m.reserved_usd for m in others))

    def _read(self) -> dict[str, Money]:
        try:
            return _parsed(self._path.read_bytes(), str(self._path))
        except FileNotFoundError:
            return {}

    def _write(self, runs: dict[str, Money]) -> None:
        atomic.write_bytes(
            self._path, json.dumps({run: [m.spent_usd, m.reserved_usd] for run, m in runs.items()}).encode()
        )


class BucketCap(SharedCap):
    """A cap in common with runs on other machines: an object that is replaced only as it was read."""

    def __init__(self, objects: Objects, name: str, run: str):
        self._objects, self._name, self._run = objects, name, run

    def others(self) -> Money:
        """What all the other runs have spent and set aside."""
        return self._sum(self._read_object()[0])

    def take(self, mine: Money, cap_usd: float) -> bool:
        """Write down ``mine`` if it fits into the cap together with the others'; gives whether it does."""
        return self._replace(mine, cap_usd)

    def settle(self, mine: Money) -> None:
        """Write down what became of a reservation. A damaged account stays damaged: `take` refuses it."""
        with suppress(DamagedCapError):
            self._replace(mine, None)

    def _replace(self, mine: Money, cap_usd: float | None) -> bool:
        while True:
            runs, etag = self._read_object()
            others = self._sum(runs)
            total = others.spent_usd + others.reserved_usd + mine.spent_usd + mine.reserved_usd
            if cap_usd is not None and total > cap_usd:
                return False
            amounts = {run: [m.spent_usd, m.reserved_usd] for run, m in {**runs, self._run: mine}.items()}
            if self._objects.put(self._name, json.dumps(amounts).encode(), replaces=etag, is_new=etag is None):
                return True

    def _read_object(self) -> tuple[dict[str, Money], str | None]:
        found = self._objects.get(self._name)
        if found is None:
            return {}, None
        return _parsed(found[0], self._name), found[1]


def _parsed(text: bytes, name: str) -> dict[str, Money]:
    try:
        runs = {run: Money(float(spent), float(reserved)) for run, (spent, reserved) in json.loads(text).items()}
        # A sum with NaN is greater than no cap.
        if not all(0 <= m.spent_usd < math.inf and 0 <= m.reserved_usd < math.inf for m in runs.values()):
            raise ValueError
        return runs
    except (ValueError, TypeError, AttributeError):
        raise DamagedCapError(
            f"{name} is damaged: what the runs that share this cap have spent is not known, so nothing more is sent;"
            " see the table transcription_ledger for it, and start anew with what is left as max_cost_usd (--max-cost)"
        ) from None
