"""The layout of a word cloud: where each word goes, and how large it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

from audio_assets.summary.fonts import default_font, font_for

COLORS = 5
"""Colours of a cloud; a theme names them."""

_MAX_CHARS = 24
_GAP = 4.0
_SPIRAL_STEPS = 1500
_MIN_SIZE = 10
_SHRINK = 0.8


@dataclass(frozen=True)
class CloudWord:
    """One word of a cloud.

    Args:
        text: the word.
        count: how often it occurs.
        x: left end, in pixels from the left.
        baseline: in pixels from the top.
        size: of the font, in pixels.
        width: of the word, in pixels.
        color: index of its colour, 0 to 4; a word keeps its colour from one picture to the next.
        box: what the word covers: left, top, right, bottom, in pixels.
    """

    text: str
    count: int
    x: float
    baseline: float
    size: float
    width: float
    color: int
    box: tuple[float, float, float, float]


def cloud_words(counts: Mapping[str, int], width: int = 960, height: int = 360) -> list[CloudWord]:
    """Where the words of a cloud go, for `plots.word_cloud` and for the report, whose browser has fonts of its own.

    No two words touch; words for which there is no room are left out.
    """
    from PIL import ImageFont
    from wordcloud import WordCloud

    # A word that fills the line leaves no cloud: URLs and unsegmented scripts make such words.
    frequencies = {word: count for word, count in counts.items() if 0 < len(word) <= _MAX_CHARS and count > 0}
    if not frequencies:
        return []
    cloud = WordCloud(
        font_path=str(default_font()),
        width=width,
        height=height,
        margin=4,
        prefer_horizontal=1.0,
        max_words=90,
        min_font_size=_MIN_SIZE,
        max_font_size=height // 4,
        relative_scaling=0.45,
        random_state=7,
    ).generate_from_frequencies(frequencies)

    # wordcloud measures the ink of a word and then draws the word lower, by the space above its ink, so that words
    # overlap. Its sizes and places are the start; each word then moves to the nearest place that is free.
    words: list[CloudWord] = []
    for (text, _), size, (row, column), _, _ in cloud.layout_:
        taken = [w.box for w in words]
        # A word that has no room at its size may have some at a smaller one: it is not to give way to rarer words.
        while True:
            face = ImageFont.truetype(str(font_for(text) or default_font()), size)
            left, top, right, bottom = face.getbbox(text, anchor="ls")
            room = (width - (right - left), height - (bottom - top))
            place = _free_place((float(column), float(row)), (right - left, bottom - top), room, taken)
            if place is not None or size * _SHRINK < _MIN_SIZE:
                break
            size = int(size * _SHRINK)
        if place is None:
            continue
        words.append(
            CloudWord(
                text=text,
                count=counts[text],
                x=place[0] - left,
                baseline=place[1] - top,
                size=float(size),
                width=float(face.getlength(text)),
                color=crc32(text.encode("utf-8")) % COLORS,
                box=(place[0], place[1], place[0] + right - left, place[1] + bottom - top),
            )
        )
    return words


def _free_place(
    wanted: tuple[float, float],
    size: tuple[float, float],
    room: tuple[float, float],
    taken: Sequence[tuple[float, float, float, float]],
) -> tuple[float, float] | None:
    """The top left corner nearest to ``wanted`` (along a spiral) where a box of ``size`` touches no other."""
    if min(room) < 0:
        return None
    gap = _GAP
    for step in range(_SPIRAL_STEPS):
        angle, radius = 0.5 * step, 1.2 * step**0.75
        x = min(max(wanted[0] + 1.6 * radius * math.cos(angle), 0.0), room[0])
        y = min(max(wanted[1] + radius * math.sin(angle), 0.0), room[1])
        right, bottom = x + size[0] + gap, y + size[1] + gap
        if all(right <= t[0] or t[2] + gap <= x or bottom <= t[1] or t[3] + gap <= y for t in taken):
            return x, y
    return None
