"""The report: the corpus as one HTML file that opens from disk and asks the network for nothing.

Everything is inside the file: styles, script, figures and transcripts. Only the recordings are beside it, reached by
relative links when the reader presses play, or in the bucket, when the caller gives links into it. The page's content
security policy allows exactly the one style sheet and the one script that are part of it, by their hashes; what comes
from the data is text, never markup or script.
"""

from __future__ import annotations

import base64
import datetime
import gzip
import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from audio_assets import schemas
from audio_assets.storage.atomic import write_bytes
from audio_assets.summary import insight, statistics
from audio_assets.summary.histogram import Histogram, histogram, time_unit
from audio_assets.summary.quality import GRADE_MEANINGS
from audio_assets.summary.worst import worst_transcripts

if TYPE_CHECKING:
    import duckdb

MAX_TRANSCRIPTS = 10_000
"""More rows than this make a page that is slow to open; the warehouse and the exports hold all."""

_MAX_FAILURES = 500
_PAGE_ROWS = 25
_PACK_ROWS = 1000
_WAVE_BARS = 140
_TOP_WORDS = 24
_KEYWORDS = 8
_CLOUD_SIZE = (960, 340)
_ORIGIN = re.compile(r"https://[A-Za-z0-9.-]+(:\d+)?|http://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?")
_UNITS = {"s": "seconds", "min": "minutes", "h": "hours"}

NEXT_STEPS: dict[str, str] = {
    "partial": "Run again: the missing part is transcribed then.",
    "invalid": "Listen to the file; replace it in the bucket if it should be audio.",
    "failed": "Run again: only the files that failed are tried. If it fails the same way, read the reason.",
    "deferred": "Run again later: what is done is kept and not paid for twice.",
    "gone": "Nothing, if it was deleted on purpose: the last transcript is kept.",
}
"""What to do about an object with this status."""

# The transcripts that need eyes come first when the page cannot hold all.
_TRANSCRIPTS_SQL = f"""
WITH objects AS ({statistics.OBJECTS_SQL}),
sure AS (
    SELECT id, sum(exp(least(s.avg_logprob, 0)) * greatest(s.end_s - s.start_s, 0.01))
        / sum(greatest(s.end_s - s.start_s, 0.01)) AS confidence
    FROM (SELECT id, unnest(segments) AS s FROM transcripts) WHERE s.avg_logprob IS NOT NULL GROUP BY id
)
SELECT
    o.id, o.prefix, o.status, o.duration_s, o.transcription, coalesce(o.flags, []) AS flags, t.language,
    len(k.tokens) AS words, c.confidence, t.model, t.engine,
    [{{'start_s': s.start_s, 'end_s': s.end_s, 'text': s.text}} FOR s IN t.segments] AS segments
FROM objects AS o
    LEFT JOIN transcripts AS t ON o.id = t.id
    LEFT JOIN tokens AS k ON o.id = k.id
    LEFT JOIN sure AS c ON o.id = c.id
WHERE o.transcription IS NOT NULL
ORDER BY (o.status = 'ok' AND coalesce(len(o.flags), 0) = 0) AND $full, o.id
LIMIT $limit
"""  # noqa: S608 - no data in it

_FAILURES_SQL = f"""
SELECT o.id, o.status, coalesce(t.error, r.error, '') AS error
FROM ({statistics.OBJECTS_SQL}) AS o
    LEFT JOIN raw_audio AS r ON o.id = r.id
    LEFT JOIN transcripts AS t ON o.id = t.id
WHERE o.status NOT IN ('ok', 'empty')
ORDER BY list_position($order, o.status), o.id
LIMIT $limit
"""  # noqa: S608 - no data in it


# The last materialization that changed anything: a run that found nothing new hides no news.
_CHANGES_SQL = """
SELECT * REPLACE (make_timestamp(epoch_us(materialized_at)) AS materialized_at) FROM prefix_drift
WHERE files_new + files_changed + files_removed + vocabulary_new + vocabulary_lost > 0
QUALIFY row_number() OVER (PARTITION BY prefix ORDER BY materialized_at DESC) = 1
ORDER BY prefix
"""


@dataclass(frozen=True)
class _Plot:
    """A histogram with what its reader needs to know."""

    title: str
    what: str
    of: str
    bins: Histogram

    @property
    def top(self) -> int:
        """Upper end of the vertical axis: twice a round number."""
        half = max((*self.bins.counts, 2)) / 2
        power = 10 ** math.floor(math.log10(half))
        return int(2 * next(max(1, m * power) for m in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if half <= m * power))

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Place (0 to 100) and text of at most seven marks on the horizontal axis."""
        n = len(self.bins.counts)
        step = math.ceil(n / 6)
        return [(100 * i / n, f"{self.bins.edges[i]:,g}") for i in range(0, n + 1, step)]


def render_report(
    connection: duckdb.DuckDBPyConnection,
    output: Path,
    *,
    audio_link: Callable[[str], str | None] | None = None,
    audio_origin: str | None = None,
    links_end: datetime.datetime | None = None,
    flag_meanings: Mapping[str, str] | None = None,
    title: str = "Speech corpus",
    max_transcripts: int = MAX_TRANSCRIPTS,
    now: datetime.datetime | None = None,
) -> Path:
    """Write the report of the whole corpus, in place of an earlier one, whole or not at all.

    Args:
        connection: a database with the tables ``raw_audio``, ``transcripts``, ``transcript_quality``, ``tokens``,
            ``prefix_summary``, ``prefix_drift`` and ``token_frequency`` of `schemas`; read only.
        output: the HTML file to write; its directory is made.
        audio_link: gives the link to an object's recording, relative to ``output`` and percent-encoded, or None when
            the recording is not at hand. Without it there are no players.
        audio_origin: the one origin (``https://host``, plain http on this machine alone) that links may lead to
            instead, when ``audio_link`` gives links into a bucket. The page may then load recordings, and nothing
            else, from there.
        links_end: until when such links work; the page says so.
        flag_meanings: what each flag of a transcript means, for tooltips.
        title: heading of the page.
        max_transcripts: rows of the transcript table at most; flagged and unfinished ones come first when it is full.
        now: time of writing, by default the present.

    Returns:
        ``output``.

    Raises:
        ValueError: ``audio_link`` gave a link that is neither relative nor leads to ``audio_origin``.
        OSError: the file could not be written; an earlier report is untouched.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("audio_assets.summary"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(visible=visible, whole=_count, hours=_length, share=_share, money=_money, minute=_minute)
    loader = environment.loader
    assert loader is not None  # noqa: S101 - given three lines above
    style = loader.get_source(environment, "report.css")[0]
    script = loader.get_source(environment, "report.js")[0]

    totals = statistics.summarize_corpus(connection).to_pylist()[0]
    prefixes = _dicts(connection, "SELECT * FROM prefix_summary ORDER BY prefix")
    rows = _dicts(
        connection,
        _TRANSCRIPTS_SQL,
        {"limit": max_transcripts, "full": _transcript_count(connection) > max_transcripts},
    )
    unfinished = sum(totals[f"files_{status}"] for status in NEXT_STEPS)
    failures = _dicts(connection, _FAILURES_SQL, {"order": list(NEXT_STEPS), "limit": _MAX_FAILURES})
    links = {row["id"]: _checked(audio_link(row["id"]), audio_origin) for row in rows} if audio_link else {}
    words = statistics.corpus_top_words(connection)
    rows.sort(key=lambda row: natural_order(row["id"]))
    lines = [_line(row, links) for row in rows]
    # The browser draws the first page before it has read the rest, which is packed: a third of the size.
    data = {
        "count": len(lines),
        "prefixes": list(dict.fromkeys(line[1] for line in lines)),
        "statuses": {status: visible(meaning) for status, meaning in schemas.STATUSES.items()},
        "flags": {visible(flag): visible(meaning) for flag, meaning in (flag_meanings or {}).items()},
        "rows": lines[:_PAGE_ROWS],
    }

    html = environment.get_template(
        "report.html.j2"
    ).render(
        title=title,
        now=now or datetime.datetime.now(datetime.timezone.utc),
        style=Markup(style),  # noqa: S704 - a file of this package
        script=Markup(script),  # noqa: S704 - a file of this package
        policy=_policy(style, script, audio_origin),
        links_end=links_end,
        totals=totals,
        statuses=schemas.STATUSES,
        next_steps=NEXT_STEPS,
        prefixes=prefixes,
        changes=_dicts(connection, _CHANGES_SQL),
        keywords=_keywords(connection),
        grades=_grades(connection),
        engines=_engines(connection),
        languages=_languages(connection),
        plots=_plots(connection),
        wave=_wave(connection),
        words=words[:_TOP_WORDS],
        cloud=_cloud(words),
        cloud_size=_CLOUD_SIZE,
        worst=worst_transcripts(connection, flag_meanings or {}),
        failures=failures,
        unfinished=unfinished,
        transcripts=_transcript_count(connection),
        shown=len(rows),
        data=Markup(_script_json(data)),  # noqa: S704 - escaped by _script_json
        packed=[_packed(lines[at : at + _PACK_ROWS]) for at in range(_PAGE_ROWS, len(lines), _PACK_ROWS)],
    )
    write_bytes(output, html.encode("utf-8"))
    return output


def visible(text: object) -> str:
    """``text`` with control characters and direction overrides written out, so that nothing can hide or reorder it.

    >>> visible("a\\u202egpj.exe")
    'a⟨U+202E⟩gpj.exe'
    """
    shown = str(text)
    if shown.isascii() and shown.isprintable():
        return shown
    return "".join(f"⟨U+{ord(c):04X}⟩" if _hides(c) else " " if c.isspace() else c for c in shown)


def _hides(character: str) -> bool:
    category = unicodedata.category(character)
    return (
        category == "Cc" and not character.isspace()
    ) or character in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def _dicts(
    connection: duckdb.DuckDBPyConnection, sql: str, parameters: Mapping[str, object] | None = None
) -> list[dict[str, Any]]:
    cursor = connection.execute(sql, dict(parameters or {}))
    names = [column[0] for column in cursor.description or []]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _numbers(connection: duckdb.DuckDBPyConnection, sql: str) -> list[float]:
    return [float(row[0]) for row in connection.execute(sql).fetchall()]


def _transcript_count(connection: duckdb.DuckDBPyConnection) -> int:
    return int(_numbers(connection, "SELECT count(*) FROM transcripts WHERE transcription IS NOT NULL")[0])


def _plots(connection: duckdb.DuckDBPyConnection) -> list[_Plot]:
    durations = _numbers(
        connection,
        f"SELECT duration_s FROM ({statistics.OBJECTS_SQL}) WHERE duration_s IS NOT NULL",  # noqa: S608
    )
    lengths = _numbers(connection, "SELECT len(tokens) FROM tokens WHERE transcription IS NOT NULL")
    rates = _numbers(
        connection,
        """
        SELECT len(k.tokens) / (t.speech_s / 60) FROM tokens AS k JOIN transcripts AS t ON k.id = t.id
        WHERE t.speech_s >= 1 AND len(k.tokens) > 0
        """,
    )
    sure = _numbers(
        connection,
        """
        SELECT 100 * exp(least(s.avg_logprob, 0)) FROM (SELECT unnest(segments) AS s FROM transcripts)
        WHERE s.avg_logprob IS NOT NULL
        """,
    )
    unit, seconds = time_unit(durations)
    plots = [
        _Plot("How long the recordings are", _UNITS[unit], "recordings", histogram([d / seconds for d in durations])),
        _Plot("How much is said in them", "words", "transcripts", histogram(lengths, whole=True)),
        _Plot("How fast people speak", "words per minute of speech", "recordings", histogram(rates, whole=True)),
        _Plot(
            "How sure the model is",
            "% mean probability of a segment's tokens",
            "segments",
            histogram(sure, limits=(0.0, 100.0)),
        ),
    ]
    return [plot for plot in plots if plot.bins.total]


def _wave(connection: duckdb.DuckDBPyConnection) -> list[float]:
    """The first recordings as heights from 8 to 100, for the ornament at the top."""
    lengths = _numbers(
        connection,
        f"SELECT duration_s FROM ({statistics.OBJECTS_SQL}) WHERE duration_s > 0 ORDER BY id LIMIT {_WAVE_BARS}",  # noqa: S608
    )
    # The longest few are cut off: beside one long meeting all else would be a line of dots.
    longest = sorted(lengths)[int(0.95 * (len(lengths) - 1))] if lengths else 1.0
    return [round(10 + 90 * min(1.0, length / longest), 1) for length in lengths]


def _engines(connection: duckdb.DuckDBPyConnection) -> list[str]:
    rows = connection.execute(
        """
        SELECT model, engine FROM transcripts WHERE model IS NOT NULL
        GROUP BY ALL ORDER BY count(*) DESC, model LIMIT 3
        """
    ).fetchall()
    # A model may be a directory: its last part is its name.
    return [f"{Path(str(model)).name} ({engine})" if engine else Path(str(model)).name for model, engine in rows]


def _languages(connection: duckdb.DuckDBPyConnection) -> list[tuple[str, int]]:
    rows = connection.execute(
        """
        SELECT language, count(*) AS files FROM transcripts WHERE language IS NOT NULL AND transcription <> ''
        GROUP BY language ORDER BY files DESC, language LIMIT 12
        """
    ).fetchall()
    return [(str(language), int(files)) for language, files in rows]


def _keywords(connection: duckdb.DuckDBPyConnection) -> dict[str, list[str]]:
    """The first keywords of each prefix; none for a single prefix, which nothing sets apart."""
    found: dict[str, list[str]] = {}
    for row in insight.keywords(connection, _KEYWORDS).to_pylist():
        found.setdefault(row["prefix"], []).append(row["token"])
    return found if len(found) > 1 else {}


def _grades(connection: duckdb.DuckDBPyConnection) -> list[tuple[str, str, int]]:
    """Each grade with what it means and how many transcripts have it; empty when none was graded."""
    counts = dict(
        connection.execute(
            "SELECT grade, count(*) FROM transcript_quality WHERE grade IS NOT NULL GROUP BY grade"
        ).fetchall()
    )
    return [(grade, meaning, counts.get(grade, 0)) for grade, meaning in GRADE_MEANINGS.items()] if counts else []


def _cloud(words: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    from audio_assets.summary.cloud import cloud_words

    return [
        {
            "text": word.text,
            "count": word.count,
            "x": round(word.x, 1),
            "y": round(word.baseline, 1),
            "size": word.size,
            "width": round(word.width, 1),
            "color": word.color,
        }
        for word in cloud_words({visible(word): count for word, count in words}, *_CLOUD_SIZE)
    ]


def natural_order(id: str) -> tuple[object, ...]:
    """Sorts names as people do: ``9.wav`` before ``10.wav``, upper case beside lower case.

    >>> sorted(["a10", "B1", "a9"], key=natural_order)
    ['a9', 'a10', 'B1']
    """
    parts = re.split(r"([0-9]+)", id.casefold())
    numbers = [(len(digits.lstrip("0")), digits.lstrip("0")) for digits in parts[1::2]]
    return (*(piece for pair in zip(parts[::2], [*numbers, ()], strict=True) for piece in pair), id)


def _line(row: Mapping[str, Any], links: Mapping[str, str | None]) -> list[Any]:
    """A row of the page's table. An array: names of fields would be a third of the file."""
    return [
        visible(row["id"]),
        visible(row["prefix"]),
        row["status"],
        _rounded(row["duration_s"], 2),
        row["words"],
        _rounded(row["confidence"], 3),
        visible(row["language"]) if row["language"] else None,
        [visible(flag) for flag in row["flags"]],
        links.get(row["id"]),
        *_pieces(row),
    ]


def _packed(lines: Sequence[list[Any]]) -> str:
    """Rows as base64 of gzip of JSON: nothing in it can be markup."""
    text = json.dumps(lines, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode("utf-8"), compresslevel=6, mtime=0)).decode()


def _pieces(row: Mapping[str, Any]) -> tuple[str, list[float | None]]:
    """The text, a line per segment, and start and end of each in s; without usable segments no times.

    One text and one list: a browser reads them many times faster than a list per segment.
    """
    pieces = [(visible(s["text"] or "").strip(), s) for s in row["segments"] or []]
    pieces = [piece for piece in pieces if piece[0]]
    whole = visible(row["transcription"]).strip()
    if "".join("".join(text for text, _ in pieces).split()) != "".join(whole.split()):
        return whole, []
    return (
        "\n".join(text for text, _ in pieces),
        [_rounded(seconds, 2) for _, s in pieces for seconds in (s["start_s"], s["end_s"])],
    )


def _rounded(value: float | None, digits: int) -> float | None:
    return round(value, digits) if value is not None and math.isfinite(value) else None


def _checked(link: str | None, origin: str | None) -> str | None:
    if link is None:
        return None
    parts = urlsplit(link)
    if origin is not None and link.startswith(origin + "/"):
        return link
    if parts.scheme or parts.netloc or link.startswith("/"):
        allowed = f"leads to {origin}" if origin else "is relative to the report"
        raise ValueError(f"audio_link gave {link!r}; give a quoted link that {allowed}")
    return link


def _script_json(data: object) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _policy(style: str, script: str, audio_origin: str | None) -> str:
    if audio_origin is not None and not _ORIGIN.fullmatch(audio_origin):
        raise ValueError(f"audio_origin {audio_origin!r} is not an origin; it looks like https://host")

    def source(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode() + "'"

    return "; ".join(
        (
            "default-src 'none'",
            f"style-src {source(style)}",
            f"script-src {source(script)}",
            "img-src data:",
            "media-src " + (audio_origin or "'self' file:"),
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _length(hours: float | None) -> str:
    """A length in the unit in which it reads best."""
    if hours is None:
        return "–"
    if hours < 2 / 60:
        return f"{hours * 3600:,.0f} s" if hours else "0 s"
    if hours < 2:
        return f"{hours * 60:,.1f} min"
    return f"{hours:,.1f} h" if hours < 1000 else f"{hours:,.0f} h"


def _share(value: float | None) -> str:
    if value is None:
        return "–"
    # Rounding must not turn a few into none, or nearly all into all.
    if 0 < value < 0.005:
        return "< 1 %"
    if 0.995 < value < 1:
        return "> 99 %"
    return f"{100 * value:.0f} %"


def _money(value: float) -> str:
    return f"${value:,.2f}" if value == 0 or value >= 0.995 else f"${value:.4f}"


def _minute(at: datetime.datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M")
