"""Which installed font has which characters, so that no picture shows empty boxes without a word."""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

MISSING_FONT_NOTE = "in brackets: words for which no font is installed; install e.g. the Noto fonts"

_LABEL_MAX_CHARS = 28


def drawable(texts: Sequence[str]) -> tuple[list[str], list[str], bool]:
    """Font families that together cover the texts, the texts as they can be shown, and whether any cannot.

    A text with a character that no installed font has is shown as the name of its script, in brackets.
    """
    shown = [_shortened(t) for t in texts]
    families, wanted = ["DejaVu Sans"], {c for t in shown for c in t} - _charset(default_font())
    for family, path in installed_fonts() if wanted else ():
        if not wanted:
            break
        if found := wanted & _charset(path):
            families.append(family)
            wanted -= found
    return families, [_named(t, wanted) for t in shown], bool(wanted)


def _named(text: str, missing: set[str]) -> str:
    first = next((c for c in text if c in missing), None)
    if first is None:
        return text
    if unicodedata.category(first) == "So":
        return "(emoji)"
    script = unicodedata.name(first, "unknown").split()[0]
    return f"({script if script == 'CJK' else script.capitalize()} word)"


def _shortened(text: str) -> str:
    text = "".join(c for c in text if unicodedata.category(c)[0] != "C")
    return text if len(text) <= _LABEL_MAX_CHARS else text[: _LABEL_MAX_CHARS - 1] + "…"


def font_for(word: str) -> Path | None:
    """A font that has every character of ``word``: matplotlib's own where it can, else an installed one, else none."""
    if _charset(default_font()).issuperset(word):
        return default_font()
    return next((path for _, path in installed_fonts() if _charset(path).issuperset(word)), None)


@lru_cache(maxsize=1)
def default_font() -> Path:
    """The font that matplotlib carries, so that it is there on every machine: Latin to Arabic."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@lru_cache(maxsize=1)
def installed_fonts() -> tuple[tuple[str, Path], ...]:
    """Regular upright fonts of this machine, widest coverage by name first."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    # matplotlib remembers the fonts of its first day on the machine: a font that was installed since is looked at here.
    for path in sorted(set(findSystemFonts()) - {entry.fname for entry in fontManager.ttflist}):
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            fontManager.addfont(path)
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
