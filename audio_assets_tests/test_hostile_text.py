"""Keys, prefixes, transcripts and reasons that want to be more than text, in Dagster's UI and in the report."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from audio_assets.ingest.mirror import Mirror
from audio_assets.settings import Home
from audio_assets.speech.cache import TranscriptCache
from audio_assets_tests.conftest import PipelineRun, audio_assets, subprocess_environment
from audio_assets_tests.ui_server import quiet_page, ui_server

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = [pytest.mark.weights, pytest.mark.browser, pytest.mark.slow]

MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script>"
LINKS = "[look](javascript:alert(3)) ![x](http://evil.example/x.png) <a href='javascript:alert(4)'>a</a> http://evil.example"
ODD = "\u202egnp.exe\u202c \x1b[31mred\x1b[0m \x07 | --- | `code` {{ 7 * 7 }} ${7 * 7}"
FORMULA = '=HYPERLINK("http://evil.example","pay")'
WORD_JOINER = "\u2060"
"""Keeps Markdown from making links of addresses; nobody sees it."""
SAID = f"{FORMULA} {MARKUP} {LINKS} {ODD}"

PREFIX = "<b onmouseover=alert(5)>[p](javascript:alert(6))"
KEYS = [
    f"{PREFIX}/<img src=x onerror=alert(7)>.wav",
    f"{PREFIX}/[k](javascript:alert(8)) ![k](http:evil.example).wav",
    f"{PREFIX}/\u202egpj.\x1b[31m | `k` =1+1.wav",
]


@pytest.fixture(scope="module")
def hostile(pipeline: PipelineRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, dict[str, str]]:
    """A home that went through the whole pipeline, whose cache says that hostile words were heard."""
    home = Home(tmp_path_factory.mktemp("hostile") / "home")
    speech = Mirror(pipeline.home.audio).path_for("best-of-times/01.wav")
    mirror = Mirror(home.audio)
    for key in KEYS:
        path = mirror.path_for(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(speech, path)
    note = mirror.path_for(f"{PREFIX}/{MARKUP.replace('/', '')}.mp3")
    note.write_text(SAID, encoding="utf-8")
    environment = subprocess_environment(home.root, WHISPER_MODEL=pipeline.environment["WHISPER_MODEL"])

    def run() -> None:
        done = audio_assets("run", "--skip-ingestion", "--quiet", cwd=home.root.parent, environment=environment)
        assert done.returncode == 0, done.stderr

    run()
    cache = TranscriptCache(home.cache)
    [entry] = home.cache.glob("*/*/*.json")
    said = cache.get(entry.parent.name, entry.stem)
    assert said is not None
    said["segments"] = [{**said["segments"][0], "text": SAID, "words": None}]
    cache.put(entry.parent.name, entry.stem, {**said, "transcription": SAID})
    run()
    return home, environment


@pytest.fixture(scope="module")
def page(hostile: tuple[Home, dict[str, str]]) -> Iterator["Page"]:
    home, environment = hostile
    with ui_server(home.root, environment) as address, quiet_page(address) as tab:
        yield tab


ESCAPES = """
() => [...document.querySelectorAll("a, img, script, iframe, [onerror], [onmouseover]")]
  .filter((e) => /javascript:|evil/i.test((e.getAttribute("href") || "") + (e.getAttribute("src") || ""))
    || e.hasAttribute("onerror") || e.hasAttribute("onmouseover"))
  .map((e) => e.outerHTML)
"""


def preview(page: "Page", asset: str) -> "Locator":
    """The table that the UI makes of an asset's preview; long ones open on a click."""
    page.goto(f"/assets/{asset}?view=events")
    line = page.locator("tr", has=page.get_by_text("preview", exact=True)).last
    line.wait_for()
    more = line.get_by_text("[Show Markdown]")
    if more.count():
        more.click()
        page.get_by_role("button", name="Close").last.wait_for()
    shown = page.locator("table", has=page.locator("thead", has_not=page.locator("table"))).last
    shown.wait_for()
    return shown


ASSETS = [
    "r2_prefixes",
    "raw_audio",
    "transcripts",
    "tokens",
    "transcript_quality",
    "token_frequency",
    "prefix_keywords",
]


@pytest.mark.parametrize("asset", ASSETS)
def test_the_ui_shows_hostile_text_as_text(page: "Page", asset: str) -> None:
    table = preview(page, asset)

    # It is whole: no cell of the data ended a row or began another.
    widths = table.locator("tr").evaluate_all("rows => rows.map((row) => row.cells.length)")
    assert len(set(widths)) == 1 and len(widths) > 1, table.inner_text()
    assert page.evaluate(ESCAPES) == []
    assert not set(table.inner_text()) & set("\x1b\x07\u202e\u202c")


def test_what_was_said_is_there_word_by_word(page: "Page") -> None:
    text = preview(page, "transcripts").inner_text().replace(WORD_JOINER, "")

    assert FORMULA in text
    assert "<img src=x onerror=alert(7)>" in text


@pytest.mark.parametrize("view", ["partitions", "checks", "overview"])
def test_a_hostile_prefix_is_a_partition_like_any_other(page: "Page", view: str) -> None:
    page.goto(f"/assets/transcripts?view={view}")
    page.get_by_text("transcripts").first.wait_for()
    page.wait_for_load_state("networkidle")

    assert page.evaluate(ESCAPES) == []


def test_the_report_of_it_is_text_too(page: "Page", hostile: tuple[Home, dict[str, str]]) -> None:
    tab = page.context.browser.new_page()  # type: ignore[union-attr]
    complaints: list[str] = []
    tab.on("console", lambda said: complaints.append(said.text))
    tab.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    tab.on("request", lambda request: request.url.startswith("file:") or complaints.append(request.url))
    tab.goto(hostile[0].report.as_uri())
    tab.locator("#rows tbody tr").first.wait_for()

    assert tab.locator("#rows tbody tr").count() == len(KEYS)
    assert FORMULA in tab.locator("#rows").inner_text()
    assert tab.evaluate(ESCAPES) == []
    assert not set(tab.locator("body").inner_text()) & set("\x1b\x07\u202e\u202c")
    assert complaints == []
    tab.close()


def test_what_a_spreadsheet_may_open_quotes_formulas(hostile: tuple[Home, dict[str, str]]) -> None:
    """No CSV is written; JSON Lines keeps the text exactly, which is what a program that reads it wants."""
    import json

    lines = (hostile[0].exports / "corpus.jsonl").read_text(encoding="utf-8").split("\n")

    assert {json.loads(line)["transcription"] for line in lines if line} == {SAID}
    assert not [p for p in Path(hostile[0].root).rglob("*") if p.suffix.lower() in (".csv", ".tsv", ".xls", ".xlsx")]
