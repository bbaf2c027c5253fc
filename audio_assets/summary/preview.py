"""Small Markdown pieces for the Dagster UI: a few rows as a table, a plot as an image."""

from __future__ import annotations

import base64
import datetime
import re
from collections.abc import Sequence

import pyarrow as pa

MAX_CELL_CHARS = 80
"""Longer values are cut: the preview shows what the data looks like, not the data."""

MAX_PNG_BYTES = 100_000
"""Inline plots live in Dagster's event log, with every materialization."""

_INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]+")
# What Markdown makes links of by itself, after it has undone all escapes: only a character in between keeps it from it.
_LINKS = re.compile(r"(?i)(?:https?|ftp)(?=:)|www(?=\.)|(?=@)")
_WORD_JOINER = "\u2060"

# Everything that Markdown, its automatic links or HTML read as more than text.
_ESCAPES = str.maketrans(
    {
        **{mark: "\\" + mark for mark in "\\`*_{}[]()#+-!|~$="},
        "&": "&amp;",
        "<": "&lt;",
        ">": "&gt;",
        ":": "&#58;",
        "@": "&#64;",
    }
)


def markdown_table(table: pa.Table, columns: Sequence[str], rows: int = 5) -> str:
    """The first rows of a table as Markdown in which no value is more than text.

    Args:
        table: any table.
        columns: names of the columns to show; those that the table does not have are left out.
        rows: how many rows at most.

    Returns:
        A Markdown table, or a sentence when there are no rows.
    """
    names = [name for name in columns if name in table.column_names]
    if not names or not table.num_rows:
        return "*No rows.*"
    shown = table.select(names).slice(0, rows).to_pylist()
    lines = [
        "| " + " | ".join(_text(name) for name in names) + " |",
        "|" + " --- |" * len(names),
        *("| " + " | ".join(_cell(row[name]) for name in names) + " |" for row in shown),
    ]
    if table.num_rows > rows:
        lines.append(f"\n*{rows} of {table.num_rows:,} rows.*")
    return "\n".join(lines)


def png_markdown(png: bytes, alt: str) -> str:
    """A picture as a Markdown image that carries its own bytes.

    Raises:
        ValueError: the picture is larger than `MAX_PNG_BYTES`.
    """
    if len(png) > MAX_PNG_BYTES:
        raise ValueError(
            f"the plot {alt!r} has {len(png):,} bytes and the event log should carry at most {MAX_PNG_BYTES:,}; "
            "draw it smaller"
        )
    return f"![{_text(alt)}](data:image/png;base64,{base64.b64encode(png).decode()})"


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return _text(f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, datetime.datetime):
        return _text(value.isoformat(sep=" ", timespec="seconds"))
    if isinstance(value, list):
        # A few items already fill the cell; a list of ten thousand words need not be joined for that.
        return _text(" · ".join(str(item) for item in value[:MAX_CELL_CHARS]))
    return _text(str(value))


def _text(value: str) -> str:
    """``value`` on one line, cut to `MAX_CELL_CHARS`, with every mark of Markdown and HTML escaped."""
    value = " ".join(_INVISIBLE.sub(" ", value).split())
    if len(value) > MAX_CELL_CHARS:
        value = value[: MAX_CELL_CHARS - 1] + "…"
    return _LINKS.sub(rf"\g<0>{_WORD_JOINER}", value).translate(_ESCAPES)
