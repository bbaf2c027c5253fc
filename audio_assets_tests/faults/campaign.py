"""``make faults``: runs every test that injects a fault and prints what was tried and what survived, fault by fault.

A case of a test counts as one try, an example of a property test as one, and a test that told `tried` as what it told;
it survived all of them if it passed. Two processes of pytest share the tests; the soak, which measures a throughput,
has the machine to itself behind them.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Fault:
    """A kind of fault, and the tests that inject it: a file, or ``file::beginning of a test's name``."""

    text: str
    tests: tuple[str, ...]


FAULTS = (
    Fault(
        "SIGKILL and SIGTERM at each named point of a run",
        (
            "faults/test_kills.py::test_a_run_that_is_struck",
            "faults/test_kills.py::test_many_blows",
            "storage/test_crashes.py",
            "speech/test_money.py::test_a_killed_run_pays_again",
            "speech/test_transcribe.py::test_a_killed_long_file",
            "test_forget.py::test_forgetting_that_is_killed",
            "storage/test_bucket.py::test_a_writer_that_is_killed",
        ),
    ),
    Fault(
        "Ctrl-C: ends within 10 s, leaves no process, can be resumed",
        (
            "faults/test_kills.py::test_ctrl_c",
            "test_interrupts.py",
            "ingest/test_stalls.py",
            "test_demo.py::test_the_server_is_gone",
            "test_demo_server.py::test_it_dies",
            "text/test_workers.py::test_a_worker_ends",
        ),
    ),
    Fault(
        "killed while holding a slot, a lock or a run of Dagster",
        (
            "faults/test_leftovers.py",
            "faults/test_kills.py::test_a_run_that_was_killed",
            "speech/test_cache.py::test_a_lock_that",
            "storage/test_atomic.py::test_what_dead_processes_left",
            "speech/test_money.py::TestACapThatRunsShare::test_what_a_killed_run",
        ),
    ),
    Fault(
        "S3: 5xx, resets, trickle, short bodies, damage, refusals",
        (
            "ingest/test_download.py::test_a_passing_fault",
            "ingest/test_download.py::test_a_lasting_fault",
            "ingest/test_download.py::test_a_trickle",
            "ingest/test_download.py::test_bytes_kept_from_a_broken_try",
            "ingest/test_download.py::test_a_failed_refresh",
            "ingest/test_download.py::test_refused_credentials",
            "ingest/test_download.py::test_a_clock",
            "ingest/test_pages.py::test_a_listing_that_is_not_whole",
            "ingest/test_intake.py::test_a_file_that_cannot_be_fetched",
            "ingest/test_intake.py::test_refused_credentials",
            "resources/test_r2.py::test_a_wrong_setting",
        ),
    ),
    Fault(
        "objects overwritten or deleted between listing and reading",
        (
            "ingest/test_download.py::test_the_rest_of_an_overwritten_object",
            "ingest/test_download.py::test_an_object_overwritten_after_the_listing",
            "ingest/test_download.py::test_an_object_deleted_after_the_listing",
            "ingest/test_download.py::test_an_object_that_keeps_changing",
            "ingest/test_intake.py::test_an_overwritten_object",
            "ingest/test_intake.py::test_a_vanished_object",
        ),
    ),
    Fault(
        "API: 429, 5xx, timeouts, trickle, HTML, null text, bad JSON, 401, quota",
        (
            "speech/test_openai_api.py::test_a_passing_trouble",
            "speech/test_openai_api.py::test_a_lasting",
            "speech/test_openai_api.py::test_a_run_of_server_errors",
            "speech/test_openai_api.py::test_retry_after",
            "speech/test_openai_api.py::test_a_long_retry_after",
            "speech/test_openai_api.py::test_a_trickling_answer",
            "speech/test_openai_api.py::test_a_server_that_never_answers",
            "speech/test_openai_api.py::test_what_dooms_every_file",
            "speech/test_money.py::test_an_answer_delivered_twice",
            "speech/test_money.py::test_a_connection_that_the_server_drops",
            "speech/test_money.py::test_a_key_that_is_revoked",
            "speech/test_money.py::test_a_run_that_ends",
        ),
    ),
    Fault(
        "damaged, empty and lying files, polyglots, bombs",
        (
            "speech/test_bad_input.py",
            "ingest/test_probe.py",
            "speech/test_transcribe.py::test_a_truncated_file",
            "faults/test_calls_home.py::test_a_whole_run",
        ),
    ),
    Fault("no space, read-only disk, no file handles left", ("faults/test_disk.py", "storage/test_full_disk.py")),
    Fault(
        "keys that a file system, SQL or a shell would stumble over",
        (
            "faults/test_keys.py",
            "test_partitions.py",
            "ingest/test_mirror.py",
            "ingest/test_intake.py::test_odd_keys",
            "storage/test_partition_files.py::test_hostile_keys",
            "storage/test_warehouse.py::test_hostile_keys",
            "storage/test_exports.py::test_hostile_ids",
        ),
    ),
    Fault(
        "two runs on one partition, the warehouse held by a reader",
        (
            "faults/test_together.py",
            "storage/test_concurrency.py",
            "storage/test_warehouse.py::test_a_reader_of_this_process",
            "ingest/test_intake.py::test_two_intakes",
            "speech/test_transcribe.py::test_two_runs",
            "speech/test_money.py::test_two_processes",
        ),
    ),
    Fault(
        "damaged cache, record and warehouse, foreign files",
        (
            "storage/test_verify.py",
            "speech/test_cache.py::test_a_damaged_entry",
            "speech/test_cache.py::test_a_torn_window",
            "storage/test_warehouse.py::test_files_that_are_no_partitions",
            "storage/test_warehouse.py::test_a_large_partition_with_damage",
            "storage/test_warehouse.py::test_a_database_that_is_damaged",
            "storage/test_warehouse.py::test_a_deleted_database",
            "storage/test_warehouse.py::test_a_changed_schema",
            "storage/test_exports.py::test_a_damaged_partition",
            "ingest/test_mirror.py::test_a_damaged_record",
        ),
    ),
    Fault(
        "clocks that are off, killed sensors, lost and doubled events",
        (
            "automation/test_new_objects.py::test_clocks",
            "automation/test_new_objects.py::test_a_tick_that_is_killed",
            "automation/test_new_objects.py::test_what_dagster_did_not_take_over",
            "automation/test_events.py::test_a_tick_that_is_killed",
            "automation/test_events.py::test_an_acknowledgement_that_is_lost",
            "automation/test_events.py::test_the_same_event_sent_twice",
            "automation/test_events.py::test_malformed_messages",
        ),
    ),
    Fault(
        "canary secrets in every setting, looked for everywhere",
        (
            "faults/test_secrets.py",
            "resources/test_r2.py::test_secrets",
            "automation/test_failures.py::test_no_secret",
        ),
    ),
    Fault(
        "markup, control codes and formulas in keys and transcripts",
        (
            "summary/test_report.py::test_data_is_text",
            "test_hostile_text.py",
            "test_search.py::TestCommand::test_a_transcript_cannot_drive",
            "resources/test_progress.py::test_a_key_cannot_drive",
            "text/test_subtitles.py::test_markup",
            "storage/test_exports.py::test_hostile_ids",
        ),
    ),
    Fault("thousands of objects with 1 % random faults", ("faults/test_soak.py",)),
    Fault(
        "redirections, plain http, runs that name an address, endless answers",
        ("faults/test_elsewhere.py", "storage/test_warehouse.py::test_what_stands_in_the_database"),
    ),
    Fault("files that crash the decoder or take all memory", ("faults/test_crashes.py",)),
    Fault("bytes that fuzzing found or made of its corpus", ("fuzz/test_fuzz.py",)),
    Fault(
        "libraries that call home, a user without rights, read-only files",
        ("faults/test_calls_home.py", "test_read_only.py"),
    ),
)
"""Rows of the table, in order."""

TRIED = "faults-tried"

MOST, REST, SOAK = "blows", "rest", "soak"
"""Shares of the tests: the blows at each point take as long as all others together."""


def cases_of(file: Path) -> list[str]:
    """Names of the tests of a file, those of a class as ``Class::name``."""
    names = []
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            names.append(node.name)
        elif isinstance(node, ast.ClassDef):
            names += [f"{node.name}::{n.name}" for n in node.body if isinstance(n, ast.FunctionDef)]
    return [name for name in names if name.split("::")[-1].startswith("test_")]


def matches(pattern: str, nodeid: str) -> bool:
    """Whether a pattern of a fault stands for a test, named from this directory."""
    return nodeid == pattern or nodeid.startswith(pattern if "::" in pattern else pattern + "::")


def share_of(name: str) -> str:
    """The share that a test, named from this directory, belongs to."""
    if matches("faults/test_soak.py", name):
        return SOAK
    return MOST if matches("faults/test_kills.py::test_many_blows", name) else REST


def tried(request: pytest.FixtureRequest, times: int) -> None:
    """Say how often this test has injected its fault so far."""
    properties = request.node.user_properties
    properties[:] = [(name, value) for name, value in properties if name != TRIED]
    properties.append((TRIED, times))


@dataclass
class Row:
    """What became of one fault."""

    tests: int = 0
    tried: int = 0
    survived: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


class Campaign:
    """A pytest plugin that selects the tests of the campaign or of a share, counts, and tells failures at once."""

    def __init__(self, share: str | None = None) -> None:
        self._share = share
        self.rows: dict[str, Row] = defaultdict(Row)
        self._faults: dict[str, list[str]] = {}
        self._examples: dict[str, int] = defaultdict(int)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        chosen, others = [], []
        for item in items:
            name = item.nodeid.partition("audio_assets_tests/")[2]
            mine = self._share in (None, share_of(name))
            faults = [f.text for f in FAULTS if mine and any(matches(p, name) for p in f.tests)]
            (chosen if faults else others).append(item)
            if faults:
                self._faults[item.nodeid] = faults
                self._count_examples(item)
        config.hook.pytest_deselected(items=others)
        items[:] = chosen

    def _count_examples(self, item: pytest.Item) -> None:
        """Count the examples that a property test really runs."""
        property_test: Any = getattr(getattr(item, "obj", None), "hypothesis", None)
        if property_test is None:
            return
        inner = property_test.inner_test

        def counted(*args: Any, **named: Any) -> Any:
            self._examples[item.nodeid] += 1
            return inner(*args, **named)

        property_test.inner_test = counted

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for fault in self._faults[report.nodeid]:
            self._count(self.rows[fault], report)

    def _count(self, row: Row, report: pytest.TestReport) -> None:
        if report.skipped:
            row.skipped.append(report.nodeid)
        elif report.failed:
            row.failed.append(report.nodeid)
            print(f"\n{report.nodeid}: {report.longreprtext}", flush=True)
        if report.when != "call" or report.skipped:
            return
        told = dict(report.user_properties).get(TRIED)
        times = int(str(told)) if told is not None else self._examples.get(report.nodeid) or 1
        row.tests += 1
        row.tried += times
        row.survived += times if report.passed else 0


def table(rows: dict[str, Row]) -> list[str]:
    """Lines of the table: fault, tried, survived."""
    width = max(len(fault.text) for fault in FAULTS) + 4
    lines = [f"{'fault':<{width}}  tried  survived"]
    for number, fault in enumerate(FAULTS, 1):
        row = rows.get(fault.text, Row())
        note = f"  failed: {', '.join(sorted(set(row.failed)))}" if row.failed else ""
        note += f"  skipped: {len(row.skipped)} tests" if row.skipped else ""
        lines.append(f"{f'{number:>2}  {fault.text}':<{width}}  {row.tried:>5}  {row.survived:>8}{note}")
    return lines


def run_share(share: str, results: Path) -> None:
    """Run the tests of a share and write its rows to a file."""
    campaign = Campaign(share)
    pytest.main(["-q", "-m", "slow or not slow", f"--rootdir={ROOT.parent}", str(ROOT)], plugins=[campaign])
    results.write_text(json.dumps({fault: asdict(row) for fault, row in campaign.rows.items()}))


def run_shares() -> dict[str, Row]:
    """The rows of all shares."""
    rows: dict[str, Row] = defaultdict(Row)
    with tempfile.TemporaryDirectory() as directory:
        for together in ((MOST, REST), (SOAK,)):
            files = {share: Path(directory, share) for share in together}
            command = [sys.executable, "-m", "audio_assets_tests.faults.campaign"]
            running = [
                subprocess.Popen([*command, "--share", share, "--results", str(file)], cwd=ROOT.parent)
                for share, file in files.items()
            ]
            for process in running:
                process.wait()
            for share, file in files.items():
                if not file.exists():
                    rows[FAULTS[0].text].failed.append(f"the process that had the share {share!r} has died")
                    continue
                for fault, told in json.loads(file.read_text()).items():
                    rows[fault] = added(rows[fault], Row(**told))
    return rows


def added(one: Row, other: Row) -> Row:
    """What became of a fault in two shares."""
    return Row(**{name: value + getattr(other, name) for name, value in vars(one).items()})


def main() -> int:
    """Run the campaign; 0 when every fault was tried and survived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", choices=[MOST, REST, SOAK], help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.share:
        run_share(arguments.share, arguments.results)
        return 0
    rows = run_shares()
    rows = {fault.text: rows.get(fault.text, Row()) for fault in FAULTS}
    whole = all(row.tried and row.tried == row.survived and not row.failed for row in rows.values())
    print()
    print("\n".join(table(rows)))
    print(
        json.dumps(
            {
                "campaign": "faults",
                "survived": whole,
                "rows": [
                    {
                        "fault": name,
                        "tests": row.tests,
                        "tried": row.tried,
                        "survived": row.survived,
                        "failed": sorted(set(row.failed)),
                        "skipped": len(row.skipped),
                    }
                    for name, row in rows.items()
                ],
            }
        )
    )
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
