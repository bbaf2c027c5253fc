"""What must hold before anybody reads a table. The checks come with the materialization; errors stop what follows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import dagster as dg
import pyarrow as pa

from audio_assets import schemas
from audio_assets.storage import validation
from audio_assets.storage.validation import Finding


@dataclass(frozen=True)
class Check:
    """One check of an asset: its name, what it means, and whether a failure stops what follows."""

    asset: str
    rule: str
    description: str
    blocking: bool

    @property
    def name(self) -> str:
        """``<asset>_<rule>``."""
        return f"{self.asset}_{self.rule}"

    @property
    def spec(self) -> dg.AssetCheckSpec:
        """The check as Dagster knows it."""
        return dg.AssetCheckSpec(self.name, asset=self.asset, description=self.description, blocking=self.blocking)

    def result(self, finding: Finding) -> dg.AssetCheckResult:
        """The outcome as Dagster shows it."""
        return dg.AssetCheckResult(
            check_name=self.name,
            asset_key=self.asset,
            passed=finding.passed,
            severity=dg.AssetCheckSeverity.ERROR if self.blocking else dg.AssetCheckSeverity.WARN,
            description=finding.description,
            metadata=dict(finding.details),
        )


def _checks(asset: str, blocking: Mapping[str, str], warning: Mapping[str, str]) -> dict[str, Check]:
    return {
        name: Check(asset, name, text, stops)
        for rules, stops in ((blocking, True), (warning, False))
        for name, text in rules.items()
    }


_SCHEMA = {
    "schema": "Columns, types, nullability and bounds are those of schemas.py.",
    "unique_id": "No object has two rows.",
}
_STATUS = {"known_status": "Every status is one that schemas.py knows."}
_ROWS = {"row_count": "The partition lost few of the rows that it had."}

CHECKS: dict[str, dict[str, Check]] = {
    "raw_audio": _checks(
        "raw_audio", {**_SCHEMA, **_STATUS}, {"failure_rate": "Few objects could not be fetched.", **_ROWS}
    ),
    "transcripts": _checks(
        "transcripts",
        {**_SCHEMA, **_STATUS, "complete": "Every row of raw_audio has exactly one row."},
        {
            "failure_rate": "Few recordings could not be transcribed.",
            "emptiness": "Most recordings hold speech.",
            **_ROWS,
        },
    ),
    "tokens": _checks("tokens", {**_SCHEMA, "complete": "Every row of transcripts has exactly one row."}, {}),
}
"""Every check, by asset and rule."""


def specs(asset: str) -> list[dg.AssetCheckSpec]:
    """The checks of an asset, for its definition."""
    return [check.spec for check in CHECKS[asset].values()]


def check_raw_audio(data: pa.Table, previous: pa.Table) -> list[dg.AssetCheckResult]:
    """Check the rows of `raw_audio` of one partition, against those of its last materialization."""
    return _evaluate("raw_audio", data, {"row_count": lambda: validation.row_count_holds(data, previous)})


def check_transcripts(data: pa.Table, raw_audio: pa.Table, previous: pa.Table) -> list[dg.AssetCheckResult]:
    """Check the rows of `transcripts` of one partition, against `raw_audio` and its last materialization."""
    return _evaluate(
        "transcripts",
        data,
        {
            "complete": lambda: validation.ids_match(data, raw_audio, "raw_audio"),
            "row_count": lambda: validation.row_count_holds(data, previous),
        },
    )


def check_tokens(data: pa.Table, transcripts: pa.Table) -> list[dg.AssetCheckResult]:
    """Check the rows of `tokens` of one partition, against `transcripts`."""
    return _evaluate("tokens", data, {"complete": lambda: validation.ids_match(data, transcripts, "transcripts")})


def _evaluate(asset: str, data: pa.Table, own: Mapping[str, Callable[[], Finding]]) -> list[dg.AssetCheckResult]:
    rules: dict[str, Callable[[], Finding]] = {
        "schema": lambda: validation.schema_conforms(schemas.TABLES[asset], data),
        "unique_id": lambda: validation.key_is_unique(schemas.TABLES[asset], data),
        "known_status": lambda: validation.status_is_known(data),
        "failure_rate": lambda: validation.failure_rate(data),
        "emptiness": lambda: validation.empty_share(data),
        **own,
    }
    return [check.result(rules[name]()) for name, check in CHECKS[asset].items()]
