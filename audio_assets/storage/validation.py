"""What must hold of a table before anybody reads it: plain functions over Arrow tables, for checks and for `verify`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from audio_assets import schemas
from audio_assets.errors import SchemaError
from audio_assets.storage import contracts

FAILURE_RATE_LIMIT = 0.05
"""Share of files that may fail before somebody should look; a production user of Whisper's API saw under 0.1 %."""

EMPTY_SHARE_LIMIT = 0.5
"""More recordings without speech than this point at a wrong channel or a wrong prefix."""

ROW_COUNT_DROP_LIMIT = 0.2
"""A partition that loses more than this share of its rows between two materializations deserves a look."""

_EXAMPLES = 5


@dataclass(frozen=True)
class Finding:
    """The outcome of one rule: whether it holds, one sentence, and the figures behind it."""

    passed: bool
    description: str
    details: Mapping[str, int | float | str] = field(default_factory=dict)


def schema_conforms(table: schemas.Table, data: pa.Table) -> Finding:
    """Columns, types, nullability and bounds are those of `schemas.py`."""
    try:
        conformed = table.conform(data)
    except SchemaError as error:
        return Finding(False, str(error))
    found = contracts.breaches(table, conformed)
    if found:
        return Finding(False, f"table {table.name}: {'; '.join(found)}", {"rows": data.num_rows})
    return Finding(True, f"{len(table.columns)} columns as in schemas.py", {"rows": data.num_rows})


def key_is_unique(table: schemas.Table, data: pa.Table) -> Finding:
    """No two rows have the same key."""
    distinct = data.group_by(list(table.key)).aggregate([]).num_rows
    twice = data.num_rows - distinct
    if not twice:
        return Finding(True, f"{data.num_rows} rows, each with a key of its own", {"rows": data.num_rows})
    counts = Counter(zip(*(data.column(name).to_pylist() for name in table.key), strict=True))
    examples = [" ".join(map(str, key)) for key, n in counts.most_common(_EXAMPLES) if n > 1]
    return Finding(
        False, f"{twice} rows repeat the key of another", {"rows_repeated": twice, "examples": ", ".join(examples)}
    )


def status_is_known(data: pa.Table) -> Finding:
    """Every status is one of `schemas.STATUSES`."""
    counts = status_counts(data)
    unknown = {s: n for s, n in counts.items() if s not in schemas.STATUSES}
    if unknown:
        return Finding(False, f"unknown statuses: {', '.join(map(repr, unknown))}", {"rows": sum(unknown.values())})
    return Finding(True, "every status is known", {f"files_{s}": n for s, n in counts.items()})


def ids_match(data: pa.Table, expected: pa.Table, expected_name: str) -> Finding:
    """Every row of ``expected`` has exactly one row in ``data``, and no other row is there."""
    have = Counter(data.column("id").to_pylist())
    want = set(expected.column("id").to_pylist())
    missing, extra = sorted(want - have.keys()), sorted(have.keys() - want)
    repeated = sorted(key for key, n in have.items() if n > 1)
    if not (missing or extra or repeated):
        return Finding(True, f"one row for each of the {len(want)} rows of {expected_name}", {"rows": len(want)})
    return Finding(
        False,
        f"{len(missing)} rows of {expected_name} have no row, {len(extra)} rows belong to none, {len(repeated)} repeat",
        {
            "rows_missing": len(missing),
            "rows_extra": len(extra),
            "rows_repeated": len(repeated),
            "examples": ", ".join([*missing, *extra, *repeated][:_EXAMPLES]),
        },
    )


def failure_rate(data: pa.Table, limit: float = FAILURE_RATE_LIMIT) -> Finding:
    """At most ``limit`` of the rows (0 to 1) are failed, partial or deferred."""
    counts = status_counts(data)
    failed = sum(counts.get(s, 0) for s in ("failed", "partial", "deferred"))
    return _share(failed, data.num_rows, limit, "of the files did not get through")


def empty_share(data: pa.Table, limit: float = EMPTY_SHARE_LIMIT) -> Finding:
    """At most ``limit`` of the rows (0 to 1) hold no speech."""
    return _share(status_counts(data).get("empty", 0), data.num_rows, limit, "of the files hold no speech")


def row_count_holds(data: pa.Table, previous: pa.Table, limit: float = ROW_COUNT_DROP_LIMIT) -> Finding:
    """The partition lost at most ``limit`` of the rows (0 to 1) that it had."""
    lost = max(previous.num_rows - data.num_rows, 0)
    return _share(lost, previous.num_rows, limit, "of the rows of the last materialization are not there any more")


def status_counts(data: pa.Table) -> dict[str, int]:
    """How many rows have each status, in the order of `schemas.STATUSES`, unknown ones last, zeros left out."""
    found = {str(r["values"]): int(r["counts"]) for r in pc.value_counts(data.column("status")).to_pylist()}
    return {s: found[s] for s in [*schemas.STATUSES, *sorted(found.keys() - schemas.STATUSES.keys())] if s in found}


def _share(count: int, total: int, limit: float, what: str) -> Finding:
    share = count / total if total else 0.0
    return Finding(
        share <= limit,
        f"{share:.1%} {what} (limit {limit:.0%})",
        {"rows": count, "rows_total": total, "share": round(share, 6), "limit_share": limit},
    )
