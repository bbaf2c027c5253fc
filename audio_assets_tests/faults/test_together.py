"""Two whole runs of one prefix at once, and a warehouse that somebody reads all the time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from audio_assets.settings import Home
from audio_assets_tests.conftest import subprocess_environment
from audio_assets_tests.faults.campaign import tried
from audio_assets_tests.faults.invariant import assert_one_row_each, rows_of, unfinished_files
from audio_assets_tests.faults.test_kills import BLOWS, FILES, RUN, keys, settings, victims  # noqa: F401
from audio_assets_tests.faults.victims import Victims
from audio_assets_tests.speech.conftest import FaultServer, fault_server  # noqa: F401

pytestmark = pytest.mark.slow

READER = """
import duckdb, sys
with duckdb.connect(sys.argv[1], read_only=True) as connection:
    connection.execute("SELECT count(*) FROM transcripts").fetchall()
    print("reading", flush=True)
    sys.stdin.read()
"""


def test_programs_that_open_a_new_home_at_once_leave_one_that_opens_again(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "audio_assets.dagster_home"]
    environment = subprocess_environment(tmp_path / "home")
    for _ in range(2):
        several = [
            subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for _ in range(4)
        ]
        told = [process.communicate(timeout=200)[1] for process in several]
        assert [process.returncode for process in several] == [0] * 4, told


def test_two_runs_of_one_prefix_end_with_one_complete_set_of_rows_that_was_paid_once(
    settings: dict[str, str],  # noqa: F811
    victims: Victims,  # noqa: F811
    fault_server: FaultServer,  # noqa: F811
    keys: set[str],  # noqa: F811
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    for round_ in range(min(BLOWS, 3)):
        home = Home(tmp_path / f"home-{round_}")
        here = settings | {"AUDIO_ASSETS_HOME": str(home.root)}
        environment = subprocess_environment(home.root, **here)
        fault_server.posts.clear()
        command = [sys.executable, "-m", "audio_assets", *RUN]
        both = [
            subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        told = [process.communicate(timeout=250)[1] for process in both]
        codes = sorted(process.returncode for process in both)
        assert codes in ([0, 0], [0, 5]), told
        assert not any("Traceback" in text for text in told), told
        assert len(fault_server.posts) == FILES
        assert victims.run(*RUN, settings=here).returncode == 0
        assert_one_row_each(home, keys)
        assert unfinished_files(home) == []
        assert victims.run("verify", settings=here).returncode == 0
        assert len(fault_server.posts) == FILES
        tried(request, round_ + 1)


def test_a_reader_all_through_a_run_puts_the_load_off_and_loses_nothing(
    settings: dict[str, str],  # noqa: F811
    victims: Victims,  # noqa: F811
    fault_server: FaultServer,  # noqa: F811
    keys: set[str],  # noqa: F811
    tmp_path: Path,
) -> None:
    home = Home(tmp_path / "home")
    here = settings | {"AUDIO_ASSETS_HOME": str(home.root)}
    assert victims.run(*RUN, "--limit", "2", settings=here).returncode == 0
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(home.warehouse)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert reader.stdin is not None and reader.stdout is not None
    try:
        assert reader.stdout.readline() == "reading\n"
        during = victims.run(*RUN, settings=here)
        assert during.returncode in (0, 5), during.stderr[-800:]
        assert "Traceback" not in during.stderr
        assert_one_row_each(home, keys)
    finally:
        reader.communicate("")
    sent = len(fault_server.posts)
    assert victims.run(*RUN, settings=here).returncode == 0
    assert victims.run("verify", settings=here).returncode == 0
    assert len(fault_server.posts) == sent == FILES
    assert {row["status"] for row in rows_of(home, "transcripts")} == {"ok"}
