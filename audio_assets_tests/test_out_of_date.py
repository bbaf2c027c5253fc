"""What Dagster takes for out of date: transcripts of an older version of their engine, and what was made of others."""

from collections.abc import Iterator

import dagster as dg
import numpy as np
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.loader import LoadingContextForTest

from audio_assets.definitions import build_definitions
from audio_assets.demo import encode, packaged_model
from audio_assets.partitions import PARTITIONS_NAME
from audio_assets.resources.whisper import WhisperResource
from audio_assets.settings import Home
from audio_assets.speech import local, openai_api

RATE_HZ = 16_000
TRANSCRIPTS, LEDGER = dg.AssetKey("transcripts"), dg.AssetKey("transcription_ledger")


@pytest.fixture
def instance(home: Home) -> Iterator[dg.DagsterInstance]:
    (home.audio / "calls").mkdir(parents=True)
    with dg.DagsterInstance.ephemeral() as made:
        made.add_dynamic_partitions(PARTITIONS_NAME, ["calls"])
        yield made


def materialize(instance: dg.DagsterInstance, *assets: str, **whisper: int) -> None:
    job = build_definitions(whisper=WhisperResource(engine="local", **whisper)).resolve_job_def("prefix_job")
    skip = {"ops": {"raw_audio": {"config": {"skip_ingestion": True}}}} if "raw_audio" in assets else {}
    selection = [dg.AssetKey(name) for name in assets]
    assert job.execute_in_process(skip, instance=instance, partition_key="calls", asset_selection=selection).success


def causes(instance: dg.DagsterInstance, asset: dg.AssetKey) -> list[str]:
    """Why the partition is out of date, as the UI says it, by the definitions that a new process would load."""
    graph = build_definitions(whisper=WhisperResource(engine="local")).get_repository_def().asset_graph
    found = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    return [cause.reason for cause in found.get_stale_causes(asset, "calls")]


def test_transcripts_are_out_of_date_after_an_upgrade_of_their_own_engine_only(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    materialize(instance, "raw_audio", "transcripts")
    monkeypatch.setattr(openai_api, "ENGINE_VERSION", openai_api.ENGINE_VERSION + 1)
    assert causes(instance, TRANSCRIPTS) == []
    monkeypatch.setattr(local, "ENGINE_VERSION", local.ENGINE_VERSION + 1)
    assert causes(instance, TRANSCRIPTS) == ["has a new code version"]
    materialize(instance, "transcripts")
    assert causes(instance, TRANSCRIPTS) == []


@pytest.mark.slow
@pytest.mark.weights
def test_what_follows_is_out_of_date_when_the_transcripts_are_others_and_not_before(
    instance: dg.DagsterInstance, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHISPER_MODEL", packaged_model())
    (home.audio / "calls" / "silence.wav").write_bytes(encode(np.zeros(2 * RATE_HZ, np.int16), RATE_HZ, "wav"))
    materialize(instance, "raw_audio", "transcripts", "transcription_ledger")
    materialize(instance, "transcripts")
    assert causes(instance, LEDGER) == []
    materialize(instance, "transcripts", beam_size=1)
    assert causes(instance, LEDGER) == ["has a new dependency data version"]


def test_a_wrong_engine_is_left_to_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPER_ENGINE", "loud")
    assert build_definitions().get_repository_def().asset_graph.get(TRANSCRIPTS).code_version is None
