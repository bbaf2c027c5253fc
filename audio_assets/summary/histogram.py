"""Counting values into bins with round edges, for the plots and the report alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_BINS = 24
"""More bars than this are thinner than the gaps a reader can tell apart in a plot of half a page."""

_OPEN_BIN_FROM = 8
"""Values from which on far outliers share an open last bin; quartiles of fewer say little."""

_OUTER_FENCE = 3.0
"""Tukey's outer fence: values more than 3 interquartile ranges above the third quartile are far out (Exploratory Data
Analysis, 1977)."""


@dataclass(frozen=True)
class Histogram:
    """Counts per bin of equal width.

    Args:
        edges: ``len(counts) + 1`` ascending edges, in the unit of the values.
        counts: values in each bin; a value on an edge is in the bin to its right, except at the very end.
        open_ended: whether the last bin also holds everything beyond its right edge.
        whole: whether the values are counts.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    open_ended: bool = False
    whole: bool = False

    @property
    def total(self) -> int:
        """How many values were counted."""
        return sum(self.counts)

    def label(self, index: int) -> str:
        """The range of one bin as text, such as ``10–15`` or ``≥ 60``."""
        left, right = self.edges[index], self.edges[index + 1]
        if self.open_ended and index == len(self.counts) - 1:
            return f"≥ {left:g}"
        if self.whole:
            return f"{left:g}" if right - left <= 1 else f"{left:g}–{right - 1:g}"
        return f"{left:g}–{right:g}"


def histogram(values: Sequence[float], *, whole: bool = False, limits: tuple[float, float] | None = None) -> Histogram:
    """Count ``values`` into at most `MAX_BINS` bins whose width is 1, 2 or 5 times a power of ten.

    Values far out, beyond Tukey's outer fence, share an open last bin, so that one long recording does not squeeze all
    others into one bar.

    Args:
        values: finite numbers; NaN and infinities are ignored.
        whole: the values are counts, so a bin is never narrower than 1.
        limits: smallest and largest edge, instead of zero and what the values ask for.
    """
    data = np.asarray(values, np.float64)
    data = data[np.isfinite(data)]
    if not len(data):
        return Histogram((0.0, 1.0), (0,))
    low, top = limits if limits else (0.0, float(data.max()))
    high = top
    if limits is None and len(data) >= _OPEN_BIN_FROM:
        q1, q3 = np.quantile(data, (0.25, 0.75))
        fence = float(q3 + _OUTER_FENCE * (q3 - q1))
        # Only where it pays: with the outliers drawn to scale, the others would have less than two thirds of the plot.
        if 0 < fence * 1.5 < top:
            high = float(data[data <= fence].max())
    step = _round_step((high - low) / min(MAX_BINS, max(5, math.ceil(math.sqrt(len(data)) * 2))))
    if whole:
        step = max(1.0, step)
    bins = max(1, math.ceil((high - low) / step - 1e-9))
    edges = low + step * np.arange(bins + 1)
    open_ended = bool(top > edges[-1])
    if limits is None and high >= edges[-1] and (whole or open_ended):
        # The largest value lies on the last edge: give it a bin of its own side.
        edges = np.append(edges, edges[-1] + step)
    if open_ended:
        # Of those far out alone: what is usual does not stand among them.
        edges = np.append(edges, edges[-1] + step)
    counts, _ = np.histogram(np.clip(data, edges[0], edges[-1]), bins=edges)
    return Histogram(
        tuple(float(f"{edge:.12g}") for edge in edges), tuple(int(count) for count in counts), open_ended, whole
    )


def time_unit(values_s: Sequence[float]) -> tuple[str, float]:
    """The unit in which these lengths read best, and how many seconds it has.

    >>> time_unit([3.0, 12.5])
    ('s', 1.0)
    """
    data = np.asarray(values_s, np.float64)
    typical = float(np.quantile(data, 0.9)) if len(data) else 0.0
    if typical > 2 * 3600:
        return "h", 3600.0
    if typical > 180:
        return "min", 60.0
    return "s", 1.0


def _round_step(width: float) -> float:
    if not width > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(width))
    # The tolerance keeps 0.1 / 0.1 from becoming 1.0000000000000002 and thus the next step.
    return next(m * power for m in (1, 2, 5, 10) if width <= m * power * (1 + 1e-9))
