"""spaCy's tokenizer for one language, over many texts at a time.

A transcript is made of few different words, and spaCy cuts each stretch between two spaces for itself. So every
stretch is handed to ``nlp.pipe`` once, and what it gave is kept: as rows of a table of words, lemmas, stop words and
offsets. A batch of texts is then a matter of array arithmetic. Languages whose rules reach over a space (Spanish
``EE. UU.``) or whose tokenizer looks at the whole text are handed over text by text where that matters.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from audio_assets.text.normalize import normalize_word, normalizer_for

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

_PIPE_BATCH = 256

_KEPT_PIECES = 400_000
_KEPT_CHARS = 20_000_000
"""What is kept of a language before it is forgotten and learned anew: about 150 MB."""

_HAN = r"\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CJK_CUTS = (
    rf"[{_HAN}]",
    r"[\u3041-\u309f]+",
    r"[\u30a0-\u30ff\u31f0-\u31ff\uff66-\uff9f]+",
    r"[\u3001\u3002\u300c-\u300f\uff01\uff0c\uff1f]",
)

_POSSESSIVE = re.compile(r"(?i)(?<=.)['’]s?$")

# The space characters of Python and spaCy; all lie below the last entry, which stands for everything above.
_SPACE = np.array([chr(code).isspace() for code in range(0x3001)] + [False])

_ORDINARY, _PUNCTUATION, _SENTENCE_END = 0, 1, 2
_NO_WORD = -1


@dataclass(frozen=True)
class Words:
    """The words of a batch of texts, column by column.

    ``word`` (int64, shape (n,)) numbers the rows of ``tokens``, ``lemmas`` and ``is_stop``; ``start_char`` and
    ``end_char`` (int64, shape (n,)) count code points of the word's text; ``counts`` and ``sentences`` (int64, one
    per text) are its words, and its sentences that hold one.
    """

    word: NDArray[np.int64]
    start_char: NDArray[np.int64]
    end_char: NDArray[np.int64]
    counts: NDArray[np.int64]
    sentences: NDArray[np.int64]
    tokens: pa.Array
    lemmas: pa.Array
    is_stop: NDArray[np.bool_]


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


@lru_cache(maxsize=16)
def splitter_for(language: str, extra_stop_words: frozenset[str], normalizers: tuple[str, ...]) -> Splitter:
    """The splitter of a language, kept for as long as the process lives."""
    return Splitter(language, extra_stop_words, normalizers)


class Splitter:
    """Cuts texts of one language into words. Safe to use from several threads: they take turns."""

    def __init__(
        self, language: str, extra_stop_words: frozenset[str] = frozenset(), normalizers: tuple[str, ...] = ()
    ) -> None:
        self._language = language
        self._extra_stop_words = extra_stop_words
        self._normalize = normalizer_for(normalizers)
        self._lock = threading.Lock()
        self._forget()

    def split(self, texts: Sequence[str]) -> Words:
        """Cut each of ``texts``; none of them is None."""
        with self._lock:
            if len(self._pieces.ids) > _KEPT_PIECES or self._pieces.chars > _KEPT_CHARS:
                self._forget()
            whole = [i for i, text in enumerate(texts) if self._needs_whole(text)]
            if not whole:
                return self._by_stretch(texts)
            if len(whole) == len(texts):
                return self._by_text(texts)
            apart = set(whole)
            rest = [i for i in range(len(texts)) if i not in apart]
            return _interleaved(
                self._by_stretch([texts[i] for i in rest]), rest, self._by_text([texts[i] for i in whole]), whole
            )

    def _forget(self) -> None:
        """A new spaCy pipeline and empty tables: spaCy, too, keeps every string that it has seen."""
        from spacy.pipeline.sentencizer import Sentencizer
        from spacy.tokenizer import Tokenizer

        self.nlp, stop_words = pipeline_for(self._language)
        own = (normalize_word(w) for w in self._extra_stop_words)
        self._stop_words = frozenset((*stop_words, *own))
        self._sentence_ends = frozenset(Sentencizer.default_punct_chars)
        self._lemma = _lemmatizer(self._language)
        self._vocabulary = _Vocabulary()
        self._by_orth: dict[int, int] = {}
        self._kinds: dict[int, int] = {}
        self._pieces = _Pieces()
        tokenizer = self.nlp.tokenizer
        self._splits_at_spaces = isinstance(tokenizer, Tokenizer)
        # A rule of several words is the only thing in spaCy's tokenizer that sees past a space.
        phrases = [r for r in tokenizer.rules if " " in r.strip()] if self._splits_at_spaces else []
        phrases += [r for r in getattr(tokenizer, "rules", {}) if r != r.strip() and r.strip()]
        self._phrases = re.compile("|".join(re.escape(p) for p in sorted(phrases))) if phrases else None

    def _needs_whole(self, text: str) -> bool:
        return not self._splits_at_spaces or (self._phrases is not None and self._phrases.search(text) is not None)

    def _by_stretch(self, texts: Sequence[str]) -> Words:
        joined = "\n".join(texts)
        codes = np.frombuffer(joined.encode("utf-32-le"), np.uint32)
        spaces = _SPACE[np.minimum(codes, len(_SPACE) - 1)]
        stretch_starts = np.flatnonzero(~spaces & np.concatenate(([True], spaces[:-1]))) if len(codes) else _NONE
        stretches = joined.split()
        pieces = self._pieces
        ids = np.fromiter(map(pieces.ids.__getitem__, stretches), np.int64, len(stretches))
        if pieces.waiting:
            pieces.add(*self._learn(pieces.waiting))
        lengths = pieces.counts.values[ids]
        starts_at = np.cumsum(lengths) - lengths
        piece = np.repeat(pieces.firsts.values[ids] - starts_at, lengths) + np.arange(int(lengths.sum()))
        start = np.repeat(stretch_starts, lengths) + pieces.starts.values[piece]
        text_starts = np.cumsum([0, *(len(text) + 1 for text in texts)])[:-1] if texts else _NONE
        text = np.repeat(np.searchsorted(text_starts, stretch_starts, "right") - 1, lengths)
        return self._words(
            len(texts),
            text,
            start - text_starts[text],
            pieces.lengths.values[piece],
            pieces.words.values[piece],
            pieces.kinds.values[piece],
        )

    def _by_text(self, texts: Sequence[str]) -> Words:
        counts, starts, lengths, words, kinds = self._learn(texts)
        text = np.repeat(np.arange(len(texts)), counts)
        return self._words(len(texts), text, starts, lengths, words, kinds)

    def _words(
        self,
        texts: int,
        text: NDArray[np.int64],
        start: NDArray[np.int64],
        length: NDArray[np.int64],
        word: NDArray[np.int64],
        kind: NDArray[np.int64],
    ) -> Words:
        is_word = word != _NO_WORD
        sentence = _sentences(text, kind)[is_word]
        text, start, word = text[is_word], start[is_word], word[is_word]
        first = np.concatenate(([True], sentence[1:] != sentence[:-1])) if len(sentence) else np.empty(0, bool)
        return Words(
            word,
            start,
            start + length[is_word],
            np.bincount(text, minlength=texts),
            np.bincount(text[first], minlength=texts),
            *self._vocabulary.columns(),
        )

    def _learn(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], ...]:
        """spaCy's tokens of ``texts``: their number per text; then start, length, word and kind of each."""
        from spacy.attrs import IDX, IS_PUNCT, LENGTH, ORTH

        docs = [
            doc.to_array([ORTH, IDX, LENGTH, IS_PUNCT]) if len(doc) else np.empty((0, 4), np.uint64)
            for doc in self.nlp.pipe(texts, batch_size=_PIPE_BATCH)
        ]
        counts = np.array([len(doc) for doc in docs], np.int64)
        rows = np.concatenate(docs) if docs else np.empty((0, 4), np.uint64)
        orths, which, back = np.unique(rows[:, 0], return_index=True, return_inverse=True)
        for orth, at in zip(orths.tolist(), which.tolist(), strict=True):
            if orth not in self._by_orth:
                surface = self.nlp.vocab.strings[orth]
                self._by_orth[orth] = self._word(surface)
                punctuation = _PUNCTUATION if rows[at, 3] else _ORDINARY
                self._kinds[orth] = _SENTENCE_END if surface in self._sentence_ends else punctuation
        words = np.array([self._by_orth[orth] for orth in orths.tolist()], np.int64)
        kinds = np.array([self._kinds[orth] for orth in orths.tolist()], np.int64)
        starts, lengths = rows[:, 1].astype(np.int64), rows[:, 2].astype(np.int64)
        return counts, starts, lengths, words[back], kinds[back]

    def _word(self, surface: str) -> int:
        """The row of the vocabulary that a surface form becomes, whatever its place; `_NO_WORD` for none."""
        plain = normalize_word(surface)
        # Emoji modifiers (Sk) and stray combining marks say nothing without the character they belong to.
        if all(unicodedata.category(c)[0] in "PZCM" or unicodedata.category(c) == "Sk" for c in plain):
            return _NO_WORD
        token = self._normalize(surface)
        stop = plain in self._stop_words or token in self._stop_words
        if self._language == "en" and not stop and plain.endswith("'s"):
            stop = plain[:-2] in self._stop_words
        return self._vocabulary.add(token, self._lemma(surface), stop)


class _Vocabulary:
    """Rows of words that grow; as columns, built anew only for what was added."""

    def __init__(self) -> None:
        self._new: list[tuple[str, str | None, bool]] = []
        self._tokens = pa.array([], pa.string())
        self._lemmas = pa.array([], pa.string())
        self._is_stop = np.empty(0, bool)

    def add(self, token: str, lemma: str | None, is_stop: bool) -> int:
        self._new.append((token, lemma, is_stop))
        return len(self._tokens) + len(self._new) - 1

    def columns(self) -> tuple[pa.Array, pa.Array, NDArray[np.bool_]]:
        if self._new:
            tokens, lemmas, is_stop = zip(*self._new, strict=True)
            self._tokens = pa.concat_arrays([self._tokens, pa.array(tokens, pa.string())])
            self._lemmas = pa.concat_arrays([self._lemmas, pa.array(lemmas, pa.string())])
            self._is_stop = np.concatenate((self._is_stop, np.array(is_stop, bool)))
            self._new = []
        return self._tokens, self._lemmas, self._is_stop


class _Ids(dict[str, int]):
    """Numbers each new key and remembers it as waiting."""

    def __init__(self, waiting: list[str]) -> None:
        super().__init__()
        self._waiting = waiting

    def __missing__(self, key: str) -> int:
        self[key] = number = len(self)
        self._waiting.append(key)
        return number


class _Growing:
    """An int64 array that grows at its end."""

    def __init__(self) -> None:
        self._room = np.empty(1024, np.int64)
        self._size = 0

    @property
    def values(self) -> NDArray[np.int64]:
        return self._room[: self._size]

    def extend(self, more: NDArray[np.int64]) -> None:
        need = self._size + len(more)
        if need > len(self._room):
            self._room = np.concatenate((self.values, np.empty(max(need, 2 * self._size) - self._size, np.int64)))
        self._room[self._size : need] = more
        self._size = need


class _Pieces:
    """What spaCy made of each stretch: rows of start, length, word and kind, from ``firsts`` on, ``counts`` of them."""

    def __init__(self) -> None:
        self.waiting: list[str] = []
        self.ids = _Ids(self.waiting)
        self.chars = 0
        self.counts, self.firsts = _Growing(), _Growing()
        self.starts, self.lengths, self.words, self.kinds = _Growing(), _Growing(), _Growing(), _Growing()

    def add(
        self,
        counts: NDArray[np.int64],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
        words: NDArray[np.int64],
        kinds: NDArray[np.int64],
    ) -> None:
        self.chars += sum(map(len, self.waiting))
        self.waiting.clear()
        self.firsts.extend(len(self.starts.values) + np.cumsum(counts) - counts)
        for column, more in (
            (self.counts, counts),
            (self.starts, starts),
            (self.lengths, lengths),
            (self.words, words),
            (self.kinds, kinds),
        ):
            column.extend(more)


_NONE = np.empty(0, np.int64)


def _sentences(text: NDArray[np.int64], kind: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number of each token's sentence, by the rule of spaCy's sentencizer.

    A sentence begins with a text, and with the first token that is no punctuation after one that ends a sentence.
    """
    ordinary = np.flatnonzero(kind == _ORDINARY)
    ends = np.cumsum(kind == _SENTENCE_END)[ordinary]
    first = np.ones(len(ordinary), bool)
    first[1:] = (ends[1:] != ends[:-1]) | (text[ordinary[1:]] != text[ordinary[:-1]])
    numbers = np.zeros(len(kind), np.int64)
    numbers[ordinary[first]] = 1
    return np.cumsum(numbers)


def _interleaved(one: Words, its: Sequence[int], other: Words, others: Sequence[int]) -> Words:
    """The words of two groups of texts, in the order of the texts. Both point into the same vocabulary."""
    size = len(its) + len(others)
    counts, sentences = np.zeros(size, np.int64), np.zeros(size, np.int64)
    counts[its], counts[others] = one.counts, other.counts
    sentences[its], sentences[others] = one.sentences, other.sentences
    text = np.concatenate((np.repeat(its, one.counts), np.repeat(others, other.counts)))
    order = np.argsort(text, kind="stable")
    word, start, end = (
        np.concatenate(both)[order]
        for both in (
            (one.word, other.word),
            (one.start_char, other.start_char),
            (one.end_char, other.end_char),
        )
    )
    latest = one if len(one.tokens) >= len(other.tokens) else other
    return Words(word, start, end, counts, sentences, latest.tokens, latest.lemmas, latest.is_stop)


def pipeline_for(language: str) -> tuple[Any, frozenset[str]]:
    """spaCy's blank pipeline with this project's rules, and the stop words of the language, normalized."""
    import spacy

    nlp = spacy.blank(language)
    nlp.max_length = _MAX_CHARS
    stop_words = frozenset(normalize_word(w) for w in nlp.Defaults.stop_words)
    if language == "en":
        stop_words |= _keep_contractions_whole(nlp, stop_words)
    elif language in (FALLBACK_LANGUAGE, "zh"):
        nlp.tokenizer = _multi_language_tokenizer(nlp)
    return nlp, stop_words


def _keep_contractions_whole(nlp: Any, stop_words: Iterable[str]) -> frozenset[str]:
    """Take the rules that cut contractions out of spaCy's English tokenizer.

    Returns:
        The contractions all of whose parts are stop words: stop words themselves.
    """
    from spacy.util import compile_suffix_regex

    stop_words = frozenset(stop_words)
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
