"""Subtitles: at most two lines of 42 characters, read at ease, and never markup."""

import html
import re
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audio_assets.text.subtitles import LINE_WIDTH, LINES, MAX_S, cues, srt, vtt

HOSTILE = "<b onclick=x>bold</b> {\\an8}top --> &amp; 00:00:01.000 --> 00:00:02.000\n\n2\n<script>alert(1)</script>"


def segment(start_s: float, end_s: float, text: str, words: list[tuple[str, float, float]] | None = None) -> Any:
    said = [{"word": w, "start_s": a, "end_s": b, "probability": 1.0} for w, a, b in words] if words else None
    return {"start_s": start_s, "end_s": end_s, "text": " " + text, "words": said}


def width(line: str) -> int:
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line)


def test_srt_and_vtt_of_a_short_recording() -> None:
    shown = cues([segment(0.5, 2.25, "It was the best of times,"), segment(3661.0, 3663.0, "it was the worst.")])

    assert srt(shown) == (
        "1\n00:00:00,500 --> 00:00:02,250\nIt was the best of times,\n\n"
        "2\n01:01:01,000 --> 01:01:03,000\nit was the worst.\n"
    )
    assert vtt(shown) == (
        "WEBVTT\n\n00:00:00.500 --> 00:00:02.250\nIt was the best of times,\n\n"
        "01:01:01.000 --> 01:01:03.000\nit was the worst.\n"
    )


def test_a_long_segment_becomes_several_subtitles_of_two_even_lines() -> None:
    text = " ".join(["seven words are in this sentence, perhaps"] * 6)
    shown = cues([segment(0, 24, text)])

    assert " ".join(line for cue in shown for line in cue.lines) == text
    assert all(len(cue.lines) <= LINES and all(len(line) <= LINE_WIDTH for line in cue.lines) for cue in shown)
    assert all(0.8 <= cue.end_s - cue.start_s <= MAX_S for cue in shown)
    assert all(abs(len(cue.lines[0]) - len(cue.lines[-1])) < 12 for cue in shown)
    assert [cue.start_s for cue in shown[1:]] == pytest.approx([cue.end_s for cue in shown[:-1]], abs=0.2)


def test_times_of_words_are_kept_and_a_pause_ends_a_subtitle() -> None:
    words = [(" Wait", 1.0, 1.4), (" here.", 1.4, 2.0), (" Now", 5.0, 5.3), (" go.", 5.3, 6.5)]
    shown = cues([segment(0, 10, "Wait here. Now go.", words)])

    assert [(cue.start_s, cue.end_s, cue.lines) for cue in shown] == [
        (1.0, 2.0, ("Wait here.",)),
        (5.0, 6.5, ("Now go.",)),
    ]


def test_a_short_word_stays_long_enough_to_be_read_but_not_into_the_next() -> None:
    shown = cues([segment(0, 0.1, "Yes."), segment(0.5, 0.6, "No."), segment(9, 9.1, "Oh.")])
    assert [round(cue.end_s, 2) for cue in shown] == [0.5, 1.33, 9.83]


def test_scripts_without_spaces_are_broken_between_characters() -> None:
    text = "北京大学的学生在图书馆里安静地读书写字" * 3
    shown = cues([segment(0, 12, text)])

    assert "".join(line for cue in shown for line in cue.lines) == text
    assert all(width(line) <= LINE_WIDTH for cue in shown for line in cue.lines)


def test_two_who_talk_at_once_are_both_shown() -> None:
    shown = cues([segment(0, 4, "One speaks."), segment(1, 3, "Another speaks.")])
    assert [(cue.start_s, cue.end_s) for cue in shown] == [(0, 4), (1, 3)]


def test_what_has_no_time_or_no_text_is_left_out() -> None:
    nothing = [segment(0, 1, "  "), {"start_s": None, "end_s": 1.0, "text": "x"}, segment(float("nan"), 1, "x")]
    assert cues(nothing) == []
    assert vtt([]) == "WEBVTT\n"
    assert srt([]) == ""


def test_markup_in_a_transcript_is_text() -> None:
    shown = cues([segment(0, 6, HOSTILE)])
    as_vtt, as_srt = vtt(shown), srt(shown)

    payload = [line for line in as_vtt.splitlines()[1:] if line and not re.match(r"[\d:.]+ --> [\d:.]+$", line)]
    assert not re.search("[<>]", "".join(payload))
    assert html.unescape(" ".join(payload)) == " ".join(HOSTILE.split())
    assert len(re.findall("-->", as_srt)) == len(shown)
    assert not re.search(r"<[a-z/]|\{[\\a-z]", as_srt)
    assert as_srt.replace("\u2060", "").count("<script>") == 1


def test_control_and_direction_characters_are_left_out() -> None:
    assert cues([segment(0, 2, "a\x1b[31m\u202eb\x00c\u2066d")])[0].lines == ("a[31mbcd",)
    # What a language needs stays.
    assert cues([segment(0, 2, "می\u200cخواهم 👩\u200d🚀")])[0].lines == ("می\u200cخواهم 👩\u200d🚀",)


@given(
    st.lists(
        st.tuples(
            st.floats(0, 1e5), st.floats(-5, 60), st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
        ),
        max_size=5,
    )
)
def test_any_text_gives_files_that_can_be_read_back(pieces: list[tuple[float, float, str]]) -> None:
    shown = cues([segment(start, start + length, text) for start, length, text in pieces])

    for mark, written in ((",", srt(shown)), (".", vtt(shown))):
        times = re.findall(rf"^(\d\d+):(\d\d):(\d\d){re.escape(mark)}(\d{{3}}) --> (.*)$", written, re.MULTILINE)
        assert len(times) == len(shown)
        blocks = [b for b in re.split(r"\n\n", written.removeprefix("WEBVTT\n\n").rstrip("\n")) if b and b != "WEBVTT"]
        assert len(blocks) == len(shown)
    for cue in shown:
        assert cue.start_s <= cue.end_s
        assert 1 <= len(cue.lines) <= LINES
        assert all(line.strip() and "\n" not in line and width(line) <= LINE_WIDTH for line in cue.lines)
