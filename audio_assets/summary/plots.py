"""Pictures of a prefix or of the corpus for the Dagster UI: PNG, light, at most 100 KB each.

matplotlib's object interface is used throughout: no pyplot, no global state, safe in threads. Colours are from the
Okabe-Ito palette, which people with colour-blindness tell apart. Where a script needs a font that is not installed,
the picture says so instead of showing empty boxes without a word.
"""

from __future__ import annotations

import io
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

from audio_assets.summary.histogram import Histogram, histogram, time_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PNG_BYTES = 100_000
"""Inline plots live in Dagster's event log, with every materialization."""

_BLUE = "#0072B2"
_VERMILION = "#D55E00"
_INK = "#1f2933"
_MUTED = "#52606d"
_GRID = "#e4e7eb"
_CLOUD_COLORS = ("#0072B2", "#D55E00", "#007A5A", "#9C4F86", "#52606d")

_DPI = 110
_SIZE_IN = (6.8, 3.1)
_LABEL_MAX_CHARS = 28
_CLOUD_MAX_CHARS = 24
_CLOUD_GAP = 4.0
_CLOUD_SPIRAL_STEPS = 1500
_MISSING_GLYPH = "\u25a1"
_MISSING_FONT_NOTE = "\u25a1 = characters for which no installed font has a shape; install e.g. Noto Sans"


def duration_histogram(durations_s: Sequence[float]) -> bytes:
    """How long the recordings are.

    Args:
        durations_s: lengths in seconds.

    Returns:
        A PNG of at most 100 KB; without values it says so.
    """
    unit, seconds = time_unit(durations_s)
    return _histogram_png(
        histogram([d / seconds for d in durations_s]), f"Length of a recording ({unit})", "Recordings", _BLUE
    )


def words_histogram(words: Sequence[int]) -> bytes:
    """How many words the transcripts have.

    Args:
        words: words per transcript.
    """
    return _histogram_png(histogram(words, whole=True), "Words per transcript", "Transcripts", _BLUE)


def confidence_histogram(avg_logprobs: Sequence[float]) -> bytes:
    """How sure Whisper was of the segments.

    Args:
        avg_logprobs: mean log probability of each segment's tokens, natural logarithm; shown as a probability.
    """
    values = [math.exp(min(0.0, p)) for p in avg_logprobs]
    return _histogram_png(
        histogram(values, limits=(0.0, 1.0)), "Mean probability of a segment's tokens", "Segments", _BLUE
    )


def top_tokens(counts: Sequence[tuple[str, int]], limit: int = 20) -> bytes:
    """The most frequent words as bars.

    Args:
        counts: words with their counts, most frequent first.
        limit: how many to show.
    """
    shown = list(counts[:limit])
    figure, axes = _figure(height=0.9 + 0.21 * max(len(shown), 6))
    if not shown:
        return _nothing(figure, axes)
    families, labels, missing = _drawable([word for word, _ in shown])
    places = range(len(shown))
    values = [count for _, count in shown]
    bars = axes.barh(places, values, color=_BLUE, height=0.72)
    axes.bar_label(bars, labels=[f"{v:,}" for v in values], padding=4, color=_MUTED, fontsize=8)
    axes.set_yticks(places, labels, fontfamily=families, fontsize=8.5, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("Occurrences", color=_MUTED, fontsize=9)
    axes.margins(x=0.08, y=0.02)
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    axes.xaxis.set_major_locator(_whole_numbers())
    if missing:
        _note(figure, _MISSING_FONT_NOTE)
    return _png(figure)


def word_cloud(counts: Mapping[str, int], width: int = 760, height: int = 320) -> bytes:
    """The words of the corpus, the larger the more frequent.

    Args:
        counts: word to count, stop words left out by the caller.
        width: pixels.
        height: pixels.

    Returns:
        A PNG of at most 100 KB. Each word is drawn in a font that has all of its characters; words for which none is
        installed are left out, and the picture says so.
    """
    from PIL import Image, ImageDraw, ImageFont

    fonts = {word: _font_for(word) for word in counts}
    covered = [word for word, font in fonts.items() if font is not None]
    words = cloud_words({word: counts[word] for word in covered}, width, height)
    if not words and len(covered) == len(counts):
        return _nothing(*_figure())
    missing = len(counts) - len(covered)
    image = Image.new("RGB", (width, height + (20 if missing else 0)), "white")
    draw = ImageDraw.Draw(image)
    for word in words:
        face = ImageFont.truetype(str(fonts[word.text]), word.size)
        draw.text((word.x, word.baseline), word.text, fill=_CLOUD_COLORS[word.color], font=face, anchor="ls")
    if missing:
        note = f"left out for want of a font: {missing:,} of {len(counts):,} words; install e.g. Noto Sans CJK"
        face = ImageFont.truetype(str(_default_font()), 11)
        draw.text((6, height + 2), note, fill=_MUTED, font=face)
    return _shrunk(image)


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
    """The layout of `word_cloud`, for a renderer with fonts of its own, such as a browser.

    No two words touch; words for which there is no room are left out.
    """
    from PIL import ImageFont
    from wordcloud import WordCloud

    # A word that fills the line leaves no cloud: URLs and unsegmented scripts make such words.
    frequencies = {word: count for word, count in counts.items() if 0 < len(word) <= _CLOUD_MAX_CHARS and count > 0}
    if not frequencies:
        return []
    cloud = WordCloud(
        font_path=str(_default_font()),
        width=width,
        height=height,
        margin=4,
        prefer_horizontal=1.0,
        max_words=90,
        min_font_size=10,
        max_font_size=height // 4,
        relative_scaling=0.45,
        random_state=7,
    ).generate_from_frequencies(frequencies)

    # wordcloud measures the ink of a word and then draws the word lower, by the space above its ink, so that words
    # overlap. Its sizes and places are the start; each word then moves to the nearest place that is free.
    words: list[CloudWord] = []
    for (text, _), size, (row, column), _, _ in cloud.layout_:
        face = ImageFont.truetype(str(_font_for(text) or _default_font()), size)
        left, top, right, bottom = face.getbbox(text, anchor="ls")
        room = (width - (right - left), height - (bottom - top))
        place = _free_place((float(column), float(row)), (right - left, bottom - top), room, [w.box for w in words])
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
                color=crc32(text.encode("utf-8")) % len(_CLOUD_COLORS),
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
    gap = _CLOUD_GAP
    for step in range(_CLOUD_SPIRAL_STEPS):
        angle, radius = 0.5 * step, 1.2 * step**0.75
        x = min(max(wanted[0] + 1.6 * radius * math.cos(angle), 0.0), room[0])
        y = min(max(wanted[1] + radius * math.sin(angle), 0.0), room[1])
        right, bottom = x + size[0] + gap, y + size[1] + gap
        if all(right <= t[0] or t[2] + gap <= x or bottom <= t[1] or t[3] + gap <= y for t in taken):
            return x, y
    return None


def _figure(height: float = _SIZE_IN[1]) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_SIZE_IN[0], height), dpi=_DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.tick_params(colors=_MUTED, labelcolor=_INK, labelsize=8.5, length=0)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(_MUTED)
    return figure, axes


def _whole_numbers() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins="auto", integer=True, steps=[1, 2, 5, 10])


def _histogram_png(bins: Histogram, what: str, of: str, color: str) -> bytes:
    figure, axes = _figure()
    if not bins.total:
        return _nothing(figure, axes)
    width = bins.edges[1] - bins.edges[0]
    colors = [color] * len(bins.counts)
    if bins.open_ended:
        colors[-1] = _VERMILION
    axes.bar(bins.edges[:-1], bins.counts, width=width * 0.94, align="edge", color=colors)
    axes.set_xlabel(what, color=_MUTED, fontsize=9)
    axes.set_ylabel(of, color=_MUTED, fontsize=9)
    axes.set_title(f"{bins.total:,} {of.lower()}", loc="left", color=_INK, fontsize=10)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.yaxis.set_major_locator(_whole_numbers())
    if bins.open_ended:
        axes.set_title(f"orange: {bins.label(len(bins.counts) - 1)}", loc="right", color=_VERMILION, fontsize=8.5)
    return _png(figure)


def _nothing(figure: Figure, axes: Axes) -> bytes:
    axes.set_axis_off()
    axes.text(0.5, 0.5, "Nothing to draw yet", ha="center", va="center", color=_MUTED, transform=axes.transAxes)
    return _png(figure)


def _note(figure: Figure, text: str) -> None:
    figure.supxlabel(text, fontsize=7.5, color=_MUTED, x=0.01, ha="left")


def _png(figure: Figure) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return _shrunk(Image.open(out))


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


def _drawable(texts: Sequence[str]) -> tuple[list[str], list[str], bool]:
    """Font families that together cover the texts, the texts with what they lack replaced, and whether any lacks."""
    shown = [_shortened(t) for t in texts]
    families, wanted = ["DejaVu Sans"], {c for t in shown for c in t} - _charset(_default_font())
    for family, path in _installed_fonts() if wanted else ():
        if not wanted:
            break
        if found := wanted & _charset(path):
            families.append(family)
            wanted -= found
    if wanted:
        shown = ["".join(_MISSING_GLYPH if c in wanted else c for c in t) for t in shown]
    return families, shown, bool(wanted)


def _shortened(text: str) -> str:
    text = "".join(c for c in text if unicodedata.category(c)[0] != "C")
    return text if len(text) <= _LABEL_MAX_CHARS else text[: _LABEL_MAX_CHARS - 1] + "…"


def _font_for(word: str) -> Path | None:
    """A font that has every character of ``word``: matplotlib's own where it can, else an installed one, else none."""
    if _charset(_default_font()).issuperset(word):
        return _default_font()
    return next((path for _, path in _installed_fonts() if _charset(path).issuperset(word)), None)


@lru_cache(maxsize=1)
def _default_font() -> Path:
    # matplotlib carries this one, so it is there on every machine.
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@lru_cache(maxsize=1)
def _installed_fonts() -> tuple[tuple[str, Path], ...]:
    """Regular upright fonts of this machine, widest coverage by name first."""
    from matplotlib.font_manager import fontManager

    fonts = {
        entry.name: Path(entry.fname)
        for entry in fontManager.ttflist
        # Colour fonts hold bitmaps that neither renderer draws; "Last Resort" claims every character and draws a box.
        if entry.style == "normal"
        and entry.weight in (400, "normal", "regular")
        and not any(mark in entry.name for mark in ("Emoji", "Last Resort", "LastResort"))
    }
    return tuple(sorted(fonts.items(), key=lambda f: (not f[0].startswith(("Noto", "Unifont", "DejaVu")), f[0])))


@lru_cache(maxsize=256)
def _charset(font: Path) -> frozenset[str]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(chr(code) for code in FT2Font(str(font)).get_charmap())
    except (OSError, RuntimeError):
        # A font file that FreeType cannot read covers nothing.
        return frozenset()
