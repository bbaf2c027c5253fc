"""The transcript cache in a bucket, for any number of machines.

    <root>/<sha256[:2]>/<sha256>/<fingerprint>.json            a finished file
    <root>/<sha256[:2]>/<sha256>/<fingerprint>.windows/<name>  a window of a file in progress
    <root>/<sha256[:2]>/<sha256>/<fingerprint>.claim           who transcribes the file, as long as it is renewed

There are no locks: an entry is named by what it is made of, and the bucket decides which of two comes first. A claim
only saves work. It is stale when nobody has renewed it for `LEASE_S`, measured by the clock of whoever waits, so clocks
need not agree.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, cast
from urllib.parse import quote

from audio_assets.speech.cache import Hold, TranscriptCache, seal, unseal

LEASE_S = 30.0
"""A claim that was not renewed for so long is anybody's: the longest that a lost machine holds a file up."""

_RENEW_S = LEASE_S / 3
_LOOK_S = 2.0
"""How often a claim of another is looked at."""

_KEPT = 100
"""Transcripts that `SharedTranscriptCache.has` keeps at most: one of a long recording takes megabytes."""


class Objects(Protocol):
    """What the cache needs of a bucket: see `audio_assets.storage.objects`."""

    def get(self, name: str) -> tuple[bytes, str] | None:
        """Bytes and ETag."""
        ...

    def put(self, name: str, body: bytes, *, replaces: str | None = None, is_new: bool = False) -> str | None:
        """Store under a condition; None when it does not hold."""
        ...

    def names(self, folder: str) -> Iterator[str]:
        """The names below a folder."""
        ...

    def delete(self, *names: str) -> None:
        """Remove objects."""
        ...


class _Claim(Hold):
    """A claim that is renewed until it is given back."""

    def __init__(self, claims: _Claims, name: str, etag: str):
        self._claims, self.name, self.etag = claims, name, etag
        self.writing = threading.Lock()
        """Held while it is renewed or given back: a renewal that comes after would leave a claim that nobody has."""

    def release(self) -> None:
        self._claims.release(self)


class _Claims:
    """The claims of this process, and what it has seen of others'."""

    def __init__(self, objects: Objects):
        self._objects = objects
        self._owner = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._mine: dict[str, _Claim] = {}
        self._seen: dict[str, tuple[str, float, float]] = {}
        """Of each claim of another: its ETag, since when that is so, when it was looked at last."""
        self._renewer: threading.Thread | None = None

    def take(self, name: str) -> _Claim | None:
        now = time.monotonic()
        with self._lock:
            if name in self._mine:
                return None
            seen = self._seen.get(name)
        if seen is not None and now - seen[2] < _LOOK_S:
            return None
        body = f"{self._owner} {uuid.uuid4().hex}".encode()
        etag = None
        if seen is None:
            etag = self._objects.put(name, body, is_new=True)
        if etag is None:
            found = self._objects.get(name)
            if found is None:
                etag = self._objects.put(name, body, is_new=True)
            else:
                since = seen[1] if seen is not None and seen[0] == found[1] else now
                if now - since >= LEASE_S:
                    etag = self._objects.put(name, body, replaces=found[1])
                if etag is None:
                    with self._lock:
                        self._seen[name] = (found[1], since, now)
        if etag is None:
            return None
        claim = _Claim(self, name, etag)
        with self._lock:
            self._seen.pop(name, None)
            self._mine[name] = claim
            if self._renewer is None:
                self._renewer = threading.Thread(target=self._renew, name="claims", daemon=True)
                self._renewer.start()
        return claim

    def release(self, claim: _Claim) -> None:
        with self._lock:
            mine = self._mine.pop(claim.name, None) is claim
        if mine:
            with claim.writing:
                self._objects.delete(claim.name)

    def _renew(self) -> None:
        while True:
            time.sleep(_RENEW_S)
            with self._lock:
                claims = list(self._mine.values())
            for claim in claims:
                with claim.writing:
                    self._renew_one(claim)

    def _renew_one(self, claim: _Claim) -> None:
        with self._lock:
            if self._mine.get(claim.name) is not claim:
                return
        try:
            body = f"{self._owner} {uuid.uuid4().hex}".encode()
            etag = self._objects.put(claim.name, body, replaces=claim.etag)
        except Exception:
            # The next turn comes before the claim is stale.
            return
        with self._lock:
            if etag is not None:
                claim.etag = etag
            elif self._mine.get(claim.name) is claim:
                # Another has taken over: what this one still stores is not in the way of anybody.
                del self._mine[claim.name]


class SharedTranscriptCache(TranscriptCache):
    """The cache under ``folder`` of ``objects``. Safe to use from threads, processes and machines."""

    def __init__(self, objects: Objects, folder: str = "cache"):
        super().__init__(Path(folder))
        self._objects = objects
        self._claims = _Claims(objects)
        self._anew: set[str] = set()
        self._with_windows: set[str] = set()
        self._without_windows: set[str] = set()
        """Folders that were empty. Whoever has the claim is alone in adding to them."""
        self._lock = threading.Lock()
        self._fetched: dict[str, dict[str, Any]] = {}
        """What `has` has seen and nobody has asked for yet: each look into the bucket costs."""

    def has(self, sha256: str, fingerprint: str) -> bool:
        """Whether there is a stored transcript, which the next `get` then need not fetch."""
        name = self._name(sha256, fingerprint, ".json")
        found = self.get(sha256, fingerprint)
        if found is not None:
            with self._lock:
                if len(self._fetched) >= _KEPT:
                    self._fetched.pop(next(iter(self._fetched)))
                self._fetched[name] = found
        return found is not None

    def get(self, sha256: str, fingerprint: str) -> dict[str, Any] | None:
        """The stored transcript, or None if there is none or it is damaged."""
        name = self._name(sha256, fingerprint, ".json")
        with self._lock:
            kept = self._fetched.pop(name, None)
        if kept is not None:
            return kept
        found = self._objects.get(name)
        return None if found is None else unseal(found[0].decode("utf-8", "replace"))

    def put(self, sha256: str, fingerprint: str, result: dict[str, Any]) -> None:
        """Store a finished transcript, unless another has, and forget the windows that led to it.

        What was to be transcribed anew, or was damaged, is replaced.
        """
        name = self._name(sha256, fingerprint, ".json")
        body = seal(result).encode()
        self._unkeep(name)
        first = name not in self._anew
        if self._objects.put(name, body, is_new=first) is None and self.get(sha256, fingerprint) is None:
            self._objects.put(name, body)
        self._anew.discard(name)
        self.drop_windows(sha256, fingerprint)
        self._anew.discard(name)
        self._without_windows.discard(self._name(sha256, fingerprint, ".windows"))

    def get_windows(self, sha256: str, fingerprint: str) -> dict[str, dict[str, Any]]:
        """The windows of an unfinished file that were stored, by name. Damaged ones are left out."""
        folder = self._name(sha256, fingerprint, ".windows")
        found: dict[str, dict[str, Any]] = {}
        if folder in self._without_windows:
            return found
        names = list(self._objects.names(folder))
        (self._with_windows if names else self._without_windows).add(folder)
        for name in names:
            body = self._objects.get(name)
            entry = None if body is None else unseal(body[0].decode("utf-8", "replace"))
            if entry is not None and isinstance(entry.get("window"), str):
                found[entry["window"]] = entry
        return found

    def put_window(self, sha256: str, fingerprint: str, window: str, result: dict[str, Any]) -> None:
        """Store the result of one window; in the bucket when this returns."""
        folder = self._name(sha256, fingerprint, ".windows")
        self._without_windows.discard(folder)
        self._with_windows.add(folder)
        self._objects.put(f"{folder}/{quote(window, safe='')}", seal({**result, "window": window}).encode())

    def drop_windows(self, sha256: str, fingerprint: str) -> None:
        """Forget the windows of a file that is finished, or to be transcribed anew."""
        name = self._name(sha256, fingerprint, ".json")
        self._unkeep(name)
        self._anew.add(name)
        folder = self._name(sha256, fingerprint, ".windows")
        if folder in self._with_windows:
            self._objects.delete(*self._objects.names(folder))
            self._with_windows.discard(folder)

    def drop(self, sha256: str) -> int:
        """Remove everything that is stored of these bytes; returns how many objects."""
        names = self._names(sha256)
        self._unkeep(*names)
        self._objects.delete(*names)
        return len(names)

    def count(self, sha256: str) -> int:
        """How many objects are stored of these bytes."""
        return len(self._names(sha256))

    def hold(self, sha256: str, fingerprint: str) -> Hold | None:
        """The sole right to transcribe these bytes; None while another has it.

        It ends with `Hold.release`, or `LEASE_S` after the process that had it was last alive. One that wakes up later
        does no harm: an entry that is there stays.
        """
        held = self._claims.take(self._name(sha256, fingerprint, ".claim"))
        # Whoever had it before may have stored windows.
        self._without_windows.discard(self._name(sha256, fingerprint, ".windows"))
        return cast(Hold | None, held)

    def _unkeep(self, *names: str) -> None:
        with self._lock:
            for name in names:
                self._fetched.pop(name, None)

    def _names(self, sha256: str) -> list[str]:
        return list(self._objects.names(f"{self.root}/{sha256[:2]}/{sha256}"))

    def _name(self, sha256: str, fingerprint: str, suffix: str) -> str:
        return f"{self.root}/{sha256[:2]}/{sha256}/{fingerprint}{suffix}"
