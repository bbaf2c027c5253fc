"""Files that were dropped from the mirror, brought back when they are needed, and a little before."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from audio_assets.errors import AudioAssetsError, FileFailed, SettingsError
from audio_assets.ingest.disk_budget import DiskBudget, NoRoomYet
from audio_assets.ingest.download import ObjectGone, download
from audio_assets.ingest.listing import RemoteObject
from audio_assets.ingest.mirror import Mirror

FETCHED_AT_ONCE = 4
"""Files that are fetched ahead at a time."""
_LOOK_AGAIN_S = 0.1
AHEAD_FILES = 64
"""How many files it is ahead of the reader at most; a disk budget may end it sooner."""

_CHANGED = "the object has changed since it was taken in; the next run takes it in anew"


class Supply:
    """Brings the files of ``mirror`` within ``budget``, for as long as the ``with`` block.

    ``connect`` gives a boto3 S3 client and the name of the bucket; it is asked when the first file has to be fetched.
    """

    def __init__(self, mirror: Mirror, budget: DiskBudget | None, connect: Callable[[], tuple[Any, str]]) -> None:
        self._mirror, self._budget, self._connect = mirror, budget, connect
        self._cancelled = threading.Event()
        self._connection: tuple[Any, str] | None = None
        self._connecting = threading.Lock()
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._read = threading.Condition()
        self._reached = 0
        self._places: dict[str, int] = {}
        self._next = 0
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Supply:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Fetch nothing more; whoever waits is told so."""
        self._cancelled.set()
        with self._read:
            self._read.notify_all()

    def ahead(self, contents: Mapping[str, str], is_needed: Callable[[str], bool]) -> None:
        """Fetch those of ``contents``, SHA-256 by key, that are missing and needed, in this order, ahead of `bring`."""
        keys = list(contents)
        missing = [key for key in keys if not self._mirror.path_for(key).is_file()]
        if not missing:
            return
        self._places = {key: place for place, key in enumerate(keys)}

        def work() -> None:
            while (key := self._next_ahead(missing)) is not None:
                try:
                    # To ask may cost a look into a bucket.
                    while self._places[key] >= self._reached and is_needed(key):
                        try:
                            with ExitStack() as hold:
                                self._fetch(key, contents[key], ahead=True, hold=hold)
                            break
                        except NoRoomYet:
                            if self._cancelled.wait(_LOOK_AGAIN_S):
                                return
                except AudioAssetsError:
                    # Whoever needs the file tries again, and is told.
                    continue

        self._threads = [threading.Thread(target=work, daemon=True) for _ in range(FETCHED_AT_ONCE)]
        for thread in self._threads:
            thread.start()

    def _next_ahead(self, missing: Sequence[str]) -> str | None:
        """The next file to fetch ahead, after waiting until the reader is near; None when there are no more."""
        with self._read:
            while self._next < len(missing) and not self._cancelled.is_set():
                key = missing[self._next]
                if self._places[key] <= self._reached + AHEAD_FILES:
                    self._next += 1
                    return key
                self._read.wait()
        return None

    @contextmanager
    def bring(self, key: str, sha256: str | None = None, found: RemoteObject | None = None) -> Iterator[None]:
        """Have the file of ``key`` in the mirror for as long as the block.

        With ``found``, what a listing said of it, a mirror that never held it fetches it too, and one that holds
        another version of it fetches this one. Others may put another version in its place at any time: `check` tells.

        Raises:
            SettingsError: it has to be fetched, and the bucket refuses.
            FileFailed: it cannot be fetched, or is not the one of ``sha256`` any more.
        """
        with self._read:
            self._reached = max(self._reached, self._places.get(key, 0))
            self._read.notify_all()
        with ExitStack() as hold:
            while True:
                if self._budget is not None:
                    hold.enter_context(self._budget.reading(key))
                if self._lies(key, sha256, found):
                    break
                # What is held cannot make room, be it for its own newer version.
                hold.close()
                if self._fetch(key, sha256, ahead=False, found=found, hold=hold):
                    break
            if sha256 is not None:
                self.check(key, sha256)
            yield

    def check(self, key: str, sha256: str) -> None:
        """See to it that what lies there is what is meant.

        Another run may have put a newer version in place since the row was written, or somebody a file by hand.

        Raises:
            FileFailed: it is not.
        """
        if not self._is(key, sha256):
            raise FileFailed(_CHANGED)

    def spent(self, keys: Sequence[str]) -> None:
        """These files are done with."""
        if self._budget is not None and keys:
            self._budget.spent(keys)

    def _lies(self, key: str, sha256: str | None, found: RemoteObject | None) -> bool:
        """Whether there is nothing to fetch. What this machine took in itself is not fetched in another version."""
        return self._mirror.path_for(key).is_file() and (found is None or self._is(key, sha256))

    def _is(self, key: str, sha256: str | None) -> bool:
        """Whether the mirror's file is the one that is meant; it is read only when its time or size has changed."""
        state = self._mirror.inspect(key)
        return state is not None and sha256 in (None, state.sha256)

    def _fetch(
        self, key: str, sha256: str | None, *, ahead: bool, found: RemoteObject | None = None, hold: ExitStack
    ) -> bool:
        """Fetch a file, unless somebody else just has; whether this did. ``hold`` keeps the file there then."""
        with self._locks[key]:
            if self._lies(key, sha256, found):
                return False
            found = found or self._known(key)
            if found is None:
                raise FileFailed("not in the mirror; run `audio-assets run` to fetch it")
            try:
                client, bucket = self._client()
            except SettingsError as error:
                raise FileFailed(f"not in the mirror, and cannot be fetched: {error}") from error
            if self._budget is not None:
                hold.enter_context(self._budget.room(found, self._cancelled, ahead=ahead))
            try:
                state = download(
                    client, bucket, found, self._mirror, cancelled=self._cancelled, on_change=_refuse_changed
                )
            except ObjectGone as error:
                raise FileFailed("dropped from the mirror, and no longer in the bucket") from error
            if sha256 is not None and state.sha256 != sha256:
                raise FileFailed(_CHANGED)
            return True

    def _known(self, key: str) -> RemoteObject | None:
        """What the mirror remembers of an object that it does not hold."""
        state = self._mirror.state(key)
        if state is not None and state.etag is not None:
            return RemoteObject(key, state.etag, state.size_bytes, state.last_modified)
        # Its record is lost; of what was dropped the index knows as much.
        etag, size_bytes = self._mirror.dropped(key).get(key, (None, 0))
        return None if etag is None else RemoteObject(key, etag, size_bytes, None)

    def _client(self) -> tuple[Any, str]:
        with self._connecting:
            if self._connection is None:
                self._connection = self._connect()
            return self._connection


def _refuse_changed(_: RemoteObject) -> None:
    raise FileFailed(_CHANGED)
