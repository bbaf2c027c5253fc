"""Figures of a prefix and of the corpus, computed in DuckDB's SQL.

One query serves both: `summarize_prefix` runs it on Arrow tables in memory, `summarize_corpus` on the warehouse. The
percentiles are linear interpolations between the two nearest values (SQL's ``quantile_cont``).
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyarrow as pa

from audio_assets import schemas

if TYPE_CHECKING:
    from collections.abc import Iterator

    import duckdb

# An object's status is the transcript's, except that an object which is gone is gone, and one that was taken in but
# not yet transcribed waits for the next run.
OBJECTS_SQL = """
    SELECT
        coalesce(r.id, t.id) AS id,
        coalesce(r.prefix, t.prefix) AS prefix,
        CASE
            WHEN r.status = 'gone' OR t.status = 'gone' THEN 'gone'
            WHEN t.status IS NOT NULL THEN t.status
            WHEN r.status = 'ok' THEN 'deferred'
            ELSE r.status
        END AS status,
        coalesce(t.duration_s, r.duration_s) AS duration_s,
        t.speech_s, t.transcription, t.cost_usd, t.cached, t.flags
    FROM raw_audio AS r FULL JOIN transcripts AS t ON r.id = t.id
"""
"""One row per object of `raw_audio` and `transcripts` together."""

_STATUS_COUNTS = ",\n        ".join(f"count(*) FILTER (status = '{s}') AS files_{s}" for s in schemas.STATUSES)

_FIGURES_SQL = f"""
WITH objects AS ({OBJECTS_SQL}),
lengths AS (SELECT id, len(tokens) AS words FROM tokens WHERE transcription IS NOT NULL),
confidence AS (
    SELECT quantile_cont(segment.avg_logprob, 0.1) AS avg_logprob_p10
    FROM (SELECT unnest(segments) AS segment FROM transcripts)
),
words AS (
    SELECT
        coalesce(sum(l.words), 0)::BIGINT AS words,
        -- Only recordings whose speech was measured say how fast somebody speaks.
        sum(l.words) FILTER (t.speech_s > 0) / nullif(sum(t.speech_s) FILTER (t.speech_s > 0) / 60, 0)
            AS words_per_minute,
        quantile_cont(l.words, 0.5)::DOUBLE AS words_p50,
        quantile_cont(l.words, 0.9)::DOUBLE AS words_p90
    FROM lengths AS l LEFT JOIN transcripts AS t ON l.id = t.id
),
totals AS (
    SELECT
        count(*) AS files,
        {_STATUS_COUNTS},
        coalesce(sum(duration_s), 0) / 3600 AS hours,
        coalesce(sum(speech_s), 0) / 3600 AS speech_hours,
        coalesce(sum(cost_usd), 0)::DOUBLE AS cost_usd,
        avg(coalesce(cached, false)::INT) FILTER (transcription IS NOT NULL) AS cached_share,
        avg((coalesce(len(flags), 0) > 0)::INT) FILTER (transcription IS NOT NULL) AS flagged_share,
        quantile_cont(duration_s, 0.5) AS duration_p50_s,
        quantile_cont(duration_s, 0.9) AS duration_p90_s,
        quantile_cont(duration_s, 0.99) AS duration_p99_s
    FROM objects
)
SELECT {{columns}}
FROM totals, words, confidence, ({{vocabulary}}) AS v
"""  # noqa: S608 - names from schemas.py only

_COUNT_SQL = """
SELECT
    prefix, token,
    count(*) AS count,
    count(DISTINCT id) AS document_count,
    -- A prefix may mix languages: the word is a stop word if most of its occurrences are.
    2 * count(*) FILTER (is_stop) > count(*) AS is_stop
FROM (SELECT prefix, id, unnest(spans).token AS token, unnest(spans).is_stop AS is_stop FROM tokens)
GROUP BY ALL
ORDER BY count DESC, token
"""


def summarize_prefix(prefix: str, raw_audio: pa.Table, transcripts: pa.Table, tokens: pa.Table) -> pa.Table:
    """The prefix in figures.

    Args:
        prefix: the R2 prefix that the row is for.
        raw_audio: its objects; the columns ``id``, ``prefix``, ``status`` and ``duration_s`` are enough.
        transcripts: its transcripts.
        tokens: its tokens.

    Returns:
        `schemas.PREFIX_SUMMARY`, one row; an empty prefix has zeros, and nulls where a share or a percentile would
        be of nothing.
    """
    with in_memory(raw_audio=raw_audio, transcripts=transcripts, tokens=tokens) as connection:
        sql = _FIGURES_SQL.format(
            columns="$prefix AS prefix, " + _columns(schemas.PREFIX_SUMMARY, without="prefix"),
            vocabulary="SELECT count(DISTINCT token) AS vocabulary FROM (SELECT unnest(tokens) AS token FROM tokens)",
        )
        return schemas.PREFIX_SUMMARY.conform(connection.sql(sql, params={"prefix": prefix}).to_arrow_table())


def count_tokens(prefix: str, tokens: pa.Table) -> pa.Table:
    """How often each word occurs in the prefix, most frequent first.

    Returns:
        `schemas.TOKEN_FREQUENCY`; every row carries ``prefix``.
    """
    with in_memory(tokens=tokens) as connection:
        sql = f"SELECT $prefix AS prefix, * EXCLUDE (prefix) FROM ({_COUNT_SQL})"  # noqa: S608 - no data in it
        return schemas.TOKEN_FREQUENCY.conform(connection.sql(sql, params={"prefix": prefix}).to_arrow_table())


def summarize_corpus(connection: duckdb.DuckDBPyConnection) -> pa.Table:
    """The whole corpus in figures.

    Percentiles and the vocabulary are those of all recordings together, not means of the prefixes' figures.

    Args:
        connection: a database with the tables ``raw_audio``, ``transcripts``, ``tokens``, ``prefix_summary`` and
            ``token_frequency`` of `schemas`; read only.

    Returns:
        `schemas.CORPUS_SUMMARY`, one row.
    """
    sql = _FIGURES_SQL.format(
        columns="p.prefixes, " + _columns(schemas.CORPUS_SUMMARY, without="prefixes"),
        vocabulary="SELECT count(DISTINCT token) AS vocabulary FROM token_frequency",
    )
    sql += ", (SELECT count(*) AS prefixes FROM prefix_summary) AS p"
    return schemas.CORPUS_SUMMARY.conform(connection.sql(sql).to_arrow_table())


def top_words(token_frequency: pa.Table, limit: int = 200) -> list[tuple[str, int]]:
    """The most frequent words that are neither stop words nor mere symbols, with their counts, most frequent first.

    Args:
        token_frequency: rows of `schemas.TOKEN_FREQUENCY`, of one prefix or of many.
        limit: how many at most.
    """
    with in_memory(token_frequency=token_frequency) as connection:
        return corpus_top_words(connection, limit)


def corpus_top_words(connection: duckdb.DuckDBPyConnection, limit: int = 200) -> list[tuple[str, int]]:
    """`top_words` of a database with the table ``token_frequency``."""
    rows = connection.execute(
        """
        SELECT token, sum(count)::BIGINT AS count FROM token_frequency
        WHERE NOT is_stop AND regexp_matches(token, '[\\p{L}\\p{N}]')
        GROUP BY token ORDER BY count DESC, token LIMIT $limit
        """,
        {"limit": limit},
    ).fetchall()
    return [(str(token), int(count)) for token, count in rows]


def _columns(table: schemas.Table, without: str) -> str:
    return ", ".join(name for name in table.column_names if name != without)


@contextmanager
def in_memory(**tables: pa.Table) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database of these tables, for the length of the block."""
    import duckdb

    # Two threads: a prefix is small, and other partitions may be summarized beside it.
    with duckdb.connect(":memory:", config={"threads": 2, "enable_external_access": False}) as connection:
        for name, table in tables.items():
            connection.register(name, table)
        yield connection
