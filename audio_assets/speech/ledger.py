"""Money: a cap that is never passed, and a record of every request that was sent.

Before an attempt is sent, the most it may cost is reserved; when its answer is in, the reservation becomes the cost
that the answer states. An attempt that ends without a usable answer may have been billed: its reservation stays
counted, as uncertain. The journal has a line before each attempt, so a process that is killed leaves its request there.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from audio_assets.errors import FileDeferred, SettingsError
from audio_assets.speech.shared_cap import Money, SharedCap

_ROUNDING_USD = 1e-9
"""Sums of floating-point money are equal within this."""

_OTHERS_POLL_S = 0.5
"""How often to look whether another process has given money back."""

_SETTLED_S = 3600.0
"""A journal that nobody has written to for this long is finished: no request lives as long."""


@dataclass
class Request:
    """One piece of audio that was sent, with all its attempts: a row of `schemas.TRANSCRIPTION_LEDGER`.

    ``cost_usd`` is what the endpoint's answer says, None when the price is unknown; ``uncertain_usd`` is what attempts
    may have cost that ended without an answer.
    """

    id: str
    sha256: str
    window: str
    seconds: float
    model: str
    endpoint: str
    request: str = field(default_factory=lambda: uuid.uuid4().hex)
    prefix: str = ""
    run: str = ""
    attempts: int = 0
    cost_usd: float | None = 0.0
    uncertain_usd: float = 0.0
    status: str = "interrupted"
    request_id: str | None = None
    started_at: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat())
    elapsed_s: float = 0.0
    error: str | None = None


class Account:
    """The budget of one run and the book that is kept of it.

    ``cap_usd`` is the most that may be spent, None for no limit. Requests are written to the journal under ``root``,
    None for no journal; ``prefix_of`` gives the prefix that a file's id belongs to. ``run`` names the run in the book.
    With ``shared`` the cap is that of all runs which share it.
    Belongs to one engine: its methods are called in that engine's event loop.
    """

    def __init__(
        self,
        cap_usd: float | None = None,
        root: Path | None = None,
        prefix_of: Callable[[str], str] = lambda id: "",
        run: str = "",
        shared: SharedCap | None = None,
    ):
        self.cap_usd = cap_usd
        self.cost_usd = 0.0
        self.uncertain_usd = 0.0
        self.reserved_usd = 0.0
        self.requests = 0
        self.attempts = 0
        self.refused = 0
        """Requests that the cap kept from being sent."""
        self.stopped = False
        """Whether the run has ended: nothing more is sent."""
        self.doom: SettingsError | None = None
        """What keeps every request of this run from succeeding."""
        self._root = root
        self._prefix_of = prefix_of
        self._run = run
        self._name = f"{uuid.uuid4().hex}.jsonl"
        self._files: dict[str, int] = {}
        self._changed: list[asyncio.Future[None]] = []
        self._shared = shared if cap_usd is not None else None

    @property
    def spent_usd(self) -> float:
        """What counts against the cap: what was billed and what may have been."""
        return self.cost_usd + self.uncertain_usd

    def figures(self) -> dict[str, float]:
        """The money in figures that may be added to those of other accounts."""
        return {
            "cost_usd": self.cost_usd,
            "uncertain_usd": self.uncertain_usd,
            "requests": self.requests,
            "attempts": self.attempts,
            "refused": self.refused,
        }

    def metadata(self) -> dict[str, Any]:
        """The money in figures; ``cost_usd`` is the sum over the run's rows of the ledger."""
        return money_metadata(self.figures(), self.cap_usd)

    async def reserve(self, amount_usd: float) -> None:
        """Set money aside for an attempt; waits for other attempts to settle where that decides.

        Raises:
            FileDeferred: the cap does not allow it.
        """
        while self.cap_usd is not None:
            others = self._shared.others() if self._shared else Money()
            free_usd = self.cap_usd - self.spent_usd - others.spent_usd + _ROUNDING_USD
            if amount_usd > free_usd:
                self.refused += 1
                spent_usd = self.spent_usd + others.spent_usd
                raise FileDeferred(
                    f"the cap of ${self.cap_usd:g} is reached: ${spent_usd:.4f} spent, and this needs up to "
                    f"${amount_usd:.4f}; raise --max-cost (max_cost_usd) to go on"
                )
            if self.reserved_usd + others.reserved_usd + amount_usd <= free_usd:
                wanted = Money(self.spent_usd, self.reserved_usd + amount_usd)
                if self._shared is None or self._shared.take(wanted, self.cap_usd + _ROUNDING_USD):
                    break
                continue
            # Reservations are upper bounds: what is under way may turn out cheaper.
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._changed.append(waiter)
            # Other processes do not say when theirs has.
            await asyncio.wait([waiter], timeout=_OTHERS_POLL_S if others.reserved_usd else None)
            if self.stopped:
                raise FileDeferred("the run ended before this was sent; the next run tries again")
        self.reserved_usd += amount_usd

    def release(self, amount_usd: float) -> None:
        """Give back a reservation that cost nothing, or that `pay` and `lose` account for."""
        self.reserved_usd -= amount_usd
        if self._shared is not None:
            self._shared.settle(Money(self.spent_usd, max(0.0, self.reserved_usd)))
        self.wake()

    def wake(self) -> None:
        """Let whoever waits for money look again."""
        waiters, self._changed = self._changed, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def begin(self, request: Request, at_risk_usd: float) -> None:
        """An attempt goes out: write down what is known of it, as if it were never heard of again."""
        request.attempts += 1
        self.attempts += 1
        self.requests += request.attempts == 1
        self._write(request, at_risk_usd)

    def pay(self, request: Request, cost_usd: float | None) -> None:
        """The endpoint did the work and says what it took; None when the price is unknown."""
        if cost_usd is None:
            request.cost_usd = None
        else:
            request.cost_usd = (request.cost_usd or 0.0) + cost_usd
            self.cost_usd += cost_usd

    def lose(self, request: Request, amount_usd: float) -> None:
        """No usable answer came: the attempt may have been billed."""
        request.uncertain_usd += amount_usd
        self.uncertain_usd += amount_usd

    def end(self, request: Request, status: str, error: str | None, elapsed_s: float) -> None:
        """The request is over: write down how."""
        request.status, request.error, request.elapsed_s = status, error, elapsed_s
        self._write(request, 0.0)

    def close(self) -> None:
        """Bring the journal to the disk and close it."""
        files, self._files = self._files, {}
        for handle in files.values():
            os.fsync(handle)
            os.close(handle)

    def _write(self, request: Request, at_risk_usd: float) -> None:
        if self._root is None:
            return
        request.prefix, request.run = self._prefix_of(request.id), self._run
        row = {**asdict(request), "uncertain_usd": request.uncertain_usd + at_risk_usd}
        handle = self._files.get(request.prefix)
        if handle is None:
            directory = journal_directory(self._root, request.prefix)
            directory.mkdir(parents=True, exist_ok=True)
            handle = os.open(directory / self._name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            self._files[request.prefix] = handle
        # In the kernel's hands a line survives the death of this process; `close` makes it survive that of the machine.
        os.write(handle, json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")


def money_metadata(figures: Mapping[str, float], cap_usd: float | None) -> dict[str, Any]:
    """`Account.figures`, of one account or the sum of several, as a run shows them."""
    shown: dict[str, Any] = {"cost_usd": round(figures["cost_usd"], 9)}
    if figures["requests"]:
        shown |= {"requests": int(figures["requests"]), "attempts": int(figures["attempts"])}
    if figures["uncertain_usd"]:
        shown["uncertain_usd"] = round(figures["uncertain_usd"], 9)
    if cap_usd is not None:
        shown |= {"max_cost_usd": cap_usd, "requests_refused_by_cap": int(figures["refused"])}
    return shown


def journal_directory(root: Path, prefix: str) -> Path:
    """Where the journals of a prefix lie. A prefix can be longer than a file name may be."""
    return root / hashlib.sha256(prefix.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def read_journal(root: Path, prefix: str) -> dict[str, dict[str, Any]]:
    """The requests of a prefix by their ``request``, as rows of `schemas.TRANSCRIPTION_LEDGER`.

    The last line of a request counts. Lines that a killed process left half-written are left out.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(journal_directory(root, prefix).glob("*.jsonl")):
        found |= _read(path)
    return found


def prune_journal(
    root: Path,
    prefix: str,
    recorded: Iterable[dict[str, Any]],
    now_s: float,
    on_prune: Callable[[Path], None] = lambda path: None,
) -> int:
    """Delete journals that are finished and whose rows all are in ``recorded``; gives how many.

    ``now_s`` is the time in seconds since the epoch; ``on_prune`` is told of each journal before it goes.
    """
    known = {row["request"]: row for row in recorded}
    deleted = 0
    for path in journal_directory(root, prefix).glob("*.jsonl"):
        finished = now_s - path.stat().st_mtime > _SETTLED_S
        if finished and all(known.get(request) == row for request, row in _read(path).items()):
            on_prune(path)
            path.unlink()
            deleted += 1
    return deleted


def bring_up_to_date(
    root: Path,
    prefix: str,
    recorded: list[dict[str, Any]],
    now_s: float,
    on_prune: Callable[[Path], None] = lambda path: None,
) -> list[dict[str, Any]]:
    """The rows of the ledger of a prefix, oldest first: those on record, and what the journals hold.

    Journals that are finished and on record are deleted. ``now_s`` is the time in seconds since the epoch; ``on_prune``
    is told of each journal before it goes.
    """
    prune_journal(root, prefix, recorded, now_s, on_prune)
    rows = {row["request"]: row for row in recorded} | read_journal(root, prefix)
    return sorted(rows.values(), key=lambda row: (row["started_at"], row["request"]))


_FIELDS = frozenset(Request.__dataclass_fields__)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line.decode("utf-8", "surrogatepass"))
            if row.keys() != _FIELDS:
                continue
            row["started_at"] = datetime.fromisoformat(row["started_at"])
            found[row["request"]] = row
        except (ValueError, AttributeError, TypeError):
            continue
    return found
