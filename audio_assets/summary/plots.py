"""Pictures of a prefix or of the corpus for the Dagster UI: PNG, light or dark, at most 100 KB each.

matplotlib's object interface is used throughout: no pyplot, no global state, safe in threads. Colours are those of the
Okabe-Ito palette, which people with colour-blindness tell apart, made darker or lighter where the ground asks for it.
Each picture brings its own ground, so that it can be read whatever the page around it looks like. Where a script needs
a font that is not installed, the picture says so instead of showing empty boxes without a word.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from audio_assets.summary.cloud import cloud_words
from audio_assets.summary.fonts import MISSING_FONT_NOTE, default_font, drawable, font_for
from audio_assets.summary.histogram import Histogram, histogram, time_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

MAX_PNG_BYTES = 100_000
"""Inline plots live in Dagster's event log, with every materialization."""


@dataclass(frozen=True)
class Theme:
    """The colours of a picture, as ``#rrggbb``: ground, text, lines, bars, what stands out, words of a cloud."""

    ground: str
    ink: str
    muted: str
    grid: str
    bar: str
    rest: str
    cloud: tuple[str, str, str, str, str]


LIGHT = Theme(
    "#ffffff",
    "#1f2933",
    "#52606d",
    "#e4e7eb",
    "#0072b2",
    "#c44e00",
    ("#0072b2", "#c44e00", "#007a5a", "#9c4f86", "#52606d"),
)
DARK = Theme(
    "#171e29",
    "#e8edf5",
    "#a9b5c5",
    "#313c4d",
    "#56b4e9",
    "#f0a06a",
    ("#56b4e9", "#f0a06a", "#4fc49a", "#dd94cc", "#a9b5c5"),
)
THEMES = {"light": LIGHT, "dark": DARK}
"""Every theme by its name in ``AUDIO_ASSETS_PLOT_THEME``."""

_DPI = 110
_SIZE_IN = (6.8, 3.1)
_MARGINS_IN = {"left": 0.82, "right": 0.36, "bottom": 0.52, "top": 0.36}
"""Room for numbers of seven digits and a line of text; to measure the texts takes as long as to draw the picture."""


def duration_histogram(durations_s: Sequence[float], theme: Theme = LIGHT) -> bytes:
    """How long the recordings are.

    Args:
        durations_s: lengths in seconds.
        theme: see `THEMES`.

    Returns:
        A PNG of at most 100 KB; without values it says so.
    """
    unit, seconds = time_unit(durations_s)
    bins = histogram([d / seconds for d in durations_s])
    return _histogram_png(bins, f"Length of a recording ({unit})", "Recordings", theme)


def words_histogram(words: Sequence[int], theme: Theme = LIGHT) -> bytes:
    """How many words the transcripts have."""
    return _histogram_png(histogram(words, whole=True), "Words per transcript", "Transcripts", theme)


def rate_histogram(words_per_minute: Sequence[float], theme: Theme = LIGHT) -> bytes:
    """How fast people speak, in words per minute of speech."""
    bins = histogram(words_per_minute, whole=True)
    return _histogram_png(bins, "Speaking rate (words per minute of speech)", "Recordings", theme)


def confidence_histogram(confidence: Sequence[float], theme: Theme = LIGHT) -> bytes:
    """How sure Whisper was of the transcripts.

    Args:
        confidence: mean probability of each transcript's words, 0 to 1; shown in per cent.
        theme: see `THEMES`.
    """
    bins = histogram([100 * c for c in confidence], limits=(0.0, 100.0))
    return _histogram_png(bins, "Mean probability of a transcript's words (%)", "Transcripts", theme)


def score_histogram(scores: Sequence[float], theme: Theme = LIGHT) -> bytes:
    """How far the transcripts can be trusted: the scores of `transcript_quality`, 0 to 1."""
    bins = histogram(scores, limits=(0.0, 1.0))
    return _histogram_png(bins, "Score of a transcript (0 useless, 1 good)", "Transcripts", theme)


def vocabulary_growth(
    points: Sequence[tuple[int, int]], heaps: tuple[float, float] | None = None, theme: Theme = LIGHT
) -> bytes:
    """How the vocabulary grows with the text, and Heaps' law through it.

    Args:
        points: words so far and different words so far, ascending.
        heaps: k and beta of ``vocabulary = k * words ** beta``; None leaves the law out.
        theme: see `THEMES`.
    """
    figure, axes = _figure(theme)
    if not points:
        return _nothing(figure, axes, theme)
    words, vocabulary = zip(*points, strict=True)
    axes.plot(words, vocabulary, color=theme.bar, linewidth=2, marker="o", markersize=3.5, label="counted")
    if heaps is not None:
        k, beta = heaps
        law = [k * w**beta for w in words]
        axes.plot(words, law, color=theme.rest, linewidth=1.5, linestyle="--", label=f"{k:.3g} · words^{beta:.3g}")
        axes.legend(frameon=False, labelcolor=theme.ink, fontsize=8.5, loc="lower right")
    axes.set_xlabel("Words so far", color=theme.muted, fontsize=9)
    axes.set_ylabel("Different words", color=theme.muted, fontsize=9)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.grid(color=theme.grid, linewidth=0.8)
    _whole_numbers(axes.xaxis)
    _whole_numbers(axes.yaxis)
    return _png(figure)


def top_tokens(counts: Sequence[tuple[str, int]], limit: int = 20, theme: Theme = LIGHT) -> bytes:
    """The most frequent words as bars.

    Args:
        counts: words with their counts, most frequent first.
        limit: how many to show.
        theme: see `THEMES`.
    """
    shown = list(counts[:limit])
    figure, axes = _figure(theme, height=0.9 + 0.21 * max(len(shown), 6), measured=True)
    if not shown:
        return _nothing(figure, axes, theme)
    families, labels, missing = drawable([word for word, _ in shown])
    places = range(len(shown))
    values = [count for _, count in shown]
    bars = axes.barh(places, values, color=theme.bar, height=0.72)
    axes.bar_label(bars, labels=[f"{v:,}" for v in values], padding=4, color=theme.muted, fontsize=8)
    axes.set_yticks(places, labels, fontfamily=families, fontsize=8.5, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("Occurrences", color=theme.muted, fontsize=9)
    axes.margins(x=0.08, y=0.02)
    axes.grid(axis="x", color=theme.grid, linewidth=0.8)
    _whole_numbers(axes.xaxis)
    if missing:
        figure.supxlabel(MISSING_FONT_NOTE, fontsize=7.5, color=theme.muted, x=0.01, ha="left")
    return _png(figure)


def word_cloud(counts: Mapping[str, int], width: int = 760, height: int = 320, theme: Theme = LIGHT) -> bytes:
    """The words of the corpus, the larger the more frequent.

    Args:
        counts: word to count, stop words left out by the caller.
        width: pixels.
        height: pixels.
        theme: see `THEMES`.

    Returns:
        A PNG of at most 100 KB. Each word is drawn in a font that has all of its characters; words for which none is
        installed are left out, and the picture says so.
    """
    from PIL import Image, ImageDraw, ImageFont

    fonts = {word: font_for(word) for word in counts}
    covered = [word for word, font in fonts.items() if font is not None]
    words = cloud_words({word: counts[word] for word in covered}, width, height)
    if not words and len(covered) == len(counts):
        return _nothing(*_figure(theme), theme)
    missing = len(counts) - len(covered)
    image = Image.new("RGB", (width, height + (20 if missing else 0)), theme.ground)
    draw = ImageDraw.Draw(image)
    for word in words:
        face = ImageFont.truetype(str(fonts[word.text]), word.size)
        draw.text((word.x, word.baseline), word.text, fill=theme.cloud[word.color], font=face, anchor="ls")
    if missing:
        note = f"left out for want of a font: {missing:,} of {len(counts):,} words; install e.g. the Noto fonts"
        face = ImageFont.truetype(str(default_font()), 11)
        draw.text((6, height + 2), note, fill=theme.muted, font=face)
    return _shrunk(image)


def _figure(theme: Theme, height: float = _SIZE_IN[1], *, measured: bool = False) -> tuple[Figure, Axes]:
    """An empty picture; with ``measured``, its margins follow what stands in them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = _SIZE_IN[0]
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor=theme.ground)
    FigureCanvasAgg(figure)
    if measured:
        figure.set_layout_engine("constrained")
    else:
        room = _MARGINS_IN
        figure.subplots_adjust(
            left=room["left"] / width,
            right=1 - room["right"] / width,
            bottom=room["bottom"] / height,
            top=1 - room["top"] / height,
        )
    axes = figure.add_subplot(facecolor=theme.ground)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.muted, labelcolor=theme.ink, labelsize=8.5, length=0)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(theme.muted)
    return figure, axes


def _whole_numbers(axis: Axis) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axis.set_major_locator(MaxNLocator(nbins="auto", integer=True, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _histogram_png(bins: Histogram, what: str, of: str, theme: Theme) -> bytes:
    figure, axes = _figure(theme)
    if not bins.total:
        return _nothing(figure, axes, theme)
    width = bins.edges[1] - bins.edges[0]
    colors = [theme.bar] * len(bins.counts)
    if bins.open_ended:
        colors[-1] = theme.rest
    axes.bar(bins.edges[:-1], bins.counts, width=width * 0.94, align="edge", color=colors)
    axes.set_xlabel(what, color=theme.muted, fontsize=9)
    axes.set_ylabel(of, color=theme.muted, fontsize=9)
    axes.set_title(f"{bins.total:,} {of.lower()}", loc="left", color=theme.ink, fontsize=10)
    axes.grid(axis="y", color=theme.grid, linewidth=0.8)
    _whole_numbers(axes.yaxis)
    if bins.open_ended:
        axes.set_title(f"orange: {bins.label(len(bins.counts) - 1)}", loc="right", color=theme.rest, fontsize=8.5)
    return _png(figure)


def _nothing(figure: Figure, axes: Axes, theme: Theme) -> bytes:
    axes.set_axis_off()
    axes.text(0.5, 0.5, "Nothing to draw yet", ha="center", va="center", color=theme.muted, transform=axes.transAxes)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    from PIL import Image

    canvas: Any = figure.canvas
    canvas.draw()
    return _shrunk(Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba(), "raw", "RGBA", 0, 1))


def _shrunk(image: Any) -> bytes:
    """The picture as PNG with as many colours as fit into `MAX_PNG_BYTES`."""
    image = image.convert("RGB")
    out = io.BytesIO()
    for colors in (256, 128, 64, 32, 16, 8, 4, 2):
        out = io.BytesIO()
        image.quantize(colors).save(out, "PNG", optimize=True)
        if out.tell() <= MAX_PNG_BYTES:
            break
    return out.getvalue()
