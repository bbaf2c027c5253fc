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

import pytest

from audio_assets.demo_server import HOST
from audio_assets_tests.conftest import PipelineRun

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
    assert pictures["word_cloud"].count("data:image/png;base64,") == 1
    assert pictures["top_words"].count("data:image/png;base64,") == 1


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


@pytest.mark.browser
def test_the_ui_draws_the_lineage_in_a_browser(dev_server: str) -> None:
    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser_path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    options = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=options)
        page = browser.new_page(viewport={"width": 1500, "height": 900})
        page.goto(f"{dev_server}/asset-groups")
        page.get_by_text("corpus", exact=True).first.wait_for(timeout=60_000)
        for group in ("ingest", "speech", "text", "summary", "corpus"):
            assert page.get_by_text(group, exact=True).count() >= 1
        browser.close()
