"""Drift from one materialization of a prefix to the next: from Dagster's history to the table and the report."""

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from audio_assets import schemas
from audio_assets.assets.prefix_drift import prefix_drift
from audio_assets.assets.tokens import tokens
from audio_assets.partitions import PARTITIONS_NAME
from audio_assets.resources.duckdb_io import PartitionedDuckDBIOManager
from audio_assets.resources.mapper import MapperResource
from audio_assets.summary.report import render_report
from audio_assets_tests.summary.conftest import database, object_row, transcript_row


class Prefix:
    """Materializes the tokens of one prefix, and then its drift, as a run does."""

    def __init__(self, root: Path, instance: dg.DagsterInstance) -> None:
        self._instance = instance
        self.warehouse = PartitionedDuckDBIOManager(tables_root=str(root / "t"), database=str(root / "w.duckdb"))
        instance.add_dynamic_partitions(PARTITIONS_NAME, ["a"])

    def run(self, **said: str) -> list[dict[str, Any]]:
        """Files and what is said in them; gives the rows of `prefix_drift`."""
        rows = [transcript_row(f"a/{name}.wav", [(0.0, 1.0, text)]) for name, text in said.items()]
        self.warehouse.store().write(schemas.TRANSCRIPTS, schemas.TRANSCRIPTS.from_rows(rows), "a")
        transcripts = dg.AssetSpec("transcripts", partitions_def=tokens.partitions_def).with_io_manager_key("warehouse")
        made = dg.materialize(
            [tokens, prefix_drift, transcripts],
            instance=self._instance,
            partition_key="a",
            resources={"warehouse": self.warehouse, "mapper": MapperResource()},
        )
        assert made.success
        return self.table().to_pylist()

    def table(self) -> pa.Table:
        return self.warehouse.store().read(schemas.PREFIX_DRIFT)


@pytest.fixture
def prefix(tmp_path: Path) -> Iterator[Prefix]:
    with dg.instance_for_test() as instance:
        yield Prefix(tmp_path, instance)


def counts(row: dict[str, Any]) -> dict[str, int]:
    return {k: v for k, v in row.items() if k.startswith(("files_", "vocabulary_")) and isinstance(v, int)}


def test_each_materialization_is_a_row_that_says_what_changed(prefix: Prefix):
    prefix.run(one="best of times", two="old words")
    prefix.run(one="best of times", two="old words")
    rows = prefix.run(one="best of times", two="new words", three="more words")

    assert [counts(row) for row in rows] == [
        {"files_new": 2, "files_changed": 0, "files_removed": 0, "vocabulary_new": 5, "vocabulary_lost": 0},
        {"files_new": 0, "files_changed": 0, "files_removed": 0, "vocabulary_new": 0, "vocabulary_lost": 0},
        {"files_new": 1, "files_changed": 1, "files_removed": 0, "vocabulary_new": 2, "vocabulary_lost": 1},
    ]
    assert rows[1]["vocabulary_kept_share"] == 1
    assert len({row["run"] for row in rows}) == 3


def test_the_report_shows_the_last_change_and_not_the_runs_that_changed_nothing(tmp_path: Path):
    nothing = dict.fromkeys(("files_new", "files_changed", "files_removed", "vocabulary_new", "vocabulary_lost"), 0)
    changes = schemas.PREFIX_DRIFT.from_rows(
        [
            {"prefix": "a/", "materialized_at": day(1), "run": "r1", **nothing, "files_new": 2},
            {
                "prefix": "a/",
                "materialized_at": day(2),
                "run": "r2",
                **nothing,
                "files_removed": 1,
                "vocabulary_lost": 2,
                "vocabulary_kept_share": 0.6,
            },
            {"prefix": "a/", "materialized_at": day(3), "run": "r3", **nothing, "vocabulary_kept_share": 1.0},
        ]
    )
    raw = schemas.RAW_AUDIO.from_rows([object_row("a/one.wav")])
    heard = schemas.TRANSCRIPTS.from_rows([transcript_row("a/one.wav", [(0.0, 1.0, "best of times")])])

    with database(raw, heard, changes=changes) as connection:
        page = render_report(connection, tmp_path / "report.html").read_text(encoding="utf-8")

    [section] = [part for part in page.split("<section") if part.startswith(' id="changes"')]
    cells = [cell.split("</td>")[0] for cell in section.split("<td>")[1:]]
    assert cells == ["2026-01-02 00:00", "0", "0", "1", "0", "2", "60 %"]


def day(number: int) -> datetime.datetime:
    return datetime.datetime(2026, 1, number, tzinfo=datetime.timezone.utc)
