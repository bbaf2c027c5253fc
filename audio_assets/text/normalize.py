"""How a word is written when it is counted: the one normal form, and normalizers that a user may add to it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable

from audio_assets.errors import SettingsError

# Zero-width joiners carry meaning (Persian spelling, emoji sequences); the other format characters are invisible noise.
_JOINERS = "\u200c\u200d"

_REPEATED = re.compile(r"([^\W\d_])\1{2,}")


def normalize_word(text: str) -> str:
    """The form in which a word is counted: NFKC, lower case, straight apostrophes, no invisible characters.

    >>> normalize_word("Ｏ’Brien\\u00ad")
    "o'brien"
    """
    if text.isascii():
        return text.strip().lower()
    text = unicodedata.normalize("NFKC", text).lower()
    text = "".join(c for c in text if c in _JOINERS or unicodedata.category(c) != "Cf")
    text = text.replace("\u2019", "'")
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _strip_accents(word: str) -> str:
    plain = "".join(c for c in unicodedata.normalize("NFD", word) if unicodedata.category(c) != "Mn")
    return unicodedata.normalize("NFC", plain)


def _ascii_digits(word: str) -> str:
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in word)


NORMALIZERS: dict[str, tuple[str, Callable[[str], str]]] = {
    "casefold": ("ß becomes ss, ς becomes σ", str.casefold),
    "strip_accents": ("é becomes e, й becomes и", _strip_accents),
    "ascii_digits": ("digits of any script become 0 to 9", _ascii_digits),
    "mask_digits": ("each digit becomes 0: 1859 and 2024 count as one word", lambda w: re.sub(r"\d", "0", w)),
    "squeeze_repeats": ("sooooo becomes soo", lambda w: _REPEATED.sub(r"\1\1", w)),
}
"""What may be done to words on top of `normalize_word`: by name, what it does and how."""


def normalizer_for(names: Iterable[str]) -> Callable[[str], str]:
    """`normalize_word`, followed by the named normalizers in their order.

    Raises:
        SettingsError: no normalizer has that name.
    """
    steps = []
    for name in names:
        if name not in NORMALIZERS:
            raise SettingsError(f"normalizer {name!r} is not known; use some of {', '.join(NORMALIZERS)}")
        steps.append(NORMALIZERS[name][1])
    if not steps:
        return normalize_word

    def normalize(text: str) -> str:
        word = normalize_word(text)
        for step in steps:
            word = step(word)
        return word

    return normalize
