"""``make dev``: Dagster's UI, with the state that the command line left behind."""

import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from audio_assets.definitions import ASSETS
from audio_assets_tests.conftest import PipelineRun
from audio_assets_tests.ui_server import quiet_page, ui_server

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.weights]


@pytest.fixture(scope="module")
def dev_server(pipeline: PipelineRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The UI on a copy of the demonstration's home; gives its address."""
    home = tmp_path_factory.mktemp("dev") / "home"
    shutil.copytree(pipeline.home.root, home)
    with ui_server(home, pipeline.environment) as address:
        yield address


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
    with quiet_page(dev_server) as tab:
        yield tab


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
