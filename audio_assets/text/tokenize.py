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

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from audio_assets import schemas
from audio_assets.errors import SettingsError
from audio_assets.text import timing
from audio_assets.text.normalize import normalize_word, normalizer_for
from audio_assets.text.splitter import FALLBACK_LANGUAGE, Words, language_for, splitter_for

__all__ = ["FALLBACK_LANGUAGE", "TokenizeOptions", "language_for", "normalize_word", "tokenize", "tokenize_batches"]

COLUMNS = ["id", "prefix", "transcription", "language", "segments"]
"""Columns of `schemas.TRANSCRIPTS` that are read."""


@dataclass(frozen=True)
class TokenizeOptions:
    """How to split.

    Args:
        default_language: for transcripts whose language is not known.
        extra_stop_words: words to count as stop words in every language, in any case.
        normalizers: names of `normalize.NORMALIZERS`, applied to every token in this order.
        bpe_file: a ``tokenizer.json`` of Hugging Face's tokenizers, to count its tokens too.
        batch_size: transcripts that are worked on at a time.
    """

    default_language: str = FALLBACK_LANGUAGE
    extra_stop_words: frozenset[str] = frozenset()
    normalizers: tuple[str, ...] = ()
    bpe_file: str | None = None
    batch_size: int = 1024

    def check(self) -> None:
        """Look for what is wrong before any work is done.

        Raises:
            SettingsError: a normalizer is not known, or the BPE file is not one.
        """
        normalizer_for(self.normalizers)
        if self.bpe_file is not None:
            bpe_tokenizer(self.bpe_file)


def tokenize(transcripts: pa.Table, options: TokenizeOptions | None = None) -> pa.Table:
    """Split every transcript into normalized words.

    Args:
        transcripts: rows with the columns ``id``, ``prefix``, ``transcription``, ``language`` and ``segments`` of
            `schemas.TRANSCRIPTS`; other columns are ignored.
        options: see `TokenizeOptions`.

    Returns:
        `schemas.TOKENS`, one row per row of ``transcripts`` and in its order. A row without text has empty lists.
        ``start_char`` and ``end_char`` count Unicode code points of ``transcription`` and satisfy
        ``normalize_word(transcription[start_char:end_char]) == token`` (and the extra normalizers, where there are
        any). ``start_s`` and ``end_s`` are those of the engine's words where it gave them (``time_source`` "words"),
        else interpolated over the characters of the segment ("segment"), and null where the text is in no segment.
        What `enrich` fills in is null.

    Raises:
        SettingsError: a normalizer is not known, or the BPE file is not one.
    """
    options = options or TokenizeOptions()
    options.check()
    return pa.concat_tables(
        [schemas.TOKENS.empty(), *tokenize_batches(transcripts.select(COLUMNS).to_batches(options.batch_size), options)]
    )


def tokenize_batches(batches: Iterable[pa.RecordBatch], options: TokenizeOptions) -> Iterator[pa.Table]:
    """`tokenize`, batch by batch."""
    for batch in batches:
        yield _tokenize_batch(batch, options)


def _tokenize_batch(batch: pa.RecordBatch, options: TokenizeOptions) -> pa.Table:
    texts: list[str | None] = batch.column("transcription").to_pylist()
    codes: list[str | None] = batch.column("language").to_pylist()
    languages = {code: language_for(code or options.default_language) for code in set(codes)}
    columns = _Columns(len(texts))
    for language in dict.fromkeys(languages[code] for code in codes):
        splitter = splitter_for(language, options.extra_stop_words, options.normalizers)
        mine = np.array([i for i, code in enumerate(codes) if languages[code] == language and texts[i]], np.int64)
        columns.add(mine, splitter.split([texts[i] or "" for i in mine]))
    columns.sort()
    times = timing.locate(texts, batch.column("segments"), columns.text, columns.start_char, columns.end_char)
    tokens = columns.tokens
    offsets = _offsets(columns.counts)
    content = ~columns.is_stop
    spans = pa.StructArray.from_arrays(
        [
            tokens,
            columns.lemmas,
            pa.array(columns.is_stop, pa.bool_()),
            pa.array(columns.start_char, pa.int64()),
            pa.array(columns.end_char, pa.int64()),
            pa.array(times.start_s, pa.float64(), mask=np.isnan(times.start_s)),
            pa.array(times.end_s, pa.float64(), mask=np.isnan(times.end_s)),
            times.source(),
        ],
        fields=list(schemas.SPAN),
    )
    made = {
        "id": batch.column("id"),
        "prefix": batch.column("prefix"),
        "language": pa.array([languages[code] for code in codes], pa.string()),
        "transcription": batch.column("transcription"),
        "tokens": pa.ListArray.from_arrays(offsets, tokens),
        "content_tokens": pa.ListArray.from_arrays(
            _offsets(np.bincount(columns.text[content], minlength=len(texts))), tokens.filter(pa.array(content))
        ),
        "spans": pa.ListArray.from_arrays(offsets, spans),
        "sentence_count": pa.array(columns.sentences, pa.int64()),
        "bpe_count": _bpe_counts(texts, options.bpe_file),
    }
    rest = {c.name: pa.nulls(len(texts), c.type) for c in schemas.TOKENS.columns if c.name not in made}
    return schemas.TOKENS.conform(pa.table(made | rest))


class _Columns:
    """The words of a batch, of all its languages, column by column."""

    def __init__(self, texts: int) -> None:
        self.counts = np.zeros(texts, np.int64)
        self.sentences = np.zeros(texts, np.int64)
        self._parts: list[tuple[np.ndarray[Any, np.dtype[np.int64]], Words]] = []

    def add(self, numbers: np.ndarray[Any, np.dtype[np.int64]], words: Words) -> None:
        """Take in the words of the texts ``numbers``."""
        self.counts[numbers] = words.counts
        self.sentences[numbers] = words.sentences
        self._parts.append((np.repeat(numbers, words.counts), words))

    def sort(self) -> None:
        """Bring the words of all languages into the order of the texts."""
        parts = self._parts
        if not parts:
            parts = [(np.empty(0, np.int64), _no_words())]
        self.text = np.concatenate([text for text, _ in parts])
        self.start_char = np.concatenate([words.start_char for _, words in parts])
        self.end_char = np.concatenate([words.end_char for _, words in parts])
        self.is_stop = np.concatenate([words.is_stop[words.word] for _, words in parts])
        self.tokens = pa.concat_arrays([words.tokens.take(pa.array(words.word)) for _, words in parts])
        self.lemmas = pa.concat_arrays([words.lemmas.take(pa.array(words.word)) for _, words in parts])
        if len(parts) > 1:
            order = np.argsort(self.text, kind="stable")
            self.text, self.is_stop = self.text[order], self.is_stop[order]
            self.start_char, self.end_char = self.start_char[order], self.end_char[order]
            self.tokens, self.lemmas = self.tokens.take(pa.array(order)), self.lemmas.take(pa.array(order))


def _no_words() -> Words:
    # Not a constant: pyarrow imports pandas with its first array, and the definitions load without it.
    none, no_strings = np.empty(0, np.int64), pa.array([], pa.string())
    return Words(none, none, none, none, none, no_strings, no_strings, np.empty(0, bool))


@lru_cache(maxsize=4)
def bpe_tokenizer(file: str) -> Any:
    """The tokenizer that ``file`` describes.

    Raises:
        SettingsError: there is no such file, or it is not a ``tokenizer.json``.
    """
    from tokenizers import Tokenizer

    if not Path(file).is_file():
        raise SettingsError(f"{file}: no such BPE tokenizer file; give the path of a tokenizer.json")
    try:
        return Tokenizer.from_file(file)
    except Exception as error:  # the library raises a bare Exception
        reason = str(error).splitlines()[0]
        raise SettingsError(f"{file}: not a BPE tokenizer file ({reason}); give the path of a tokenizer.json") from None


def _bpe_counts(texts: list[str | None], file: str | None) -> pa.Array:
    if file is None:
        return pa.nulls(len(texts), pa.int64())
    encoded = bpe_tokenizer(file).encode_batch([text or "" for text in texts], add_special_tokens=False)
    counts = [len(one.ids) if text is not None else None for text, one in zip(texts, encoded, strict=True)]
    return pa.array(counts, pa.int64())


def _offsets(counts: np.ndarray[Any, np.dtype[np.int64]]) -> pa.Array:
    return pa.array(np.concatenate(([0], np.cumsum(counts))), pa.int32())
