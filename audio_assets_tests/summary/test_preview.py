"""Small Markdown pieces for the Dagster UI."""

import base64

import pyarrow as pa
import pytest

from audio_assets.summary.plots import words_histogram
from audio_assets.summary.preview import markdown_table, png_markdown


def cells(markdown: str, row: int = 0) -> str:
    return markdown.splitlines()[2 + row]


def test_the_first_rows_as_a_table():
    table = pa.table({"id": ["a", "b", "c"], "n": [1, 2000, 3], "more": [0, 0, 0]})

    assert markdown_table(table, ["id", "n"], rows=2).splitlines() == [
        "| id | n |",
        "| --- | --- |",
        "| a | 1 |",
        "| b | 2,000 |",
        "",
        "*2 of 3 rows.*",
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", r"a\|b"),
        ("<script>", "&lt;script&gt;"),
        ("[x](javascript:y)", r"\[x\]\(javascript&#58;y\)"),
        ("two\nlines\r\n", "two lines"),
        ("`code` *b* _i_ \\", r"\`code\` \*b\* \_i\_ \\"),
        # The UI links addresses after it has undone escapes; a character that nobody sees keeps it from it.
        ("www.example.org", "www\u2060.example.org"),
        ("https://a.b", "https\u2060&#58;//a.b"),
        ("a@b.org", "a\u2060&#64;b.org"),
        ("a\u202egpj", "a gpj"),
        ("&amp;", "&amp;amp;"),
    ],
)
def test_no_value_is_more_than_text(text: str, shown: str):
    assert cells(markdown_table(pa.table({"t": [text]}), ["t"])) == f"| {shown} |"


def test_long_values_are_cut():
    row = cells(markdown_table(pa.table({"t": ["x" * 500]}), ["t"]))

    assert len(row) < 100
    assert row.endswith("… |")


def test_lists_nulls_and_numbers():
    table = pa.table({"l": [["a", "b"]], "none": pa.nulls(1), "f": [0.123456], "yes": [True]})

    assert cells(markdown_table(table, ["l", "none", "f", "yes"])) == "| a · b | – | 0.1235 | yes |"


def test_unknown_columns_are_left_out_and_no_rows_are_said():
    assert markdown_table(pa.table({"a": [1]}), ["a", "b"]).startswith("| a |")
    assert markdown_table(pa.table({"a": pa.array([], pa.int64())}), ["a"]) == "*No rows.*"


def test_a_picture_carries_its_own_bytes():
    png = words_histogram([1, 2, 3])
    markdown = png_markdown(png, "Words [per] file")

    assert markdown.startswith(r"![Words \[per\] file](data:image/png;base64,")
    assert base64.b64decode(markdown.partition("base64,")[2][:-1]) == png


def test_a_picture_too_large_for_the_event_log_is_refused():
    with pytest.raises(ValueError, match="100,001 bytes"):
        png_markdown(b"x" * 100_001, "huge")
