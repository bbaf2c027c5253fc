"""A small corpus in a database, with recordings beside it."""

import math
import struct
import wave
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from audio_assets import schemas
from audio_assets.summary.statistics import count_tokens, summarize_prefix
from audio_assets.text.tokenize import tokenize

HOSTILE = "<img src=x onerror=alert(1)> </script><script>alert('x')</script> javascript:alert(2)"


def object_row(
    id: str, status: str = "ok", duration_s: float | None = 4.0, error: str | None = None
) -> dict[str, object]:
    prefix = id.rpartition("/")[0]
    return {
        "id": id,
        "prefix": prefix + "/" if prefix else "",
        "status": status,
        "duration_s": duration_s,
        "error": error,
    }


def transcript_row(id: str, pieces: list[tuple[float, float, str]], **more: object) -> dict[str, object]:
    return {
        **object_row(id),
        "transcription": " ".join(text for _, _, text in pieces),
        "language": "en",
        "speech_s": 3.0,
        "engine": "local",
        "model": "tiny.en",
        "cached": False,
        "cost_usd": 0.0,
        "flags": [],
        "segments": [
            {"start_s": a, "end_s": b, "text": " " + text, "avg_logprob": -0.25, "words": None} for a, b, text in pieces
        ],
        **more,
    }


def database(
    raw_audio: pa.Table, transcripts: pa.Table, quality: pa.Table | None = None, changes: pa.Table | None = None
) -> duckdb.DuckDBPyConnection:
    """The tables that the report and the corpus summary read, filled as the pipeline fills them."""
    tokens = tokenize(transcripts)
    summaries, frequencies = [], []
    for prefix in sorted(set(raw_audio.column("prefix").to_pylist())):
        part = [t.filter(pc.equal(t["prefix"], prefix)) for t in (raw_audio, transcripts, tokens)]
        summaries.append(summarize_prefix(prefix, *part))
        frequencies.append(count_tokens(prefix, part[2]))
    tables = {
        "raw_audio": raw_audio,
        "transcripts": transcripts,
        "tokens": tokens,
        "transcript_quality": schemas.TRANSCRIPT_QUALITY.empty() if quality is None else quality,
        "prefix_drift": schemas.PREFIX_DRIFT.empty() if changes is None else changes,
        "prefix_summary": pa.concat_tables(summaries) if summaries else schemas.PREFIX_SUMMARY.empty(),
        "token_frequency": pa.concat_tables(frequencies) if frequencies else schemas.TOKEN_FREQUENCY.empty(),
    }
    connection = duckdb.connect()
    for name, table in tables.items():
        connection.register("arrow", table)
        connection.execute(f"CREATE TABLE {name} AS FROM arrow")
        connection.unregister("arrow")
    return connection


def write_tone(path: Path, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        samples = (int(9000 * math.sin(i / 6)) for i in range(int(8000 * seconds)))
        file.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))


@pytest.fixture
def corpus() -> Iterator[duckdb.DuckDBPyConnection]:
    """Two prefixes and the root: good, flagged, silent, hostile, gone and undecodable recordings."""
    raw = [
        object_row("a/one.wav"),
        object_row("a/two & 100%.wav"),
        object_row("a/text.mp3", "invalid", None, "no audio in it: the bytes are text"),
        object_row("b/silence.wav"),
        object_row("b/late.wav"),
        object_row("\u202egpj<b>.wav", "gone"),
    ]
    transcripts = [
        transcript_row(
            "a/one.wav", [(0.5, 1.5, "It was the best of times,"), (2.5, 3.5, "it was the worst of times.")]
        ),
        transcript_row(
            "a/two & 100%.wav", [(0.0, 2.0, "We had everything before us.")], flags=["low_confidence"], cached=True
        ),
        {**object_row("a/text.mp3", "invalid", None, "no audio in it: the bytes are text")},
        transcript_row("b/silence.wav", [], status="empty", segments=[], speech_s=0.0),
        {**object_row("b/late.wav", "deferred", None, "rate limit: retry after 20 s")},
        transcript_row("\u202egpj<b>.wav", [(0.0, 1.0, HOSTILE)], status="gone", flags=["<i>odd</i>"]),
    ]
    with database(schemas.RAW_AUDIO.from_rows(raw), schemas.TRANSCRIPTS.from_rows(transcripts)) as connection:
        yield connection


@pytest.fixture
def empty_corpus() -> Iterator[duckdb.DuckDBPyConnection]:
    """Every table, no rows."""
    with database(schemas.RAW_AUDIO.empty(), schemas.TRANSCRIPTS.empty()) as connection:
        yield connection
