"""What a killed process held is given back: by the next run, or by ``audio-assets doctor --fix``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from audio_assets import dead_runs, doctor
from audio_assets.dagster_home import ensure_dagster_home
from audio_assets.settings import Home
from audio_assets.storage.atomic import replacing


@dg.job
def idle() -> None:
    """Nothing to do."""


@pytest.fixture
def instance(home: Home, monkeypatch: pytest.MonkeyPatch) -> dg.DagsterInstance:
    monkeypatch.setenv("DAGSTER_HOME", str(home.dagster))
    ensure_dagster_home(home)
    return dg.DagsterInstance.get()


def started(instance: dg.DagsterInstance, process: str) -> str:
    run = instance.create_run_for_job(idle, status=dg.DagsterRunStatus.STARTED, tags={dead_runs.PROCESS_TAG: process})
    return run.run_id


def killed_process() -> str:
    """The identity of a process that has ended."""
    code = "from audio_assets import dead_runs; print(dead_runs.own_process())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def test_only_runs_of_processes_that_are_gone_are_ended(instance: dg.DagsterInstance) -> None:
    dead, ours = started(instance, killed_process()), started(instance, dead_runs.own_process())
    host, pid, _ = dead_runs.own_process().split(" ")
    elsewhere, reused = started(instance, "another-host 1 2"), started(instance, f"{host} {pid} 1")
    [one, other] = dead_runs.end(instance)
    assert {one.split()[1], other.split()[1]} == {dead[:8], reused[:8]}
    assert status(instance, dead) == status(instance, reused) == dg.DagsterRunStatus.FAILURE
    assert status(instance, ours) == status(instance, elsewhere) == dg.DagsterRunStatus.STARTED
    assert dead_runs.end(instance) == []


def test_a_slot_of_a_pool_that_a_killed_run_held_is_free_again(instance: dg.DagsterInstance) -> None:
    storage = instance.event_log_storage
    storage.set_concurrency_slots("whisper", 1)
    dead = started(instance, killed_process())
    assert storage.claim_concurrency_slot("whisper", dead, "step").is_claimed
    alive = started(instance, dead_runs.own_process())
    assert not storage.claim_concurrency_slot("whisper", alive, "step").is_claimed
    dead_runs.end(instance)
    assert storage.claim_concurrency_slot("whisper", alive, "step").is_claimed
    assert dead_runs.end(instance) == [], "a slot that is in use is left alone"


def test_doctor_names_what_was_left_and_fixes_it(instance: dg.DagsterInstance, home: Home) -> None:
    run_id = started(instance, killed_process())
    code = f"""
import os
from pathlib import Path
from audio_assets.storage.atomic import replacing
with replacing(Path({str(home.tables / "raw_audio" / "a.parquet")!r})):
    os.kill(os.getpid(), 9)
"""
    (home.tables / "raw_audio").mkdir(parents=True)
    subprocess.run([sys.executable, "-c", code], check=False)
    [left] = (home.tables / "raw_audio").iterdir()
    with replacing(home.tables / "raw_audio" / "b.parquet") as written:
        written.write_bytes(b"b")
        [finding] = [f for f in doctor.diagnose() if f.subject == "dagster"]
        assert (finding.state, "doctor --fix" in finding.fix) == ("note", True)
        mended = doctor.fix()
        assert written.exists(), "somebody is writing it"
    assert [run_id[:8] in line or str(left) in line for line in mended] == [True, True]
    assert not left.exists()
    assert status(instance, run_id) == dg.DagsterRunStatus.FAILURE
    assert doctor.fix() == []


def test_doctor_tells_of_secrets_that_others_can_read(clean_environment: Path) -> None:
    file = clean_environment / ".env"
    file.write_text("WHISPER_ENGINE=local\n")
    file.chmod(0o640)
    [finding] = [f for f in doctor.diagnose() if f.subject == "secrets"]
    assert (finding.state, finding.fix) == ("note", "chmod 600 .env")
    file.chmod(0o600)
    assert not [f for f in doctor.diagnose() if f.subject == "secrets"]
