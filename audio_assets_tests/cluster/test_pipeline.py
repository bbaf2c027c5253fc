"""The whole pipeline, its files spread over a Ray cluster of two nodes."""

from __future__ import annotations

import hashlib
import shutil
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pyarrow as pa
import pytest

from audio_assets import schemas
from audio_assets.settings import Home
from audio_assets.storage.partition_files import PartitionStore
from audio_assets_tests.conftest import PipelineRun, audio_assets, subprocess_environment
from audio_assets_tests.speech.conftest import (  # noqa: F401
    FaultServer,
    fault_server,
    heard,
    reply,
    two_cities,
    two_cities_path,
)

from .conftest import TwoNodes
from .test_faults import RECORDINGS, recordings  # noqa: F401

NOT_OF_THE_DATA = {"elapsed_s", "cached", "discovered_at", "measured_at", "materialized_at", "run"}
"""Columns that tell of the run and not of the recordings, as all of the ledger does."""


def tables_of(root: Path | str) -> dict[str, pa.Table]:
    store = PartitionStore(root)
    found = {}
    for name, table in schemas.TABLES.items():
        if name == schemas.TRANSCRIPTION_LEDGER.name:
            continue
        rows = store.read(table)
        found[name] = rows.select([c for c in rows.column_names if c not in NOT_OF_THE_DATA]).combine_chunks()
    return found


def assert_same_tables(here: dict[str, pa.Table], there: dict[str, pa.Table]) -> None:
    """Every table the same to the byte, rows in the same order."""
    assert there.keys() == here.keys()
    for name in here:
        assert as_bytes(there[name]) == as_bytes(here[name]), name


def as_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


ONE_BY_ONE = ("--batch-size", "1")
"""In a larger batch a window gets as much silence as the longest needs, and its neighbours are a worker's luck."""


@pytest.fixture(scope="session")
def one_by_one(pipeline: PipelineRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tables of a local run of the demonstration's corpus, window by window."""
    root = tmp_path_factory.mktemp("one-by-one")
    environment = {**pipeline.environment, "AUDIO_ASSETS_HOME": str(root / "home")}
    done = audio_assets("run", "--json", *ONE_BY_ONE, cwd=root, environment=environment)
    assert done.returncode == 0, done.stderr
    return root / "home" / "tables"


@pytest.mark.weights
def test_the_demonstrations_corpus_through_ray_gives_the_tables_of_a_local_run_to_the_byte(
    pipeline: PipelineRun, one_by_one: Path, two_nodes: TwoNodes, tmp_path: Path
) -> None:
    environment = {**pipeline.environment, "AUDIO_ASSETS_HOME": str(tmp_path / "home")}
    environment |= two_nodes.environment
    done = audio_assets("run", "--json", *ONE_BY_ONE, cwd=tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr
    here, there = tables_of(one_by_one), tables_of(tmp_path / "home" / "tables")
    assert here["transcripts"].num_rows == 12
    assert_same_tables(here, there)


def test_every_table_is_the_same_to_the_byte_when_an_answer_depends_on_the_recording_alone(
    recordings: Path,  # noqa: F811
    fault_server: FaultServer,  # noqa: F811
    two_nodes: TwoNodes,
    tmp_path: Path,
) -> None:
    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        body = fault_server.posts[number - 1]
        # The boundaries of a form are drawn by lot; the recording in it is not.
        sound = hashlib.sha256(body[body.index(b"fLaC") :].split(b"\r\n--")[0]).hexdigest()
        reply(200, heard(f"It was the {sound[:6]} of {sound[6:12]}."))(handler, number)

    fault_server.answers = [answer]
    tables = {}
    for kind, more in (("here", {}), ("there", two_nodes.environment)):
        home = tmp_path / kind
        shutil.copytree(recordings, home / "audio" / "calls")
        environment = subprocess_environment(
            home, WHISPER_ENGINE="openai", OPENAI_API_KEY="test-key", OPENAI_BASE_URL=fault_server.url
        )
        done = audio_assets("run", "--skip-ingestion", cwd=tmp_path, environment=environment | more)
        assert done.returncode == 0, done.stderr
        tables[kind] = tables_of(home / "tables")
    assert len(fault_server.posts) == 2 * RECORDINGS
    assert len(set(tables["here"]["transcripts"]["transcription"].to_pylist())) == RECORDINGS
    for name in ("raw_audio", "transcripts", "tokens", "transcript_quality", "token_frequency", "prefix_statistics"):
        assert tables["here"][name].num_rows, name
    assert_same_tables(tables["here"], tables["there"])


def mirror(home: Home, pipeline: PipelineRun) -> None:
    shutil.copytree(pipeline.home.audio, home.audio)


@pytest.mark.weights
def test_a_cluster_that_is_not_there_is_one_line_and_exit_4(pipeline: PipelineRun, home: Home, tmp_path: Path) -> None:
    mirror(home, pipeline)
    environment = subprocess_environment(home.root, AUDIO_ASSETS_MAPPER="ray", RAY_ADDRESS="127.0.0.1:9")
    started = time.monotonic()
    done = audio_assets("run", "--skip-ingestion", cwd=tmp_path, environment=environment)
    assert done.returncode == 4, done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        "error: RAY_ADDRESS 127.0.0.1:9: nobody answers there (Connection ref"
    )
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < 60
    assert not list(home.tables.rglob("raw_audio/*"))
    without = audio_assets(
        "run",
        "--skip-ingestion",
        cwd=tmp_path,
        environment={k: v for k, v in environment.items() if k != "RAY_ADDRESS"},
    )
    assert without.returncode == 4
    assert "RAY_ADDRESS is not set: AUDIO_ASSETS_MAPPER is ray" in without.stderr
