"""The transcripts that need ears first, each with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

MAX_WORST = 50

LOW_CONFIDENCE = 0.5
"""Mean probability of the words below which a transcript is worth a listen even without a flag: exp(-0.7), where
Whisper's own text is doubtful."""

_EXCERPT_CHARS = 240

# By the score of `transcript_quality`, those of grade A left out. Where it has no score yet, more kinds of doubt come
# first, then less confidence; what has neither is not listed. A segment counts by its length.
_WORST_SQL = f"""
WITH sure AS (
    SELECT id, sum(exp(least(s.avg_logprob, 0)) * greatest(s.end_s - s.start_s, 0.01))
        / sum(greatest(s.end_s - s.start_s, 0.01)) AS confidence
    FROM (SELECT id, unnest(segments) AS s FROM transcripts) WHERE s.avg_logprob IS NOT NULL GROUP BY id
)
SELECT t.id, t.status, coalesce(t.flags, []) AS flags, c.confidence, left(t.transcription, {_EXCERPT_CHARS}),
    len(t.transcription) > {_EXCERPT_CHARS}, q.grade, q.reason
FROM transcripts AS t LEFT JOIN sure AS c ON t.id = c.id LEFT JOIN transcript_quality AS q ON t.id = q.id
WHERE t.transcription <> '' AND t.status <> 'gone'
    AND CASE WHEN q.grade IS NULL THEN len(coalesce(t.flags, [])) > 0 OR c.confidence < $low ELSE q.grade <> 'A' END
ORDER BY q.score NULLS LAST, len(coalesce(t.flags, [])) DESC, c.confidence NULLS LAST, t.id
LIMIT $limit
"""  # noqa: S608 - no data in it


@dataclass(frozen=True)
class Doubtful:
    """A transcript to mistrust: why, and how it begins.

    ``confidence`` is 0 to 1, None when the engine gives none; ``grade`` is None where none was given yet.
    """

    id: str
    status: str
    reasons: tuple[str, ...]
    confidence: float | None
    excerpt: str
    grade: str | None


def worst_transcripts(
    connection: duckdb.DuckDBPyConnection, flag_meanings: Mapping[str, str], limit: int = MAX_WORST
) -> list[Doubtful]:
    """The worst transcripts of the corpus, the worst first; none when nothing is doubtful.

    Args:
        connection: a database with the tables ``transcripts`` and ``transcript_quality``.
        flag_meanings: what each flag means; a flag without a meaning stands for itself.
        limit: how many at most.
    """
    rows = connection.execute(_WORST_SQL, {"low": LOW_CONFIDENCE, "limit": limit}).fetchall()
    return [
        Doubtful(
            id,
            status,
            ((reason,) if grade is not None and reason else ())
            or tuple(flag_meanings.get(flag, flag) for flag in flags)
            or ((f"the model gives its own words a probability of {100 * confidence:.0f} %",) if confidence else ()),
            confidence,
            text + "…" if cut else text,
            grade,
        )
        for id, status, flags, confidence, text, cut, grade, reason in rows
    ]
