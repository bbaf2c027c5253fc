"""When each word was said: from the engine's words, else by its place in the segment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from numpy.typing import NDArray

FROM_WORDS, FROM_SEGMENT = "words", "segment"
"""Where the time of a token comes from: the engine's own words, or interpolation over the segment's characters."""


@dataclass(frozen=True)
class Times:
    """Start and end of each token in seconds, NaN where no segment holds it; ``exact`` where an engine's word does."""

    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    exact: NDArray[np.bool_]

    def source(self) -> pa.Array:
        """`FROM_WORDS` or `FROM_SEGMENT`; null without a time."""
        known = ~(np.isnan(self.start_s) & np.isnan(self.end_s))
        which = pa.array(np.where(self.exact, 0, 1), mask=~known)
        return pa.array([FROM_WORDS, FROM_SEGMENT], pa.string()).take(which)


def locate(
    texts: Sequence[str | None],
    segments: pa.ListArray,
    text_of: NDArray[np.int64],
    start_char: NDArray[np.int64],
    end_char: NDArray[np.int64],
) -> Times:
    """Times of tokens.

    Args:
        texts: the transcriptions.
        segments: their segments, of the type of `schemas.TRANSCRIPTS`.
        text_of: the text of each token, by its number, ascending.
        start_char: where the token begins in its text; with ``end_char``, shape (n,).
        end_char: where it ends.
    """
    # Every character of every text gets a place of its own on one line, so that one search serves all texts.
    begins = np.cumsum([0, *(len(text or "") + 1 for text in texts)])
    pieces, words = _anchors(texts, segments, begins)
    starts = (begins[text_of] + start_char).astype(np.float64)
    ends = (begins[text_of] + end_char).astype(np.float64)
    start_s, end_s = _interpolate(pieces, starts, ends)
    exact_start, exact_end = _interpolate(words, starts, ends)
    exact = ~np.isnan(exact_start) & ~np.isnan(exact_end)
    start_s = np.where(exact, exact_start, start_s)
    end_s = np.where(exact, exact_end, end_s)
    return Times(start_s, np.maximum(start_s, end_s), exact)


def _anchors(
    texts: Sequence[str | None], segments: pa.ListArray, begins: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where segments, and their words, lie: rows of (start_char, end_char, start_s, end_s), in order.

    Characters are counted over all texts; text ``n`` begins at ``begins[n]``.
    """
    columns = _children(segments.flatten())
    counts = _lengths(segments)
    said = columns["text"].to_pylist()
    words = _Words(columns["words"])
    firsts = np.cumsum(counts) - counts
    found: list[tuple[int, int, int]] = []
    for number in np.flatnonzero(counts).tolist():
        text = texts[number]
        if not text:
            continue
        cursor, begin = 0, int(begins[number])
        first = int(firsts[number])
        for row in range(first, first + int(counts[number])):
            piece = (said[row] or "").strip()
            at = text.find(piece, cursor) if piece else -1
            if at < 0:
                continue
            cursor = at + len(piece)
            found.append((begin + at, begin + cursor, row))
            if words.any:
                words.place(row, text, piece, at, begin)
    spots = np.array(found, np.int64).reshape(-1, 3)
    pieces = _rows(spots, _seconds(columns["start_s"]), _seconds(columns["end_s"]))
    return pieces, words.anchors() if words.any else np.empty((0, 4))


class _Words:
    """The engine's words of a batch of segments, flat."""

    def __init__(self, lists: pa.ListArray) -> None:
        self._counts = _lengths(lists)
        self.any = bool(self._counts.sum())
        if not self.any:
            return
        self._firsts = np.cumsum(self._counts) - self._counts
        columns = _children(lists.flatten())
        self._start_s, self._end_s = _seconds(columns["start_s"]), _seconds(columns["end_s"])
        # A fresh array begins at its buffers' start, whatever slice the words came from.
        said = pc.fill_null(columns["word"], "").take(pa.array(np.arange(len(columns["word"]))))
        self._said = said
        _, offsets, data = said.buffers()
        self._offsets = np.frombuffer(offsets, np.int32)[: len(said) + 1]
        self._data = data.to_pybytes() if data is not None else b""
        length = pc.utf8_length(said).to_numpy().astype(np.int64)
        self._left = length - pc.utf8_length(pc.utf8_ltrim_whitespace(said)).to_numpy()
        self._length = pc.utf8_length(pc.utf8_trim_whitespace(said)).to_numpy().astype(np.int64)
        self._at = np.cumsum(length) - length
        self._runs: list[tuple[int, int, int]] = []
        self._alone: list[tuple[int, int, int]] = []

    def place(self, row: int, text: str, piece: str, at: int, begin: int) -> None:
        """Find the words of segment ``row``, whose text ``piece`` lies at ``at`` in a text that begins at ``begin``."""
        first = int(self._firsts[row])
        last = first + int(self._counts[row])
        if first == last:
            return
        together = self._data[self._offsets[first] : self._offsets[last]].decode("utf-8")
        if together.strip() == piece:
            # As Whisper gives them: side by side they are the segment's text.
            self._runs.append((begin + at - (len(together) - len(together.lstrip())), first, last - first))
            return
        here, end = at, at + len(piece)
        for i in range(first, last):
            word = self._said[i].as_py().strip()
            found = text.find(word, here, end) if word else -1
            if found >= 0:
                here = found + len(word)
                self._alone.append((begin + found, begin + here, i))

    def anchors(self) -> NDArray[np.float64]:
        """The words that were found, in order."""
        base, first, count = np.array(self._runs, np.int64).reshape(-1, 3).T
        word = np.repeat(first - (np.cumsum(count) - count), count) + np.arange(int(count.sum()))
        start = np.repeat(base - self._at[first], count) + self._at[word] + self._left[word]
        runs = np.column_stack((start, start + self._length[word], word))
        alone = np.array(self._alone, np.int64).reshape(-1, 3)
        spots = np.concatenate((runs, alone))
        return _rows(spots[np.argsort(spots[:, 0], kind="stable")], self._start_s, self._end_s)


def _rows(spots: NDArray[np.int64], start_s: NDArray[np.float64], end_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Anchors from rows of (start_char, end_char, where their times are); without length or time they are none."""
    start, end = start_s[spots[:, 2]], end_s[spots[:, 2]]
    usable = np.isfinite(start) & np.isfinite(end) & (spots[:, 1] > spots[:, 0])
    return np.column_stack((spots[:, :2], start, np.maximum(start, end)))[usable]


def _interpolate(
    anchors: NDArray[np.float64], starts: NDArray[np.float64], ends: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Times of character positions, linear within each anchor; NaN outside all of them."""
    nothing = np.full(len(starts), np.nan)
    if not len(anchors):
        return nothing, nothing
    first = np.clip(np.searchsorted(anchors[:, 0], starts, "right") - 1, 0, None)
    last = np.clip(np.searchsorted(anchors[:, 1], ends, "left"), None, len(anchors) - 1)

    def at(which: NDArray[np.intp], chars: NDArray[np.float64]) -> NDArray[np.float64]:
        a = anchors[which]
        inside = (chars >= a[:, 0]) & (chars <= a[:, 1])
        share = (chars - a[:, 0]) / (a[:, 1] - a[:, 0])
        return np.where(inside, a[:, 2] + share * (a[:, 3] - a[:, 2]), np.nan)

    return at(first, starts), at(last, ends)


def _children(structs: pa.StructArray) -> dict[str, pa.Array]:
    return dict(zip([f.name for f in structs.type], structs.flatten(), strict=True))


def _lengths(lists: pa.ListArray) -> NDArray[np.int64]:
    return np.asarray(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False), np.int64)


def _seconds(values: pa.Array) -> NDArray[np.float64]:
    return np.asarray(values.to_numpy(zero_copy_only=False), np.float64)
