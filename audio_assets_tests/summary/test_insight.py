"""Bigrams, growth, distributions, languages, keywords and drift."""

import datetime
import math

import pyarrow as pa
import pytest

from audio_assets import schemas
from audio_assets.summary.insight import DRIFT_ROWS, drift, drift_history, keywords, prefix_statistics
from audio_assets.summary.quality import grade_transcripts
from audio_assets.summary.statistics import count_tokens, in_memory
from audio_assets.text.tokenize import tokenize
from audio_assets_tests.summary.conftest import transcript_row


def spoken(*texts: str, prefix: str = "a/", **more: object) -> pa.Table:
    rows = [transcript_row(f"{prefix}{i}.wav", [(0.0, 3.0, text)], **more) for i, text in enumerate(texts)]
    return schemas.TRANSCRIPTS.from_rows(rows)


def statistics(*texts: str, **more: object) -> dict[str, list[dict]]:
    transcripts = spoken(*texts, **more)
    tokens = tokenize(transcripts)
    table = prefix_statistics("a/", tokens, grade_transcripts(transcripts, tokens))
    assert table.schema == schemas.PREFIX_STATISTICS.schema
    found: dict[str, list[dict]] = {}
    for row in table.to_pylist():
        assert row["prefix"] == "a/"
        found.setdefault(row["statistic"], []).append(row)
    return found


def test_bigrams_are_neighbours_within_a_recording():
    found = statistics("best of times best of", "times best of")["bigram"]

    assert [(r["item"], r["count"], r["files"]) for r in found] == [
        ("best of", 3, 2),
        ("times best", 2, 2),
        ("of times", 1, 1),
    ]


def test_the_vocabulary_grows_from_recording_to_recording():
    found = statistics("a b c", "a b", "c d")

    assert [(r["files"], r["count"], r["value"]) for r in found["vocabulary_growth"]] == [
        (1, 3, 3),
        (2, 5, 3),
        (3, 7, 4),
    ]


def test_heaps_law_is_fitted():
    # Each recording has twice the words so far and twice the vocabulary: exponent 1, factor 1.
    found = statistics("a b", "c d", "e f g h")

    assert found["heaps_beta"][0]["value"] == pytest.approx(1)
    assert found["heaps_k"][0]["value"] == pytest.approx(1)


def test_distributions_hold_every_recording_once():
    found = statistics("one", "one two", "one two three", "")

    for name, files in (("words", 3), ("duration_s", 4), ("confidence", 3), ("words_per_minute", 3)):
        assert sum(r["count"] for r in found[name]) == files, name
        assert all(r["lower"] < r["upper"] for r in found[name])
    assert (found["words"][0]["lower"], found["words"][-1]["upper"]) == (1, pytest.approx(3))


def test_languages_and_grades_with_words_and_hours():
    found = statistics("one two", "three")

    [language] = found["language"]
    assert (language["item"], language["count"], language["files"]) == ("en", 3, 2)
    assert language["value"] == pytest.approx(8 / 3600)
    assert [(r["item"], r["files"]) for r in found["grade"]] == [("A", 2)]


def test_an_empty_prefix_has_no_statistics():
    assert prefix_statistics("a/", schemas.TOKENS.empty(), schemas.TRANSCRIPT_QUALITY.empty()).num_rows == 0


def test_keywords_set_a_prefix_apart():
    tables = [
        count_tokens(prefix, tokenize(spoken(*texts, prefix=prefix)))
        for prefix, texts in (("a/", ["city guillotine guillotine", "the city"]), ("b/", ["city wine", "wine city"]))
    ]
    with in_memory(token_frequency=pa.concat_tables(tables)) as connection:
        found = keywords(connection)

    assert found.schema == schemas.PREFIX_KEYWORDS.schema
    rows = found.to_pylist()
    assert [(r["prefix"], r["rank"], r["token"]) for r in rows] == [
        ("a/", 1, "guillotine"),
        ("a/", 2, "city"),
        ("b/", 1, "wine"),
        ("b/", 2, "city"),
    ]
    assert rows[0]["tf_idf"] == pytest.approx(2 / 5 * (math.log(3 / 2) + 1))


def test_drift_counts_transcripts_and_words():
    before = tokenize(spoken("best of times", "old words"))
    now = tokenize(spoken("best of times", "new words", "more words"))

    assert drift(now, before) == {
        "files_new": 1,
        "files_changed": 1,
        "files_removed": 0,
        "vocabulary_new": 2,
        "vocabulary_lost": 1,
        "vocabulary_kept_share": pytest.approx(4 / 7),
    }
    assert drift(before, now)["files_removed"] == 1
    assert drift(schemas.TOKENS.empty(), schemas.TOKENS.empty())["files_new"] == 0


def test_the_first_time_no_vocabulary_was_there_to_be_kept():
    now = tokenize(spoken("best of times"))

    assert "vocabulary_kept_share" not in drift(now, schemas.TOKENS.empty())
    assert drift(schemas.TOKENS.empty(), now)["vocabulary_kept_share"] == 0


def change(day: int, **counts: int) -> dict[str, object]:
    nothing = dict.fromkeys(("files_new", "files_changed", "files_removed", "vocabulary_new", "vocabulary_lost"), 0)
    at = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc) + datetime.timedelta(days=day)
    return {"prefix": "a/", "materialized_at": at, "run": f"run {day}", **nothing, **counts}


def test_the_history_of_a_prefix_grows_by_what_is_not_on_record():
    recorded = schemas.PREFIX_DRIFT.from_rows([change(0, files_new=3), change(1)])
    found = schemas.PREFIX_DRIFT.from_rows([change(2, files_changed=1), change(1)])

    rows = drift_history(recorded, found).to_pylist()

    assert [(r["run"], r["files_new"], r["files_changed"]) for r in rows] == [
        ("run 0", 3, 0),
        ("run 1", 0, 0),
        ("run 2", 0, 1),
    ]


def test_the_history_keeps_the_latest():
    found = schemas.PREFIX_DRIFT.from_rows([change(day) for day in range(DRIFT_ROWS + 20)])

    rows = drift_history(schemas.PREFIX_DRIFT.empty(), found).to_pylist()

    assert [rows[0]["run"], rows[-1]["run"], len(rows)] == ["run 20", f"run {DRIFT_ROWS + 19}", DRIFT_ROWS]
