"""A listing of many prefixes at a time: folders are found with a delimiter, and each is listed by a thread of its own.

A sweep begins with one part, the bucket or a prefix of it. Where folders are to be told apart, a part is listed with
the delimiter ``/`` and gives its own objects, and one part for each folder; else it gives everything below it. Every
object is in exactly one part, whatever order the server lists in. What a sweep has done is in its parts: it can be
stopped after any page and gone on with by another process.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from audio_assets.ingest.pages import Page, list_pages
from audio_assets.ingest.workers import GRACE_S

LISTED_AT_ONCE = 8
"""Prefixes that are listed at a time."""

MANY_FOLDERS = 500
"""A part whose first page, of 1,000 entries, shows more folders than this is listed through without telling them apart:
a request for each of a great many small folders costs more than the pages that hold them all."""


@dataclass
class Part:
    """Keys that start with ``prefix``, as far as ``after``; ``levels`` of folders below it are listed apart."""

    prefix: str
    levels: int = 0
    after: str = ""
    done: bool = False


@dataclass(frozen=True)
class _Listed:
    """A page of the part ``prefix``, listed with so many ``levels``; without a page the part is at its end."""

    prefix: str
    levels: int = 0
    page: Page | None = None


class Sweep:
    """What is left of a listing, and what is done of it."""

    def __init__(self, parts: list[Part]) -> None:
        self.parts = {part.prefix: part for part in parts}

    @staticmethod
    def below(prefix: str, depth: int) -> Sweep:
        """A listing of the keys that start with ``prefix``, any string, with the folders up to ``depth`` told apart."""
        return Sweep([Part(prefix, max(0, depth - prefix.count("/")))])

    @property
    def complete(self) -> bool:
        """Whether every part was listed to its end."""
        return all(part.done for part in self.parts.values())

    def pages(
        self,
        client: Any,
        bucket: str,
        *,
        at_once: int = LISTED_AT_ONCE,
        until: float | None = None,
        enough: Callable[[str, Page], bool] = lambda prefix, page: False,
    ) -> Iterator[tuple[Part, Page]]:
        """The pages that are left, as they come, each with its part. What was given is done: it does not come again.

        Args:
            client: a boto3 S3 client; the threads share it.
            bucket: name of the bucket.
            at_once: parts that are listed at a time; of each some two pages are in memory.
            until: the time of the monotonic clock after which no further page is given; one is in any case.
            enough: whether a page of a part in which no folders are told apart is to be its last; given the part's
                prefix and the page, by the thread that lists it.

        Raises:
            SettingsError: the bucket, the credentials or the endpoint are wrong.
            AudioAssetsError: the server failed in another way; what was given stays done.
        """
        left = [replace(part) for part in self.parts.values() if not part.done]
        with _Listers(client, bucket, left, set(self.parts), at_once, enough) as listers:
            while not self.complete:
                listed = listers.next()
                part = self.parts[listed.prefix]
                if listed.page is None:
                    part.done = True
                    continue
                part.levels, part.done = listed.levels, listed.page.next_token is None
                # Without a page in between, a part that was interrupted goes on behind its last entry.
                part.after = max([part.after, *listed.page.keys[-1:], *listed.page.folders[-1:]])
                for folder in listed.page.folders:
                    self.parts.setdefault(folder, Part(folder, listed.levels - 1))
                yield part, listed.page
                if until is not None and time.monotonic() > until:
                    return


class _Listers:
    """The threads: each takes a part, lists it to its end, and takes the next."""

    def __init__(
        self,
        client: Any,
        bucket: str,
        parts: list[Part],
        seen: set[str],
        count: int,
        enough: Callable[[str, Page], bool],
    ) -> None:
        self._client, self._bucket, self._enough = client, bucket, enough
        self._waiting = deque(parts)
        self._seen = seen
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._out: queue.Queue[_Listed | BaseException] = queue.Queue(count)
        # A read that hangs keeps neither the caller nor the interpreter from ending.
        self._threads = [threading.Thread(target=self._run, name=f"list-{i}", daemon=True) for i in range(count)]

    def __enter__(self) -> _Listers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()
        deadline = time.monotonic() + GRACE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def next(self) -> _Listed:
        """What comes next; an error of a thread is raised here."""
        listed = self._out.get()
        if isinstance(listed, BaseException):
            raise listed
        return listed

    def _run(self) -> None:
        try:
            while (part := self._take()) is not None:
                self._list(part)
        except BaseException as error:  # it is raised again in the caller's thread
            self._put(error)

    def _take(self) -> Part | None:
        with self._changed:
            while not self._waiting and not self._stopped.is_set():
                self._changed.wait()
            return None if self._stopped.is_set() else self._waiting.popleft()

    def _list(self, part: Part) -> None:
        levels, is_first = part.levels, not part.after
        if levels:
            for page in self._pages(part, "/"):
                if is_first and len(page.folders) > MANY_FOLDERS:
                    levels = 0
                    break
                is_first = False
                if not self._put(_Listed(part.prefix, levels, page)):
                    return
                # Not before: a page of a folder must not come before the page that tells of the folder.
                self._add([Part(folder, levels - 1) for folder in page.folders])
        if not levels:
            for page in self._pages(part, ""):
                if not self._put(_Listed(part.prefix, 0, page)):
                    return
                if self._enough(part.prefix, page):
                    break
        self._put(_Listed(part.prefix))

    def _pages(self, part: Part, delimiter: str) -> Iterator[Page]:
        return list_pages(self._client, self._bucket, part.prefix, delimiter=delimiter, start_after=part.after)

    def _add(self, parts: list[Part]) -> None:
        with self._changed:
            for part in parts:
                # A listing that is gone on with shows the folder where it stopped once more.
                if part.prefix not in self._seen:
                    self._seen.add(part.prefix)
                    self._waiting.append(part)
            self._changed.notify_all()

    def _put(self, listed: _Listed | BaseException) -> bool:
        """Hand over; False when nobody takes any more."""
        while not self._stopped.is_set():
            try:
                self._out.put(listed, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False
