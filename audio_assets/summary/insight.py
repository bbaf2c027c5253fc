"""What a prefix is about and how it is spread, in DuckDB's SQL: bigrams, vocabulary growth, distributions, languages,
keywords, and what changed since the last time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from audio_assets import schemas
from audio_assets.summary.statistics import in_memory

if TYPE_CHECKING:
    import duckdb

BIGRAMS = 200
"""Pairs of words that are kept of a prefix, the most frequent."""

KEYWORDS = 50
"""Keywords that are kept of a prefix."""

DRIFT_ROWS = 100
"""Materializations of a prefix whose changes are kept, the latest."""

GROWTH_POINTS = 40
BINS = 20

_DISTRIBUTION = """
    SELECT '{name}' AS statistic, bin AS position, NULL::VARCHAR AS item,
           least_ + bin * width AS lower, least_ + (bin + 1) * width AS upper,
           count(*) AS count, count(*) AS files, NULL::DOUBLE AS value
    FROM (
        SELECT value, least_, width, least(floor((value - least_) / width), {bins} - 1)::BIGINT AS bin
        FROM ({values}), (SELECT min(value) AS least_, greatest((max(value) - min(value)) / {bins}, 1e-9) AS width
                          FROM ({values}))
    )
    GROUP BY ALL
"""

_VALUES = {
    "duration_s": "SELECT duration_s AS value FROM quality WHERE duration_s IS NOT NULL",
    "words": "SELECT words::DOUBLE AS value FROM quality WHERE words > 0",
    "words_per_minute": "SELECT 60 * words_per_s AS value FROM quality WHERE words_per_s IS NOT NULL",
    "confidence": "SELECT confidence AS value FROM quality WHERE confidence IS NOT NULL",
    "score": "SELECT score AS value FROM quality WHERE score IS NOT NULL",
}
"""What is shown as a distribution, and where it comes from."""

_STATISTICS_SQL = f"""
WITH sequences AS (SELECT id, tokens, row_number() OVER (ORDER BY id) AS file FROM tokens WHERE len(tokens) > 0),
pairs AS (
    SELECT id, unnest(list_zip(tokens[:-2], tokens[2:])) AS pair FROM sequences WHERE len(tokens) > 1
),
bigrams AS (
    SELECT pair[1] || ' ' || pair[2] AS item, count(*) AS count, count(DISTINCT id) AS files
    FROM pairs
    WHERE regexp_matches(pair[1], '[\\p{{L}}\\p{{N}}]') AND regexp_matches(pair[2], '[\\p{{L}}\\p{{N}}]')
    GROUP BY item ORDER BY count DESC, item LIMIT {BIGRAMS}
),
firsts AS (SELECT token, min(file) AS file FROM (SELECT unnest(tokens) AS token, file FROM sequences) GROUP BY token),
growth AS (
    SELECT file, sum(words) OVER (ORDER BY file) AS words, sum(fresh) OVER (ORDER BY file) AS vocabulary
    FROM (SELECT file, len(tokens) AS words FROM sequences)
    LEFT JOIN (SELECT file, count(*) AS fresh FROM firsts GROUP BY file) USING (file)
),
points AS (
    -- Evenly spread over the files, the last always among them.
    SELECT * FROM growth
    WHERE (SELECT count(*) FROM growth) <= {GROWTH_POINTS}
       OR file % ((SELECT count(*) FROM growth) // {GROWTH_POINTS}) = 0 OR file = (SELECT max(file) FROM growth)
)
SELECT statistic, position::BIGINT AS position, item, lower::DOUBLE AS lower, upper::DOUBLE AS upper,
       count::BIGINT AS count, files::BIGINT AS files, value::DOUBLE AS value
FROM (
    SELECT 'bigram' AS statistic, row_number() OVER (ORDER BY count DESC, item) - 1 AS position, item,
           NULL::DOUBLE AS lower, NULL::DOUBLE AS upper, count, files, NULL::DOUBLE AS value FROM bigrams
    UNION ALL
    SELECT 'vocabulary_growth', row_number() OVER (ORDER BY file) - 1, NULL, NULL, NULL, words, file,
           coalesce(vocabulary, 0) FROM points
    UNION ALL
    -- Heaps' law, vocabulary = k * words ^ beta, as a straight line through the logarithms.
    SELECT 'heaps_beta', 0, NULL, NULL, NULL, NULL, NULL, regr_slope(ln(vocabulary), ln(words)) FROM growth
    WHERE words > 0 AND vocabulary > 0 HAVING count(*) > 1
    UNION ALL
    SELECT 'heaps_k', 0, NULL, NULL, NULL, NULL, NULL, exp(regr_intercept(ln(vocabulary), ln(words))) FROM growth
    WHERE words > 0 AND vocabulary > 0 HAVING count(*) > 1
    UNION ALL
    SELECT 'language', row_number() OVER (ORDER BY count(*) DESC, language) - 1, language, NULL, NULL,
           sum(words), count(*), sum(duration_s) / 3600 FROM quality WHERE words > 0 AND language IS NOT NULL
    GROUP BY language
    UNION ALL
    SELECT 'grade', row_number() OVER (ORDER BY grade) - 1, grade, NULL, NULL, sum(words), count(*),
           sum(duration_s) / 3600 FROM quality WHERE grade IS NOT NULL GROUP BY grade
    UNION ALL {" UNION ALL ".join(_DISTRIBUTION.format(name=n, values=v, bins=BINS) for n, v in _VALUES.items())}
)
WHERE statistic NOT IN ('heaps_beta', 'heaps_k') OR value IS NOT NULL
ORDER BY statistic, position
"""  # noqa: S608 - no data in it

_KEYWORDS_SQL = """
WITH sizes AS (SELECT prefix, sum(count) AS words FROM token_frequency GROUP BY prefix),
spread AS (
    SELECT token, ln((1 + (SELECT count(*) FROM sizes)) / (1 + count(*))) + 1 AS idf
    FROM token_frequency GROUP BY token
),
scored AS (
    SELECT f.prefix, f.token, f.count / s.words * p.idf AS tf_idf, f.count, f.document_count
    FROM token_frequency AS f JOIN sizes AS s USING (prefix) JOIN spread AS p USING (token)
    WHERE NOT f.is_stop AND regexp_matches(f.token, '[\\p{L}]')
)
SELECT prefix, row_number() OVER w AS rank, token, tf_idf, count, document_count
FROM scored
WINDOW w AS (PARTITION BY prefix ORDER BY tf_idf DESC, token)
QUALIFY row_number() OVER w <= $limit
ORDER BY prefix, rank
"""

_DRIFT_SQL = """
WITH said AS (SELECT id, transcription FROM now WHERE transcription IS NOT NULL),
had AS (SELECT id, transcription FROM before WHERE transcription IS NOT NULL),
files AS (
    SELECT count(*) FILTER (had.id IS NULL) AS files_new,
           count(*) FILTER (said.transcription <> had.transcription) AS files_changed,
           count(*) FILTER (said.id IS NULL) AS files_removed
    FROM said FULL JOIN had ON said.id = had.id
),
words AS (
    SELECT count(*) FILTER (b.token IS NULL) AS vocabulary_new, count(*) FILTER (n.token IS NULL) AS vocabulary_lost,
           -- The first time there is nothing to keep, which is no loss.
           CASE WHEN count(b.token) > 0 THEN count(*) FILTER (b.token = n.token) / count(*) END AS vocabulary_kept_share
    FROM (SELECT DISTINCT unnest(tokens) AS token FROM now) AS n
    FULL JOIN (SELECT DISTINCT unnest(tokens) AS token FROM before) AS b ON n.token = b.token
)
FROM files, words
"""


def prefix_statistics(prefix: str, tokens: pa.Table, quality: pa.Table) -> pa.Table:
    """How a prefix is spread.

    Args:
        prefix: the R2 prefix that the rows are for.
        tokens: its tokens; ``id`` and ``tokens`` are enough.
        quality: its rows of `schemas.TRANSCRIPT_QUALITY`.

    Returns:
        `schemas.PREFIX_STATISTICS`.
    """
    with in_memory(tokens=tokens.select(["id", "tokens"]), quality=quality) as connection:
        sql = f"SELECT $prefix AS prefix, * FROM ({_STATISTICS_SQL})"  # noqa: S608 - no data in it
        return schemas.PREFIX_STATISTICS.conform(connection.sql(sql, params={"prefix": prefix}).to_arrow_table())


def keywords(connection: duckdb.DuckDBPyConnection, limit: int = KEYWORDS) -> pa.Table:
    """What each prefix talks about more than the others: TF-IDF with a prefix as the document.

    The inverse document frequency is smoothed, ln((1 + prefixes) / (1 + prefixes with the word)) + 1, so that a corpus
    of one prefix has keywords too.

    Args:
        connection: a database with the table ``token_frequency``.
        limit: keywords of a prefix at most.

    Returns:
        `schemas.PREFIX_KEYWORDS`.
    """
    found = connection.sql(_KEYWORDS_SQL, params={"limit": limit}).to_arrow_table()
    return schemas.PREFIX_KEYWORDS.conform(found)


def drift(now: pa.Table, before: pa.Table) -> dict[str, int | float]:
    """What changed from one materialization of a prefix's tokens to the next.

    Args:
        now: the new rows of `schemas.TOKENS`; ``id``, ``transcription`` and ``tokens`` are enough.
        before: the old ones; zero rows when there were none.

    Returns:
        ``files_new``, ``files_changed``, ``files_removed`` (transcripts), ``vocabulary_new``, ``vocabulary_lost``
        (words), and ``vocabulary_kept_share`` (0 to 1), which is missing where there were no words before.
    """
    needed = ["id", "transcription", "tokens"]
    with in_memory(now=now.select(needed), before=before.select(needed)) as connection:
        [row] = connection.sql(_DRIFT_SQL).to_arrow_table().to_pylist()
    return {name: value for name, value in row.items() if value is not None}


def drift_history(recorded: pa.Table, found: pa.Table) -> pa.Table:
    """What is on record, with what was found since; the latest `DRIFT_ROWS` materializations, the oldest first.

    Args:
        recorded: the stored rows of `schemas.PREFIX_DRIFT` of one prefix.
        found: rows of the same prefix; those that are on record already change nothing.
    """
    rows = {row["materialized_at"]: row for table in (found, recorded) for row in table.to_pylist()}
    return schemas.PREFIX_DRIFT.from_rows([rows[at] for at in sorted(rows)[-DRIFT_ROWS:]])
