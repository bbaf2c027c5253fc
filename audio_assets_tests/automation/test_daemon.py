"""The real daemon: an object is put into the bucket, and becomes a row of the warehouse by itself."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest

from audio_assets.dagster_home import DAGSTER_YAML
from audio_assets.demo import demo_objects, packaged_model
from audio_assets.demo_server import WeedServer
from audio_assets.settings import Home
from audio_assets_tests.conftest import r2_environment, subprocess_environment
from audio_assets_tests.queue_server import QueueServer

pytestmark = [pytest.mark.slow, pytest.mark.weights]
BUCKET = "watched"
CLIP = next(o.body for o in demo_objects() if o.key.endswith("08.mp3"))


@pytest.fixture
def queue() -> Iterator[QueueServer]:
    with QueueServer() as server:
        yield server


@pytest.fixture
def bucket(weed: WeedServer) -> Any:
    """A bucket of this test's own; gives its client."""
    client = weed.client()
    client.create_bucket(Bucket=BUCKET)
    return client


class Daemon:
    """``dagster-daemon run`` on a home of its own, with all sensors on, or those that are named; its log is ``log``."""

    def __init__(self, home: Home, environment: dict[str, str], sensors: Sequence[str] = ()) -> None:
        environment = environment | {
            "DAGSTER_HOME": str(home.dagster),
            "AUDIO_ASSETS_SENSORS": "off" if sensors else "on",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        tools = Path(sys.executable).parent
        home.dagster.mkdir(parents=True)
        (home.dagster / "dagster.yaml").write_text(DAGSTER_YAML, encoding="utf-8")
        self.log = home.root / "daemon.log"
        self.home = home
        for sensor in sensors:
            subprocess.run(
                [tools / "dagster", "sensor", "start", sensor, "-m", "audio_assets.definitions"],
                cwd=home.root,
                env=environment,
                check=True,
                capture_output=True,
            )
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [tools / "dagster-daemon", "run", "-m", "audio_assets.definitions"],
                cwd=home.root,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def row(self, key: str, timeout_s: float = 240) -> dict[str, Any]:
        """Wait for the row of ``key`` in the warehouse."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self.log.read_text(encoding="utf-8")[-3000:]
            try:
                with duckdb.connect(str(self.home.warehouse), read_only=True) as warehouse:
                    found = warehouse.execute("SELECT * FROM transcripts WHERE id = ?", [key])
                    names = [column[0] for column in found.description or []]
                    for row in found.fetchall():
                        return dict(zip(names, row, strict=True))
            except duckdb.Error:
                pass  # not there yet, or a run is loading it
            time.sleep(0.25)
        raise AssertionError(f"no row of {key} within {timeout_s} s\n{self.log.read_text(encoding='utf-8')[-3000:]}")

    def sensors_of_runs(self) -> list[str]:
        """Names of the sensors that asked for the runs, the first run first."""
        with dg.DagsterInstance.from_config(str(self.home.dagster)) as instance:
            return [run.tags["dagster/sensor_name"] for run in reversed(instance.get_runs())]

    def stop(self) -> None:
        """End the daemon, and with its session the code server and the runs that it started."""
        os.killpg(self._process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.mark.timeout(600)
def test_an_object_in_the_bucket_becomes_a_row_by_itself(
    weed: WeedServer, bucket: Any, queue: QueueServer, home: Home
) -> None:
    bucket.put_object(Bucket=BUCKET, Key="calls/first.mp3", Body=CLIP)
    settings = {**r2_environment(weed), **queue.settings, "R2_BUCKET": BUCKET, "WHISPER_MODEL": packaged_model()}
    settings["AUDIO_ASSETS_LISTING_INTERVAL_S"] = "3600"
    daemon = Daemon(home, subprocess_environment(home.root, **settings))
    try:
        # The first tick of the sensor that lists finds it.
        assert daemon.row("calls/first.mp3")["status"] == "ok"
        # The next is an hour away: this one is heard of from the queue.
        bucket.put_object(Bucket=BUCKET, Key="calls/second.mp3", Body=CLIP)
        queue.notify(BUCKET, "calls/second.mp3")
        assert daemon.row("calls/second.mp3")["transcription"]
        assert daemon.sensors_of_runs() == ["new_r2_objects_sensor", "r2_event_sensor"]
        assert queue.left() == 0
    finally:
        daemon.stop()
