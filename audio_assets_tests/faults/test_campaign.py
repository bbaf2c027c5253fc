"""The campaign counts what it says it counts, and none of its tests has been renamed away."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from audio_assets_tests.faults import campaign
from audio_assets_tests.faults.campaign import FAULTS, ROOT, Row, cases_of, matches, table

PROBE = """
import pytest
from hypothesis import given, settings, strategies
from audio_assets_tests.faults.campaign import tried

@pytest.mark.parametrize("n", range(3))
def test_cases(n): assert n < 2
@settings(max_examples=40, database=None)
@given(strategies.integers())
def test_property(n): assert isinstance(n, int)
def test_told(request): tried(request, 7)
def test_skipped(): pytest.skip("nothing here")
def test_other(): raise AssertionError
"""


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.text)
def test_every_fault_has_tests(fault: campaign.Fault) -> None:
    for pattern in fault.tests:
        file = pattern.partition("::")[0]
        names = [f"{file}::{name}" for name in cases_of(ROOT / file)]
        assert any(matches(pattern, name) for name in names), f"{pattern}: no such test"


def test_a_failure_is_not_survived_and_examples_are_counted(tmp_path: Path) -> None:
    (tmp_path / "audio_assets_tests").mkdir()
    (tmp_path / "audio_assets_tests" / "test_probe.py").write_text(PROBE)
    code = """
import pytest, sys
from audio_assets_tests.faults import campaign
probes = ("cases", "property", "told", "skipped")
campaign.FAULTS = (campaign.Fault("some", tuple(f"test_probe.py::test_{n}" for n in probes)),)
made = campaign.Campaign()
root = sys.argv[1]
pytest.main(["-q", "-p", "no:cacheprovider", f"--rootdir={root}", f"{root}/audio_assets_tests"], plugins=[made])
row = made.rows["some"]
print(row.tests, row.tried, row.survived, len(set(row.failed)), len(row.skipped))
"""
    # From its own directory the probe would be found as this package; and the names of tests begin at the root
    # directory, which pytest would choose by where the temporary folder happens to lie.
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    tests, tried, survived, failed, skipped = map(int, done.stdout.splitlines()[-1].split())
    assert (tests, failed, skipped) == (5, 1, 1)
    assert tried - survived == 1
    assert tried == 3 + 40 + 7


def test_the_table_has_a_row_for_each_fault() -> None:
    lines = table({FAULTS[0].text: Row(tests=1, tried=20, survived=19, failed=["here"])})
    assert len(lines) == 1 + len(FAULTS)
    assert lines[1].split()[-4:] == ["20", "19", "failed:", "here"]


def test_every_test_is_in_one_share_and_rows_of_shares_add_up() -> None:
    names = [
        f"{f}::{n}" for fault in FAULTS for f in {p.partition("::")[0] for p in fault.tests} for n in cases_of(ROOT / f)
    ]
    shares = {campaign.share_of(name) for name in names}
    assert shares == {campaign.MOST, campaign.REST, campaign.SOAK}
    both = campaign.added(Row(1, 10, 10, [], ["a"]), Row(2, 5, 4, ["b"], []))
    assert both == Row(3, 15, 14, ["b"], ["a"])


def test_a_share_writes_its_rows_and_tells_a_failure_at_once(tmp_path: Path) -> None:
    (tmp_path / "audio_assets_tests").mkdir()
    (tmp_path / "audio_assets_tests" / "test_probe.py").write_text(PROBE)
    code = """
import sys
from pathlib import Path
from audio_assets_tests.faults import campaign
campaign.FAULTS = (campaign.Fault("some", ("test_probe.py::test_cases",)),)
campaign.ROOT = Path(sys.argv[1], "audio_assets_tests")
for share in (campaign.REST, campaign.SOAK):
    campaign.run_share(share, Path(sys.argv[1], share))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT.parent, capture_output=True, text=True, check=True
    )
    rows = json.loads((tmp_path / campaign.REST).read_text())
    assert (rows["some"]["tried"], rows["some"]["survived"]) == (3, 2)
    assert json.loads((tmp_path / campaign.SOAK).read_text()) == {}
    assert "assert 2 < 2" in done.stdout.partition("short test summary")[0]
