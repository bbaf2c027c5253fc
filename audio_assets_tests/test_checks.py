"""What the checks let through and what they stop."""

from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from audio_assets import schemas
from audio_assets.checks import CHECKS, check_raw_audio, check_tokens, check_transcripts
from audio_assets.definitions import ASSETS

RAW, TRANSCRIPTS = schemas.RAW_AUDIO, schemas.TRANSCRIPTS


def raw(*statuses: str, start: int = 0) -> pa.Table:
    return RAW.from_rows([{"id": f"a/{n}.wav", "prefix": "a/", "status": s} for n, s in enumerate(statuses, start)])


def transcripts(*statuses: str, start: int = 0) -> pa.Table:
    return TRANSCRIPTS.from_rows(
        [{"id": f"a/{n}.wav", "prefix": "a/", "status": s} for n, s in enumerate(statuses, start)]
    )


def failed(results: list[dg.AssetCheckResult]) -> dict[str, Any]:
    return {str(r.check_name): r.severity for r in results if not r.passed}


def test_a_sound_partition_passes_every_check() -> None:
    table = transcripts("ok", "ok", "empty")
    results = [
        *check_raw_audio(raw("ok", "ok", "ok"), raw("ok", "ok", "ok")),
        *check_transcripts(table, raw("ok", "ok", "ok"), table),
        *check_tokens(schemas.TOKENS.from_rows([{"id": f"a/{n}.wav", "prefix": "a/"} for n in range(3)]), table),
    ]
    assert failed(results) == {}
    assert {r.check_name for r in results} == {c.name for checks in CHECKS.values() for c in checks.values()}


def test_an_empty_partition_passes_every_check() -> None:
    assert failed(check_raw_audio(RAW.empty(), RAW.empty())) == {}
    assert failed(check_transcripts(TRANSCRIPTS.empty(), RAW.empty(), TRANSCRIPTS.empty())) == {}


def test_an_object_with_two_rows_is_an_error() -> None:
    twice = pa.concat_tables([raw("ok"), raw("ok")])
    assert failed(check_raw_audio(twice, RAW.empty())) == {"raw_audio_unique_id": dg.AssetCheckSeverity.ERROR}


def test_a_status_that_nobody_knows_is_an_error() -> None:
    assert failed(check_raw_audio(raw("fine"), RAW.empty())) == {"raw_audio_known_status": dg.AssetCheckSeverity.ERROR}


def test_a_missing_column_is_an_error() -> None:
    table = transcripts("ok").drop_columns(["language"])
    assert "transcripts_schema" in failed(check_transcripts(table, raw("ok"), TRANSCRIPTS.empty()))


@pytest.mark.parametrize("table", [transcripts("ok"), transcripts("ok", "ok", "ok"), transcripts("ok", "ok", start=1)])
def test_an_object_without_a_transcript_row_or_a_row_without_an_object_is_an_error(table: pa.Table) -> None:
    assert failed(check_transcripts(table, raw("ok", "ok"), TRANSCRIPTS.empty())) == {
        "transcripts_complete": dg.AssetCheckSeverity.ERROR
    }


def test_many_failures_are_a_warning_and_few_are_none() -> None:
    many = transcripts(*["ok"] * 9, "failed")
    few = transcripts(*["ok"] * 99, "failed")
    assert failed(check_transcripts(many, raw(*["ok"] * 10), many)) == {
        "transcripts_failure_rate": dg.AssetCheckSeverity.WARN
    }
    assert failed(check_transcripts(few, raw(*["ok"] * 100), few)) == {}


def test_mostly_silence_is_a_warning() -> None:
    table = transcripts("empty", "empty", "ok")
    assert failed(check_transcripts(table, raw("ok", "ok", "ok"), table)) == {
        "transcripts_emptiness": dg.AssetCheckSeverity.WARN
    }


def test_a_partition_that_shrinks_is_a_warning() -> None:
    assert failed(check_raw_audio(raw("ok", "ok"), raw(*["ok"] * 10))) == {
        "raw_audio_row_count": dg.AssetCheckSeverity.WARN
    }


def test_every_check_is_declared_with_its_asset() -> None:
    declared = {(key.asset_key.to_user_string(), key.name) for asset in ASSETS for key in asset.check_keys}
    assert declared == {(a, c.name) for a, checks in CHECKS.items() for c in checks.values()}


def test_errors_block_what_follows_and_warnings_do_not() -> None:
    for checks in CHECKS.values():
        for check in checks.values():
            assert check.spec.blocking == (check.result(validation_failure()).severity == dg.AssetCheckSeverity.ERROR)


def validation_failure() -> Any:
    from audio_assets.storage.validation import Finding

    return Finding(False, "it does not hold")
