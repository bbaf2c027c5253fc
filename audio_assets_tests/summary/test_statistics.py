"""A prefix and the corpus in figures."""

import duckdb
import pyarrow as pa
import pytest

from audio_assets import schemas
from audio_assets.summary.statistics import (
    corpus_top_words,
    count_tokens,
    summarize_corpus,
    summarize_prefix,
    top_words,
)
from audio_assets.text.tokenize import tokenize
from audio_assets_tests.summary.conftest import object_row, transcript_row


def table(connection: duckdb.DuckDBPyConnection, name: str, prefix: str) -> pa.Table:
    return connection.sql(f"FROM {name} WHERE prefix = ?", params=[prefix]).to_arrow_table()


def summary(corpus: duckdb.DuckDBPyConnection, prefix: str) -> dict[str, object]:
    parts = [table(corpus, name, prefix) for name in ("raw_audio", "transcripts", "tokens")]
    result = summarize_prefix(prefix, *parts)
    assert result.schema == schemas.PREFIX_SUMMARY.schema
    assert result.num_rows == 1
    return result.to_pylist()[0]


def test_a_prefix_in_figures(corpus: duckdb.DuckDBPyConnection):
    row = summary(corpus, "a/")

    assert (row["prefix"], row["files"], row["files_ok"], row["files_invalid"]) == ("a/", 3, 2, 1)
    assert row["hours"] == pytest.approx(8 / 3600)
    assert row["speech_hours"] == pytest.approx(6 / 3600)
    assert (row["words"], row["vocabulary"]) == (17, 12)
    assert row["words_per_minute"] == pytest.approx(17 / (6 / 60))
    assert (row["cached_share"], row["flagged_share"]) == (0.5, 0.5)
    assert (row["duration_p50_s"], row["words_p50"]) == (4.0, 8.5)
    assert row["avg_logprob_p10"] == pytest.approx(-0.25)


def test_files_by_status_add_up(corpus: duckdb.DuckDBPyConnection):
    row = summarize_corpus(corpus).to_pylist()[0]

    assert row["files"] == sum(row[f"files_{status}"] for status in schemas.STATUSES) == 6
    assert (row["files_empty"], row["files_deferred"], row["files_gone"]) == (1, 1, 1)


def test_an_object_without_a_transcript_waits_for_the_next_run():
    raw = schemas.RAW_AUDIO.from_rows([object_row("a/new.wav")])

    row = summarize_prefix("a/", raw, schemas.TRANSCRIPTS.empty(), schemas.TOKENS.empty()).to_pylist()[0]

    assert (row["files_ok"], row["files_deferred"]) == (0, 1)


def test_an_object_that_is_gone_counts_as_gone_although_its_transcript_is_good():
    raw = schemas.RAW_AUDIO.from_rows([object_row("a/old.wav", "gone")])
    transcripts = schemas.TRANSCRIPTS.from_rows([transcript_row("a/old.wav", [(0, 1, "hello")])])

    row = summarize_prefix("a/", raw, transcripts, tokenize(transcripts)).to_pylist()[0]

    assert (row["files"], row["files_ok"], row["files_gone"], row["words"]) == (1, 0, 1, 1)


def test_four_columns_of_raw_audio_are_enough(corpus: duckdb.DuckDBPyConnection):
    raw = table(corpus, "raw_audio", "a/")
    rest = [table(corpus, name, "a/") for name in ("transcripts", "tokens")]

    assert summarize_prefix("a/", raw.select(["id", "prefix", "status", "duration_s"]), *rest) == summarize_prefix(
        "a/", raw, *rest
    )


def test_a_prefix_without_objects_has_zeros_and_nulls():
    row = summarize_prefix(
        "q/", schemas.RAW_AUDIO.empty(), schemas.TRANSCRIPTS.empty(), schemas.TOKENS.empty()
    ).to_pylist()[0]

    assert (row["files"], row["words"], row["hours"], row["cost_usd"]) == (0, 0, 0.0, 0.0)
    assert row["words_per_minute"] is row["flagged_share"] is row["duration_p50_s"] is None


def test_the_corpus_is_all_prefixes_together(corpus: duckdb.DuckDBPyConnection):
    result = summarize_corpus(corpus)
    row = result.to_pylist()[0]
    parts = [summary(corpus, prefix) for prefix in ("", "a/", "b/")]

    assert result.schema == schemas.CORPUS_SUMMARY.schema
    assert row["prefixes"] == 3
    for name in ("files", "words", "hours", "speech_hours", "cost_usd"):
        assert row[name] == pytest.approx(sum(part[name] for part in parts)), name
    # "the" of two prefixes is one word.
    assert max(part["vocabulary"] for part in parts) < row["vocabulary"] <= sum(part["vocabulary"] for part in parts)


def test_an_empty_corpus_has_zeros(empty_corpus: duckdb.DuckDBPyConnection):
    row = summarize_corpus(empty_corpus).to_pylist()[0]

    assert (row["prefixes"], row["files"], row["words"], row["vocabulary"]) == (0, 0, 0, 0)


def test_words_are_counted_with_the_recordings_that_hold_them():
    transcripts = schemas.TRANSCRIPTS.from_rows(
        [transcript_row("a/1.wav", [(0, 1, "the city, the City!")]), transcript_row("a/2.wav", [(0, 1, "city")])]
    )

    result = count_tokens("a/", tokenize(transcripts))

    assert result.schema == schemas.TOKEN_FREQUENCY.schema
    assert result.to_pylist() == [
        {"prefix": "a/", "token": "city", "count": 3, "document_count": 2, "is_stop": False},
        {"prefix": "a/", "token": "the", "count": 2, "document_count": 1, "is_stop": True},
    ]


def test_a_prefix_is_a_value_and_never_sql():
    result = summarize_prefix(
        "'; DROP TABLE tokens; --/", schemas.RAW_AUDIO.empty(), schemas.TRANSCRIPTS.empty(), schemas.TOKENS.empty()
    )

    assert result.to_pylist()[0]["prefix"] == "'; DROP TABLE tokens; --/"


def test_top_words_leave_out_stop_words_and_symbols():
    transcripts = schemas.TRANSCRIPTS.from_rows(
        [
            transcript_row("a/1.wav", [(0, 1, "the $ $ $ city city of 1859")]),
            transcript_row("b/1.wav", [(0, 1, "city")]),
        ]
    )
    counts = pa.concat_tables([count_tokens(p, tokenize(transcripts.slice(i, 1))) for i, p in enumerate(["a/", "b/"])])

    assert top_words(counts) == [("city", 3), ("1859", 1)]
    assert top_words(counts, limit=1) == [("city", 3)]


def test_top_words_of_the_corpus(corpus: duckdb.DuckDBPyConnection):
    assert ("times", 2) in corpus_top_words(corpus)
