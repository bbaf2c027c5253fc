"""Passages that hold given words, by the warehouse's index of token positions.

The words of a query are cut and normalized as the transcripts were, in each language of the corpus. Words in double
quotes stand side by side, in that order; the others may come in any order within `NEAR_WORDS` words. Passages that hold
the whole query as it was typed come first, then the closer ones.

Where DuckDB's full text search is installed, other forms of the words are found too, behind those that were typed, and
it ranks what is equally close (`full_text`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from audio_assets import schemas
from audio_assets.errors import AudioAssetsError
from audio_assets.full_text import full_text
from audio_assets.text.tokenize import tokenize

if TYPE_CHECKING:
    import duckdb

NEAR_WORDS = 40
"""Words of a query that stand further apart than this are no passage."""

MAX_QUERY_WORDS = 24
"""Each word is one more pass over the index."""

CONTEXT_CHARS = 70
"""What is shown on each side of a match, at most."""

_FETCH_ROWS = 500
_QUOTED = re.compile(r'["“”„«»]([^"“”„«»]*)["“”„«»]')

_Query = tuple[tuple[str, ...], ...]
"""Phrases, each of one or more tokens."""


class _Place(NamedTuple):
    """First and last position of a match. ``score``: how much the recording is about the query; 0 where unknown."""

    exact: bool
    id: str
    first: int
    last: int
    score: float


class QueryError(AudioAssetsError):
    """A query holds nothing to search for, or too much."""

    exit_code = 2


@dataclass(frozen=True)
class Passage:
    """A place in a recording.

    ``start_s`` and ``end_s`` are the times of the match, None where the engine gave none; ``text`` is the match with
    what is said around it, and ``match`` where the match begins and ends in it. ``exact``: the whole query, word by
    word, as it was typed.
    """

    id: str
    start_s: float | None
    end_s: float | None
    text: str
    match: tuple[int, int]
    exact: bool

    def as_dict(self) -> dict[str, object]:
        """The passage as a JSON-ready object."""
        begin, end = self.match
        return {
            "id": self.id,
            "start_s": None if self.start_s is None else round(self.start_s, 3),
            "end_s": None if self.end_s is None else round(self.end_s, 3),
            "text": self.text,
            "match": self.text[begin:end],
            "exact": self.exact,
        }


def search(
    connection: duckdb.DuckDBPyConnection, query: str, *, prefixes: Sequence[str] = (), limit: int = 20
) -> list[Passage]:
    """The passages that hold ``query``, the best first.

    Args:
        connection: the warehouse.
        query: words; those in double quotes must stand side by side.
        prefixes: only keys that start with one of these; all when empty.
        limit: passages at most.

    Raises:
        QueryError: there is no word in the query, or there are more than `MAX_QUERY_WORDS`.
    """
    languages = [str(row[0]) for row in connection.execute("SELECT DISTINCT language FROM tokens").fetchall() if row[0]]
    # Of languages that cut the query alike, one look serves all.
    queries: dict[_Query, list[str]] = {}
    for language in sorted(languages) or ["xx"]:
        queries.setdefault(_cut(query, language), []).append(language)
    if all(not phrases for phrases in queries):
        raise QueryError(f"{query!r} holds no word to search for; give letters or digits")
    if max(sum(map(len, phrases)) for phrases in queries) > MAX_QUERY_WORDS:
        raise QueryError(f"the query has more than {MAX_QUERY_WORDS} words; leave some out")
    found: list[_Place] = []
    with full_text(connection) as ranking:
        for phrases, codes in queries.items():
            if not phrases:
                continue
            words = dict.fromkeys(token for phrase in phrases for token in phrase)
            forms = ranking.forms(words, codes) if ranking else {word: [word] for word in words}
            scores = ranking.scores(forms) if ranking else {}
            found += _places(connection, phrases, codes, prefixes, limit, forms, scores)
    found.sort(key=lambda place: (not place.exact, place.last - place.first, -place.score, place.id, place.first))
    return _passages(connection, found[:limit])


def _cut(query: str, language: str) -> _Query:
    pieces: list[tuple[bool, str]] = []
    at = 0
    for quoted in _QUOTED.finditer(query):
        pieces += [(False, query[at : quoted.start()]), (True, quoted[1])]
        at = quoted.end()
    pieces.append((False, query[at:]))
    rows: list[dict[str, object]] = [
        {"id": str(n), "prefix": "", "transcription": text, "language": language, "status": "ok"}
        for n, (_, text) in enumerate(pieces)
    ]
    words = tokenize(schemas.TRANSCRIPTS.from_rows(rows)).column("tokens").to_pylist()
    phrases: list[tuple[str, ...]] = []
    for (together, _), tokens in zip(pieces, words, strict=True):
        phrases += [tuple(tokens)] if together and tokens else [(token,) for token in tokens]
    return tuple(phrases)


def _places(
    connection: duckdb.DuckDBPyConnection,
    phrases: _Query,
    languages: Sequence[str],
    prefixes: Sequence[str],
    limit: int,
    forms: Mapping[str, list[str]],
    scores: Mapping[str, float],
) -> Iterator[_Place]:
    """At most ``limit`` places that do not overlap, the best first."""
    parameters: dict[str, object] = {"languages": list(languages), "prefixes": list(prefixes)}
    whole = tuple(token for phrase in phrases for token in phrase)
    parts = list(dict.fromkeys(phrases))
    exact = _phrase_sql([[token] for token in whole], parameters)
    sql = f"SELECT true AS exact, id, position AS first, position + {len(whole) - 1} AS last FROM ({exact})"  # noqa: S608
    if len(parts) > 1 or any(len(every) > 1 for every in forms.values()):
        hits = " UNION ALL ".join(
            f"SELECT id, position, {n} AS part FROM ({_phrase_sql(_spoken(part, forms), parameters)})"  # noqa: S608
            for n, part in enumerate(parts)
        )
        # For each hit the latest hit of every part up to it: the closest group that ends there.
        latest = ", ".join(f"max(position) FILTER (part = {n}) OVER sweep AS p{n}" for n in range(len(parts)))
        ends = ", ".join(f"p{n} + {len(part) - 1}" for n, part in enumerate(parts))
        starts = ", ".join(f"p{n}" for n in range(len(parts)))
        known = " AND ".join(f"p{n} IS NOT NULL" for n in range(len(parts)))
        sql += f"""
            UNION ALL
            SELECT false, id, least({starts}) AS first, greatest({ends}) AS last FROM (
                SELECT id, {latest} FROM ({hits})
                WINDOW sweep AS (PARTITION BY id ORDER BY position, part ROWS UNBOUNDED PRECEDING)
            ) WHERE {known} AND greatest({ends}) - least({starts}) < {NEAR_WORDS}
        """  # noqa: S608 - numbers only
    parameters |= {"ids": list(scores), "scores": list(scores.values())}
    cursor = connection.execute(
        f"""
        SELECT exact, id, first, last, coalesce(score, 0)::DOUBLE AS score
        FROM ({sql}) LEFT JOIN (SELECT unnest($ids::VARCHAR[]) AS id, unnest($scores::DOUBLE[]) AS score) USING (id)
        ORDER BY exact DESC, last - first, score DESC, id, first
        """,  # noqa: S608 - made here
        parameters,
    )
    taken: dict[str, list[tuple[int, int]]] = {}
    count = 0
    while count < limit and (rows := cursor.fetchmany(_FETCH_ROWS)):
        for row in rows:
            place = _Place(*row)
            mine = taken.setdefault(place.id, [])
            if count < limit and all(place.last < begin or end < place.first for begin, end in mine):
                mine.append((place.first, place.last))
                count += 1
                yield place


def _spoken(phrase: Sequence[str], forms: Mapping[str, list[str]]) -> list[list[str]]:
    """What may stand for each word of a phrase: words that must stand side by side are meant as they were typed."""
    return [forms[phrase[0]]] if len(phrase) == 1 else [[token] for token in phrase]


def _phrase_sql(words: Sequence[Sequence[str]], parameters: dict[str, object]) -> str:
    """Where ``words``, each in one of its forms, stand side by side: id and position of the first.

    Adds its values to ``parameters``.
    """
    tests = []
    for forms in words:
        names = []
        for form in forms:
            names.append(f"t{len(parameters)}")
            parameters[names[-1]] = form
        tests.append(f"IN ({', '.join('$' + name for name in names)})")
    joins = "".join(
        f" JOIN token_occurrences AS o{n} ON o{n}.id = o0.id AND o{n}.position = o0.position + {n}"
        f" AND o{n}.token {test}"
        for n, test in enumerate(tests)
        if n
    )
    return (
        f"SELECT o0.id, o0.position FROM token_occurrences AS o0{joins}"  # noqa: S608 - names made here
        f" WHERE o0.token {tests[0]} AND list_contains($languages, o0.language)"
        " AND (len($prefixes) = 0 OR EXISTS (FROM unnest($prefixes) AS p(prefix) WHERE starts_with(o0.id, p.prefix)))"
    )


def _passages(connection: duckdb.DuckDBPyConnection, places: Sequence[_Place]) -> list[Passage]:
    if not places:
        return []
    rows = connection.execute(
        """
        SELECT w.n, t.transcription, t.spans[w.first + 1], t.spans[w.last + 1]
        FROM (SELECT unnest($ns) AS n, unnest($ids) AS id, unnest($firsts) AS first, unnest($lasts) AS last) AS w
            JOIN tokens AS t ON t.id = w.id
        """,
        {
            "ns": list(range(len(places))),
            "ids": [place.id for place in places],
            "firsts": [place.first for place in places],
            "lasts": [place.last for place in places],
        },
    ).fetchall()
    passages: dict[int, Passage] = {}
    for n, transcription, first, last in rows:
        passages[n] = _passage(places[n].id, transcription, first, last, places[n].exact)
    return [passages[n] for n in sorted(passages)]


def _passage(
    id: str, transcription: str, first: Mapping[str, float], last: Mapping[str, float], exact: bool
) -> Passage:
    begin, end = int(first["start_char"]), int(last["end_char"])
    left, right = max(0, begin - CONTEXT_CHARS), min(len(transcription), end + CONTEXT_CHARS)
    # Not in the middle of a word, where words are told apart by spaces.
    if left and (space := transcription.find(" ", left, begin)) >= 0:
        left = space + 1
    if right < len(transcription) and (space := transcription.rfind(" ", end, right)) >= 0:
        right = space
    before, said = transcription[left:begin].lstrip(), transcription[begin:end]
    opening = "…" if left else ""
    closing = "…" if right < len(transcription) else ""
    at = len(opening) + len(before)
    text = opening + before + said + transcription[end:right].rstrip() + closing
    return Passage(id, first["start_s"], last["end_s"], text, (at, at + len(said)), exact)
