"""The languages that Whisper knows, by the English names that OpenAI's API answers with."""

from __future__ import annotations

import re

from audio_assets.errors import SettingsError

_TABLE = """
af afrikaans|am amharic|ar arabic|as assamese|az azerbaijani|ba bashkir|be belarusian|bg bulgarian|bn bengali
bo tibetan|br breton|bs bosnian|ca catalan|cs czech|cy welsh|da danish|de german|el greek|en english|es spanish
et estonian|eu basque|fa persian|fi finnish|fo faroese|fr french|gl galician|gu gujarati|ha hausa|haw hawaiian
he hebrew|hi hindi|hr croatian|ht haitian creole|hu hungarian|hy armenian|id indonesian|is icelandic|it italian
ja japanese|jw javanese|ka georgian|kk kazakh|km khmer|kn kannada|ko korean|la latin|lb luxembourgish|ln lingala
lo lao|lt lithuanian|lv latvian|mg malagasy|mi maori|mk macedonian|ml malayalam|mn mongolian|mr marathi|ms malay
mt maltese|my myanmar|ne nepali|nl dutch|nn nynorsk|no norwegian|oc occitan|pa punjabi|pl polish|ps pashto
pt portuguese|ro romanian|ru russian|sa sanskrit|sd sindhi|si sinhala|sk slovak|sl slovenian|sn shona|so somali
sq albanian|sr serbian|su sundanese|sv swedish|sw swahili|ta tamil|te telugu|tg tajik|th thai|tk turkmen|tl tagalog
tr turkish|tt tatar|uk ukrainian|ur urdu|uz uzbek|vi vietnamese|yi yiddish|yo yoruba|zh chinese|yue cantonese
"""

CODES: dict[str, str] = {
    name: code for entry in _TABLE.replace("\n", "|").split("|") if entry for code, name in [entry.split(" ", 1)]
}
"""ISO code by English name."""

_KNOWN = frozenset(CODES.values())


def code_of(language: str) -> str | None:
    """The ISO code of a language given by code (``en``, ``en-US``) or English name; None if it is neither.

    >>> code_of("English"), code_of("pt-BR"), code_of("Klingon")
    ('en', 'pt', None)
    """
    text = language.strip().lower()
    if text in CODES:
        return CODES[text]
    short = text.replace("_", "-").split("-")[0]
    return short if short in _KNOWN else None


def asked_for(language: str) -> str:
    """The ISO code of the language that the settings ask for, given as `code_of` takes it.

    Raises:
        SettingsError: Whisper knows no such language.
    """
    code = code_of(language)
    if code is None:
        raise SettingsError(
            f"language {language!r} is not one that Whisper knows; leave it unset to detect it, or use one of "
            f"{', '.join(sorted(_KNOWN))}"
        )
    return code


def asked_of_a_server(language: str) -> str:
    """The same for a model behind an API, which may know codes of languages that Whisper does not.

    Raises:
        SettingsError: it is neither a language that Whisper knows nor an ISO 639 code.
    """
    if code_of(language) is None and re.fullmatch("[a-z]{2,3}", language):
        return language
    return asked_for(language)
