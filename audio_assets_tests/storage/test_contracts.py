"""What pandera lets through and what it stops."""

import dagster as dg
import pyarrow as pa
import pytest

from audio_assets import schemas
from audio_assets.assets.common import table_type
from audio_assets.storage import validation
from audio_assets.storage.contracts import breaches, pandera_schema

TRANSCRIPTS = schemas.TRANSCRIPTS
ROW = {"id": "a/1.wav", "prefix": "a/", "status": "ok", "duration_s": 3.5, "language_probability": 1.0, "flags": []}


def with_column(name: str, values: list[object]) -> pa.Table:
    return TRANSCRIPTS.from_rows([{**ROW, "id": f"a/{n}.wav", name: value} for n, value in enumerate(values)])


@pytest.mark.parametrize("table", schemas.TABLES.values(), ids=lambda t: t.name)
def test_every_scalar_column_of_every_table_is_in_its_contract(table: schemas.Table) -> None:
    columns = pandera_schema(table).columns
    assert list(columns) == [c.name for c in table.columns if not pa.types.is_nested(c.type)]
    assert {n: c.nullable for n, c in columns.items()} == {
        c.name: c.nullable for c in table.columns if not pa.types.is_nested(c.type)
    }
    assert breaches(table, table.empty()) == []


def test_a_sound_row_keeps_it() -> None:
    assert breaches(TRANSCRIPTS, TRANSCRIPTS.from_rows([ROW])) == []


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("duration_s", -0.1),
        ("cost_usd", -1.0),
        ("language_probability", 1.01),
        ("elapsed_s", -3.0),
        ("speech_s", float("nan")),
    ],
)
def test_a_value_out_of_bounds_is_named_with_its_column_and_rule(column: str, value: float) -> None:
    [line] = breaches(TRANSCRIPTS, with_column(column, [0.5, value, None]))
    assert line.startswith(f"{column}: ")
    assert "does not hold for 1 rows" in line
    assert repr(value) in line


def test_nulls_are_no_breach_where_they_may_be() -> None:
    assert breaches(TRANSCRIPTS, with_column("duration_s", [None, None])) == []


def test_many_breaches_are_counted_not_listed() -> None:
    [line] = breaches(TRANSCRIPTS, with_column("duration_s", [-1.0] * 1000))
    assert "1000 rows" in line
    assert len(line) < 200


def test_the_type_of_an_asset_refuses_a_table_that_breaks_it() -> None:
    check = table_type(TRANSCRIPTS).type_check
    context = dg.build_op_context()
    assert check(context, TRANSCRIPTS.from_rows([ROW])).success
    refused = check(context, with_column("duration_s", [-1.0]))
    assert not refused.success
    assert "duration_s" in str(refused.description)
    assert not check(context, [ROW]).success


def test_the_bounds_are_shown_with_the_columns() -> None:
    shown = table_type(schemas.PREFIX_SUMMARY).metadata["schema"]
    constraints = {c.name: c.constraints for c in shown.value.columns}
    assert list(constraints["files"].other) == [">= 0"]
    assert list(constraints["cached_share"].other) == [">= 0", "<= 1"]
    assert not constraints["prefix"].nullable
    assert constraints["prefix"].unique


def test_a_contract_that_holds_is_a_finding_that_passed() -> None:
    assert validation.schema_conforms(TRANSCRIPTS, TRANSCRIPTS.from_rows([ROW])).passed
    broken = validation.schema_conforms(TRANSCRIPTS, with_column("duration_s", [-1.0]))
    assert not broken.passed
    assert broken.description.startswith("table transcripts: duration_s")
