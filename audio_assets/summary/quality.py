"""How far a transcript can be trusted: a score, a grade and the reason, every threshold in one place.

The score starts at 1. Each flag takes a share of what is left, in proportion to how often such a text turned out to be
wrong; doubtful words and speech without text take as much as there is of them. Nothing here is learned: the shares are
judgements, and stand here to be changed.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from audio_assets import schemas

GRADE_FROM: dict[str, float] = {"A": 0.9, "B": 0.75, "C": 0.6, "D": 0.4, "F": 0.0}
"""The lowest score of each grade."""

GRADE_MEANINGS: dict[str, str] = {
    "A": "use it",
    "B": "small doubts",
    "C": "read it first",
    "D": "listen to it",
    "F": "not usable",
}
"""What to do with a transcript of each grade."""

FLAG_PENALTIES: dict[str, tuple[float, str]] = {
    "no_speech": (0.6, "there is nearly no speech under the text"),
    "repetition": (0.5, "the text repeats itself"),
    "known_phrase": (0.5, "nothing but a phrase that Whisper invents"),
    "low_confidence": (0.4, "the model is unsure of a part"),
    "incomplete": (0.4, "a part has no result yet"),
    "implausible_rate": (0.35, "more or fewer words than the time of speech allows"),
    "language_mismatch": (0.3, "the language is uncertain or not the one asked for"),
    "truncated": (0.25, "the file is cut short or damaged"),
    "uncovered_speech": (0.2, "speech without text"),
    "clipped": (0.1, "the recording is overdriven"),
}
"""The share of the score that each flag of the speech stage takes, and what it means in a reason."""

OTHER_PENALTY = 0.2
"""What a flag takes that is not known here: an engine may have its own."""

SURE = 0.6
"""Mean probability of the words from which confidence takes nothing; Whisper's usual text lies above."""

COVERED = 0.9
"""Share of speech under text from which coverage takes nothing: pauses inside and edges of speech make up the rest."""

UNCOVERED_S = 2.0
"""Speech of this length without text is listed: a stretch that raises the flag by itself."""

QUIET_DBFS = -45.0
QUIET_PENALTY = 0.1
"""Quieter recordings than this drown in the noise of their microphones."""

_TEXT_COLUMNS = ["id", "prefix", "status", "language", "transcription", "duration_s", "speech_s", "segments", "flags"]
COLUMNS = [*_TEXT_COLUMNS, "speech_spans", "loudness_dbfs"]
"""Columns of `schemas.TRANSCRIPTS` that are read."""

Span = tuple[float, float]


def grade_transcripts(transcripts: pa.Table, tokens: pa.Table) -> pa.Table:
    """Judge every transcript.

    Args:
        transcripts: rows of `schemas.TRANSCRIPTS`; the columns `COLUMNS` are enough.
        tokens: the rows of `schemas.TOKENS` that belong to them; ``id`` and ``tokens`` are enough.

    Returns:
        `schemas.TRANSCRIPT_QUALITY`, one row per row of ``transcripts`` and in its order. A row without words has no
        grade. Coverage is null where the spans of speech are not known.
    """
    words = dict(
        zip(tokens.column("id").to_pylist(), (len(t) if t else 0 for t in _lists(tokens, "tokens")), strict=True)
    )
    rows = [
        _quality(row, words.get(row["id"], 0))
        for batch in transcripts.select(COLUMNS).to_batches(4096)
        for row in batch.to_pylist()
    ]
    return schemas.TRANSCRIPT_QUALITY.from_rows(rows)


def _lists(table: pa.Table, name: str) -> Iterable[list[str] | None]:
    for chunk in table.column(name).chunks:
        yield from chunk.to_pylist()


def grade_of(score: float) -> str:
    """The grade of a score between 0 and 1.

    >>> grade_of(0.91), grade_of(0.2)
    ('A', 'F')
    """
    return next(grade for grade, least in GRADE_FROM.items() if score >= least)


def _quality(row: Mapping[str, Any], words: int) -> dict[str, object]:
    segments = [s for s in row["segments"] or [] if (s["text"] or "").strip()]
    flags = list(row["flags"] or [])
    speech = None
    if row["speech_spans"] is not None:
        speech = merged((s["start_s"], s["end_s"]) for s in row["speech_spans"])
    under_text = merged((s["start_s"], s["end_s"]) for s in segments if _timed(s))
    heard_s = None if speech is None else _length(speech)
    covered_s = None if speech is None else _length(_common(speech, under_text))
    coverage = covered_s / heard_s if heard_s and covered_s is not None else None
    gaps = [] if speech is None else [gap for gap in _without(speech, under_text) if gap[1] - gap[0] >= UNCOVERED_S]
    duration_s, speech_s = row["duration_s"], row["speech_s"]
    known = duration_s and speech_s is not None
    confidence = _confidence(segments)
    score, reason = None, _why_ungraded(row, words)
    if reason is None:
        score, reason = _score(flags, confidence, coverage, gaps, row["loudness_dbfs"])
    return {
        "id": row["id"],
        "prefix": row["prefix"],
        "status": row["status"],
        "language": row["language"],
        "duration_s": duration_s,
        "speech_s": speech_s,
        "covered_s": covered_s,
        "coverage_share": coverage,
        "uncovered": None if speech is None else [{"start_s": a, "end_s": b} for a, b in gaps],
        "words": words,
        "words_per_s": words / speech_s if words and speech_s else None,
        "confidence": confidence,
        "compression_ratio": max((_compression(s) for s in segments), default=None),
        "silence_share": min(1.0, max(0.0, 1 - speech_s / duration_s)) if known else None,
        "loudness_dbfs": row["loudness_dbfs"],
        "clipped": "clipped" in flags if row["transcription"] is not None else None,
        "flags": flags,
        "score": score,
        "grade": None if score is None else grade_of(score),
        "reason": reason,
    }


def _why_ungraded(row: Mapping[str, Any], words: int) -> str | None:
    if row["transcription"] is None:
        return f"no transcript: {schemas.STATUSES.get(row['status'], row['status'])}"
    return None if words else "no words: there is nothing to grade"


def _score(
    flags: Sequence[str],
    confidence: float | None,
    coverage: float | None,
    gaps: Sequence[Span],
    loudness_dbfs: float | None,
) -> tuple[float, str]:
    """The score, and what lowered it, the heaviest first."""
    losses: list[tuple[float, str]] = []
    for flag in flags:
        share, meaning = FLAG_PENALTIES.get(flag, (OTHER_PENALTY, flag.replace("_", " ")))
        if flag == "uncovered_speech" and gaps:
            start, end = max(gaps, key=lambda gap: gap[1] - gap[0])
            meaning = f"{end - start:.1f} s of speech without text at {start:.1f} s"
        losses.append((share, meaning))
    if confidence is not None and confidence < SURE:
        losses.append((1 - confidence / SURE, f"the model gives its words a probability of {100 * confidence:.0f} %"))
    if coverage is not None and coverage < COVERED:
        losses.append((1 - coverage / COVERED, f"{100 * coverage:.0f} % of the speech is under text"))
    if loudness_dbfs is not None and loudness_dbfs < QUIET_DBFS:
        losses.append((QUIET_PENALTY, f"very quiet: {loudness_dbfs:.0f} dBFS"))
    score = math.prod(1 - share for share, _ in losses)
    losses.sort(key=lambda loss: -loss[0])
    return max(0.0, score), "; ".join(meaning for _, meaning in losses) or "nothing speaks against it"


def _confidence(segments: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean probability of a token, segments weighted by their length; None when the engine gives none."""
    sure = [
        (math.exp(min(0.0, s["avg_logprob"])), max(s["end_s"] - s["start_s"], 0.01) if _timed(s) else 0.01)
        for s in segments
        if s["avg_logprob"] is not None
    ]
    return sum(p * length for p, length in sure) / sum(length for _, length in sure) if sure else None


def _compression(segment: Mapping[str, Any]) -> float:
    if segment["compression_ratio"] is not None:
        return float(segment["compression_ratio"])
    data = segment["text"].encode("utf-8")
    return len(data) / len(zlib.compress(data))


def _timed(segment: Mapping[str, Any]) -> bool:
    return segment["start_s"] is not None and segment["end_s"] is not None


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same stretches of time, in order and without overlap.

    >>> merged([(3.0, 4.0), (0.0, 2.0), (1.0, 3.0)])
    [(0.0, 4.0)]
    """
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        elif end > start:
            found.append((start, end))
    return found


def _length(spans: Iterable[Span]) -> float:
    return sum(end - start for start, end in spans)


def _common(some: Sequence[Span], others: Sequence[Span]) -> list[Span]:
    """Where both are; each is in order and without overlap."""
    found, i, j = [], 0, 0
    while i < len(some) and j < len(others):
        start, end = max(some[i][0], others[j][0]), min(some[i][1], others[j][1])
        if end > start:
            found.append((start, end))
        if some[i][1] < others[j][1]:
            i += 1
        else:
            j += 1
    return found


def _without(some: Sequence[Span], others: Sequence[Span]) -> list[Span]:
    """Where ``some`` are and ``others`` are not."""
    found = []
    for start, end in some:
        at = start
        for a, b in _common([(start, end)], others):
            if a > at:
                found.append((at, a))
            at = b
        if end > at:
            found.append((at, end))
    return found
