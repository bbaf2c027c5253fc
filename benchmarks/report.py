"""The report of 10,000 files: seconds to build it, and seconds until every row of it can be used in Chromium.

Run by ``python -m benchmarks.report``; prints a table and, as its last line, one JSON object.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from audio_assets import schemas
from audio_assets.summary.report import render_report
from audio_assets_tests.summary.conftest import database, object_row, transcript_row

FILES = 10_000
SEGMENTS = 10
WORDS = 15
BUILD_GOAL_S = 30.0
OPEN_GOAL_S = 1.0
ROUNDS = 5


def build(output: Path) -> float:
    """Write the report of `FILES` transcripts, each of `SEGMENTS` segments of `WORDS` words; seconds for it alone."""
    draw = random.Random(1)
    vocabulary = [f"word{n}" for n in range(5_000)]
    ids = [f"p{n % 10}/{n:05d}.wav" for n in range(FILES)]
    rows = [
        transcript_row(
            id,
            [(5.0 * n, 5.0 * n + 4.5, " ".join(draw.choices(vocabulary, k=WORDS))) for n in range(SEGMENTS)],
            flags=["repetition"] if draw.random() < 0.05 else [],
        )
        for id in ids
    ]
    raw = schemas.RAW_AUDIO.from_rows([object_row(id, duration_s=50.0) for id in ids])
    with database(raw, schemas.TRANSCRIPTS.from_rows(rows)) as connection:
        started = time.perf_counter()
        render_report(connection, output, audio_link=lambda key: f"../audio/{key}")
        return time.perf_counter() - started


def open_and_search(report: Path) -> tuple[list[float], list[float], list[float]]:
    """Seconds until the first rows are there, until all can be searched, and that a first search takes; each round."""
    from playwright.sync_api import expect, sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    shown: list[float] = []
    opened: list[float] = []
    searched: list[float] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for _ in range(ROUNDS):
            page = browser.new_page(viewport={"width": 1200, "height": 900})
            page.goto(report.as_uri())
            expect(page.locator("#rows tbody tr")).to_have_count(25)
            page.locator("#browser[data-rows=complete]").wait_for(state="attached")
            shown_ms, complete_ms = page.evaluate(
                "['rows-shown', 'rows-complete'].map((name) => performance.getEntriesByName(name)[0].startTime)"
            )
            shown.append(shown_ms / 1000)
            opened.append(complete_ms / 1000)
            started = time.perf_counter()
            page.fill("#q", "word77")
            expect(page.locator("#found")).to_contain_text("match")
            searched.append(time.perf_counter() - started)
            page.close()
        browser.close()
    return shown, opened, searched


def measure() -> list[dict[str, Any]]:
    """Build it, open it, and say both: rows of the result."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report" / "index.html"
        build_s = build(report)
        size_mb = report.stat().st_size / 1e6
        shown, opened, searched = open_and_search(report)
    print(f"report of {FILES:,} files, {size_mb:.1f} MB; rounds from {min(opened):.2f} to {max(opened):.2f} s")
    print(f"  built in            {build_s:6.2f} s   (goal {BUILD_GOAL_S:g} s)")
    print(f"  first rows after    {statistics.median(shown):6.2f} s")
    print(f"  interactive after   {statistics.median(opened):6.2f} s   (goal {OPEN_GOAL_S:g} s)")
    print(f"  first search after  {statistics.median(searched):6.2f} s   (0.12 s of it waiting for the typist)")
    measured = [
        ("report_10k_build", build_s, BUILD_GOAL_S),
        ("report_10k_interactive", statistics.median(opened), OPEN_GOAL_S),
    ]
    return [
        {"name": name, "value": value, "unit": "s", "goal": goal, "met": value < goal} for name, value, goal in measured
    ]


def main() -> None:
    """Measure and print."""
    print(json.dumps({"benchmark": "report", "results": measure()}))


if __name__ == "__main__":
    main()
