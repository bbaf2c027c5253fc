"""The definitions load anywhere, and say in the UI what they are."""

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from audio_assets import schemas
from audio_assets.definitions import ASSETS, defs
from audio_assets.partitions import prefix_partitions

ROOT = Path(__file__).parent.parent
PARTITIONED = {
    "raw_audio",
    "transcripts",
    "transcription_ledger",
    "tokens",
    "transcript_quality",
    "prefix_summary",
    "token_frequency",
    "prefix_statistics",
    "prefix_drift",
}
UNPARTITIONED = {
    "r2_prefixes",
    "prefix_keywords",
    "transcription_plan",
    "corpus_summary",
    "corpus_report",
    "corpus_export",
}
SPECS = {spec.key.to_user_string(): spec for asset in ASSETS for spec in asset.specs}


def test_the_workspace_validates_without_any_setting() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("R2_", "OPENAI_", "AUDIO_ASSETS_"))}
    done = subprocess.run(
        [Path(sys.executable).parent / "dagster", "definitions", "validate", "-w", "workspace.yaml"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "audio_assets" in done.stdout + done.stderr


def test_the_assets_are_those_of_the_plan() -> None:
    assert SPECS.keys() == PARTITIONED | UNPARTITIONED
    for name, spec in SPECS.items():
        assert (spec.partitions_def == prefix_partitions) == (name in PARTITIONED), name


@pytest.mark.parametrize("name", sorted(SPECS))
def test_every_asset_introduces_itself(name: str) -> None:
    spec = SPECS[name]
    assert spec.description
    assert spec.group_name and spec.group_name != "default"
    assert spec.owners
    assert spec.kinds


@pytest.mark.parametrize("name", sorted(schemas.TABLES))
def test_every_table_shows_its_columns(name: str) -> None:
    schema = SPECS[name].metadata["dagster/column_schema"]
    schema = getattr(schema, "schema", schema)
    assert [c.name for c in schema.columns] == schemas.TABLES[name].column_names
    assert all(c.description for c in schema.columns)


@pytest.mark.parametrize("asset", ASSETS, ids=lambda a: a.key.to_user_string())
def test_no_asset_falls_back_to_dagsters_pickles(asset: dg.AssetsDefinition) -> None:
    name = asset.key.to_user_string()
    if name in schemas.TABLES:
        assert asset.get_io_manager_key_for_asset_key(asset.key) == "warehouse"
    else:
        assert all(o.dagster_type.is_nothing for o in asset.node_def.output_defs)


def test_everything_else_introduces_itself() -> None:
    repository = defs.get_repository_def()
    ours = [*repository.schedule_defs, *(s for s in repository.sensor_defs if not s.name.startswith("default_"))]
    jobs = [job for job in repository.get_all_jobs() if not job.name.startswith("__")]
    resources = {name: made.description for name, made in repository.get_top_level_resources().items()}
    described = {**{one.name: one.description for one in [*ours, *jobs]}, **resources}
    assert {"nightly_schedule", "r2_event_sensor", "prefix_job", "r2", "progress"} <= described.keys()
    for name, description in described.items():
        assert description, name
        # The UI reads Markdown.
        assert ".. " not in description and "::" not in description, name


def test_configuration_fields_explain_themselves() -> None:
    for resource in defs.resources.values() if defs.resources else []:
        if isinstance(resource, dg.ConfigurableResource):
            for name, field in type(resource).model_fields.items():
                if type(resource).__module__.startswith("audio_assets"):
                    inherited = name in dg.ConfigurableResource.model_fields
                    assert inherited or field.description, f"{type(resource).__name__}.{name}"


def test_secrets_are_not_in_the_resources_repr() -> None:
    from audio_assets.resources.r2 import R2Resource
    from audio_assets.resources.whisper import WhisperResource

    r2 = R2Resource(aws_access_key_id="canary-id", aws_secret_access_key="canary-secret", bucket="b")
    whisper = WhisperResource(engine="openai", api_key="canary-key")
    assert "canary" not in repr(r2) + str(r2) + repr(whisper) + str(whisper)


def test_what_publishes_the_warehouse_comes_after_every_table_of_its_job() -> None:
    from audio_assets.assets.corpus import corpus_export

    before = corpus_export.asset_deps[corpus_export.key]
    assert {dg.AssetKey("corpus_summary"), dg.AssetKey("prefix_keywords")} <= before
