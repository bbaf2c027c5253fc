"""What `schemas.Table` accepts."""

import pyarrow as pa
import pytest

from audio_assets import schemas
from audio_assets.errors import SchemaError

FREQUENCY = schemas.TOKEN_FREQUENCY


def frequency(**columns: object) -> pa.Table:
    values: dict[str, object] = {
        "prefix": ["a/"],
        "token": ["word"],
        "count": pa.array([3], pa.int64()),
        "document_count": pa.array([1], pa.int64()),
        "is_stop": [False],
    }
    return pa.table({k: v for k, v in (values | columns).items() if v is not None})


def test_columns_are_matched_by_name_not_by_position() -> None:
    data = frequency()
    shuffled = data.select(list(reversed(data.column_names)))
    assert FREQUENCY.conform(shuffled).to_pylist() == data.to_pylist()
    assert FREQUENCY.conform(shuffled).column_names == FREQUENCY.column_names


def test_a_missing_column_is_named() -> None:
    with pytest.raises(SchemaError, match=r"missing columns \['count'\]"):
        FREQUENCY.conform(frequency(count=None))


def test_an_unknown_column_is_named() -> None:
    with pytest.raises(SchemaError, match=r"unknown columns \['extra'\]"):
        FREQUENCY.conform(frequency(extra=[1]))


def test_a_wrong_type_is_refused_not_converted() -> None:
    with pytest.raises(SchemaError, match="column count is string"):
        FREQUENCY.conform(frequency(count=["3"]))


def test_a_null_where_none_may_be_is_refused() -> None:
    with pytest.raises(SchemaError, match="column token has 1 nulls"):
        FREQUENCY.conform(frequency(token=pa.array([None], pa.string())))


def test_integers_may_widen() -> None:
    assert FREQUENCY.conform(frequency(count=pa.array([3], pa.int32()))).schema == FREQUENCY.schema


def test_rows_with_an_unknown_column_are_refused() -> None:
    with pytest.raises(SchemaError, match="unknown column 'colour'"):
        FREQUENCY.from_rows([{"prefix": "a/", "colour": "red"}])


@pytest.mark.parametrize("table", schemas.TABLES.values(), ids=lambda t: t.name)
def test_every_column_is_described_and_every_key_exists(table: schemas.Table) -> None:
    assert all(column.description for column in table.columns)
    assert set(table.key) <= set(table.column_names)
    assert table.conform(table.empty()).num_rows == 0
