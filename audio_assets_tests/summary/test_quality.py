"""Every transcript has a grade with a reason, and speech without text can be found."""

import math

import pyarrow as pa
import pytest

from audio_assets import schemas
from audio_assets.speech import judge
from audio_assets.summary import quality
from audio_assets.summary.quality import grade_of, grade_transcripts
from audio_assets.text.tokenize import tokenize


def graded(**row: object) -> dict:
    """A good transcript of ten seconds, eight of them speech under text, changed by ``row``, and graded."""
    piece = {"start_s": 1.0, "end_s": 9.0, "text": "It was the best of times, it was the worst", "avg_logprob": -0.1}
    good = {
        "id": "a/1.wav",
        "prefix": "a/",
        "status": "ok",
        "transcription": piece["text"],
        "language": "en",
        "duration_s": 10.0,
        "speech_s": 8.0,
        "segments": [piece],
        "speech_spans": [{"start_s": 1.0, "end_s": 9.0}],
        "loudness_dbfs": -23.0,
        "flags": [],
    }
    transcripts = schemas.TRANSCRIPTS.from_rows([{**good, **row}])
    table = grade_transcripts(transcripts, tokenize(transcripts))
    assert table.schema == schemas.TRANSCRIPT_QUALITY.schema
    [made] = table.to_pylist()
    return made


def spans(*pairs: tuple[float, float]) -> list[dict[str, float]]:
    return [{"start_s": a, "end_s": b} for a, b in pairs]


def test_a_good_transcript_is_an_a_with_its_figures():
    row = graded()

    assert (row["grade"], row["score"], row["reason"]) == ("A", 1.0, "nothing speaks against it")
    assert (row["words"], row["words_per_s"]) == (10, 10 / 8)
    assert row["confidence"] == pytest.approx(math.exp(-0.1))
    assert (row["covered_s"], row["coverage_share"], row["silence_share"]) == (8.0, 1.0, pytest.approx(0.2))
    assert (row["loudness_dbfs"], row["clipped"], row["uncovered"]) == (-23.0, False, [])


def test_speech_without_text_is_listed_with_its_times_and_named_in_the_reason():
    row = graded(speech_spans=spans((1, 4), (5, 12), (20, 25), (30, 31)), flags=["uncovered_speech"])

    assert row["uncovered"] == spans((9, 12), (20, 25))
    assert (row["covered_s"], row["coverage_share"]) == (7.0, pytest.approx(7 / 16))
    assert "5.0 s of speech without text at 20.0 s" in row["reason"]
    assert "44 % of the speech is under text" in row["reason"]


def test_overlapping_channels_count_once():
    row = graded(speech_spans=spans((1, 5), (1, 5), (4, 9)))

    assert (row["covered_s"], row["coverage_share"]) == (8.0, 1.0)


@pytest.mark.parametrize("flag", judge.FLAGS)
def test_every_flag_lowers_the_grade_and_says_why(flag: str):
    row = graded(flags=[flag])

    assert row["score"] < 1
    assert row["reason"] == quality.FLAG_PENALTIES[flag][1]


def test_an_unknown_flag_lowers_the_grade_too():
    assert (graded(flags=["cut_by_server"])["score"], graded(flags=["cut_by_server"])["reason"]) == (
        1 - quality.OTHER_PENALTY,
        "cut by server",
    )


def test_several_doubts_add_up_the_heaviest_first():
    row = graded(flags=["clipped", "repetition"])

    assert row["score"] == pytest.approx(0.9 * 0.5)
    assert row["reason"].startswith("the text repeats itself; ")
    assert row["grade"] == "D"


def test_doubtful_words_lower_the_grade_in_proportion():
    piece = {"start_s": 1.0, "end_s": 9.0, "text": "It was", "avg_logprob": math.log(0.3)}
    row = graded(segments=[piece])

    assert row["score"] == pytest.approx(0.5)
    assert row["reason"] == "the model gives its words a probability of 30 %"


def test_near_silence_is_named():
    assert graded(loudness_dbfs=-60.0)["reason"] == "very quiet: -60 dBFS"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"transcription": "", "segments": [], "status": "empty"}, "no words"),
        ({"transcription": None, "segments": None, "status": "failed", "flags": None}, "no transcript: tried"),
    ],
)
def test_what_has_no_words_has_no_grade(row: dict[str, object], reason: str):
    made = graded(**row)

    assert (made["grade"], made["score"], made["words"]) == (None, None, 0)
    assert made["reason"].startswith(reason)


def test_a_transcript_of_an_earlier_version_is_graded_by_what_is_known():
    row = graded(speech_spans=None, loudness_dbfs=None)

    assert (row["grade"], row["coverage_share"], row["uncovered"], row["loudness_dbfs"]) == ("A", None, None, None)


def test_speech_without_any_text_is_all_uncovered():
    row = graded(transcription="", segments=[], speech_spans=spans((0, 5)))

    assert (row["coverage_share"], row["uncovered"]) == (0.0, spans((0, 5)))


def test_grades_run_from_one_to_zero():
    assert list(quality.GRADE_FROM) == list(schemas.GRADES)
    assert [grade_of(least) for least in quality.GRADE_FROM.values()] == list(schemas.GRADES)
    assert grade_of(math.nextafter(quality.GRADE_FROM["A"], 0)) == "B"


def test_the_flag_and_the_list_mean_the_same_speech():
    assert quality.UNCOVERED_S == judge.UNCOVERED_S
    assert quality.FLAG_PENALTIES.keys() == judge.FLAGS.keys()


def test_no_transcripts_no_rows():
    assert grade_transcripts(schemas.TRANSCRIPTS.empty(), schemas.TOKENS.empty()) == pa.table(
        schemas.TRANSCRIPT_QUALITY.empty()
    )
