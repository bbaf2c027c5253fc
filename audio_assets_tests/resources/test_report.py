"""The report of a home, with players that reach the mirror or the bucket of a real S3 server."""

import json
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from audio_assets import cli
from audio_assets.resources.home import HomeResource
from audio_assets.resources.r2 import R2Resource
from audio_assets.resources.report import write_report
from audio_assets.storage.partition_files import PartitionStore
from audio_assets.storage.warehouse import Warehouse
from audio_assets_tests.conftest import PipelineRun

pytestmark = pytest.mark.weights


def links(report: Path) -> dict[str, str | None]:
    html = report.read_text(encoding="utf-8")
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert data
    return {row[0]: row[8] for row in json.loads(data[1])["rows"]}


@pytest.fixture
def settings(pipeline: PipelineRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The settings of a finished run, but a home of its own to write the report into."""
    for name in ("R2_BUCKET", "R2_ENDPOINT_URL", "R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, pipeline.environment[name])
    home = tmp_path / "home"
    home.mkdir()
    for name in ("tables", "audio"):
        (home / name).symlink_to(pipeline.home.root / name)
    return home


def report(settings: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", "--json", *arguments])
    assert stop.value.code == 0
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def test_players_read_from_the_mirror(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = report(settings, capsys)

    assert written["report"] == str(settings / "report" / "index.html")
    found = links(Path(written["report"]))
    assert found["best-of-times/01.wav"] == "../audio/best-of-times/01.wav"


def test_with_link_hours_anybody_can_hear_the_recordings(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = report(settings, capsys, "--link-hours", "2")
    link = links(Path(written["report"]))["best-of-times/01.wav"]

    assert link is not None
    assert "X-Amz-Expires=7200" in link
    heard = urllib.request.urlopen(link, timeout=30).read()
    assert heard == (settings / "audio" / "best-of-times" / "01.wav").read_bytes()
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(link.replace("01.wav", "02.flac"), timeout=30)


def test_the_setting_is_the_default(
    settings: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUDIO_ASSETS_REPORT_LINK_HOURS", "1")
    assert "X-Amz-Expires=3600" in (links(Path(report(settings, capsys)["report"]))["in-short/06.wav"] or "")


def test_links_without_credentials_name_the_setting(
    settings: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("R2_ACCESS_KEY_ID")
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", "--link-hours", "1"])
    assert stop.value.code == 4
    assert "R2_ACCESS_KEY_ID is not set" in capsys.readouterr().err
    assert not (settings / "report").exists()


def test_a_link_cannot_outlive_its_signature(settings: Path) -> None:
    store = PartitionStore(settings / "tables")
    with (
        Warehouse(settings / "warehouse.duckdb", store).connect() as connection,
        pytest.raises(ValueError, match="between 0 and 168"),
    ):
        write_report(connection, HomeResource(root=str(settings)), R2Resource(), 169)
