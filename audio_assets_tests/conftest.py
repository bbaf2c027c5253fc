"""Fixtures that every test shares: a clean environment, a real S3 server, a bucket that went through."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import hypothesis
import pytest

from audio_assets.demo import BUCKET, demo_objects, packaged_model, upload
from audio_assets.demo_server import WeedServer
from audio_assets.settings import Home, Settings
from audio_assets.storage.objects import Objects

# A shell starts background jobs with SIGINT ignored. Children would inherit that, and Dagster, once it ran a job in
# this process, would have SIGTERM ignored too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A stall of the machine is no fault of an example.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

SETTINGS = [name.upper() for name in Settings.model_fields]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No test sees the settings of the machine it runs on; everything it writes is under its own directory."""
    for name in [*SETTINGS, "DAGSTER_HOME", "AWS_PROFILE", "NO_COLOR"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AUDIO_ASSETS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Where this test's data lies."""
    return Home(tmp_path / "home")


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WeedServer]:
    """A real S3 server with one bucket, for the whole session. Tests keep to prefixes of their own."""
    with WeedServer(tmp_path_factory.mktemp("weed"), bucket=BUCKET) as server:
        yield server


def r2_environment(server: WeedServer) -> dict[str, str]:
    """The settings that point at ``server``."""
    return {
        "R2_BUCKET": BUCKET,
        "R2_ENDPOINT_URL": server.endpoint_url,
        "R2_ACCESS_KEY_ID": server.access_key_id,
        "R2_SECRET_ACCESS_KEY": server.secret_access_key,
    }


def bucket_url(server: WeedServer, folder: str, *, secret: str | None = None, bucket: str = BUCKET) -> str:
    """The address of a folder of the real server's bucket, as a home."""
    secret = quote(secret or server.secret_access_key, safe="")
    host = server.endpoint_url.removeprefix("http://")
    return f"s3://{server.access_key_id}:{secret}@{bucket}/{folder}?endpoint_override={host}&scheme=http"


@pytest.fixture
def objects(weed: WeedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Objects:
    """A home in a bucket, which the environment names, as one machine sees it."""
    place = bucket_url(weed, f"home-{tmp_path.parent.name}-{tmp_path.name}")
    monkeypatch.setenv("AUDIO_ASSETS_HOME", place)
    monkeypatch.setenv("AUDIO_ASSETS_SCRATCH", str(tmp_path / "scratch"))
    return Objects(place)


def subprocess_environment(home: Path, **settings: str) -> dict[str, str]:
    """The environment of a user who has set nothing but ``settings``."""
    keep = {k: v for k, v in os.environ.items() if k not in SETTINGS and k != "DAGSTER_HOME"}
    # What a warning filter makes of the libraries' warnings is pytest's business, not the user's.
    keep.pop("PYTHONWARNINGS", None)
    return keep | {"AUDIO_ASSETS_HOME": str(home), "HF_HUB_OFFLINE": "1", "WHISPER_ENGINE": "local"} | settings


def audio_assets(
    *arguments: str, cwd: Path, environment: dict[str, str], timeout_s: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "audio_assets", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


@dataclass(frozen=True)
class PipelineRun:
    """One run of the whole pipeline against the real server: read it, do not change it."""

    home: Home
    environment: dict[str, str]
    report: dict[str, Any]
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory, weed: WeedServer) -> PipelineRun:
    """The demonstration's objects, taken through the whole pipeline by ``audio-assets run``."""
    root = tmp_path_factory.mktemp("pipeline")
    upload(weed.client(), BUCKET, demo_objects())
    environment = subprocess_environment(root / "home", **r2_environment(weed), WHISPER_MODEL=packaged_model())
    formats = [a for name in ("json", "parquet", "sqlite", "duckdb") for a in ("--output-format", name)]
    done = audio_assets("run", "--json", *formats, cwd=root, environment=environment)
    assert done.returncode == 0, done.stderr
    return PipelineRun(Home(root / "home"), environment, json.loads(done.stdout), done.stdout, done.stderr)
