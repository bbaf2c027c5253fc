"""Names that some file systems take for one: keys that differ in upper and lower case only, or in NFC and NFD.

Of two such keys one keeps its name, and the other is *spelled out*: its component is written as ``%7E`` and then
without capitals and accents, each of them as ``%XX``, so that no file system can take it for another name. Which
names are spelled out is kept in a small file beside the mirror's state; nobody else's name changes.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

from filelock import FileLock

from audio_assets.errors import FileFailed
from audio_assets.storage.atomic import write_bytes

MARK = "%7E"
"""How a component that is spelled out begins. No other does: the plain name ``%7Ea`` is written ``%257Ea``."""

_SAME_EVERYWHERE = re.compile(r"[^a-z0-9 !#$&'()+,\-.;=@\[\]^_`{}~]")
_ESCAPE_IN_SMALL = re.compile(r"%(?:[01][0-9a-fA-F]|7[fF]|2[eEfF]|5[cC])")
_ESCAPES = re.compile(r"(?:%[0-9A-F]{2})+")


def fold(name: str) -> str:
    """Equal for keys, or folders, whose plain names a file system may take for one.

    >>> fold("Zoe\u0308/A.WAV") == fold("zo\u00eb/a.wav")
    True
    """
    if "%" in name:
        # The plain name `a%0ab` would be met by the escaped one of "a", a line feed and "b".
        name = _ESCAPE_IN_SMALL.sub(lambda m: m[0] if m[0] == m[0].upper() else chr(int(m[0][1:], 16)), name)
    return fold_path(name)


def fold_path(path: str) -> str:
    """Equal for paths that a file system may take for one."""
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())


def spell_out(component: str) -> str:
    """A component so that every file system tells it from every other.

    >>> spell_out("A.wav")
    '%7E%41.wav'
    """
    return MARK + _SAME_EVERYWHERE.sub(lambda match: escaped(match[0]), component)


def read_out(text: str) -> str:
    """The component that was spelled out as ``text``; the inverse of `spell_out`.

    Raises:
        ValueError: it is not one.
    """

    def read(match: re.Match[str]) -> str:
        return bytes.fromhex(match[0].replace("%", "")).decode("utf-8", "surrogatepass")

    return _ESCAPES.sub(read, text.removeprefix(MARK))


def escaped(character: str) -> str:
    """A character as ``%XX`` for each of its bytes in UTF-8."""
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


class SpelledOut:
    """The names that are spelled out, in a file: keys, and folders, which end in ``/``."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> frozenset[str]:
        """All of them; none when the file is missing or damaged."""
        try:
            names = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return frozenset()
        return frozenset(name for name in names if isinstance(name, str)) if isinstance(names, list) else frozenset()

    def add(self, choose: Callable[[frozenset[str]], Iterable[str]]) -> frozenset[str]:
        """Add the names that ``choose`` finds, given those that are there; returns all of them. One process at a time.

        Raises:
            FileFailed: the disk refuses.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._path.with_suffix(".lock")):
                there = self.load()
                every = there.union(choose(there))
                if every != there:
                    write_bytes(self._path, json.dumps(sorted(every)).encode())
        except OSError as error:
            raise FileFailed(f"{self._path} cannot be written ({error.strerror or error}); check the disk") from error
        return every


def folders_of(key: str) -> list[str]:
    """The folders that a key lies in, outermost first.

    >>> folders_of("a/b/c.wav")
    ['a/', 'a/b/']
    """
    return [key[: i + 1] for i, character in enumerate(key) if character == "/"]


def twins_among(new: Iterable[str], others: Iterable[str]) -> dict[str, list[str]]:
    """The names of ``new`` that a file system may take for another name, with the names that they meet."""
    wanted: dict[str, list[str]] = {}
    for name in new:
        wanted.setdefault(fold(name), []).append(name)
    met: dict[str, set[str]] = {}
    for name in others:
        folded = fold(name)
        if folded in wanted:
            met.setdefault(folded, set()).add(name)
    found: dict[str, list[str]] = {}
    for folded, names in wanted.items():
        group = met.get(folded, set()).union(names)
        if len(group) > 1:
            found.update((name, sorted(group - {name})) for name in names)
    return found
