"""What a file may cost is configured with the run or in the environment; what costs more is refused with its reason."""

from collections.abc import Callable
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest

from audio_assets import schemas
from audio_assets.definitions import build_definitions
from audio_assets.demo import encode, packaged_model
from audio_assets.settings import Home
from audio_assets.storage.partition_files import PartitionStore

RATE_HZ = 16_000


@pytest.fixture
def transcripts(home: Home, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Materialize `transcripts` of two silent recordings, of 2 and 20 s, with a run's config; gives the rows."""
    monkeypatch.setenv("WHISPER_ENGINE", "local")
    monkeypatch.setenv("WHISPER_MODEL", packaged_model())
    for name, seconds in (("short.flac", 2), ("long.wav", 20)):
        (home.audio / "calls").mkdir(parents=True, exist_ok=True)
        data = encode(np.zeros(seconds * RATE_HZ, np.int16), RATE_HZ, name.rpartition(".")[2])
        (home.audio / "calls" / name).write_bytes(data)

    def materialize(**config: float) -> list[dict[str, Any]]:
        definitions = build_definitions()
        ops = {
            "raw_audio": {"config": {"skip_ingestion": True}},
            "transcripts": {"config": config},
        }
        with dg.DagsterInstance.ephemeral() as instance:
            instance.add_dynamic_partitions("r2_prefix", ["calls"])
            result = definitions.resolve_job_def("prefix_job").execute_in_process(
                run_config={"ops": ops},
                instance=instance,
                partition_key="calls",
                asset_selection=[dg.AssetKey("raw_audio"), dg.AssetKey("transcripts")],
            )
        assert result.success
        table: pa.Table = PartitionStore(home.tables).read(schemas.TRANSCRIPTS)
        return sorted(table.to_pylist(), key=lambda row: str(row["id"]))

    return materialize


@pytest.mark.weights
@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ({"max_duration_s": 10}, "20 s is over the limit of 10 s; raise max_duration_s or split the file"),
        ({"max_bytes": 100_000}, "640044 bytes is over the limit of 100000; raise max_bytes or split the file"),
    ],
)
def test_the_config_of_a_run_refuses_what_is_too_much_and_takes_the_rest(
    transcripts: Callable[..., list[dict[str, Any]]], limit: dict[str, float], reason: str
) -> None:
    long, short = transcripts(**limit)
    assert (long["status"], long["error"]) == ("invalid", reason)
    assert (short["status"], short["error"]) == ("empty", None)


@pytest.mark.weights
def test_too_long_a_decoding_is_refused_with_its_reason(
    transcripts: Callable[..., list[dict[str, Any]]],
) -> None:
    for row in transcripts(max_decode_s=1e-9):
        assert row["status"] == "invalid"
        assert row["error"] == "decoding takes longer than 1e-09 s; raise max_decode_s or convert the file"


@pytest.mark.weights
def test_the_environment_sets_limits_and_a_later_run_with_higher_ones_takes_the_file(
    transcripts: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUDIO_ASSETS_MAX_DURATION_S", "10")
    assert [row["status"] for row in transcripts()] == ["invalid", "empty"]
    assert [row["status"] for row in transcripts(max_duration_s=60)] == ["empty", "empty"]
