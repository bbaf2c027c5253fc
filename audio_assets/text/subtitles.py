"""Subtitles from timed segments: SubRip (SRT) and WebVTT.

Lines and durations are those of the common style guides for subtitles (Netflix Timed Text: at most 42 characters a
line, two lines, 5/6 s to 7 s). Wide characters (Chinese, Japanese, Korean) count as two.
"""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FORMATS = ("srt", "vtt")
LINE_WIDTH = 42
LINES = 2
MIN_S = 5 / 6
MAX_S = 7.0
PAUSE_S = 1.0
"""A silence of this length between two words ends a subtitle."""

_SENTENCE_WIDTH = 30
"""A sentence that is at least so long gets a subtitle of its own; shorter ones are joined with what follows."""

_SENTENCE_END = tuple(".?!…。？！؟।")
_INVISIBLE = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
# What players take for a tag, an override or a time line. SubRip knows no escape: an invisible joiner breaks it up.
_SRT_MARKUP = re.compile(r"<(?=[A-Za-z/])|\{(?=[\\A-Za-z])|--(?=>)")
_JOINER = "\u2060"


@dataclass(frozen=True)
class Cue:
    """One subtitle: from ``start_s`` to ``end_s``, one or two lines of plain text."""

    start_s: float
    end_s: float
    lines: tuple[str, ...]


@dataclass(frozen=True)
class _Atom:
    """A piece of text that is not broken, whether a space comes before it, and when it is said."""

    text: str
    spaced: bool
    start_s: float
    end_s: float


def cues(segments: Sequence[Mapping[str, Any]]) -> list[Cue]:
    """Cut segments into subtitles, in the order of time.

    Args:
        segments: with ``start_s``, ``end_s``, ``text`` and, where the engine gave them, ``words``, as in
            `schemas.SEGMENT`. Those without text or times are left out. Words give exact times; without them time runs
            evenly over the characters of the segment.
    """
    made = [_cue(group) for segment in segments if _timed(segment) for group in _groups(_atoms(segment))]
    made.sort(key=lambda cue: (cue.start_s, cue.end_s))
    shown: list[Cue] = []
    for n, cue in enumerate(made):
        # Too short to read: stay until the next one comes. Two people who talk at once keep their overlap.
        free = made[n + 1].start_s if n + 1 < len(made) else math.inf
        end = max(cue.end_s, min(cue.start_s + MIN_S, free))
        shown.append(Cue(cue.start_s, end, cue.lines))
    return shown


def srt(subtitles: Sequence[Cue]) -> str:
    """The subtitles as a SubRip file. Markup in the text is shown, not obeyed."""
    blocks = []
    for n, cue in enumerate(subtitles, 1):
        start, end = _times(cue)
        lines = "\n".join(_SRT_MARKUP.sub(lambda mark: mark[0] + _JOINER, line) for line in cue.lines)
        blocks.append(f"{n}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{lines}\n")
    return "\n".join(blocks)


def vtt(subtitles: Sequence[Cue]) -> str:
    """The subtitles as a WebVTT file. Markup in the text is escaped."""
    blocks = ["WEBVTT\n"]
    for cue in subtitles:
        start, end = _times(cue)
        lines = "\n".join(html.escape(line, quote=False) for line in cue.lines)
        blocks.append(f"{_clock(start, '.')} --> {_clock(end, '.')}\n{lines}\n")
    return "\n".join(blocks)


WRITERS = {"srt": srt, "vtt": vtt}
"""Each of `FORMATS` with what writes it."""


def _timed(segment: Mapping[str, Any]) -> bool:
    times = (segment.get("start_s"), segment.get("end_s"))
    return bool(segment.get("text")) and all(t is not None and math.isfinite(t) and t >= 0 for t in times)


def _plain(text: str) -> str:
    return " ".join(_INVISIBLE.sub("", text).split())


def _width(text: str) -> int:
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _atoms(segment: Mapping[str, Any]) -> list[_Atom]:
    text = _plain(segment["text"])
    start, end = float(segment["start_s"]), max(float(segment["start_s"]), float(segment["end_s"]))
    words = segment.get("words") or []
    said = [str(word["word"] or "") for word in words]
    if words and _plain("".join(said)) == text and all(_timed({"text": "x", **word}) for word in words):
        pieces = [
            (_plain(word), word[:1].isspace(), float(w["start_s"]), float(w["end_s"]))
            for word, w in zip(said, words, strict=True)
            if _plain(word)
        ]
    else:
        # Time runs evenly over the characters.
        share = (end - start) / max(1, len(text))
        pieces = [
            (match[0], match.start() > 0, start + share * match.start(), start + share * match.end())
            for match in re.finditer(r"\S+", text)
        ]
    return [atom for piece in pieces for atom in _narrow(*piece)]


def _narrow(text: str, spaced: bool, start_s: float, end_s: float) -> Iterator[_Atom]:
    """A word as it is; one that fills a line (an address, a script without spaces) in pieces."""
    if _width(text) <= LINE_WIDTH // 2:
        yield _Atom(text, spaced, start_s, max(start_s, end_s))
        return
    wide = any(unicodedata.east_asian_width(c) in "WF" for c in text)
    size = 1 if wide else LINE_WIDTH // 2
    share = max(0.0, end_s - start_s) / len(text)
    for at in range(0, len(text), size):
        piece = text[at : at + size]
        yield _Atom(piece, spaced and at == 0, start_s + share * at, start_s + share * (at + len(piece)))


def _groups(atoms: Sequence[_Atom]) -> Iterator[list[_Atom]]:
    group: list[_Atom] = []
    for atom in atoms:
        if group and (
            atom.end_s - group[0].start_s > MAX_S
            or atom.start_s - group[-1].end_s >= PAUSE_S
            or (group[-1].text.endswith(_SENTENCE_END) and _width(_joined(group)) >= _SENTENCE_WIDTH)
            or len(_lines([*group, atom], LINE_WIDTH)) > LINES
        ):
            yield group
            group = []
        group.append(atom)
    if group:
        yield group


def _joined(atoms: Sequence[_Atom]) -> str:
    return "".join((" " if atom.spaced and n else "") + atom.text for n, atom in enumerate(atoms))


def _lines(atoms: Sequence[_Atom], width: int) -> list[str]:
    lines: list[list[_Atom]] = [[]]
    for atom in atoms:
        if lines[-1] and _width(_joined([*lines[-1], atom])) > width:
            lines.append([])
        lines[-1].append(atom)
    return [_joined(line) for line in lines]


def _cue(atoms: Sequence[_Atom]) -> Cue:
    lines = _lines(atoms, LINE_WIDTH)
    if len(lines) == LINES:
        # Two lines of about one length read better than a full one and a rest.
        for width in range(_width(_joined(atoms)) // LINES, LINE_WIDTH):
            even = _lines(atoms, width)
            if len(even) == LINES and all(_width(line) <= LINE_WIDTH for line in even):
                lines = even
                break
    # A word may be as long as a whole minute, by an engine's mistake: what is over the limit is not shown.
    end = min(max(atom.end_s for atom in atoms), atoms[0].start_s + MAX_S)
    return Cue(atoms[0].start_s, end, tuple(lines))


def _times(cue: Cue) -> tuple[int, int]:
    """Start and end in whole milliseconds, the end later."""
    start = round(cue.start_s * 1000)
    return start, max(start + 1, round(cue.end_s * 1000))


def _clock(milliseconds: int, mark: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{mark}{rest:03d}"
