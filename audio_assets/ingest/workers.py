"""Threads that can be left behind: a read from the network may hang, whoever waits for it must not."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

GRACE_S = 2.0
"""How long `Workers` waits at the end for work under way. A read that hangs would hold it for the read timeout."""


@dataclass(frozen=True)
class _Fed:
    """All items were handed out: there are so many."""

    count: int


class Workers(Generic[Item, Result]):
    """Runs ``work(item, cancelled)`` in ``count`` threads, for as long as the ``with`` block.

    At its end ``cancelled`` is set, what has not begun is not begun, and threads that do not come back within `GRACE_S`
    are left to themselves: they keep neither the caller nor the interpreter from ending.
    """

    def __init__(self, work: Callable[[Item, threading.Event], Result], count: int):
        self._work = work
        self._cancelled = threading.Event()
        self._items: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Result | BaseException | _Fed] = queue.SimpleQueue()
        self._room = threading.Semaphore(0)
        self._threads = [threading.Thread(target=self._run, name=f"ingest-{i}", daemon=True) for i in range(count)]

    def __enter__(self) -> Workers[Item, Result]:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._cancelled.set()
        self._room.release()
        # Whoever waits for results, as a feeder of other workers may, waits in vain.
        self._results.put(_Fed(0))
        for _thread in self._threads:
            self._items.put(None)
        deadline = time.monotonic() + GRACE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def each(self, items: Iterable[Item], window: int) -> Iterator[Result]:
        """The result of each item, as they come; an exception is raised here.

        At most ``window`` items are under way; as soon as one is done the next begins. ``items`` may wait for results
        before it gives the next: it is iterated in a thread of its own.
        """
        feeder = threading.Thread(target=self._feed, args=(iter(items), window), name="ingest-feed", daemon=True)
        feeder.start()
        done = 0
        total: int | None = None
        while total is None or done < total:
            result = self._results.get()
            if self._cancelled.is_set():
                return
            if isinstance(result, BaseException):
                raise result
            if isinstance(result, _Fed):
                total = result.count
                continue
            done += 1
            self._room.release()
            yield result

    def _feed(self, items: Iterator[Item], window: int) -> None:
        self._room.release(window)
        count = 0
        try:
            for item in items:
                self._room.acquire()
                if self._cancelled.is_set():
                    return
                self._items.put(item)
                count += 1
            self._results.put(_Fed(count))
        except BaseException as error:  # it is raised again in the caller's thread
            self._results.put(error)

    def _run(self) -> None:
        while (item := self._items.get()) is not None:
            if self._cancelled.is_set():
                continue
            try:
                self._results.put(self._work(item, self._cancelled))
            except BaseException as error:  # it is raised again in the caller's thread
                self._results.put(error)
