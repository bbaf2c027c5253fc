"""Each flag has a text that deserves it and a neighbour that does not."""

from __future__ import annotations

import zlib
from dataclasses import replace

import pytest

from audio_assets.speech import judge
from audio_assets.speech.engine import Segment

GOOD = Segment(
    0.0, 10.0, "It was the best of times, it was the worst of times, it was the age of wisdom.", -0.2, 0.01, 1.3
)


def flags(*segments: Segment, **how: object) -> list[str]:
    facts: dict[str, object] = {"duration_s": 12.0, "speech": [(0.0, 10.0)], **how}
    if not isinstance(facts["speech"], dict):
        facts["speech"] = {None: facts["speech"]}
    return judge.judge_file(segments, **facts)  # type: ignore[arg-type]


def changed(**fields: object) -> Segment:
    return Segment(**{**{k: getattr(GOOD, k) for k in GOOD.__dataclass_fields__}, **fields})  # type: ignore[arg-type]


def test_a_good_transcript_has_no_flag():
    assert flags(GOOD) == []


def test_silence_without_text_has_no_flag():
    assert flags(speech=[]) == []


@pytest.mark.parametrize(
    ("flag", "segment", "how"),
    [
        ("no_speech", changed(no_speech_prob=0.9, avg_logprob=-0.8), {}),
        ("no_speech", GOOD, {"speech": [(0.0, 0.2)]}),
        ("no_speech", changed(avg_logprob=-0.8), {"duration_s": 300.0}),
        ("no_speech", changed(no_speech_prob=None), {"duration_s": 300.0}),
        ("no_speech", GOOD, {"speech": [(0.0, 2.5)], "duration_s": 300.0}),
        ("repetition", changed(compression_ratio=3.0), {}),
        ("repetition", changed(text="and then and then and then and then we went"), {}),
        ("repetition", changed(text="And so my fellow Americans and so my fellow Americans. Ask not."), {}),
        ("low_confidence", changed(avg_logprob=-1.2), {}),
        ("implausible_rate", changed(end_s=2.0), {"speech": [(0.0, 2.0)], "duration_s": 2.0}),
        ("implausible_rate", changed(text="So."), {}),
        ("known_phrase", changed(text="Thanks for watching!"), {"speech": [(0.0, 1.0)], "duration_s": 2.0}),
        ("language_mismatch", GOOD, {"language": "cy", "language_probability": 0.3}),
        ("language_mismatch", GOOD, {"language": "de", "language_asked": "en"}),
        ("truncated", GOOD, {"truncated": True}),
        ("clipped", GOOD, {"clipped": True}),
        ("uncovered_speech", GOOD, {"speech": [(0.0, 10.0), (10.5, 14.0)], "duration_s": 15.0}),
    ],
)
def test_each_flag_is_raised_by_its_cause(flag, segment, how):
    assert flag in flags(segment, **how)


@pytest.mark.parametrize(
    ("flag", "segment", "how"),
    [
        ("no_speech", changed(no_speech_prob=0.87), {}),
        ("no_speech", GOOD, {"duration_s": 300.0}),
        ("repetition", changed(text="no, no, no, said the king, and went home"), {}),
        ("repetition", changed(text="it was the best of times, it was the worst of times"), {}),
        ("repetition", changed(text="never again, never again will we go there"), {}),
        ("implausible_rate", changed(text="So."), {"speech": [(0.0, 0.8)], "duration_s": 2.0}),
        ("known_phrase", changed(text="Thank you for watching over my garden while we were away."), {}),
        ("language_mismatch", GOOD, {"language": "en", "language_probability": 0.9, "language_asked": "en"}),
        ("uncovered_speech", GOOD, {"speech": [(0.0, 10.0), (10.5, 11.5)], "duration_s": 15.0}),
    ],
)
def test_a_near_miss_raises_none(flag, segment, how):
    assert flag not in flags(segment, **how)


PHANTOM = Segment(5.0, 6.4, "Okay.", -1.75, 0.92, 0.4)
"""What Whisper made of a melody, in which 0.3 s sounded like speech."""


@pytest.mark.parametrize(
    "segment", [PHANTOM, replace(PHANTOM, text="Thank you.", avg_logprob=-0.87, no_speech_prob=0.8)]
)
def test_a_word_that_nobody_can_have_said_is_a_phantom(segment):
    assert judge.is_phantom(segment, [(5.0, 5.3)])


@pytest.mark.parametrize(
    ("segment", "speech"),
    [
        (replace(PHANTOM, text="Wait.", avg_logprob=-0.74, no_speech_prob=0.19), [(5.0, 5.4)]),
        (replace(PHANTOM, text="However.", avg_logprob=-1.24, no_speech_prob=0.12), [(5.0, 5.5)]),
        (replace(PHANTOM, text="Thank you.", avg_logprob=-0.4, no_speech_prob=0.7), [(5.0, 5.5)]),
        (PHANTOM, [(4.0, 6.2)]),
    ],
    ids=["a-word", "an-unsure-word", "thanks", "more-speech"],
)
def test_what_may_have_been_said_is_no_phantom(segment, speech):
    assert not judge.is_phantom(segment, speech)


def test_a_jingle_of_two_seconds_is_empty_and_a_jingle_beside_a_speech_stays():
    speech = {None: [(0.5, 0.9), (5.0, 5.3)]}
    jingle = replace(PHANTOM, start_s=0.4, end_s=0.9)
    assert judge.without_phantoms([jingle], 2.0, {None: [(0.5, 0.9)]}) == []
    assert judge.without_phantoms([jingle, PHANTOM], 6.0, speech) == []
    assert judge.without_phantoms([GOOD, PHANTOM], 6.0, speech) == [GOOD, PHANTOM]
    assert judge.without_phantoms([GOOD, PHANTOM], 600.0, speech) == [GOOD]


SPOKEN = {
    "hi": ("नमस्ते मेरा नाम राहुल है और मैं दिल्ली में रहता हूँ आज मैं आपको बताने वाला हूँ कि भारत में चुनाव कैसे होते हैं", 9.0),
    "ta": ("வணக்கம் என் பெயர் குமார் நான் சென்னையில் வசிக்கிறேன் இன்று நாம் தமிழ் இலக்கியம் பற்றி பேசப் போகிறோம்", 8.5),
    "ar": ("مَرْحَبًا بِكُمْ فِي هَذَا البَرْنَامَجِ اليَوْمَ سَنَتَحَدَّثُ عَنْ تَارِيخِ العَرَبِ", 7.0),
    "ja": ("今日は天気がいいので散歩に行きましょうと言ったのですが彼は家で本を読みたいと答えました", 7.0),
    "zh": ("今天我们来谈谈人工智能的发展历史以及它在医疗教育和交通等领域的应用前景", 7.0),
    "th": ("สวัสดีครับวันนี้ผมจะมาเล่าให้ฟังเกี่ยวกับการเดินทางไปเชียงใหม่เมื่อเดือนที่แล้วซึ่งสนุกมาก", 6.5),
    "ru": ("Сегодня мы поговорим о том как развивалась русская литература в девятнадцатом веке", 6.0),
}
"""Ordinary sentences, and the seconds that it takes to say them."""


@pytest.mark.parametrize("language", SPOKEN)
def test_ordinary_speech_of_any_script_has_no_flag(language):
    text, length_s = SPOKEN[language]
    assert flags(changed(text=text, end_s=length_s, compression_ratio=1.3), speech=[(0.0, length_s)]) == []


@pytest.mark.parametrize("language", ["ja", "zh", "th"])
def test_a_rate_is_found_implausible_without_spaces_too(language):
    text, length_s = SPOKEN[language]
    assert "implausible_rate" in flags(changed(text=text, end_s=length_s / 4), speech=[(0.0, length_s / 4)])
    assert "implausible_rate" in flags(changed(text=text[:4], end_s=40.0), speech=[(0.0, 40.0)])


@pytest.mark.parametrize("language", SPOKEN)
def test_repetition_is_measured_alike_in_every_script(language):
    text = SPOKEN[language][0]
    assert judge.compression_ratio(text) < 1.5
    assert judge.compression_ratio(f"{text[:16]} " * 8) > judge.HIGH_COMPRESSION
    assert "repetition" not in flags(changed(text=text, compression_ratio=2.6)), "as a server measures it, by bytes"


def test_latin_text_is_measured_as_whisper_does():
    text = "It’s “naïve”: the façade – all of it – 🙂 …"
    data = text.encode()
    assert judge.compression_ratio(text) == len(data) / len(zlib.compress(data))
    assert "repetition" in flags(changed(compression_ratio=2.6))


def test_a_mark_belongs_to_the_letter_before_it():
    assert judge.words_of("मैं दिल्ली में रहता हूँ।") == ["मैं", "दिल्ली", "में", "रहता", "हूँ"]
    assert judge.words_of("İstanbul'da, “कि”") == ["i̇stanbulda", "कि"]
    assert judge.words_of("\u0e34\u0301") == [], "no mark is a word by itself"


def test_many_short_utterances_without_text_add_up():
    lost = [(20.0 + 3 * i, 21.5 + 3 * i) for i in range(20)]
    assert "uncovered_speech" in flags(GOOD, speech=[(0.0, 10.0), *lost], duration_s=90.0)
    assert "uncovered_speech" not in flags(GOOD, speech=[(0.0, 10.0), lost[0]], duration_s=90.0)
    long = changed(end_s=60.0)
    edges = [(60.0 + 3 * i, 60.3 + 3 * i) for i in range(15)]
    assert "uncovered_speech" not in flags(long, speech=[(0.0, 60.0), *edges], duration_s=120.0)


def test_the_text_of_one_channel_does_not_cover_the_speech_of_another():
    first = changed(channel=0)
    both = {0: [(0.0, 10.0)], 1: [(1.0, 9.0)]}
    assert "uncovered_speech" in flags(first, speech=both)
    assert "uncovered_speech" not in flags(first, changed(start_s=1.0, end_s=9.0, channel=1), speech=both)


def test_every_flag_that_can_be_raised_is_described():
    assert flags(changed(avg_logprob=-2.0), truncated=True) == ["low_confidence", "truncated"], "in the order of FLAGS"
    assert all(text and text[0].islower() for text in judge.FLAGS.values())
