"""Figures for Prometheus behind one switch, and logs as JSON."""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Generator, Iterable
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from audio_assets.errors import SettingsError
from audio_assets.resources import metrics
from audio_assets.resources.mapper import MapperResource, Tell
from audio_assets.resources.stages import Tokenize
from audio_assets.speech.transcribe import FileTranscript
from audio_assets.text.tokenize import TokenizeOptions


class Listen(Tokenize):
    """A stage that hears ten seconds in each file, for a cent."""

    def apply(self, items: Iterable[int], tell: Tell) -> Generator[FileTranscript, None, None]:  # type: ignore[override]
        for item in items:
            self.heard = item + 1
            status = "failed" if item == 2 else "ok"
            yield FileTranscript(str(item), "", status, "e", "m", "f", duration_s=10.0, cached=item == 0)

    def figures(self) -> dict[str, float]:
        return {"cost_usd": 0.01 * getattr(self, "heard", 0)}


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip("prometheus_client", reason="prometheus-client comes with the extra `ray`: make cluster-test")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(metrics, "_meters", {})
    monkeypatch.setenv("AUDIO_ASSETS_METRICS", found)
    return found


def read(address: str) -> dict[str, float]:
    text = urllib.request.urlopen(f"http://{address}/metrics", timeout=5).read().decode()
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines if not name.endswith("_created")}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_run_shows_throughput_queue_failures_and_cost(address: str) -> None:
    stage = Listen(TokenizeOptions(), None)
    with closing(MapperResource().map(stage, [0, 1, 2, 3])) as results:  # type: ignore[type-var]
        taken = iter(results)
        next(taken), next(taken), next(taken)
        figures = read(address)
        assert figures['audio_assets_files_total{stage="Listen",status="ok"}'] == 2
        assert figures['audio_assets_files_total{stage="Listen",status="failed"}'] == 1
        assert figures['audio_assets_files_waiting{stage="Listen"}'] == 1
        assert figures["audio_assets_audio_seconds_total"] == 20
        assert figures["audio_assets_cost_usd_total"] == pytest.approx(0.03)
        list(taken)
    assert read(address)['audio_assets_files_waiting{stage="Listen"}'] == 0


@pytest.mark.parametrize("address", ["somewhere", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:99999", "127.0.0.1:-1"])
def test_an_address_that_is_none_is_named(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_meters", {})
    monkeypatch.setenv("AUDIO_ASSETS_METRICS", address)
    with pytest.raises(SettingsError, match=f"AUDIO_ASSETS_METRICS '{address}' is no address"):
        MapperResource().map(Listen(TokenizeOptions(), None), [0])  # type: ignore[type-var]


def test_the_cluster_profile_logs_json_lines_that_name_the_run_and_the_partition(tmp_path: Path) -> None:
    profile = Path(__file__).parents[2] / "deploy" / "cluster" / "dagster.yaml"
    logs = yaml.safe_load(profile.read_text())["python_logs"]
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump({"python_logs": logs, "telemetry": {"enabled": False}}))
    code = (
        "import dagster as dg; from audio_assets.definitions import defs;"
        "from audio_assets.partitions import PARTITIONS_NAME; instance = dg.DagsterInstance.get();"
        "instance.add_dynamic_partitions(PARTITIONS_NAME, ['calls']);"
        "defs.resolve_job_def('prefix_job').execute_in_process(instance=instance, partition_key='calls',"
        " raise_on_error=False, asset_selection=[dg.AssetKey('raw_audio')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"DAGSTER_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr
    meta = [line["dagster_meta"] for line in lines]
    assert len({each["run_id"] for each in meta}) == 1
    assert all(each["job_tags"]["dagster/partition"] == "calls" for each in meta), meta[0]
