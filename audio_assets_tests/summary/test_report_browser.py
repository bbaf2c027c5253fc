"""The report in a real browser: quiet, self-contained, searchable, and playing from where one clicks."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import duckdb
import pytest

from audio_assets.summary.report import render_report
from audio_assets_tests.summary.conftest import write_tone

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

axe_package = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
AXE = (Path(axe_package.__file__).parent / "axe.min.js").read_text(encoding="utf-8")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH (chromium, chromium-browser or google-chrome)"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as driver:
        instance = driver.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield instance
        instance.close()


@pytest.fixture
def page(
    browser: "playwright.Browser", corpus: duckdb.DuckDBPyConnection, tmp_path: Path
) -> Iterator["playwright.Page"]:
    """The report, opened from disk. Any console message or request off the page fails the test."""
    audio = tmp_path / "audio"
    for name in ("a/one.wav", "a/two & 100%.wav"):
        write_tone(audio / name, 4.0)

    def link(id: str) -> str | None:
        return "../audio/" + quote(id) if (audio / id).is_file() else None

    report = render_report(corpus, tmp_path / "report" / "index.html", audio_link=link)
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    tab = context.new_page()
    complaints: list[str] = []
    tab.on("console", lambda message: complaints.append(f"console: {message.text}"))
    tab.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    tab.on("dialog", lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    tab.on(
        "request",
        lambda request: (
            request.url.startswith((tmp_path.as_uri() + "/", "data:")) or complaints.append(f"request: {request.url}")
        ),
    )
    tab.goto(report.as_uri())
    yield tab
    context.close()
    assert complaints == []


def names(page: "playwright.Page") -> list[str]:
    return page.locator("#rows tbody th > bdi:last-of-type").all_inner_texts()


def test_the_page_shows_every_transcript_and_scrolls_only_downwards(page: "playwright.Page"):
    playwright.expect(page.locator("#rows tbody tr")).to_have_count(4)
    for width in (1200, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_search_keeps_the_rows_that_hold_all_words(page: "playwright.Page"):
    page.fill("#q", "WORST times")

    playwright.expect(page.locator("#rows tbody tr")).to_have_count(1)
    assert names(page) == ["one.wav"]
    assert page.locator("mark").all_inner_texts() == ["times", "worst", "times"]
    playwright.expect(page.locator("#found")).to_have_text("1 of 4 transcripts match")

    page.fill("#q", "nowhere")
    playwright.expect(page.locator("#rows tbody tr")).to_have_count(0)


def test_a_word_of_the_cloud_finds_its_transcripts(page: "playwright.Page"):
    page.locator(".words a", has_text="worst").click()

    playwright.expect(page.locator("#q")).to_have_value("worst")
    playwright.expect(page.locator("#rows tbody tr")).to_have_count(1)


def test_a_keyword_finds_its_transcripts_of_its_prefix(page: "playwright.Page"):
    page.locator(".keywords .chip", has_text="worst").click()

    playwright.expect(page.locator("#q")).to_have_value("worst")
    playwright.expect(page.locator("#prefix")).to_have_value("=a/")
    playwright.expect(page.locator("#rows tbody tr")).to_have_count(1)


def test_a_doubtful_transcript_opens_in_its_row(page: "playwright.Page"):
    page.fill("#q", "nowhere")
    playwright.expect(page.locator("#rows tbody tr")).to_have_count(0)
    page.locator(".doubtful a", has_text="two & 100%.wav").click()

    row = page.locator("#rows tbody tr.chosen")
    playwright.expect(row).to_contain_text("We had everything before us")
    playwright.expect(row).to_be_in_viewport()
    playwright.expect(row.locator(".piece")).to_be_focused()
    page.keyboard.press("Enter")
    playwright.expect(row.locator(".piece.playing")).to_contain_text("everything before us")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 390)])
def test_axe_finds_nothing_that_shuts_people_out(page: "playwright.Page", scheme: str, width: int):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    page.fill("#q", "times")
    playwright.expect(page.locator("mark").first).to_be_visible()

    found = page.evaluate(AXE + "; axe.run().then((r) => r.violations)")

    assert [(v["id"], v["impact"], [n["html"] for n in v["nodes"]]) for v in found] == []


def test_everything_is_reached_by_the_tab_key(page: "playwright.Page"):
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.className"))

    assert {"skip", "theme", "q", "prefix", "kind", "sort", "direction", "piece"} <= reached


def test_it_prints_its_text_without_its_controls(page: "playwright.Page"):
    page.emulate_media(media="print")

    for control in ("nav", "#tools", "#theme", "#rows audio >> nth=0"):
        playwright.expect(page.locator(control)).to_be_hidden()
    playwright.expect(page.locator("#rows")).to_contain_text("It was the best of times")
    assert len(page.pdf()) > 10_000


PAPER_WIDTH = 700
"""Of a sheet of A4 without its margins, in CSS pixels."""


def test_no_column_is_cut_off_on_paper(page: "playwright.Page"):
    page.emulate_media(media="print")
    page.set_viewport_size({"width": PAPER_WIDTH, "height": 1000})

    widths = page.locator("table, .cloud svg").evaluate_all("all => all.map((e) => e.getBoundingClientRect().right)")
    assert len(widths) >= 5
    assert max(widths) <= PAPER_WIDTH
    assert page.evaluate("document.documentElement.scrollWidth") <= PAPER_WIDTH


def test_a_dark_page_prints_dark_on_white(page: "playwright.Page"):
    page.emulate_media(color_scheme="dark")
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.emulate_media(media="print", color_scheme="dark")

    style = page.evaluate("(({backgroundColor, color}) => [backgroundColor, color])(getComputedStyle(document.body))")
    assert style[0] == "rgb(255, 255, 255)"
    assert all(int(part) < 60 for part in style[1].removeprefix("rgb(").rstrip(")").split(","))


def test_all_rows_that_were_found_are_printed_and_only_printed(browser: "playwright.Browser", tmp_path: Path):
    tab = browser.new_page()
    tab.goto(large_report(tmp_path, 1100).as_uri())
    playwright.expect(tab.locator("#browser")).to_have_attribute("data-rows", "complete")
    rows = tab.locator("#rows tbody tr")
    tab.evaluate(
        "addEventListener('beforeprint', () => { window.printed = document.querySelectorAll('#rows tbody tr').length })"
    )

    tab.locator("#next").click()
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert names(tab)[:30] == [f"{i}.wav" for i in range(25, 55)]
    playwright.expect(rows).to_have_count(1000)
    playwright.expect(tab.locator("#cut")).to_have_text(" · 1,000 of them are printed")
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert names(tab) == [f"{i}.wav" for i in range(25, 50)]
    playwright.expect(tab.locator("#cut")).to_be_empty()

    tab.fill("#q", "number7")
    playwright.expect(tab.locator("#found")).to_contain_text("111 of 1,100")
    tab.pdf()
    assert tab.evaluate("window.printed") == 111
    playwright.expect(rows).to_have_count(25)
    tab.close()


def test_rows_are_filtered_by_prefix_and_by_flag(page: "playwright.Page"):
    page.select_option("#prefix", label="a/")
    playwright.expect(page.locator("#rows tbody tr")).to_have_count(2)

    page.select_option("#kind", "flagged")
    playwright.expect(page.locator("#rows tbody tr")).to_have_count(1)
    assert names(page) == ["two & 100%.wav"]


def test_rows_are_sorted_both_ways(page: "playwright.Page"):
    words = page.get_by_role("button", name="Words", exact=True)

    words.click()
    ascending = page.locator("#rows td.n:nth-child(4)").all_inner_texts()
    words.click()
    descending = page.locator("#rows td.n:nth-child(4)").all_inner_texts()

    assert [int(n) for n in ascending] == sorted(int(n) for n in ascending)
    assert descending == ascending[::-1]
    playwright.expect(page.locator("#rows th[aria-sort]")).to_have_attribute("aria-sort", "descending")


def test_the_player_goes_to_the_segment_that_is_clicked(page: "playwright.Page"):
    row = page.locator("#rows tbody tr", has_text="best of times")
    audio = row.locator("audio")
    assert audio.evaluate("a => a.networkState") != 2, "the recording was loaded before anybody asked"

    row.locator(".piece", has_text="worst of times").click()

    playwright.expect(row.locator(".piece.playing")).to_contain_text("worst of times")
    assert 2.5 <= audio.evaluate("a => a.currentTime") <= 4


def test_a_segment_plays_from_the_keyboard(page: "playwright.Page"):
    piece = page.locator("#rows .piece", has_text="everything before us")
    piece.focus()
    page.keyboard.press("Enter")

    playwright.expect(page.locator("#rows .piece.playing")).to_contain_text("everything before us")


def test_light_and_dark_follow_the_system_and_the_switch(page: "playwright.Page"):
    def ground() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    page.emulate_media(color_scheme="light")
    light = ground()
    page.emulate_media(color_scheme="dark")
    dark = ground()
    page.locator("#theme").click()

    assert light != dark
    assert ground() == light


def large_report(tmp_path: Path, size: int) -> Path:
    """A report of ``size`` transcripts that share a word and have one of their own."""
    from audio_assets import schemas
    from audio_assets_tests.summary.conftest import database, object_row, transcript_row

    ids = [f"a/{i}.wav" for i in range(size)]
    raw = schemas.RAW_AUDIO.from_rows([object_row(id) for id in ids])
    rows = [transcript_row(id, [(0, 1, f"word number{n}")]) for n, id in enumerate(ids)]
    with database(raw, schemas.TRANSCRIPTS.from_rows(rows)) as connection:
        return render_report(connection, tmp_path / "report.html")


def test_a_large_corpus_comes_in_pages(browser: "playwright.Browser", tmp_path: Path):
    tab = browser.new_page()
    tab.goto(large_report(tmp_path, 60).as_uri())

    assert names(tab)[:11] == [f"{i}.wav" for i in range(11)]
    tab.locator("#next").click()
    tab.locator("#next").click()

    playwright.expect(tab.locator("#page")).to_have_text("Page 3 of 3")
    assert names(tab) == [f"{i}.wav" for i in range(50, 60)]
    playwright.expect(tab.locator("#next")).to_be_disabled()
    tab.close()


def test_what_is_asked_before_every_row_is_there_is_answered_when_they_are(
    browser: "playwright.Browser", tmp_path: Path
):
    report = large_report(tmp_path, 2100)
    whole = report.read_text(encoding="utf-8")
    assert "number2099" not in whole, "rows beyond the first page are packed"
    tab = browser.new_page()
    complaints: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    # Typed by a script that runs when the page's own has, before the packed rows are read.
    tab.add_init_script(
        """
        new MutationObserver((_, observer) => {
          if (!document.querySelector("#rows tbody tr")) return;
          observer.disconnect();
          window.early = document.getElementById("browser").dataset.rows;
          document.getElementById("q").value = "number2099";
          document.getElementById("tools").requestSubmit();
        }).observe(document, { childList: true, subtree: true });
        """
    )
    tab.goto(report.as_uri())

    playwright.expect(tab.locator("#found")).to_have_text("1 of 2,100 transcripts match")
    assert names(tab) == ["2099.wav"]
    assert tab.evaluate("window.early") is None
    assert complaints == []
    tab.close()


def test_names_and_numbers_sort_as_people_sort_them(browser: "playwright.Browser", tmp_path: Path):
    tab = browser.new_page()
    tab.goto(large_report(tmp_path, 30).as_uri())

    tab.locator("#direction").click()

    assert names(tab)[:3] == ["29.wav", "28.wav", "27.wav"]
    tab.close()
