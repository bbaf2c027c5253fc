"""What pandera holds every table to: the columns, types, nullability and bounds of `schemas.py`.

Lists, structs and maps are left to Arrow (`Table.conform`): pandas has no types for them. Built when a table is
checked, not when the definitions load: pandera and pandas cost as much to import as half of Dagster.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import pyarrow as pa

from audio_assets import schemas

if TYPE_CHECKING:
    import pandera.pandas as pandera

_EXAMPLES = 3


@cache
def pandera_schema(table: schemas.Table) -> pandera.DataFrameSchema:
    """The pandera schema of the scalar columns of ``table``, as Arrow-backed pandas columns."""
    import pandas as pd
    import pandera.pandas as pandera

    columns = {}
    for column in _scalar(table):
        least, greatest = column.bounds
        checks = [] if least is None else [pandera.Check.ge(least)]
        checks += [] if greatest is None else [pandera.Check.le(greatest)]
        columns[column.name] = pandera.Column(
            pd.ArrowDtype(column.type), checks, nullable=column.nullable, description=column.description
        )
    return pandera.DataFrameSchema(columns, strict=True, name=table.name, description=table.description)


def breaches(table: schemas.Table, data: pa.Table) -> list[str]:
    """What pandera finds wrong with ``data``, a line for each column and rule, with how many rows and examples.

    ``data`` has the columns and types of ``table``: see `Table.conform`.
    """
    import pandas as pd
    import pandera.errors

    frame = data.select([c.name for c in _scalar(table)]).to_pandas(types_mapper=pd.ArrowDtype)
    try:
        pandera_schema(table).validate(frame, lazy=True)
    except pandera.errors.SchemaErrors as errors:
        lines = []
        for (column, check), cases in errors.failure_cases.groupby(["column", "check"], sort=False, dropna=False):
            examples = ", ".join(repr(value) for value in cases["failure_case"].head(_EXAMPLES))
            lines.append(f"{column}: {check} does not hold for {len(cases)} rows, such as {examples}")
        return lines
    return []


def _scalar(table: schemas.Table) -> list[schemas.Column]:
    return [c for c in table.columns if not pa.types.is_nested(c.type)]
