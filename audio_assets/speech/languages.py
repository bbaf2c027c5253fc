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

_LENGTHS = """
af 1.6|am 8.6|ar 1.8|as 8.6|az 2.4|ba 3.3|be 2.6|bg 2.0|bn 8.6|bo 16.3|br 1.9|bs 1.9|ca 1.6|cs 2.1|cy 1.9|da 1.6
de 1.3|el 2.8|en 1.0|es 1.4|et 2.0|eu 1.9|fa 2.6|fi 1.9|fo 1.9|fr 1.4|gl 1.5|gu 11.4|ha 2.6|haw 2.5|he 1.8|hi 5.1
hr 1.8|ht 2.2|hu 2.3|hy 5.7|id 1.8|is 2.1|it 1.5|ja 1.8|jw 2.2|ka 13.0|kk 3.4|km 9.9|kn 7.8|ko 1.5|la 1.4|lb 2.0
ln 1.7|lo 13.2|lt 2.2|lv 2.2|mg 2.0|mi 3.2|mk 2.1|ml 10.4|mn 3.4|mr 5.7|ms 1.8|mt 2.7|my 19.2|ne 4.7|nl 1.7|nn 1.6
no 1.5|oc 2.4|pa 9.2|pl 1.6|ps 3.2|pt 1.3|ro 1.9|ru 1.6|sa 5.1|sd 3.2|si 8.0|sk 2.1|sl 1.9|sn 2.0|so 2.2|sq 2.5|sr 2.0
su 2.1|sv 1.5|sw 1.8|ta 5.1|te 9.2|tg 2.9|th 3.6|tk 2.2|tl 2.0|tr 1.5|tt 3.3|uk 2.0|ur 2.4|uz 2.4|vi 2.1|yi 4.6|yo 4.1
yue 1.7|zh 1.4
"""

TOKENS_BESIDE_ENGLISH: dict[str, float] = {
    code: float(ratio) for entry in _LENGTHS.strip().replace("\n", "|").split("|") for code, ratio in [entry.split(" ")]
}
"""Tokens that a text takes for each one that it takes in English, by ISO code.

Whisper's tokenizer was made for English and gives other scripts up to a token per byte. Measured on the articles of the
Universal Declaration of Human Rights, which say the same in every language, with the tokenizer of the multilingual
models. Assamese, Bashkir and Sindhi are taken for Bengali, Tatar and Pashto.
"""


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
