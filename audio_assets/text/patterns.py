"""Rules that find entities and personal data in what people say, without any model.

Digits may be written (``555 0134``), spoken (``five five five, oh one three four``) or both. Spoken forms are known in
English, German, French and Spanish.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Found:
    """A stretch of the text and what it is; ``start_char`` and ``end_char`` count code points."""

    label: str
    start_char: int
    end_char: int


_DIGITS: dict[str, dict[str, str]] = {
    "en": dict(
        zip(
            ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "oh"],
            "01234567890",
            strict=True,
        )
    ),
    "de": dict(
        zip(
            ["null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zwo", "ein"],
            "012345678921",
            strict=True,
        )
    ),
    "fr": dict(
        zip(["zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf"], "0123456789", strict=True)
    ),
    "es": dict(
        zip(
            ["cero", "uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve", "un"],
            "01234567891",
            strict=True,
        )
    ),
}
_REPEATS = {"en": {"double": 2, "triple": 3}, "de": {"doppel": 2}, "fr": {"double": 2}, "es": {"doble": 2}}

_TENS = (
    "ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
)
_NUMBER_WORD = rf"(?:{'|'.join(_DIGITS['en'])}|{_TENS}|hundred|thousand|million|billion|half|a|and)"
_CURRENCY = r"(?:dollars?|euros?|pounds?|cents?|pence|yen|bucks|francs?|rupees?|USD|EUR|GBP|CHF|JPY)"
_MONTH = (
    r"(?:Jan(?:uary|\.)?|Feb(?:ruary|\.)?|Mar(?:ch|\.)?|Apr(?:il|\.)?|May|June?|July?|Aug(?:ust|\.)?"
    r"|Sept?(?:ember|\.)?|Oct(?:ober|\.)?|Nov(?:ember|\.)?|Dec(?:ember|\.)?)"
)
_TLD = r"(?:com|org|net|edu|gov|info|io|co|de|fr|es|uk|eu|ch|at)"
_NUMBER = r"\d{1,3}(?:[,.’ ]\d{3})+(?:[.,]\d{1,2})?|\d+(?:[.,]\d{1,2})?"

_EMAIL = re.compile(
    r"(?i)(?<![\w.+-])[\w.+-]{1,64}@[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63}){1,8}"
    rf"|\b\w+(?:\s(?:dot|underscore|dash)\s\w+){{0,4}}\sat\s\w+(?:\sdot\s\w+){{0,3}}\sdot\s{_TLD}\b"
)
_URL = re.compile(
    r"(?i)\bhttps?://[^\s<>\"]+|\bwww\.[^\s<>\"]+"
    rf"|\b(?:www\sdot\s)?\w+\sdot\s{_TLD}\b(?!\s+dot\b)|\b[a-z0-9-]{{1,63}}\.(?:com|org|net|edu|gov|io)\b(?:/[^\s<>\"]*)?"
)
_MONEY = re.compile(
    rf"(?i)[$€£¥]\s?(?:{_NUMBER})(?:\s(?:thousand|million|billion))?"
    rf"|\b(?:{_NUMBER})(?:\s(?:thousand|million|billion))?\s?(?:[€£¥]|{_CURRENCY}\b)"
    rf"|\b{_NUMBER_WORD}(?:[\s-]{_NUMBER_WORD}){{0,9}}\s{_CURRENCY}\b"
)
_DATE = re.compile(
    rf"\b\d{{4}}-\d{{2}}-\d{{2}}\b|\b\d{{1,2}}[/.]\d{{1,2}}[/.]\d{{2,4}}\b"
    rf"|(?i:\b{_MONTH}\s(?:the\s)?\d{{1,2}}(?:st|nd|rd|th)?\b(?:,?\s\d{{4}}\b)?)"
    rf"|(?i:\b(?:the\s)?\d{{1,2}}(?:st|nd|rd|th|\.)?\s(?:of\s)?{_MONTH}\b\.?(?:,?\s\d{{4}}\b)?)"
    rf"|(?i:\b{_MONTH}\s\d{{4}}\b)"
)
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_SSN = re.compile(r"\b\d{3}-\d{2}-\d{4}\b")
_IP = re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}\b")
_TRAILING = ".,;:!?)]}'\"»”"

_PHONE_DIGITS = (7, 15)
_CARD_DIGITS = (13, 19)
_SPOKEN_DIGITS = 4
"""Fewer digits in a row than this are a count or a year; a PIN or a house's code has four."""


def entities(text: str, language: str | None) -> list[Found]:
    """Money, dates, phone numbers, e-mail addresses and URLs, in order and without overlap."""
    found = [Found("EMAIL", *m.span()) for m in _EMAIL.finditer(text)]
    found += [Found("URL", m.start(), m.start() + len(m.group().rstrip(_TRAILING))) for m in _URL.finditer(text)]
    found += [Found("DATE", *m.span()) for m in _DATE.finditer(text)]
    found += [Found("MONEY", *m.span()) for m in _MONEY.finditer(text)]
    found += [f for f in numbers(text, language) if f.label == "PHONE"]
    return without_overlap(found)


def personal_data(text: str, language: str | None) -> list[Found]:
    """E-mail addresses, IBANs, US social security numbers, IP addresses, cards, phone numbers, and other digits said
    one by one (PINs, account numbers), in order and without overlap.
    """
    found = [Found("EMAIL", *m.span()) for m in _EMAIL.finditer(text)]
    found += [Found("IBAN", *m.span()) for m in _IBAN.finditer(text) if _is_iban(m.group())]
    found += [Found("SSN", *m.span()) for m in _SSN.finditer(text)]
    found += [Found("IP", *m.span()) for m in _IP.finditer(text) if all(int(p) < 256 for p in m.group().split("."))]
    # A date is digits too, and none of anybody's secrets.
    found += [Found("", *m.span()) for m in _DATE.finditer(text)]
    found += numbers(text, language)
    return [f for f in without_overlap(found) if f.label]


def numbers(text: str, language: str | None) -> Iterator[Found]:
    """Rows of digits, written or spoken: CARD, PHONE or, when they are said one by one, NUMBER."""
    for match in _digit_row(language or "en").finditer(text):
        digits, singly = _digits_of(match.group(), language or "en")
        start, end = match.span()
        if _CARD_DIGITS[0] <= len(digits) <= _CARD_DIGITS[1] and _luhn(digits):
            yield Found("CARD", start, end)
        elif _PHONE_DIGITS[0] <= len(digits) <= _PHONE_DIGITS[1] and not _plain_number(match.group()):
            yield Found("PHONE", start, end)
        elif singly and len(digits) >= _SPOKEN_DIGITS:
            yield Found("NUMBER", start, end)


def without_overlap(found: list[Found]) -> list[Found]:
    """In order of their places; where two overlap, the one that comes first in ``found`` stays."""
    kept: list[Found] = []
    for one in found:
        if one.end_char > one.start_char and all(
            one.end_char <= other.start_char or one.start_char >= other.end_char for other in kept
        ):
            kept.append(one)
    return sorted(kept, key=lambda f: f.start_char)


@lru_cache(maxsize=16)
def _digit_row(language: str) -> re.Pattern[str]:
    spoken = _DIGITS.get(language, _DIGITS["en"])
    times = "|".join(_REPEATS.get(language, _REPEATS["en"]))
    one = rf"(?:(?:\b(?:{times})\s)?(?:\b(?:{'|'.join(spoken)})\b|\d+))"
    return re.compile(rf"(?i)(?:(?<!\w)\+|\(|\bplus\s)?{one}(?:[\s,.()/-]{{0,3}}{one})*")


def _digits_of(row: str, language: str) -> tuple[str, bool]:
    """The digits, and whether any of them were said or written one by one."""
    spoken = _DIGITS.get(language, _DIGITS["en"])
    repeats = _REPEATS.get(language, _REPEATS["en"])
    digits, times, single = "", 1, 0
    for word in re.findall(r"[^\W\d]+|\d+", row.casefold()):
        if word in repeats:
            times = repeats[word]
            continue
        digit = spoken.get(word, word if word.isdigit() else "")
        single += len(digit) == 1
        digits += digit * times
        times = 1
    return digits, single >= _SPOKEN_DIGITS


def _plain_number(row: str) -> bool:
    """A number in one piece, or in groups of three: a sum of money or a count."""
    return re.fullmatch(r"\d{1,3}(?:[,. ]\d{3})+|\d{7}", row.strip()) is not None


def _luhn(digits: str) -> bool:
    doubled = [int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits))]
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0 and len(set(digits)) > 1


def _is_iban(text: str) -> bool:
    plain = text.replace(" ", "")
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1
