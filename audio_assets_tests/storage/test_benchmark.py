import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_benchmark_ends_in_one_line_of_json_with_a_row_for_each_figure() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.storage", "--scale", "0.01", "--rounds", "1"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["benchmark"] == "storage"
    names = " ".join(row["name"] for row in said["results"])
    for figure in ("4 writers", "COPY", "catch up", "top 50", "peak memory"):
        assert figure in names
    for row in said["results"]:
        assert {"name", "value", "unit", "goal", "met"} <= row.keys()
        assert row["value"] is not None or row["note"]
