"""The columns of every table: the one source for Arrow, pandera, DuckDB, the Dagster UI and the documentation.

Times are in seconds (``_s``), money in US dollars (``_usd``), sizes in bytes (``_bytes``), rates in hertz (``_hz``).
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from audio_assets.errors import SchemaError

STATUSES: dict[str, str] = {
    "ok": "transcribed",
    "empty": "decodes, but holds no speech",
    "partial": "transcribed in part; the next run completes it",
    "invalid": "not audio that can be decoded",
    "failed": "tried and gave up; the next run tries again",
    "deferred": "put off by a rate limit or a budget; the next run tries again",
    "gone": "no longer in the bucket; the last transcript is kept",
}
"""Every value that a ``status`` column may hold, with its meaning."""

UNFINISHED = ("failed", "partial", "deferred")
"""Statuses that the next run tries again; a run that leaves any of them did not finish its work."""

GRADES = ("A", "B", "C", "D", "F")
"""Grades of a transcript, the best first; `summary.quality` says what each takes."""


@dataclass(frozen=True)
class Column:
    """One column: its Arrow type, whether it may be null, and what it holds."""

    name: str
    type: pa.DataType
    description: str
    nullable: bool = True

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        """Least and greatest value that it may hold, by its name and type; None where there is no limit.

        Whole numbers are counts and sizes; times, money and hours are never negative; shares and probabilities lie
        between 0 and 1.
        """
        if self.name == "sentiment":
            return -1.0, 1.0
        if self.name.endswith(_SHARES) or self.name in ("score", "confidence"):
            return 0.0, 1.0
        if pa.types.is_integer(self.type) or self.name.endswith(_NEVER_NEGATIVE):
            return 0.0, None
        return None, None


_SHARES = ("_share", "_probability")
_NEVER_NEGATIVE = ("_s", "_usd", "_usd_per_minute", "hours", "words_per_minute", "words_p50", "words_p90")


@dataclass(frozen=True)
class Table:
    """One table: its columns in order and the columns that identify a row.

    ``partitioned`` tables hold one partition per R2 prefix; the others are replaced as a whole.
    """

    name: str
    description: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    partitioned: bool = True

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema, columns in order, nullability included."""
        return pa.schema([pa.field(c.name, c.type, c.nullable) for c in self.columns])

    @property
    def column_names(self) -> list[str]:
        """Names of the columns, in order."""
        return [c.name for c in self.columns]

    def empty(self) -> pa.Table:
        """A table of zero rows."""
        return self.schema.empty_table()

    def from_rows(self, rows: list[dict[str, object]]) -> pa.Table:
        """Build a table from one dict per row; absent nullable columns become null.

        Raises:
            SchemaError: a row has an unknown column or a value of the wrong type.
        """
        known = set(self.column_names)
        for row in rows:
            unknown = row.keys() - known
            if unknown:
                raise SchemaError(
                    f"table {self.name}: unknown column {sorted(unknown)[0]!r}; see audio_assets/schemas.py"
                )
        try:
            arrays = [pa.array([row.get(c.name) for row in rows], type=c.type) for c in self.columns]
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise SchemaError(f"table {self.name}: a value does not fit its column: {error}") from error
        return self.conform(pa.Table.from_arrays(arrays, schema=self.schema))

    def conform(self, data: pa.Table) -> pa.Table:
        """Return ``data`` with exactly this table's columns, matched by name, in this table's order.

        Integers may widen and a column of nulls takes any type; nothing else is converted.

        Raises:
            SchemaError: a column is missing, unknown, of another type, or null where it may not be.
        """
        names = data.column_names
        if len(set(names)) != len(names):
            raise SchemaError(f"table {self.name}: duplicate column names in {names}")
        missing = [c.name for c in self.columns if c.name not in names]
        extra = [n for n in names if n not in set(self.column_names)]
        if missing or extra:
            raise SchemaError(
                f"table {self.name}: missing columns {missing}, unknown columns {extra}; see audio_assets/schemas.py"
            )
        arrays = []
        for column in self.columns:
            values = data.column(column.name)
            if values.type != column.type:
                if not _convertible(values.type, column.type):
                    raise SchemaError(
                        f"table {self.name}: column {column.name} is {values.type}, expected {column.type}"
                    )
                try:
                    values = values.cast(column.type)
                except pa.ArrowException as error:
                    raise SchemaError(f"table {self.name}: column {column.name}: {error}") from error
            if not column.nullable and values.null_count:
                raise SchemaError(
                    f"table {self.name}: column {column.name} has {values.null_count} nulls and may have none"
                )
            arrays.append(values)
        return pa.Table.from_arrays(arrays, schema=self.schema)


def _convertible(have: pa.DataType, want: pa.DataType) -> bool:
    """Whether ``have`` may become ``want`` without changing what a value means."""
    if pa.types.is_null(have):
        return True
    if pa.types.is_integer(have) and (pa.types.is_integer(want) or pa.types.is_floating(want)):
        return True
    if pa.types.is_floating(have) and pa.types.is_floating(want):
        return True
    if pa.types.is_timestamp(have) and pa.types.is_timestamp(want):
        return bool(have.tz == want.tz)
    string = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if any(test(have) for test in string) and pa.types.is_string(want):
        return True
    lists = (pa.types.is_list, pa.types.is_large_list)
    if any(test(have) for test in lists) and pa.types.is_list(want):
        return have.value_type == want.value_type or _convertible(have.value_type, want.value_type)
    if pa.types.is_struct(have) and pa.types.is_struct(want):
        if [f.name for f in have] != [f.name for f in want]:
            return False
        return all(h.type == w.type or _convertible(h.type, w.type) for h, w in zip(have, want, strict=True))
    if pa.types.is_map(have) and pa.types.is_map(want):
        return bool(have.key_type == want.key_type and have.item_type == want.item_type)
    return False


_STR = pa.string()
_F64 = pa.float64()
_I64 = pa.int64()
_BOOL = pa.bool_()
_STRINGS = pa.list_(_STR)
_TIME = pa.timestamp("us", tz="UTC")

WORD = pa.struct([("start_s", _F64), ("end_s", _F64), ("word", _STR), ("probability", _F64)])
SEGMENT = pa.struct(
    [
        ("start_s", _F64),
        ("end_s", _F64),
        ("text", _STR),
        ("avg_logprob", _F64),
        ("no_speech_prob", _F64),
        ("compression_ratio", _F64),
        ("words", pa.list_(WORD)),
        ("channel", _I64),
        ("language", _STR),
        ("flags", _STRINGS),
    ]
)
SPAN = pa.struct(
    [
        ("token", _STR),
        ("lemma", _STR),
        ("is_stop", _BOOL),
        ("start_char", _I64),
        ("end_char", _I64),
        ("start_s", _F64),
        ("end_s", _F64),
        # "words": by the engine's own words; "segment": interpolated over the segment's characters.
        ("time_source", _STR),
    ]
)
TIME_SPAN = pa.struct([("start_s", _F64), ("end_s", _F64)])
ENTITY = pa.struct([("text", _STR), ("label", _STR), ("start_char", _I64), ("end_char", _I64)])
PII = pa.struct([("label", _STR), ("start_char", _I64), ("end_char", _I64), ("start_s", _F64), ("end_s", _F64)])

_ID = Column("id", _STR, "the R2 object key, exactly as listed", nullable=False)
_PREFIX = Column(
    "prefix", _STR, "the R2 prefix of the partition, with its trailing '/'; '' for the bucket's root", nullable=False
)
_STATUS = Column("status", _STR, "one of " + ", ".join(STATUSES), nullable=False)
_ERROR = Column("error", _STR, "short reason when the status is not ok")

R2_PREFIXES = Table(
    "r2_prefixes",
    "The bucket's prefixes that hold audio; each is a partition of the other tables.",
    (
        _PREFIX,
        Column("partition", _STR, "the Dagster partition key of the prefix", nullable=False),
        Column("object_count", _I64, "objects of the prefix that count; null when they were not counted"),
        Column("size_bytes", _I64, "their total size; null when they were not counted"),
        Column("digest", _STR, "equal for the same keys, ETags and sizes; null when they were not counted"),
    ),
    key=("prefix",),
    partitioned=False,
)

RAW_AUDIO = Table(
    "raw_audio",
    "One row per audio object: what the bucket says of it, and what its bytes are.",
    (
        _ID,
        _PREFIX,
        Column("etag", _STR, "R2's ETag without quotes; says 'changed', never 'same content'"),
        Column("size_bytes", _I64, "size of the object"),
        Column("last_modified", _TIME, "when R2 stored the object (UTC)"),
        Column("content_type", _STR, "Content-Type stored with the object"),
        Column("metadata", pa.map_(_STR, _STR), "user metadata stored with the object"),
        Column("sha256", _STR, "SHA-256 of the bytes, hexadecimal"),
        Column("container", _STR, "container format, as FFmpeg names it"),
        Column("codec", _STR, "audio codec, as FFmpeg names it"),
        Column("sample_rate_hz", _I64, "sample rate of the first audio stream"),
        Column("channels", _I64, "channels of the first audio stream"),
        Column("duration_s", _F64, "length that the header states"),
        Column("probe", _I64, "version of what looked at the bytes; null where nothing did, or one without a version"),
        _STATUS,
        _ERROR,
    ),
    key=("id",),
)

TRANSCRIPTS = Table(
    "transcripts",
    "One row per audio object: what Whisper heard, how sure it was, and what it cost.",
    (
        _ID,
        _PREFIX,
        Column("sha256", _STR, "SHA-256 of the transcribed bytes, hexadecimal"),
        Column("transcription", _STR, "the text; '' when there is no speech; null when there is no result"),
        Column("language", _STR, "ISO 639-1 code of the language"),
        Column("language_probability", _F64, "0 to 1; null when the engine does not say"),
        Column("duration_s", _F64, "length of the decoded audio"),
        Column("speech_s", _F64, "length of the speech in it, by voice activity detection"),
        Column(
            "segments",
            pa.list_(SEGMENT),
            "timed pieces of the text, with Whisper's confidence and the language of their window",
        ),
        Column("speech_spans", pa.list_(TIME_SPAN), "where voice activity detection hears speech; null if not kept"),
        Column("loudness_dbfs", _F64, "root mean square of the decoded audio, against full scale; null if unknown"),
        Column("engine", _STR, "local or openai"),
        Column("model", _STR, "name of the model"),
        Column("fingerprint", _STR, "SHA-256 over engine, model, decoding options and pipeline version"),
        Column("cached", _BOOL, "whether the result came from the cache"),
        Column(
            "cost_usd",
            _F64,
            "what this result cost when it was made; 0 for a copy of bytes that another key has paid for",
        ),
        Column("elapsed_s", _F64, "time spent making the result"),
        Column("flags", _STRINGS, "reasons to mistrust the text"),
        _STATUS,
        _ERROR,
    ),
    key=("id",),
)

TOKENS = Table(
    "tokens",
    "One row per audio object: the words of its transcript, in order.",
    (
        _ID,
        _PREFIX,
        Column("language", _STR, "language whose rules split the text"),
        Column("transcription", _STR, "the text that the offsets point into"),
        Column("tokens", _STRINGS, "normalized words, in order"),
        Column("content_tokens", _STRINGS, "the same without stop words"),
        Column("spans", pa.list_(SPAN), "each token with lemma, character offsets, times and where these come from"),
        Column("sentence_count", _I64, "sentences in the text"),
        Column("bpe_count", _I64, "tokens of the configured BPE tokenizer; null without one"),
        Column("entities", pa.list_(ENTITY), "named entities; null when not asked for"),
        Column("sentiment", _F64, "-1 (negative) to 1 (positive); null when not asked for, or not English"),
        Column("pii", pa.list_(PII), "personal data, with the times to mute; null when not asked for"),
        Column("redacted", _STR, "the text with personal data replaced by its label; null when not asked for"),
    ),
    key=("id",),
)

TRANSCRIPT_QUALITY = Table(
    "transcript_quality",
    "One row per audio object: how far its transcript can be trusted, and why.",
    (
        _ID,
        _PREFIX,
        _STATUS,
        Column("language", _STR, "ISO 639-1 code of the language"),
        Column("duration_s", _F64, "length of the decoded audio"),
        Column("speech_s", _F64, "length of the speech in it, by voice activity detection"),
        Column("covered_s", _F64, "of the speech, what lies under text"),
        Column("coverage_share", _F64, "covered_s over the speech, 0 to 1; null when its spans are not known"),
        Column("uncovered", pa.list_(TIME_SPAN), "stretches of speech of 2 s and more without text"),
        Column("words", _I64, "words of the transcript", nullable=False),
        Column("words_per_s", _F64, "words per second of speech"),
        Column("confidence", _F64, "mean probability of the words, 0 to 1; null when the engine does not say"),
        Column(
            "compression_ratio",
            _F64,
            "of the most repetitive segment: bytes of text over bytes after zlib, by the engine",
        ),
        Column("silence_share", _F64, "share of the recording without speech, 0 to 1"),
        Column("loudness_dbfs", _F64, "root mean square of the decoded audio, against full scale"),
        Column("clipped", _BOOL, "whether the recording is overdriven"),
        Column("flags", _STRINGS, "reasons to mistrust the text"),
        Column("score", _F64, "0 (useless) to 1; null without words"),
        Column("grade", _STR, "A (use it), B, C, D or F (not usable); null without words"),
        Column("reason", _STR, "what lowered the score, the heaviest first", nullable=False),
    ),
    key=("id",),
)

PREFIX_SUMMARY = Table(
    "prefix_summary",
    "One row per prefix: how much there is, how good it is, and what it cost.",
    (
        _PREFIX,
        Column("files", _I64, "objects", nullable=False),
        *(
            Column(f"files_{name}", _I64, f"objects with status {name}: {meaning}", nullable=False)
            for name, meaning in STATUSES.items()
        ),
        Column("hours", _F64, "hours of audio", nullable=False),
        Column("speech_hours", _F64, "hours of speech", nullable=False),
        Column("words", _I64, "words transcribed", nullable=False),
        Column("words_per_minute", _F64, "words per minute of speech; null without speech"),
        Column("vocabulary", _I64, "different words", nullable=False),
        Column("cost_usd", _F64, "what the transcripts cost when they were made", nullable=False),
        Column("cached_share", _F64, "share of transcripts that came from the cache, 0 to 1; null without transcripts"),
        Column("flagged_share", _F64, "share of transcripts with a flag, 0 to 1; null without transcripts"),
        Column("duration_p50_s", _F64, "median length of a recording"),
        Column("duration_p90_s", _F64, "90th percentile of the length"),
        Column("duration_p99_s", _F64, "99th percentile of the length"),
        Column("words_p50", _F64, "median words per transcript"),
        Column("words_p90", _F64, "90th percentile of words per transcript"),
        Column("avg_logprob_p10", _F64, "10th percentile of the segments' mean log probability: the uncertain tail"),
    ),
    key=("prefix",),
)

TOKEN_FREQUENCY = Table(
    "token_frequency",
    "One row per prefix and word: how often it occurs, and in how many recordings.",
    (
        _PREFIX,
        Column("token", _STR, "the word, normalized", nullable=False),
        Column("count", _I64, "occurrences in the prefix", nullable=False),
        Column("document_count", _I64, "recordings of the prefix that hold it", nullable=False),
        Column("is_stop", _BOOL, "whether it is a stop word of its language", nullable=False),
    ),
    key=("prefix", "token"),
)

PREFIX_STATISTICS = Table(
    "prefix_statistics",
    "How a prefix is spread: one row per bigram, point of the vocabulary's growth, bin, language and grade.",
    (
        _PREFIX,
        Column(
            "statistic",
            _STR,
            "bigram, vocabulary_growth, heaps_k, heaps_beta, language, grade; or the distribution of duration_s, "
            "words, words_per_minute, confidence or score",
            nullable=False,
        ),
        Column("position", _I64, "order within the statistic, from 0", nullable=False),
        Column("item", _STR, "the pair of words, the language or the grade"),
        Column("lower", _F64, "where the bin of a distribution begins: s, words, words/min, or 0 to 1"),
        Column("upper", _F64, "where it ends, in the same unit"),
        Column("count", _I64, "occurrences of the pair; words so far, or in the language or grade; files in the bin"),
        Column("files", _I64, "recordings that it is about"),
        Column("value", _F64, "vocabulary so far; hours in the language or grade; Heaps' k and beta"),
    ),
    key=("prefix", "statistic", "position"),
)

PREFIX_DRIFT = Table(
    "prefix_drift",
    "One row per prefix and materialization of its tokens: what changed since the one before.",
    (
        _PREFIX,
        Column("materialized_at", _TIME, "when the tokens were materialized (UTC)", nullable=False),
        Column("run", _STR, "the Dagster run that did it", nullable=False),
        Column("files_new", _I64, "recordings that have a transcript now and had none before", nullable=False),
        Column("files_changed", _I64, "recordings whose transcript has another text", nullable=False),
        Column("files_removed", _I64, "recordings that had a transcript and have none now", nullable=False),
        Column("vocabulary_new", _I64, "words that did not occur before", nullable=False),
        Column("vocabulary_lost", _I64, "words that no longer occur", nullable=False),
        Column(
            "vocabulary_kept_share",
            _F64,
            "words of both over words of either, 0 to 1; null when there were no words before",
        ),
    ),
    key=("prefix", "materialized_at"),
)

PREFIX_KEYWORDS = Table(
    "prefix_keywords",
    "One row per prefix and keyword: the words that set it apart from the other prefixes (TF-IDF).",
    (
        _PREFIX,
        Column("rank", _I64, "1 for the first keyword", nullable=False),
        Column("token", _STR, "the word, normalized", nullable=False),
        Column(
            "tf_idf", _F64, "share of the prefix's words, times the word's inverse document frequency", nullable=False
        ),
        Column("count", _I64, "occurrences in the prefix", nullable=False),
        Column("document_count", _I64, "recordings of the prefix that hold it", nullable=False),
    ),
    key=("prefix", "rank"),
    partitioned=False,
)

CORPUS_SUMMARY = Table(
    "corpus_summary",
    "One row: the whole corpus in figures.",
    (
        Column("prefixes", _I64, "prefixes with a summary", nullable=False),
        *(c for c in PREFIX_SUMMARY.columns if c.name != "prefix"),
    ),
    key=(),
    partitioned=False,
)

TRANSCRIPTION_PLAN = Table(
    "transcription_plan",
    "One row per engine and model: what it would cost to transcribe what is not transcribed yet.",
    (
        Column("engine", _STR, "local or openai", nullable=False),
        Column("model", _STR, "name of the model", nullable=False),
        Column("chosen", _BOOL, "whether a run with the present settings would use it", nullable=False),
        Column("files", _I64, "recordings that can be transcribed", nullable=False),
        Column("duplicates", _I64, "of these, the same bytes under another key: never paid twice", nullable=False),
        Column("cached", _I64, "transcribed already by this model with these options", nullable=False),
        Column("to_transcribe", _I64, "what a run would transcribe", nullable=False),
        Column("hours", _F64, "hours of audio to transcribe", nullable=False),
        Column("silence_hours", _F64, "of these, hours of silence that are not sent", nullable=False),
        Column("silence_files", _I64, "recordings in which the share of silence was measured", nullable=False),
        Column("price_usd_per_minute", _F64, "price of a minute; null when it is not known"),
        Column("cost_usd", _F64, "estimated cost; null when the price is not known"),
        Column("retires", _STR, "announced day of shutdown, YYYY-MM-DD; null when none is known"),
    ),
    key=("engine", "model"),
    partitioned=False,
)

TRANSCRIPTION_LEDGER = Table(
    "transcription_ledger",
    "One row per request to a transcription API: what was sent, how often, and what it cost.",
    (
        Column("request", _STR, "identifies the request, over all its attempts", nullable=False),
        _ID,
        _PREFIX,
        Column("sha256", _STR, "SHA-256 of the recording, hexadecimal", nullable=False),
        Column(
            "window",
            _STR,
            "what was sent: samples of the recording at 16 kHz, then / and the channel, @ and a part",
            nullable=False,
        ),
        Column("seconds", _F64, "length of that part", nullable=False),
        Column("model", _STR, "name of the model", nullable=False),
        Column("endpoint", _STR, "host that was asked", nullable=False),
        Column("attempts", _I64, "how often it was sent", nullable=False),
        Column("cost_usd", _F64, "what the endpoint billed, by its own usage; null when the price is not known"),
        Column("uncertain_usd", _F64, "what attempts without an answer may have cost on top", nullable=False),
        Column("status", _STR, "ok, failed, deferred, cut (sent again in parts) or interrupted", nullable=False),
        Column("request_id", _STR, "x-request-id of the answer"),
        Column("started_at", _TIME, "when it was first sent (UTC)", nullable=False),
        Column("elapsed_s", _F64, "time until its end, waits included", nullable=False),
        Column("run", _STR, "the Dagster run, or the command, that sent it", nullable=False),
        _ERROR,
    ),
    key=("request",),
)

TABLES: dict[str, Table] = {
    t.name: t
    for t in (
        R2_PREFIXES,
        RAW_AUDIO,
        TRANSCRIPTION_PLAN,
        TRANSCRIPTS,
        TRANSCRIPTION_LEDGER,
        TOKENS,
        TRANSCRIPT_QUALITY,
        PREFIX_SUMMARY,
        TOKEN_FREQUENCY,
        PREFIX_STATISTICS,
        PREFIX_DRIFT,
        PREFIX_KEYWORDS,
        CORPUS_SUMMARY,
    )
}
"""Every table by name."""
