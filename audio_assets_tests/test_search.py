"""``audio-assets search``: passages with file, time and text, the words in the order in which they were typed first."""

import json
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from audio_assets import cli, schemas
from audio_assets.full_text import full_text
from audio_assets.search import QueryError, search
from audio_assets.settings import Home
from audio_assets.storage.partition_files import PartitionStore
from audio_assets.storage.warehouse import Warehouse
from audio_assets.text.tokenize import tokenize
from audio_assets_tests.summary.conftest import HOSTILE, object_row, transcript_row

FILLER = " ".join(f"filler{n}" for n in range(60))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A few transcripts in three languages, in the warehouse of a home that no test changes."""
    home = Home(tmp_path_factory.mktemp("search"))
    store = PartitionStore(home.tables)
    by_prefix = {
        "a/": [
            transcript_row("a/one.wav", [(0, 2, "It was the best of times,"), (2, 5, "it was the worst of times.")]),
            transcript_row("a/two.wav", [(10, 14, "Times of the very best, they say.")]),
            transcript_row("a/far.wav", [(0, 60, f"The best {FILLER} of times")]),
            transcript_row("a/evil.wav", [(0, 1, f"best\x1b[31m \u202e{HOSTILE}")]),
        ],
        "b/": [
            transcript_row("b/de.wav", [(3, 6, "Die Straße führt nach Köln.")], language="de"),
            transcript_row("b/zh.wav", [(0, 4, "北京大学的学生")], language="zh"),
            transcript_row("b/untimed.wav", [], transcription="no times at all", segments=[], language="en"),
        ],
    }
    for prefix, rows in by_prefix.items():
        for row in rows:
            row["prefix"] = prefix
        transcripts = schemas.TRANSCRIPTS.from_rows(rows)
        raw = schemas.RAW_AUDIO.from_rows([{**object_row(str(row["id"])), "prefix": prefix} for row in rows])
        for table, data in (
            (schemas.RAW_AUDIO, raw),
            (schemas.TRANSCRIPTS, transcripts),
            (schemas.TOKENS, tokenize(transcripts)),
        ):
            store.write(table, data, prefix.rstrip("/"))
    Warehouse(home.warehouse, store).refresh()
    return home


@pytest.fixture
def stored(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command line find that home."""
    monkeypatch.setenv("AUDIO_ASSETS_HOME", str(home.root))


@pytest.fixture(scope="module")
def connection(home: Home) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(home.warehouse, read_only=True) as opened:
        yield opened


def ids(connection: duckdb.DuckDBPyConnection, query: str) -> list[str]:
    return [passage.id for passage in search(connection, query)]


def test_a_passage_has_file_time_and_text(connection: duckdb.DuckDBPyConnection) -> None:
    [passage] = search(connection, "WORST of times!")

    assert passage.id == "a/one.wav"
    assert passage.start_s is not None
    assert passage.end_s is not None
    assert 2 <= passage.start_s < passage.end_s <= 5
    assert passage.text == "It was the best of times, it was the worst of times."
    begin, end = passage.match
    assert passage.text[begin:end] == "worst of times"


def test_the_order_that_was_typed_comes_first_and_words_near_each_other_follow(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    found = search(connection, "best of times")

    assert [(p.id, p.exact) for p in found] == [("a/one.wav", True), ("a/two.wav", False)]
    assert ids(connection, "times of the very best") == ["a/two.wav"]


def test_words_in_quotes_stand_side_by_side_in_that_order(connection: duckdb.DuckDBPyConnection) -> None:
    assert ids(connection, '"best of times"') == ["a/one.wav"]
    assert ids(connection, '"times of best"') == []
    # Over the border of two segments.
    assert ids(connection, '"times, it was"') == ["a/one.wav"]
    assert ids(connection, '"very best" times') == ["a/two.wav"]


def test_each_occurrence_is_a_passage_of_its_own(connection: duckdb.DuckDBPyConnection) -> None:
    starts = [p.start_s for p in search(connection, '"it was the"')]
    assert len(starts) == 2
    assert starts == sorted(starts, key=float)


def test_words_are_normalized_as_in_the_transcripts_language(connection: duckdb.DuckDBPyConnection) -> None:
    # A German stemmer, where there is one, knows better; it was not typed so all the same.
    assert not any(p.exact for p in search(connection, "STRASSE"))
    assert ids(connection, "straße KÖLN") == ["b/de.wav"]
    assert ids(connection, "大学") == ["b/zh.wav"]
    assert ids(connection, '"学大"') == []


def test_a_transcript_without_times_is_found_without_a_time(connection: duckdb.DuckDBPyConnection) -> None:
    [passage] = search(connection, "at all")
    assert (passage.id, passage.start_s, passage.end_s) == ("b/untimed.wav", None, None)


def test_prefix_and_limit_narrow_the_search(connection: duckdb.DuckDBPyConnection) -> None:
    assert [p.id for p in search(connection, "times", prefixes=["b/"])] == ["b/untimed.wav"]
    assert {p.id for p in search(connection, "times", prefixes=["a/o", "b/"])} == {"a/one.wav", "b/untimed.wav"}
    assert len(search(connection, "times", limit=2)) == 2


def test_a_long_text_is_shown_around_the_match(connection: duckdb.DuckDBPyConnection) -> None:
    [passage] = search(connection, "filler30")

    assert passage.text.startswith("…filler")
    assert passage.text.endswith("…")
    assert len(passage.text) < 200
    assert passage.text[slice(*passage.match)] == "filler30"


@pytest.mark.parametrize("query", ["", "  ", '""', "?!"])
def test_a_query_without_words_is_refused(connection: duckdb.DuckDBPyConnection, query: str) -> None:
    with pytest.raises(QueryError, match="no word to search for"):
        search(connection, query)


def test_a_query_is_never_sql(connection: duckdb.DuckDBPyConnection) -> None:
    assert ids(connection, "best' OR '1'='1") == []
    with pytest.raises(QueryError, match="more than 24 words"):
        search(connection, "word " * 25)


class TestFullText:
    """With DuckDB's full text search, which `INSTALL fts` puts on a machine that has a network."""

    @pytest.fixture(autouse=True)
    def extension(self, connection: duckdb.DuckDBPyConnection) -> None:
        with full_text(connection) as found:
            if found is None:
                pytest.skip("DuckDB's extension fts is not installed")

    def test_other_forms_of_a_word_come_behind_the_word(self, connection: duckdb.DuckDBPyConnection) -> None:
        found = search(connection, "time")

        assert [p.text[slice(*p.match)].lower() for p in found] == ["times"] * len(found)
        assert {p.id for p in found} == {"a/one.wav", "a/two.wav", "a/far.wav", "b/untimed.wav"}
        assert not any(p.exact for p in found)
        assert all(p.exact for p in search(connection, "times"))

    def test_a_recording_that_is_more_about_it_comes_first(self, connection: duckdb.DuckDBPyConnection) -> None:
        # Twice in eleven words, once in seven, once in four, once in sixty-four.
        order = list(dict.fromkeys(ids(connection, "time")))
        assert order.index("a/one.wav") < order.index("a/two.wav") < order.index("a/far.wav")

    def test_forms_are_those_of_the_transcripts_language(self, connection: duckdb.DuckDBPyConnection) -> None:
        assert ids(connection, "Straßen") == ["b/de.wav"]

    def test_words_in_quotes_are_meant_as_they_stand(self, connection: duckdb.DuckDBPyConnection) -> None:
        assert ids(connection, '"best of time"') == []


def test_without_the_extension_nothing_is_downloaded_and_the_index_of_tokens_serves(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    with full_text(connection) as found:
        assert found is None
    assert ids(connection, "time") == []
    assert ids(connection, "worst of times") == ["a/one.wav"]
    assert not list(tmp_path.rglob("*"))


class TestCommand:
    def run(self, capsys: pytest.CaptureFixture[str], *arguments: str, expect: int = 0) -> tuple[str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(["search", *arguments])
        assert stop.value.code == expect
        return capsys.readouterr()

    def test_prints_a_line_for_each_passage(self, stored: None, capsys: pytest.CaptureFixture[str]) -> None:
        out, _ = self.run(capsys, "worst", "of", "times")
        assert out == "a/one.wav  0:03  It was the best of times, it was the worst of times.\n"

    def test_json_is_one_object(self, stored: None, capsys: pytest.CaptureFixture[str]) -> None:
        out, _ = self.run(capsys, "köln", "--json")
        [passage] = json.loads(out)["passages"]
        assert passage["id"] == "b/de.wav"
        assert passage["match"] == "Köln"
        assert 3 <= passage["start_s"] <= 6

    def test_a_transcript_cannot_drive_the_terminal(self, stored: None, capsys: pytest.CaptureFixture[str]) -> None:
        out, _ = self.run(capsys, "javascript", "--prefix", "a/evil")
        assert "\x1b" not in out
        assert "\u202e" not in out
        assert out.startswith("a/evil.wav  0:00  …\\u202e<img src=x onerror=alert(1)>")

    def test_nothing_found_is_said_and_an_empty_home_is_no_mistake(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Home(tmp_path / "home").audio.mkdir(parents=True)
        out, err = self.run(capsys, "anything")
        assert (out, err) == ("", "no passage holds these words\n")

    @pytest.mark.parametrize("command", [["search", "best"], ["retry", "--flag", "clipped"]])
    def test_a_prefix_without_transcripts_is_a_mistake_of_usage(
        self, command: list[str], stored: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as stop:
            cli.main([*command, "--prefix", "a/", "--prefix", "c/"])
        assert stop.value.code == 2
        assert capsys.readouterr().err.startswith(
            "error: --prefix 'c/': no transcript lies there, and nothing was changed"
        )

    def test_no_words_are_a_mistake_of_usage(self, stored: None, capsys: pytest.CaptureFixture[str]) -> None:
        _, err = self.run(capsys, "?", expect=2)
        assert err == "error: '?' holds no word to search for; give letters or digits\n"
