"""Which objects count: the one place that decides it, for sensors, discovery, plan and intake alike.

A key counts when it ends like an audio file and the globs ask for it. What counts becomes a row; whether its bytes are
fetched is another question: an object without bytes, or over the size limit, is a row with a status and a reason.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import cached_property

from audio_assets.ingest.listing import RemoteObject, is_audio

MARKERS = "directory_markers"
OTHER_FILES = "other_files"
EXCLUDED = "excluded_objects"
EMPTY = "empty_objects"
OVERSIZED = "oversized_objects"

PASSED_OVER = {
    MARKERS: "directory markers",
    OTHER_FILES: "other files",
    EXCLUDED: "excluded",
    EMPTY: "empty",
    OVERSIZED: "over the size limit",
}
"""What is counted and not fetched, in words. Objects of the last two kinds have a row."""


@dataclass(frozen=True)
class Selection:
    """What to take in of a bucket.

    ``include`` and ``exclude`` are globs over whole keys (``*`` crosses ``/``; case counts): an object is taken in when
    it matches an ``include``, if there are any, and no ``exclude``. An object of more than ``max_object_bytes`` is not
    fetched.

    >>> Selection(exclude=("*/drafts/*",)).wants("calls/drafts/a.wav")
    False
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    max_object_bytes: int | None = None

    def wants(self, key: str) -> bool:
        """Whether the object of this key is to have a row."""
        return is_audio(key) and (not self.narrows or self.matches(key))

    def matches(self, key: str) -> bool:
        """Whether the globs ask for ``key``; NFC and NFD spellings are the same."""
        key = _nfc(key)
        if self._included is not None and not self._included.match(key):
            return False
        return self._excluded is None or not self._excluded.match(key)

    def count(self, key: str, tally: Counter[str]) -> bool:
        """`wants`, and what is not wanted is counted by its kind."""
        if not is_audio(key):
            tally[MARKERS if key.endswith("/") else OTHER_FILES] += 1
            return False
        if self.narrows and not self.matches(key):
            tally[EXCLUDED] += 1
            return False
        return True

    def refusal(self, found: RemoteObject) -> tuple[str, str] | None:
        """Why the bytes of an object are not fetched: its kind, and the reason for its row; None when they are."""
        if found.size_bytes == 0:
            return EMPTY, "the file has zero bytes"
        if self.max_object_bytes is not None and found.size_bytes > self.max_object_bytes:
            return OVERSIZED, (
                f"not fetched: {found.size_bytes} bytes, over the limit of {self.max_object_bytes} for an object "
                "(AUDIO_ASSETS_MAX_BYTES, --max-size); raise it to take the object in"
            )
        return None

    def count_refused(self, sizes: Sequence[int], tally: Counter[str]) -> None:
        """Count the objects whose bytes are not fetched, by kind; ``sizes`` are those of all, in bytes."""
        most = self.max_object_bytes
        tally[EMPTY] += sizes.count(0)
        tally[OVERSIZED] += 0 if most is None else sum(size > most for size in sizes)

    @property
    def narrows(self) -> bool:
        """Whether there are audio files that the globs do not ask for."""
        return bool(self.include or self.exclude)

    @property
    def token(self) -> str:
        """Equal for selections of the same keys; empty when every audio file is wanted."""
        if not self.narrows:
            return ""
        told = "\0".join([*map(_nfc, self.include), "", *map(_nfc, self.exclude)])
        return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    @cached_property
    def _included(self) -> re.Pattern[str] | None:
        return _any_of(self.include)

    @cached_property
    def _excluded(self) -> re.Pattern[str] | None:
        return _any_of(self.exclude)


def passed_over(tally: Counter[str]) -> list[str]:
    """What was counted and not fetched, in words.

    >>> passed_over(Counter(empty_objects=2, directory_markers=1))
    ['1 directory markers', '2 empty']
    """
    return [f"{tally[kind]} {words}" for kind, words in PASSED_OVER.items() if tally[kind]]


def _any_of(globs: tuple[str, ...]) -> re.Pattern[str] | None:
    return re.compile("|".join(translate(_nfc(glob)) for glob in globs)) if globs else None


def _nfc(key: str) -> str:
    return key if key.isascii() else unicodedata.normalize("NFC", key)
