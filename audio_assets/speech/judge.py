"""Reasons to mistrust a transcript: every threshold in one place.

The signals and where their limits come from: Whisper's own decoding limits (average log probability -1.0, compression
ratio 2.4), the rate of real speech (about 2.3 words a second of speech; phantom text shows fewer than 0.2 or more than
6), and phrases that Whisper learned from subtitles and repeats over silence.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Mapping, Sequence
from functools import cache

from audio_assets.speech.engine import Segment

FLAGS: dict[str, str] = {
    "no_speech": "voice activity detection hears nearly no speech, or the model doubts that there is any",
    "repetition": "the text repeats itself as Whisper does when it loses the thread",
    "low_confidence": "the model itself is unsure of its words",
    "implausible_rate": "more or fewer words than the time of speech allows",
    "known_phrase": "nothing but a phrase that Whisper is known to invent",
    "language_mismatch": "the language heard is not the language asked for, or is uncertain",
    "truncated": "the file ends before it should by what it says itself, or is damaged inside",
    "clipped": "the recording is overdriven",
    "uncovered_speech": "voice activity detection hears speech where there is no text",
    "incomplete": "a part of the recording has no result yet",
}
"""Every flag that a row may carry, with its meaning."""

LOW_LOGPROB = -1.0
HIGH_COMPRESSION = 2.4
"""Whisper's own limits for trying a window again."""

NO_SPEECH_PROB = 0.6
"""Whisper's limit; unsafe alone (0.87 was seen on real speech), so it counts only with a doubtful text."""
DOUBTFUL_LOGPROB = -0.7

MIN_SPEECH_SHARE = 0.05
MIN_SPEECH_S = 0.3
"""Less speech than this, in share of the file and in seconds, is nearly none."""

SURE_SPEECH_S = 3.0
"""So much speech under text of which the model is sure is speech, however long the silence around it."""

PHANTOM_MAX_S = 1.0
"""Music and noise make voice activity detection hear speech for a moment, and Whisper invents a word for it. Measured
with tiny.en and base on melodies, jingles and sung vowels: 0.3 to 0.6 s of speech, a probability of no speech of 0.76
or more, a log probability below -1.0 or a known phrase (the text of base for a melody, at 0.39, stays, with its flags).
Real words that were cut out of recordings and laid into silence have less than 0.5, and so have 340 telephone prompts
of one word or two."""

MIN_WORDS_PER_S = 0.2
MAX_WORDS_PER_S = 6.0
RATE_MIN_SPEECH_S = 3.0
"""A rate over less speech than this says nothing about too few words."""
RATE_MIN_WORDS = 8
"""And fewer words than this say nothing about too many."""

REPEATED_NGRAM = 4
REPEATED_TIMES = 4
"""A run of the same one to four words this many times in a row."""

ECHOED_WORDS = 4
"""A phrase of at least so many words, said twice in a row, is worth another look."""

UNCOVERED_S = 2.0
"""Speech of this length without text is worth a listen; pauses inside a segment are shorter."""

UNCOVERED_SHARE = 0.1
"""And so are many shorter stretches that add up to it, if they are this share of a channel's speech."""

LANGUAGE_PROBABILITY = 0.5
"""Below this Whisper's guess of the language is no better than a coin's."""

KNOWN_PHRASES = frozenset(
    {
        "you",
        "thank you",
        "thank you very much",
        "thanks for watching",
        "thank you for watching",
        "thank you so much for watching",
        "please subscribe",
        "please subscribe to my channel",
        "like and subscribe",
        "see you in the next video",
        "see you next time",
        "bye",
        "bye bye",
        "subtitles by the amara org community",
        "transcription by castingwords",
        "untertitel der amara org community",
        "untertitelung des zdf",
        "sous titres realises para la communaute d amara org",
        "amara org",
    }
)
"""Phrases of subtitles, without case and punctuation. Real people say some of them: a flag, not a verdict."""

LETTERS_PER_WORD: dict[str, float] = {
    "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff": 2,
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff": 4,
}
"""Scripts that put no spaces between words, and how many letters stand for a word in a rate: Chinese is spoken at about
5 characters a second and Japanese at 6 to 8; Thai, Lao, Khmer, Burmese and Tibetan at 12 to 14, signs for vowels and
tones included."""

_UNSPACED = {re.compile(f"[{letters}]"): count for letters, count in LETTERS_PER_WORD.items()}


@cache
def _word() -> re.Pattern[str]:
    r"""A word: what ``\w`` matches, and the marks that belong to the letters before them.

    Python's ``\w`` leaves out combining marks, which would split the words of Hindi, Tamil or vocalised Arabic.
    """
    marks = "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c) in ("Mn", "Mc"))
    return re.compile(rf"\w[\w{marks}]*")


def words_of(text: str) -> list[str]:
    """The words of a text, lower-cased, without punctuation."""
    return _word().findall(text.casefold().replace("'", ""))


def spoken_words(text: str) -> float:
    """How many words a text has for a rate of speech, also where no spaces tell: there its letters are counted.

    >>> spoken_words("It was the best of times."), spoken_words("今天天气很好")
    (6.0, 3.0)
    """
    words = 0.0
    for letters, count in _UNSPACED.items():
        text, found = letters.subn(" ", text)
        words += found / count
    return words + len(words_of(text))


_OTHER_LETTER = re.compile("[\u0370-\u1dff\u1f00-\u1fff\u2c00-\ud7ff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")
"""A letter that is not Latin; symbols and emoji are none."""


def compression_ratio(text: str) -> float:
    """Bytes of the text over bytes after zlib: Whisper's measure of repetition, made comparable across scripts.

    UTF-8 spends two or three bytes on each letter of most scripts, which zlib finds again: ordinary Hindi would seem
    twice as repetitive as English. So every letter that is not Latin counts as one byte, as Latin ones do.
    """
    bytes_of: dict[str, bytes] = {}
    for letter in _OTHER_LETTER.findall(text):
        bytes_of.setdefault(letter, bytes([0x80 + len(bytes_of) % 0x80]))
    data = b"".join(bytes_of.get(c) or c.encode("utf-8") for c in text) if bytes_of else text.encode("utf-8")
    return len(data) / len(zlib.compress(data)) if data else 0.0


def repeats(text: str) -> bool:
    """Whether the same few words follow each other again and again."""
    words = words_of(text)
    for size in range(1, REPEATED_NGRAM + 1):
        run = 0
        for i in range(size, len(words) - size + 1):
            run = run + 1 if words[i : i + size] == words[i - size : i] else 0
            # An n-gram said t times in a row equals its forerunner at (t - 2) * n + 1 neighbouring places.
            if run >= (REPEATED_TIMES - 2) * size + 1:
                return True
    return False


def echoes(text: str) -> bool:
    """Whether a phrase of a few words is said twice in a row, as Whisper does when its window is short."""
    words = words_of(text)
    return any(
        words[i - size : i] == words[i : i + size]
        for size in range(ECHOED_WORDS, len(words) // 2 + 1)
        for i in range(size, len(words) - size + 1)
    )


def says_again(text: str) -> bool:
    """Whether a text echoes, or is nothing but one phrase said several times: reason for another look, not for a flag.

    People do say "no, no"; a short window in which Whisper meets no silence makes it say anything two or three times.
    """
    words = words_of(text)
    sizes = (size for size in range(1, len(words) // 2 + 1) if len(words) % size == 0)
    return any(words == words[:size] * (len(words) // size) for size in sizes) or echoes(text)


def judge_segment(segment: Segment) -> list[str]:
    """The flags of one segment."""
    flags = []
    if segment.no_speech_prob is not None and segment.no_speech_prob > NO_SPEECH_PROB:
        doubtful = segment.avg_logprob is None or segment.avg_logprob < DOUBTFUL_LOGPROB
        if doubtful:
            flags.append("no_speech")
    ratio = segment.compression_ratio
    # A server measures bytes.
    if ratio is None or _OTHER_LETTER.search(segment.text):
        ratio = compression_ratio(segment.text)
    if ratio > HIGH_COMPRESSION or repeats(segment.text) or echoes(segment.text):
        flags.append("repetition")
    if segment.avg_logprob is not None and segment.avg_logprob < LOW_LOGPROB:
        flags.append("low_confidence")
    words = spoken_words(segment.text)
    length_s = segment.end_s - segment.start_s
    if words >= RATE_MIN_WORDS and words > MAX_WORDS_PER_S * max(length_s, 0.1):
        flags.append("implausible_rate")
    if " ".join(words_of(segment.text)) in KNOWN_PHRASES:
        flags.append("known_phrase")
    return flags


def is_phantom(segment: Segment, speech: Sequence[tuple[float, float]]) -> bool:
    """Whether a text was invented, should it be all that its file has, or the file hold nearly no speech.

    The model doubts by itself that there is speech under it, has no confidence in its words or gives a known phrase,
    and voice activity detection hears next to nothing. ``speech`` are the spans of the segment's channel.
    """
    flags = judge_segment(segment)
    if "no_speech" not in flags or not ("low_confidence" in flags or "known_phrase" in flags):
        return False
    return _speech_under(segment, speech) < PHANTOM_MAX_S


def without_phantoms(
    segments: Sequence[Segment], duration_s: float, speech: Mapping[int | None, Sequence[tuple[float, float]]]
) -> list[Segment]:
    """The segments of a file that are not invented: those beside speech of some length all stay."""
    real = [s for s in segments if not is_phantom(s, speech.get(s.channel, ()))]
    return real if not real or nearly_no_speech(duration_s, speech) else list(segments)


def _speech_under(segment: Segment, speech: Sequence[tuple[float, float]]) -> float:
    return sum(max(0.0, min(b, segment.end_s) - max(a, segment.start_s)) for a, b in speech)


def nearly_no_speech(duration_s: float, speech: Mapping[int | None, Sequence[tuple[float, float]]]) -> bool:
    """Whether voice activity detection hears next to nothing in a file."""
    speech_s = sum(b - a for spans in speech.values() for a, b in spans)
    return speech_s < MIN_SPEECH_S or speech_s < MIN_SPEECH_SHARE * duration_s


def _surely_spoken(segments: Sequence[Segment], speech: Mapping[int | None, Sequence[tuple[float, float]]]) -> bool:
    """Whether so much of the text is beyond doubt that there was speech, be it ever so little of a long file."""
    sure = [
        segment
        for segment in segments
        if segment.no_speech_prob is not None
        and segment.no_speech_prob <= NO_SPEECH_PROB
        and segment.avg_logprob is not None
        and segment.avg_logprob >= DOUBTFUL_LOGPROB
        and not judge_segment(segment)
    ]
    return sum(_speech_under(segment, speech.get(segment.channel, ())) for segment in sure) >= SURE_SPEECH_S


def judge_file(
    segments: Sequence[Segment],
    *,
    duration_s: float,
    speech: Mapping[int | None, Sequence[tuple[float, float]]],
    language: str | None = None,
    language_probability: float | None = None,
    language_asked: str | None = None,
    truncated: bool = False,
    clipped: bool = False,
) -> list[str]:
    """The flags of a file, in the order of `FLAGS`.

    ``speech`` are the spans where voice activity detection hears speech, in seconds, by the channel of the segments
    that they belong to.
    """
    found = {flag for segment in segments for flag in judge_segment(segment)}
    text = " ".join(s.text for s in segments).strip()
    # A known phrase inside a longer text is what somebody said; only alone it is suspicious.
    if "known_phrase" in found and " ".join(words_of(text)) not in KNOWN_PHRASES and len(segments) < 2:
        found.discard("known_phrase")
    speech_s = sum(b - a for spans in speech.values() for a, b in spans)
    if text and nearly_no_speech(duration_s, speech) and not _surely_spoken(segments, speech):
        found.add("no_speech")
    words = spoken_words(text)
    if speech_s >= RATE_MIN_SPEECH_S and words < MIN_WORDS_PER_S * speech_s:
        found.add("implausible_rate")
    if words >= RATE_MIN_WORDS and words > MAX_WORDS_PER_S * max(speech_s, 0.1):
        found.add("implausible_rate")
    # One speaker's text says nothing of what another said at the same time.
    if any(loses_speech([s for s in segments if s.channel == channel], spans) for channel, spans in speech.items()):
        found.add("uncovered_speech")
    if text and language_probability is not None and language_probability < LANGUAGE_PROBABILITY:
        found.add("language_mismatch")
    if language_asked is not None and language is not None and language != language_asked:
        found.add("language_mismatch")
    if truncated:
        found.add("truncated")
    if clipped:
        found.add("clipped")
    return [flag for flag in FLAGS if flag in found]


def loses_speech(segments: Sequence[Segment], speech: Sequence[tuple[float, float]]) -> bool:
    """Whether a long stretch of the speech of one channel has no text, or much of it in short ones."""
    lengths_s = uncovered_s(segments, speech)
    speech_s = sum(b - a for a, b in speech)
    return max(lengths_s, default=0.0) >= UNCOVERED_S or sum(lengths_s) >= max(UNCOVERED_S, UNCOVERED_SHARE * speech_s)


def uncovered_s(segments: Sequence[Segment], speech: Sequence[tuple[float, float]]) -> list[float]:
    """Seconds of each stretch of speech that no segment covers."""
    covered = sorted((s.start_s, s.end_s) for s in segments if s.text.strip())
    lengths_s = []
    for start, end in speech:
        at = start
        for a, b in covered:
            if b <= at:
                continue
            if a >= end:
                break
            lengths_s.append(a - at)
            at = max(at, b)
        lengths_s.append(end - at)
    return [length_s for length_s in lengths_s if length_s > 0]
