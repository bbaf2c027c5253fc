"""What a user reads of a run in Dagster that failed for something to set right: one line, not pages of code."""

import dagster as dg
import pytest

from audio_assets import schemas
from audio_assets.assets.common import errors_metadata, readable_errors
from audio_assets.assets.corpus import CorpusExportConfig
from audio_assets.assets.raw_audio import raw_audio
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
