"""What a user reads of a run in Dagster that failed for something to set right: one line, not pages of code."""

import re

import dagster as dg
import pytest

from audio_assets import schemas
from audio_assets.assets.common import errors_metadata, readable_errors
from audio_assets.assets.corpus import CorpusExportConfig
from audio_assets.assets.raw_audio import raw_audio
from audio_assets.assets.transcripts import transcripts
from audio_assets.definitions import defs
from audio_assets.errors import SettingsError, StorageError
from audio_assets.partitions import PARTITIONS_NAME, prefix_for
from audio_assets.settings import Home


def test_a_wrong_setting_is_told_without_the_code_that_noticed_it() -> None:
    with pytest.raises(dg.Failure) as told, readable_errors():
        try:
            raise OSError("connection refused")
        except OSError as error:
            raise SettingsError("R2_ENDPOINT_URL cannot be reached") from error
    assert told.value.description == "R2_ENDPOINT_URL cannot be reached"
    assert told.value.__cause__ is None and told.value.__suppress_context__


def test_what_nobody_could_set_right_keeps_its_story() -> None:
    with pytest.raises(dg.Failure) as told, readable_errors():
        raise StorageError("tokens: the file is damaged")
    assert isinstance(told.value.__cause__, StorageError)


@pytest.mark.parametrize("partition", ["a...b", "in-short%", ""])
def test_a_partition_that_is_no_prefix_says_where_partitions_come_from(partition: str) -> None:
    with pytest.raises(dg.Failure, match=r"not a partition key of a prefix.*r2_prefixes"), readable_errors():
        prefix_for(partition)


def test_a_prefix_without_audio_is_no_silent_success(home: Home) -> None:
    home.audio.mkdir(parents=True)
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(PARTITIONS_NAME, ["misspelt"])
        done = dg.materialize(
            [raw_audio],
            instance=instance,
            partition_key="misspelt",
            resources=defs.resources,
            run_config={"ops": {"raw_audio": {"config": {"skip_ingestion": True}}}},
        )
        logged = [entry.user_message for entry in instance.all_logs(done.run_id)]
    assert any("no audio lies under 'misspelt/'" in line for line in logged)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({}, "raw_audio has a partition for each prefix, and this run names none"),
        ({"dagster/partition": "calls"}, "'calls' is not registered as a partition.*materialize r2_prefixes"),
        (
            {"dagster/asset_partition_range_start": "a", "dagster/asset_partition_range_end": "b"},
            "raw_audio takes one partition a run.*multiple runs",
        ),
    ],
    ids=["none", "unregistered", "range"],
)
def test_a_run_that_is_for_no_single_partition_says_so_before_it_works(
    home: Home, tags: dict[str, str], reason: str
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(PARTITIONS_NAME, ["a", "b"])
        done = defs.resolve_job_def("prefix_job").execute_in_process(
            instance=instance, tags=tags, asset_selection=[raw_audio.key], raise_on_error=False
        )
    [failed] = [e for e in done.all_events if e.is_step_failure]
    told = failed.step_failure_data.user_failure_data
    assert told is not None and re.match(reason, told.description or "")
    assert not home.audio.exists()


def test_an_asset_whose_input_was_never_made_is_no_silent_success(home: Home) -> None:
    job = defs.resolve_job_def("prefix_job")
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(PARTITIONS_NAME, ["calls"])
        done = job.execute_in_process(
            instance=instance, partition_key="calls", asset_selection=[transcripts.key], raise_on_error=False
        )
    [failed] = [e for e in done.all_events if e.is_step_failure]
    told = failed.step_failure_data.user_failure_data
    assert told is not None and re.match("raw_audio of partition 'calls' .* never made", told.description or "")
    assert not home.tables.exists()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (CorpusExportConfig(formats=["csv"]), "unknown export format 'csv'; use some of json"),
        (CorpusExportConfig(formats=[]), "no export format; use some of json"),
        (CorpusExportConfig(min_grade="Z"), "unknown grade 'Z'; use one of A"),
    ],
)
def test_an_export_that_cannot_be_is_a_wrong_setting(config: CorpusExportConfig, reason: str) -> None:
    with pytest.raises(SettingsError, match=f"run config of corpus_export: {reason}"):
        config.check()


def test_the_ui_names_the_file_that_is_wrong_also_behind_a_hundred_that_are_fine() -> None:
    fine = [{"id": f"calls/{n:03}.wav", "status": "ok"} for n in range(100)]
    wrong = {"id": "calls/note.mp3", "status": "invalid", "error": "not audio"}
    vanished = {"id": "calls/old.wav", "status": "gone", "error": "no longer in the bucket"}
    rows = [
        {"prefix": "calls/", "cached": False, "segments": [], "flags": [], **row} for row in (*fine, wrong, vanished)
    ]
    shown = errors_metadata(schemas.TRANSCRIPTS.from_rows(rows))["errors"].value
    assert shown is not None and "note" in shown and "not audio" in shown and "old" not in shown
    assert errors_metadata(schemas.TRANSCRIPTS.from_rows(rows[:100])) == {}
