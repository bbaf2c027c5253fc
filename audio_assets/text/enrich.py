"""What may be added to tokens, each on its own switch: entities, sentiment, personal data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa

from audio_assets import schemas
from audio_assets.errors import SettingsError
from audio_assets.text import patterns
from audio_assets.text.patterns import Found

KINDS = ("entities", "sentiment", "pii")
"""What can be added, as the setting spells it."""

_PERSONS = ("PERSON", "PER")
"""The names that spaCy's models have for people."""


@dataclass(frozen=True)
class EnrichOptions:
    """What to add.

    Args:
        kinds: some of `KINDS`.
        entity_model: a spaCy pipeline that is installed, by its name, or its directory. None: the first installed one
            of the transcript's language, if there is one.
    """

    kinds: frozenset[str] = frozenset()
    entity_model: str | None = None

    def check(self) -> None:
        """Look for what is wrong before any work is done.

        Raises:
            SettingsError: something is asked for that does not exist.
        """
        unknown = sorted(self.kinds - set(KINDS))
        if unknown:
            raise SettingsError(f"enrichment {unknown[0]!r} is not known; use some of {', '.join(KINDS)}")


def enrich(tokens: pa.Table, options: EnrichOptions) -> tuple[pa.Table, list[str]]:
    """Fill in what is asked for.

    Args:
        tokens: rows of `schemas.TOKENS`.
        options: see `EnrichOptions`.

    Returns:
        The same rows with ``entities``, ``sentiment``, ``pii`` and ``redacted`` where they were asked for; and what
        could not be done for want of a model or a package, each said once.

    Raises:
        SettingsError: something is asked for that does not exist.
    """
    options.check()
    if not options.kinds or not tokens.num_rows:
        return tokens, []
    notes: dict[str, None] = {}
    texts: list[str | None] = tokens.column("transcription").to_pylist()
    languages: list[str | None] = tokens.column("language").to_pylist()
    columns: dict[str, pa.Array] = {}
    named: list[list[Found]] = [[] for _ in texts]
    if options.kinds & {"entities", "pii"}:
        named = _named(texts, languages, options.entity_model, notes)
    if "entities" in options.kinds:
        columns["entities"] = pa.array(
            [
                None if text is None else [_entity(f, text) for f in _entities(text, language, names)]
                for text, language, names in zip(texts, languages, named, strict=True)
            ],
            pa.list_(schemas.ENTITY),
        )
    if "sentiment" in options.kinds:
        columns["sentiment"] = _sentiment(texts, languages, notes)
    if "pii" in options.kinds:
        columns |= _pii(tokens, texts, languages, named)
    made = {name: columns.get(name, tokens.column(name)) for name in schemas.TOKENS.column_names}
    return schemas.TOKENS.conform(pa.table(made)), list(notes)


def _entities(text: str, language: str | None, names: Sequence[Found]) -> list[Found]:
    # What a rule is sure of comes first: models take an e-mail address for a person now and then.
    return patterns.without_overlap([*patterns.entities(text, language), *names])


def _entity(found: Found, text: str) -> dict[str, object]:
    return {
        "text": text[found.start_char : found.end_char],
        "label": found.label,
        "start_char": found.start_char,
        "end_char": found.end_char,
    }


def _named(
    texts: Sequence[str | None], languages: Sequence[str | None], model: str | None, notes: dict[str, None]
) -> list[list[Found]]:
    """What spaCy's models recognize in each text."""
    named: list[list[Found]] = [[] for _ in texts]
    without: list[str] = []
    for language in dict.fromkeys(languages):
        mine = [i for i, text in enumerate(texts) if languages[i] == language and text]
        if not mine:
            continue
        name = model or _installed_model(language or "")
        nlp = _model(name) if name else None
        if nlp is None or (model and nlp.lang not in (language, "xx")):
            without.append(language or "xx")
            continue
        for i, doc in zip(mine, nlp.pipe(texts[i] for i in mine), strict=True):
            named[i] = [Found(e.label_, e.start_char, e.end_char) for e in doc.ents]
    if without:
        notes[_missing(model, sorted(without))] = None
    return named


def _missing(model: str | None, languages: Sequence[str]) -> str:
    """What is said, once, of the languages in which people and places are not found, and what helps."""
    said = f"no names of people and places in {', '.join(languages)}, where entities are those that rules find"
    if model is None:
        return (
            f"{said}: no spaCy model of {'this language' if len(languages) == 1 else 'these languages'} is installed. "
            "To install one, for English: python -m spacy download en_core_web_sm"
        )
    if (nlp := _model(model)) is None:
        return f"{said}: spaCy model {model!r} is not installed. To install it: python -m spacy download {model}"
    return f"{said}: spaCy model {model!r} is for {nlp.lang!r}"


@lru_cache(maxsize=64)
def _installed_model(language: str) -> str | None:
    from spacy.util import get_installed_models

    return next((name for name in sorted(get_installed_models()) if name.split("_")[0] == language), None)


@lru_cache(maxsize=4)
def _model(name: str) -> Any:
    """The pipeline, or None when it is not installed."""
    import spacy

    try:
        return spacy.load(name, exclude=["parser", "lemmatizer", "attribute_ruler"])
    except OSError:
        return None


def _sentiment(texts: Sequence[str | None], languages: Sequence[str | None], notes: dict[str, None]) -> pa.Array:
    """VADER's compound score of English texts, -1 to 1."""
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        notes["no sentiment: vaderSentiment is not installed; pip install 'audio-assets[enrich]'"] = None
        return pa.nulls(len(texts), pa.float64())
    analyzer = SentimentIntensityAnalyzer()
    scores = [
        float(analyzer.polarity_scores(text)["compound"]) if text and language == "en" else None
        for text, language in zip(texts, languages, strict=True)
    ]
    return pa.array(scores, pa.float64())


def _pii(
    tokens: pa.Table,
    texts: Sequence[str | None],
    languages: Sequence[str | None],
    named: Sequence[Sequence[Found]],
) -> dict[str, pa.Array]:
    spans = (row for chunk in tokens.column("spans").chunks for row in chunk)
    found: list[list[dict[str, object]] | None] = []
    redacted: list[str | None] = []
    for text, language, names, row in zip(texts, languages, named, spans, strict=True):
        if text is None:
            found.append(None)
            redacted.append(None)
            continue
        persons = [Found("PERSON", f.start_char, f.end_char) for f in names if f.label in _PERSONS]
        hits = patterns.without_overlap([*patterns.personal_data(text, language), *persons])
        words = row.as_py() if hits else []
        found.append([_timed(hit, words or []) for hit in hits])
        redacted.append(redact(text, hits))
    return {"pii": pa.array(found, pa.list_(schemas.PII)), "redacted": pa.array(redacted, pa.string())}


def redact(text: str, found: Sequence[Found]) -> str:
    """``text`` with each of ``found``, which are in order, replaced by its label.

    >>> redact("call 555 0134 now", [Found("PHONE", 5, 13)])
    'call [PHONE] now'
    """
    pieces, at = [], 0
    for hit in found:
        pieces += [text[at : hit.start_char], f"[{hit.label}]"]
        at = hit.end_char
    return "".join((*pieces, text[at:]))


def _timed(hit: Found, words: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """``hit`` with the time from its first word to its last: what to mute."""
    inside = [w for w in words if w["start_char"] < hit.end_char and w["end_char"] > hit.start_char]
    starts = [w["start_s"] for w in inside if w["start_s"] is not None]
    ends = [w["end_s"] for w in inside if w["end_s"] is not None]
    return {
        "label": hit.label,
        "start_char": hit.start_char,
        "end_char": hit.end_char,
        "start_s": min(starts, default=None),
        "end_s": max(ends, default=None),
    }
