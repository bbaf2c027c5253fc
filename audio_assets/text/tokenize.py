"""Transcripts become normalized words, each with its place in the text and in time.

What a token is
    A written word of the transcript, as spaCy's tokenizer for the transcript's language cuts it, brought to NFKC and
    lower case, with a typographic apostrophe written ``'`` and invisible format characters removed. Tokens that hold
    only punctuation or space are left out. Symbols and emoji stay.

English contractions and possessives stay whole
    ``don't`` and ``city's`` are one token each, not spaCy's ``do`` + ``n't`` and ``city`` + ``'s``: they are the words
    that were said, and ``n't`` at the top of a frequency table helps nobody. The lemma of a possessive is its noun
    (``city``). A contraction counts as a stop word when all its parts do. Other languages keep spaCy's rules, so the
    French ``l'homme`` is ``l'`` and ``homme``.

Languages
    spaCy's blank pipeline for the language, which needs no download. A language that spaCy does not know, or whose
    segmenter is not installed, is split by the multi-language rules and marked ``xx``. Chinese and Japanese have no
    spaces: each Han character is a token, and each run of hiragana or katakana. Thai, Lao and Khmer without a
    segmenter are split at spaces only. Lemmas come from simplemma and are null where it has no data.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from audio_assets import schemas

if TYPE_CHECKING:
    from numpy.typing import NDArray

FALLBACK_LANGUAGE = "xx"
"""spaCy's code for rules that suit no language in particular."""

_SYNONYMS = {"no": "nb", "jw": "jv", "yue": "zh", "iw": "he", "in": "id"}
"""Codes that Whisper or older standards use, as spaCy and simplemma spell them."""

_SIMPLEMMA_CODES = {"sr": "hbs", "hr": "hbs", "bs": "hbs"}
"""simplemma keeps Serbian, Croatian and Bosnian as one language."""

_MAX_CHARS = 1_000_000_000
"""spaCy refuses texts over a million characters for its parser's sake; there is no parser here."""

# Zero-width joiners carry meaning (Persian spelling, emoji sequences); the other format characters are invisible noise.
_JOINERS = "\u200c\u200d"

_HAN = r"\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CJK_CUTS = (
    rf"[{_HAN}]",
    r"[\u3041-\u309f]+",
    r"[\u30a0-\u30ff\u31f0-\u31ff\uff66-\uff9f]+",
    r"[\u3001\u3002\u300c-\u300f\uff01\uff0c\uff1f]",
)

_POSSESSIVE = re.compile(r"(?i)(?<=.)['’]s?$")


@dataclass(frozen=True)
class TokenizeOptions:
    """How to split.

    Args:
        default_language: for transcripts whose language is not known.
        extra_stop_words: words to count as stop words in every language, in any case.
        batch_size: texts that spaCy takes at a time.
    """

    default_language: str = FALLBACK_LANGUAGE
    extra_stop_words: frozenset[str] = frozenset()
    batch_size: int = 256


@dataclass(frozen=True)
class _Word:
    """What a surface form becomes, whatever its place."""

    token: str
    lemma: str | None
    is_stop: bool


@dataclass
class _Spans:
    """The tokens of one text, column by column."""

    words: list[_Word] = field(default_factory=list)
    start_char: list[int] = field(default_factory=list)
    end_char: list[int] = field(default_factory=list)
    sentences: int = 0


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


def tokenize(transcripts: pa.Table, options: TokenizeOptions | None = None) -> pa.Table:
    """Split every transcript into normalized words.

    Args:
        transcripts: rows with the columns ``id``, ``prefix``, ``transcription``, ``language`` and ``segments`` of
            `schemas.TRANSCRIPTS`; other columns are ignored.
        options: see `TokenizeOptions`.

    Returns:
        `schemas.TOKENS`, one row per row of ``transcripts`` and in its order. A row without text has empty lists.
        ``start_char`` and ``end_char`` count Unicode code points of ``transcription`` and satisfy
        ``normalize_word(transcription[start_char:end_char]) == token``. ``start_s`` and ``end_s`` are those of the
        engine's words where it gave them, else interpolated over the characters of the segment, and null where the
        text is in no segment. ``entities`` and ``sentiment`` are null.
    """
    options = options or TokenizeOptions()
    texts: list[str | None] = transcripts.column("transcription").to_pylist()
    codes: list[str | None] = transcripts.column("language").to_pylist()
    segments = transcripts.column("segments")

    languages = {code: language_for(code or options.default_language) for code in set(codes)}
    rows = [_Spans() for _ in texts]
    for language in dict.fromkeys(languages[code] for code in codes):
        splitter = _splitter(language, options.extra_stop_words)
        mine = [i for i, code in enumerate(codes) if languages[code] == language and texts[i]]
        for i, spans in zip(mine, splitter.split([texts[i] or "" for i in mine], options.batch_size), strict=True):
            rows[i] = spans

    times = [
        _times(text, spans, segments[i].as_py() or []) if text and spans.words else _NO_TIMES
        for i, (text, spans) in enumerate(zip(texts, rows, strict=True))
    ]
    return schemas.TOKENS.conform(
        pa.table(
            {
                "id": transcripts.column("id"),
                "prefix": transcripts.column("prefix"),
                "language": pa.array([languages[code] for code in codes], pa.string()),
                "transcription": transcripts.column("transcription"),
                "tokens": _lists([[w.token for w in spans.words] for spans in rows], pa.string()),
                "content_tokens": _lists([[w.token for w in s.words if not w.is_stop] for s in rows], pa.string()),
                "spans": _span_column(rows, times),
                "sentence_count": pa.array([spans.sentences for spans in rows], pa.int64()),
                "entities": pa.nulls(len(rows), pa.list_(schemas.ENTITY)),
                "sentiment": pa.nulls(len(rows), pa.float64()),
            }
        )
    )


@lru_cache(maxsize=256)
def language_for(code: str) -> str:
    """The spaCy language whose tokenizer will be used for a transcript in ``code``; ``xx`` when there is none.

    >>> language_for("en-US"), language_for("tlh")
    ('en', 'xx')
    """
    import spacy

    language = re.split(r"[-_]", code.strip().lower(), maxsplit=1)[0]
    language = _SYNONYMS.get(language, language)
    try:
        spacy.blank(language)
    except (ImportError, OSError):
        # Unknown to spaCy, or its segmenter (SudachiPy, PyThaiNLP, …) is not installed.
        return FALLBACK_LANGUAGE
    return language


class _Splitter:
    """spaCy's tokenizer and sentencizer for one language, and what is known of each surface form."""

    def __init__(self, language: str, extra_stop_words: frozenset[str]) -> None:
        import spacy

        self._nlp = spacy.blank(language)
        self._nlp.max_length = _MAX_CHARS
        self._stop_words = frozenset(normalize_word(w) for w in (*self._nlp.Defaults.stop_words, *extra_stop_words))
        if language == "en":
            self._stop_words |= _keep_contractions_whole(self._nlp, self._stop_words)
        elif language in (FALLBACK_LANGUAGE, "zh"):
            self._nlp.tokenizer = _multi_language_tokenizer(self._nlp)
        self._nlp.add_pipe("sentencizer")
        self._english = language == "en"
        self._lemma = _lemmatizer(language)
        self._known: dict[int, _Word | None] = {}

    def split(self, texts: Sequence[str], batch_size: int) -> Iterator[_Spans]:
        from spacy.attrs import IDX, LENGTH, ORTH, SENT_START

        for text, doc in zip(texts, self._nlp.pipe(texts, batch_size=batch_size), strict=True):
            spans = _Spans()
            sentence_has_word = False
            columns = doc.to_array([ORTH, IDX, LENGTH, SENT_START]).T.tolist() if len(doc) else ([], [], [], [])
            for orth, start, length, sentence_start in zip(*columns, strict=True):
                if sentence_start == 1:
                    sentence_has_word = False
                word = self._known[orth] if orth in self._known else self._learn(orth, text[start : start + length])
                if word is None:
                    continue
                if not sentence_has_word:
                    spans.sentences += 1
                    sentence_has_word = True
                spans.words.append(word)
                spans.start_char.append(start)
                spans.end_char.append(start + length)
            yield spans

    def _learn(self, orth: int, surface: str) -> _Word | None:
        token = normalize_word(surface)
        # Emoji modifiers (Sk) and stray combining marks say nothing without the character they belong to.
        if all(unicodedata.category(c)[0] in "PZCM" or unicodedata.category(c) == "Sk" for c in token):
            word = None
        else:
            stop = token in self._stop_words
            if self._english and not stop and token.endswith("'s"):
                stop = token[:-2] in self._stop_words
            word = _Word(token, self._lemma(surface), stop)
        self._known[orth] = word
        return word


@lru_cache(maxsize=16)
def _splitter(language: str, extra_stop_words: frozenset[str]) -> _Splitter:
    return _Splitter(language, extra_stop_words)


def _keep_contractions_whole(nlp: Any, stop_words: frozenset[str]) -> frozenset[str]:
    """Take the rules that cut contractions out of spaCy's English tokenizer.

    Returns:
        The contractions all of whose parts are stop words: stop words themselves.
    """
    from spacy.util import compile_suffix_regex

    rules = nlp.tokenizer.rules
    kept, stops = {}, set()
    for text, pieces in rules.items():
        # A time of day (10am) is a number and a word, and stays cut.
        if len(pieces) == 1 or text[0].isdigit():
            kept[text] = pieces
        elif all(normalize_word(orth) in stop_words for piece in pieces for orth in piece.values() if orth):
            stops.add(normalize_word(text))
    nlp.tokenizer.rules = kept
    suffixes = [s for s in nlp.Defaults.suffixes if s not in ("'s", "'S", "’s", "’S")]
    nlp.tokenizer.suffix_search = compile_suffix_regex(suffixes).search
    return frozenset(stops)


def _multi_language_tokenizer(nlp: Any) -> Any:
    """spaCy's multi-language tokenizer, which also cuts Han and kana, where words touch."""
    import spacy
    from spacy.tokenizer import Tokenizer
    from spacy.util import compile_infix_regex, compile_prefix_regex, compile_suffix_regex, get_lang_class

    defaults: Any = get_lang_class(FALLBACK_LANGUAGE).Defaults
    base: Any = spacy.blank(FALLBACK_LANGUAGE).tokenizer
    return Tokenizer(
        nlp.vocab,
        rules=base.rules,
        prefix_search=compile_prefix_regex(defaults.prefixes).search,
        suffix_search=compile_suffix_regex(defaults.suffixes).search,
        infix_finditer=compile_infix_regex((*_CJK_CUTS, *defaults.infixes)).finditer,
        token_match=base.token_match,
        url_match=base.url_match,
    )


def _lemmatizer(language: str) -> Callable[[str], str | None]:
    """Surface form to lemma, lower-case; always null for a language without data."""
    from simplemma import lemmatize
    from simplemma.strategies.dictionaries.dictionary_factory import SUPPORTED_LANGUAGES

    code = _SIMPLEMMA_CODES.get(language, language)
    if code not in SUPPORTED_LANGUAGES:
        return lambda surface: None

    def lemma(surface: str) -> str:
        # The case is kept for the lookup: simplemma knows German nouns by their capital.
        form = " ".join(unicodedata.normalize("NFKC", surface).split()).replace("\u2019", "'")
        if code == "en":
            form = _POSSESSIVE.sub("", form) if "'" in form else form
        return normalize_word(lemmatize(form, lang=code)) or normalize_word(surface)

    return lemma


_NO_TIMES: tuple[NDArray[np.float64], NDArray[np.float64]] = (np.empty(0), np.empty(0))


def _times(
    text: str, spans: _Spans, segments: Sequence[Mapping[str, Any]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Start and end of each token in seconds; NaN where no segment holds it."""
    pieces, words = _anchors(text, segments)
    starts = np.asarray(spans.start_char, np.float64)
    ends = np.asarray(spans.end_char, np.float64)
    start_s, end_s = _interpolate(pieces, starts, ends)
    if len(words):
        exact_start, exact_end = _interpolate(words, starts, ends)
        known = ~np.isnan(exact_start) & ~np.isnan(exact_end)
        start_s = np.where(known, exact_start, start_s)
        end_s = np.where(known, exact_end, end_s)
    return start_s, np.maximum(start_s, end_s)


def _anchors(text: str, segments: Sequence[Mapping[str, Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where segments and their words lie in the text: rows of (start_char, end_char, start_s, end_s)."""
    pieces: list[tuple[float, float, float, float]] = []
    words: list[tuple[float, float, float, float]] = []
    cursor = 0
    for segment in segments:
        found = _place(text, segment["text"], cursor, len(text), segment["start_s"], segment["end_s"])
        if found is None:
            continue
        pieces.append(found)
        begin, cursor = int(found[0]), int(found[1])
        for word in segment["words"] or []:
            spot = _place(text, word["word"], begin, cursor, word["start_s"], word["end_s"])
            if spot is not None:
                words.append(spot)
                begin = int(spot[1])
    return np.asarray(pieces, np.float64).reshape(-1, 4), np.asarray(words, np.float64).reshape(-1, 4)


def _place(
    text: str, piece: str | None, begin: int, end: int, start_s: float | None, end_s: float | None
) -> tuple[float, float, float, float] | None:
    piece = (piece or "").strip()
    if not piece or start_s is None or end_s is None or not (np.isfinite(start_s) and np.isfinite(end_s)):
        return None
    at = text.find(piece, begin, end)
    return None if at < 0 else (at, at + len(piece), start_s, max(start_s, end_s))


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


def _offsets(lengths: Sequence[int]) -> pa.Array:
    return pa.array(np.concatenate(([0], np.cumsum(np.asarray(lengths, np.int64)))), pa.int32())


def _lists(rows: Sequence[Sequence[str]], kind: pa.DataType) -> pa.Array:
    return pa.ListArray.from_arrays(_offsets([len(r) for r in rows]), pa.array([v for r in rows for v in r], kind))


def _span_column(rows: Sequence[_Spans], times: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> pa.Array:
    # Built from flat columns: one Python dict per token would cost more than the tokenizer.
    words = [w for spans in rows for w in spans.words]
    start_s = np.concatenate([t[0] for t in times]) if times else np.empty(0)
    end_s = np.concatenate([t[1] for t in times]) if times else np.empty(0)
    values = [
        pa.array([w.token for w in words], pa.string()),
        pa.array([w.lemma for w in words], pa.string()),
        pa.array([w.is_stop for w in words], pa.bool_()),
        pa.array([c for spans in rows for c in spans.start_char], pa.int64()),
        pa.array([c for spans in rows for c in spans.end_char], pa.int64()),
        pa.array(start_s, pa.float64(), mask=np.isnan(start_s)),
        pa.array(end_s, pa.float64(), mask=np.isnan(end_s)),
    ]
    structs = pa.StructArray.from_arrays(values, fields=list(schemas.SPAN))
    return pa.ListArray.from_arrays(_offsets([len(spans.words) for spans in rows]), structs)
