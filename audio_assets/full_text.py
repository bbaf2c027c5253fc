"""DuckDB's full text search beside the index of token positions: other forms of a word, and BM25 to rank recordings.

It is an extension of DuckDB that somebody installed (``INSTALL fts``, which needs a network); it is never downloaded
here. It knows no positions and no phrases, and its index cannot follow changes, so that passages come from the token
index as ever, and only the recordings that these hold are indexed, in memory, for one search. That also keeps no second
copy of the transcripts anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

MAX_RANKED = 5000
"""Recordings that are indexed for one search; of more, the others have no rank. About a second."""

STEMMERS: Mapping[str, str] = {
    "ar": "arabic",
    "ca": "catalan",
    "da": "danish",
    "de": "german",
    "el": "greek",
    "en": "english",
    "es": "spanish",
    "eu": "basque",
    "fi": "finnish",
    "fr": "french",
    "ga": "irish",
    "hi": "hindi",
    "hu": "hungarian",
    "id": "indonesian",
    "it": "italian",
    "lt": "lithuanian",
    "ne": "nepali",
    "nl": "dutch",
    "no": "norwegian",
    "nb": "norwegian",
    "pt": "portuguese",
    "ro": "romanian",
    "ru": "russian",
    "sr": "serbian",
    "sv": "swedish",
    "ta": "tamil",
    "tr": "turkish",
}
"""The extension's stemmers by the language of the tokens. Other languages have no forms but the word itself."""


class FullText:
    """The extension, loaded, beside a warehouse."""

    def __init__(self, engine: duckdb.DuckDBPyConnection, warehouse: duckdb.DuckDBPyConnection) -> None:
        self._engine = engine
        self._warehouse = warehouse

    def forms(self, words: Iterable[str], languages: Iterable[str]) -> dict[str, list[str]]:
        """Each of ``words`` with the tokens of the corpus that are forms of it, itself first."""
        found = {word: [word] for word in words}
        for language in languages:
            stemmer = STEMMERS.get(language)
            if stemmer is None:
                continue
            tokens = self._warehouse.sql(
                "SELECT DISTINCT token FROM token_occurrences WHERE language = $language", params={"language": language}
            ).to_arrow_table()
            self._engine.register("spoken", tokens)
            rows = self._engine.execute(
                """
                SELECT w.word, s.token FROM (SELECT unnest($words) AS word) AS w JOIN spoken AS s
                    ON stem(s.token, $stemmer) = stem(w.word, $stemmer) AND s.token <> w.word
                ORDER BY ALL
                """,
                {"words": list(found), "stemmer": stemmer},
            ).fetchall()
            self._engine.unregister("spoken")
            for word, token in rows:
                if token not in found[word]:
                    found[word].append(token)
        return found

    def scores(self, forms: Mapping[str, Sequence[str]]) -> dict[str, float]:
        """BM25 of the recordings that hold any of what `forms` gave: the higher, the more they are about it."""
        marks = {form: f"w{n}" for n, every in enumerate(forms.values()) for form in every}
        # Each form is written as its word's number: the index then needs no stemmer of one language, and the
        # extension's own rules of what a word is do not come into it.
        said = self._warehouse.sql(
            f"""
            WITH wanted AS (SELECT unnest($forms) AS token, unnest($marks) AS mark)
            SELECT o.id, string_agg(coalesce(w.mark, 'x'), ' ') AS words
            FROM token_occurrences AS o LEFT JOIN wanted AS w USING (token)
            WHERE o.id IN (
                SELECT DISTINCT id FROM token_occurrences SEMI JOIN wanted USING (token) ORDER BY id LIMIT {MAX_RANKED}
            )
            GROUP BY o.id
            """,  # noqa: S608 - a number of this module
            params={"forms": list(marks), "marks": list(marks.values())},
        ).to_arrow_table()
        if not said.num_rows:
            return {}
        self._engine.register("arrow", said)
        self._engine.execute("CREATE OR REPLACE TABLE said AS FROM arrow")
        self._engine.unregister("arrow")
        self._engine.execute(
            "PRAGMA create_fts_index('said', 'id', 'words', stemmer = 'none', stopwords = 'none',"
            " ignore = '[^a-z0-9]+', strip_accents = 0, lower = 0, overwrite = 1)"
        )
        rows = self._engine.execute(
            "SELECT id, score FROM (SELECT id, fts_main_said.match_bm25(id, $query) AS score FROM said)"
            " WHERE score IS NOT NULL",
            {"query": " ".join(dict.fromkeys(marks.values()))},
        ).fetchall()
        return {str(id): float(score) for id, score in rows}


@contextmanager
def full_text(warehouse: duckdb.DuckDBPyConnection) -> Iterator[FullText | None]:
    """DuckDB's full text search, or None where the extension is not installed."""
    import duckdb

    never_download: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    engine = duckdb.connect(config=never_download)
    try:
        try:
            engine.execute("LOAD fts")
        except duckdb.Error:
            yield None
            return
        yield FullText(engine, warehouse)
    finally:
        engine.close()
