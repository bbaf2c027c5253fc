"""``make dev``: Dagster's UI, with the state that the command line left behind."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from audio_assets.definitions import ASSETS
from audio_assets.demo_server import HOST
from audio_assets_tests.conftest import PipelineRun

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.weights]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def dev_command() -> str:
    """What ``make dev`` runs, as the Makefile has it."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^dev:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe
    return re.sub(r"\\\n\s*", "", recipe[1]).strip().replace("$$", "$")


@pytest.fixture(scope="module")
def dev_server(pipeline: PipelineRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The UI on a copy of the demonstration's home; gives its address."""
    home = tmp_path_factory.mktemp("dev") / "home"
    shutil.copytree(pipeline.home.root, home)
    port = free_port()
    command = dev_command().replace("$(BIN)/", f"{Path(sys.executable).parent}/").replace("$(PORT)", str(port))
    process = subprocess.Popen(
        command,
        shell=True,
        cwd=ROOT,
        env={**pipeline.environment, "AUDIO_ASSETS_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    address = f"http://{HOST}:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{address}/server_info", timeout=5).read()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, "the UI did not come up"
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def ask(address: str, query: str) -> dict[str, object]:
    request = urllib.request.Request(
        f"{address}/graphql", json.dumps({"query": query}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())["data"]  # type: ignore[no-any-return]


def test_the_ui_shows_the_partitions_of_the_last_run(dev_server: str) -> None:
    data = ask(
        dev_server,
        '{ assetNodeOrError(assetKey: {path: ["transcripts"]}) { ... on AssetNode {'
        " partitionKeys partitionStats { numPartitions numMaterialized } } } }",
    )
    assert data["assetNodeOrError"] == {
        "partitionKeys": ["best-of-times", "in-short"],
        "partitionStats": {"numPartitions": 2, "numMaterialized": 2},
    }


def test_the_summaries_carry_their_plots(dev_server: str) -> None:
    data = ask(
        dev_server,
        '{ assetNodeOrError(assetKey: {path: ["corpus_summary"]}) { ... on AssetNode { assetMaterializations(limit: 1)'
        " { metadataEntries { label ... on MarkdownMetadataEntry { mdStr } } } } } }",
    )
    [materialization] = data["assetNodeOrError"]["assetMaterializations"]  # type: ignore[index]
    pictures = {e["label"]: e["mdStr"] for e in materialization["metadataEntries"] if "mdStr" in e}
    assert pictures["plot_word_cloud"].count("data:image/png;base64,") == 1
    assert pictures["plot_top_words"].count("data:image/png;base64,") == 1


def test_the_ui_listens_on_loopback_only(dev_server: str) -> None:
    port = int(dev_server.rpartition(":")[2])
    listening = [
        line.split()[1]
        for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
        if table.exists()
        for line in table.read_text().splitlines()[1:]
        if line.split()[3] == "0A" and int(line.split()[1].rpartition(":")[2], 16) == port
    ]
    if not listening:
        pytest.skip("looks for listening sockets in /proc/net/tcp, which this system has not")
    assert all(address.startswith("0100007F:") for address in listening)


@pytest.fixture(scope="module")
def page(dev_server: str) -> Iterator["Page"]:
    """A tab of a real browser. Errors on its console and requests to anywhere else fail the module's tests."""
    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser_path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    complaints: list[str] = []
    options = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=options)
        tab = browser.new_page(viewport={"width": 1600, "height": 1400}, base_url=dev_server)
        tab.set_default_timeout(60_000)
        tab.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        tab.on("console", lambda said: said.type == "error" and complaints.append(f"console: {said.text}"))
        tab.on(
            "request",
            lambda request: (
                request.url.startswith((dev_server, "data:", "blob:")) or complaints.append(f"request: {request.url}")
            ),
        )
        yield tab
        browser.close()
    assert complaints == []


@pytest.mark.browser
def test_the_lineage_shows_every_asset(page: "Page") -> None:
    groups: dict[str, list[str]] = {}
    for asset in ASSETS:
        for spec in asset.specs:
            groups.setdefault(str(spec.group_name), []).append(spec.key.to_user_string())
    page.goto("/asset-groups")
    for group in groups:
        page.get_by_text(group, exact=True).first.wait_for()
    for group, names in groups.items():
        page.goto(f"/locations/audio_assets/asset-groups/{group}/lineage")
        for name in names:
            page.get_by_text(name, exact=True).first.wait_for()


@pytest.mark.browser
def test_an_asset_explains_itself_in_the_browser(page: "Page") -> None:
    page.goto("/assets/transcripts?view=overview")
    for said in (
        "One row per audio object: what Whisper heard",
        "speech-data",
        "OpenAI",
        "reasons to mistrust the text",
    ):
        page.get_by_text(said).first.wait_for()
    page.goto("/assets/transcripts?view=checks")
    page.get_by_text("Every row of raw_audio has exactly one row.").first.wait_for()


@pytest.mark.browser
def test_the_plots_are_drawn_in_the_browser(page: "Page") -> None:
    page.goto("/assets/corpus_summary?view=events")
    page.get_by_text("[Show Markdown]").first.click()
    picture = page.locator("img[src^='data:image/png']").first
    picture.wait_for()
    assert picture.evaluate("image => image.complete && image.naturalWidth") >= 600
