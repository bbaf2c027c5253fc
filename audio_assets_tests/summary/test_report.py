"""The report: one file, complete in itself, in which data is only ever text."""

import datetime
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import duckdb
import pytest

from audio_assets import schemas
from audio_assets.summary.quality import grade_transcripts
from audio_assets.summary.report import render_report, visible
from audio_assets.text.tokenize import tokenize
from audio_assets_tests.summary.conftest import HOSTILE, database, object_row, transcript_row

NOW = datetime.datetime(2026, 5, 4, 13, 30, tzinfo=datetime.timezone.utc)


class Page(HTMLParser):
    """The elements of a page, its visible text and what its scripts hold."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = tag
            if tag == "script":
                self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif not self._inside:
            self.text += " " + data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])


def render(connection: duckdb.DuckDBPyConnection, tmp_path: Path, **options: Any) -> tuple[str, Page]:
    output = render_report(connection, tmp_path / "report" / "index.html", now=NOW, **options)
    html = output.read_text("utf-8")
    return html, Page(html)


def test_what_sets_each_prefix_apart(tmp_path: Path):
    said = {"ships/a.wav": "the anchor and the harbour", "music/b.wav": "the violin and the concert"}
    raw = schemas.RAW_AUDIO.from_rows([object_row(id) for id in said])
    rows = schemas.TRANSCRIPTS.from_rows([transcript_row(id, [(0, 4, text)]) for id, text in said.items()])
    with database(raw, rows) as connection:
        _, page = render(connection, tmp_path)

    assert "What sets each prefix apart music/ concert violin ships/ anchor harbour" in page.words


def test_the_transcripts_are_counted_by_grade(tmp_path: Path):
    ids = [f"a/{n}.wav" for n in range(4)]
    raw = schemas.RAW_AUDIO.from_rows([object_row(id) for id in ids])
    rows = schemas.TRANSCRIPTS.from_rows([transcript_row(id, [(0, 4, "some words")]) for id in ids])
    graded = grade_transcripts(rows, tokenize(rows)).to_pylist()
    for row, grade in zip(graded, ("A", "A", "F", None), strict=True):
        row["grade"] = grade
    with database(raw, rows, schemas.TRANSCRIPT_QUALITY.from_rows(graded)) as connection:
        _, page = render(connection, tmp_path)

    assert "Transcripts by grade A: 2 F: 1 2 A use it 1 F not usable" in page.words


def test_the_headline_numbers(corpus: duckdb.DuckDBPyConnection, tmp_path: Path):
    _, page = render(corpus, tmp_path)

    for expected in (
        "6 files in 3 prefixes · heard by tiny.en (local) · 4 May 2026, 13:30 UTC",
        "Files 6 2 ok, 3 to look at",
        "Audio 20 s 9 s of it speech",
        "Flagged 50 % of 4 transcripts",
        "Cost $0.00 25 % from the cache",
    ):
        assert expected in page.words


def test_every_prefix_has_its_row(corpus: duckdb.DuckDBPyConnection, tmp_path: Path):
    _, page = render(corpus, tmp_path)

    assert re.search(r"a/ 3 2 8 s 6 s 17 170", page.words)
    assert "(root) 1 0" in page.words


def test_failures_have_their_reason_and_the_next_step(corpus: duckdb.DuckDBPyConnection, tmp_path: Path):
    _, page = render(corpus, tmp_path)

    assert "a/text.mp3 invalid no audio in it: the bytes are text Listen to the file" in page.words
    assert "b/late.wav deferred rate limit: retry after 20 s Run again later" in page.words


def test_transcripts_with_times_and_links(corpus: duckdb.DuckDBPyConnection, tmp_path: Path):
    _, page = render(corpus, tmp_path, audio_link=lambda id: "../audio/" + id if id == "a/one.wav" else None)
    rows = {row[0]: row for row in page.data["rows"]}

    assert rows["a/one.wav"][8:] == [
        "../audio/a/one.wav",
        "It was the best of times,\nit was the worst of times.",
        [0.5, 1.5, 2.5, 3.5],
    ]
    assert rows["b/silence.wav"][8:] == [None, "", []]
    assert "a/text.mp3" not in rows


def test_a_text_that_its_segments_do_not_hold_is_shown_whole(tmp_path: Path):
    raw = schemas.RAW_AUDIO.from_rows([object_row("a/x.wav")])
    transcripts = schemas.TRANSCRIPTS.from_rows(
        [transcript_row("a/x.wav", [(0, 1, "half")], transcription="half of the text")]
    )

    with database(raw, transcripts) as connection:
        _, page = render(connection, tmp_path)

    assert page.data["rows"][0][9:] == ["half of the text", []]


def test_nothing_is_asked_of_the_network(corpus: duckdb.DuckDBPyConnection, tmp_path: Path):
    html, page = render(corpus, tmp_path, audio_link=lambda id: None)

    for tag, attributes in page.elements:
        assert tag not in ("iframe", "object", "embed", "base")
        for name, value in attributes.items():
            if name in ("src", "href", "srcset", "action", "poster", "data", "xlink:href"):
                assert re.match(r"#|data:,", value or ""), (tag, name, value)
    assert not re.search(r"(?i)https?:|url\(|@import|//[a-z0-9-]+\.[a-z]", html.replace(json.dumps(HOSTILE)[1:-1], ""))


def test_the_policy_allows_only_the_pages_own_style_and_script(corpus: duckdb.DuckDBPyConnection, tmp_path: Path):
    _, page = render(corpus, tmp_path)
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")

    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    # What a strict policy forbids is not there to be broken by it.
    assert not [a for _, a in page.elements if "style" in a or any(name.startswith("on") for name in a)]


def test_data_is_text_and_never_markup(corpus: duckdb.DuckDBPyConnection, tmp_path: Path):
    html, page = render(corpus, tmp_path, title="<script>alert(0)</script>", flag_meanings={"<b>": "</script>"})

    assert "<img" not in html
    assert "alert(0)" not in "".join(page.scripts)
    assert len(page.scripts) == 2
    texts = [text for row in page.data["rows"] for text in row[9].splitlines()]
    assert HOSTILE in texts


def test_names_cannot_hide_or_reorder_themselves(corpus: duckdb.DuckDBPyConnection, tmp_path: Path):
    html, page = render(corpus, tmp_path)

    assert "\u202e" not in html
    assert "⟨U+202E⟩gpj<b>.wav" in page.words
    assert visible("a\x00b\tc") == "a⟨U+0000⟩b c"
    assert visible("שלום 北京 👩\u200d🚀") == "שלום 北京 👩\u200d🚀"


@pytest.mark.parametrize(
    "link", ["https://example.org/a.wav", "//example.org/a.wav", "javascript:alert(1)", "/etc/passwd"]
)
def test_a_link_that_leaves_the_place_is_refused(corpus: duckdb.DuckDBPyConnection, tmp_path: Path, link: str):
    with pytest.raises(ValueError, match="relative to the report"):
        render(corpus, tmp_path, audio_link=lambda id: link)
    assert not (tmp_path / "report" / "index.html").exists()


def test_links_into_the_bucket_reach_its_origin_and_no_other(corpus: duckdb.DuckDBPyConnection, tmp_path: Path):
    origin = "https://account.r2.cloudflarestorage.com"
    _, page = render(
        corpus,
        tmp_path,
        audio_link=lambda id: f"{origin}/bucket/x?X-Amz-Signature=1",
        audio_origin=origin,
        links_end=NOW,
    )
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")

    assert {row[8] for row in page.data["rows"]} == {f"{origin}/bucket/x?X-Amz-Signature=1"}
    assert policy is not None
    assert f"media-src {origin};" in policy
    assert policy.count("http") == 1
    assert "from the bucket, until 4 May 2026, 13:30 UTC: whoever has this page can hear them" in page.words
    for other in (f"{origin}.example.org/x", "https://example.org/x", "javascript:alert(1)"):
        with pytest.raises(ValueError, match=r"leads to https://account"):
            render(corpus, tmp_path, audio_link=lambda id, other=other: other, audio_origin=origin)  # type: ignore[misc]
    with pytest.raises(ValueError, match="is not an origin"):
        render(corpus, tmp_path, audio_link=lambda id: None, audio_origin="https://x; script-src *")


def test_the_worst_come_first_with_the_reason(tmp_path: Path):
    raw = schemas.RAW_AUDIO.from_rows([object_row(f"a/{n}.wav") for n in ("fine", "unsure", "bad", "worse")])
    unsure = {"start_s": 0.0, "end_s": 1.0, "text": " mumble", "avg_logprob": -1.2, "words": None}
    transcripts = schemas.TRANSCRIPTS.from_rows(
        [
            transcript_row("a/fine.wav", [(0, 1, "clear words")]),
            transcript_row("a/unsure.wav", [(0, 1, "mumble")], segments=[unsure]),
            transcript_row("a/bad.wav", [(0, 1, HOSTILE)], flags=["repetition"]),
            transcript_row("a/worse.wav", [(0, 1, "x" * 300)], flags=["repetition", "<odd>"]),
        ]
    )
    with database(raw, transcripts) as connection:
        html, page = render(connection, tmp_path, flag_meanings={"repetition": "the text repeats itself"})
    section = page.words[page.words.index("Listen to these first") : page.words.index("Transcripts", 900)]

    assert re.findall(r"a/(\w+)\.wav", section) == ["worse", "bad", "unsure"]
    assert "a/worse.wav the text repeats itself; <odd> " + "x" * 240 + "…" in section
    assert "a/bad.wav the text repeats itself " + HOSTILE in section
    assert "a/unsure.wav the model gives its own words a probability of 30 %" in section
    assert "<img" not in html


def test_grades_decide_which_are_the_worst(tmp_path: Path):
    raw = schemas.RAW_AUDIO.from_rows([object_row(f"a/{n}.wav") for n in ("good", "poor", "fair")])
    transcripts = schemas.TRANSCRIPTS.from_rows(
        [
            transcript_row("a/good.wav", [(0, 3, "clear words")], flags=["clipped"]),
            transcript_row("a/poor.wav", [(0, 3, "again again")]),
            transcript_row("a/fair.wav", [(0, 3, "so so")]),
        ]
    )
    grades = {
        "good": (0.95, "A", ""),
        "poor": (0.2, "F", "the text repeats itself"),
        "fair": (0.7, "C", "<i>quiet</i>"),
    }
    quality = schemas.TRANSCRIPT_QUALITY.from_rows(
        [
            {**_identity(f"a/{n}.wav"), "words": 2, "score": score, "grade": grade, "reason": reason}
            for n, (score, grade, reason) in grades.items()
        ]
    )
    with database(raw, transcripts, quality) as connection:
        html, page = render(connection, tmp_path)
    section = page.words[page.words.index("Listen to these first") : page.words.index("Transcripts", 900)]

    assert re.findall(r"a/(\w+)\.wav (.*?) (?:again again|so so) ([A-F])", section) == [
        ("poor", "the text repeats itself", "F"),
        ("fair", "<i>quiet</i>", "C"),
    ]
    assert "a/good.wav" not in section
    assert "<i>quiet" not in html


def _identity(id: str) -> dict[str, object]:
    return {"id": id, "prefix": "a/", "status": "ok"}


def test_at_most_fifty_are_the_worst(tmp_path: Path):
    names = [f"a/{i:02d}.wav" for i in range(60)]
    raw = schemas.RAW_AUDIO.from_rows([object_row(name) for name in names])
    transcripts = schemas.TRANSCRIPTS.from_rows(
        [transcript_row(n, [(0, 1, "word")], flags=["repetition"]) for n in names]
    )
    with database(raw, transcripts) as connection:
        _, page = render(connection, tmp_path)

    assert len([a for _, a in page.elements if "data-open" in a]) == 50


def test_an_empty_corpus_says_so(empty_corpus: duckdb.DuckDBPyConnection, tmp_path: Path):
    _, page = render(empty_corpus, tmp_path)

    assert "This corpus is empty" in page.words
    assert "audio-assets run" in page.words
    assert not [a for tag, a in page.elements if tag == "table"]


def test_a_corpus_that_does_not_fit_shows_what_needs_eyes(tmp_path: Path):
    names = [f"a/{i:02d}.wav" for i in range(9)]
    raw = schemas.RAW_AUDIO.from_rows([object_row(name) for name in names])
    transcripts = schemas.TRANSCRIPTS.from_rows(
        [transcript_row(n, [(0, 1, "word")], flags=["repetition"] if n == "a/07.wav" else []) for n in names]
    )

    with database(raw, transcripts) as connection:
        _, page = render(connection, tmp_path, max_transcripts=3)

    assert [row[0] for row in page.data["rows"]] == ["a/00.wav", "a/01.wav", "a/07.wav"]
    assert "3 of 9 are on this page" in page.words


def test_a_new_report_takes_the_place_of_the_old(
    corpus: duckdb.DuckDBPyConnection, empty_corpus: duckdb.DuckDBPyConnection, tmp_path: Path
):
    render(corpus, tmp_path)
    render(empty_corpus, tmp_path)

    assert [path.name for path in (tmp_path / "report").iterdir()] == ["index.html"]
    assert "This corpus is empty" in (tmp_path / "report" / "index.html").read_text("utf-8")
