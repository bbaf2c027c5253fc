"""No space, a read-only disk, no file handles left: a clear error, old data whole, the next run is fine."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from audio_assets.settings import Home
from audio_assets_tests.faults.invariant import assert_one_row_each, rows_of, unfinished_files
from audio_assets_tests.faults.test_kills import RUN, keys, settings, victims  # noqa: F401
from audio_assets_tests.faults.victims import Ended, Victims
from audio_assets_tests.speech.conftest import fault_server  # noqa: F401

PARTS = {"mirror": "audio", "cache": "cache", "record": "tables", "exports": "exports"}


def mounted(directory: Path, options: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def full(home: Home, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A part of the home on a disk of its own that has no space left."""
    disk = home.root / PARTS[request.param]
    mounted(disk, "size=4m")
    ballast = disk / "ballast"
    fill(ballast)
    yield ballast
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.fixture
def full_root(home: Home, tmp_path: Path) -> Iterator[Path]:
    """A home on a full disk that holds the warehouse alone: everything else is elsewhere."""
    mounted(home.root, "size=16m")
    for name in (*PARTS.values(), "dagster", "sensors", "ledger", "locks", "report"):
        (tmp_path / "elsewhere" / name).mkdir(parents=True)
        (home.root / name).symlink_to(tmp_path / "elsewhere" / name)
    ballast = home.root / "ballast"
    yield ballast
    subprocess.run(["umount", "--lazy", str(home.root)], check=True)


def fill(ballast: Path) -> None:
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass


def clear(ended: Ended) -> None:
    """The command said in one line what is wrong, and nothing of ours fell over."""
    assert ended.returncode in (1, 3), ended
    assert "Traceback" not in ended.stderr, ended.stderr[-2000:]
    assert "whole story" not in ended.stderr, ended.stderr[-2000:]
    if ended.returncode == 1:
        [error] = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
        assert "then run" in error, error


LONGEST = ("mirror", "cache", "record")
QUICK_AND_SLOW = [pytest.param(p, id=p, marks=[pytest.mark.slow] * (p in LONGEST)) for p in PARTS]


@pytest.mark.parametrize("full", QUICK_AND_SLOW, indirect=True)
def test_a_full_disk_is_named_and_the_run_after_it_is_whole(
    full: Path,
    home: Home,
    victims: Victims,  # noqa: F811
    settings: dict[str, str],  # noqa: F811
    keys: set[str],  # noqa: F811
) -> None:
    here = settings | {"AUDIO_ASSETS_HOME": str(home.root)}
    struck = victims.run(*RUN, settings=here)
    clear(struck)
    told = struck.stderr + " ".join(str(r["error"]) for r in rows_of(home, "raw_audio"))
    assert "No space left" in told, struck.stderr[-1500:]
    full.unlink()
    again = victims.run(*RUN, settings=here)
    assert again.returncode == 0, again.stderr[-800:]
    assert_one_row_each(home, keys)
    assert unfinished_files(home) == []
    assert victims.run("verify", settings=here).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_a_disk_that_cannot_be_written_is_named_and_changes_nothing(
    part: str,
    home: Home,
    victims: Victims,  # noqa: F811
    settings: dict[str, str],  # noqa: F811
    keys: set[str],  # noqa: F811
) -> None:
    here = settings | {"AUDIO_ASSETS_HOME": str(home.root)}
    mounted(home.root / PARTS[part], "size=20m")
    try:
        subprocess.run(["mount", "-o", "remount,ro", str(home.root / PARTS[part])], check=True)
        struck = victims.run(*RUN, settings=here)
        clear(struck)
        told = struck.stderr + " ".join(str(r["error"]) for r in rows_of(home, "raw_audio"))
        assert "Read-only file system" in told, struck.stderr[-1500:]
        subprocess.run(["mount", "-o", "remount,rw", str(home.root / PARTS[part])], check=True)
        assert victims.run(*RUN, settings=here).returncode == 0
        assert_one_row_each(home, keys)
        assert victims.run("verify", settings=here).returncode == 0
    finally:
        subprocess.run(["umount", "--lazy", str(home.root / PARTS[part])], check=True)


@pytest.mark.slow
def test_a_warehouse_without_space_costs_no_row(
    full_root: Path,
    home: Home,
    victims: Victims,  # noqa: F811
    settings: dict[str, str],  # noqa: F811
    keys: set[str],  # noqa: F811
) -> None:
    here = settings | {"AUDIO_ASSETS_HOME": str(home.root)}
    assert victims.run(*RUN, "--limit", "2", settings=here).returncode == 0
    before = rows_of(home, "transcripts")
    fill(full_root)
    struck = victims.run(*RUN, settings=here)
    assert "Traceback" not in struck.stderr
    after = {str(row["id"]): row for row in rows_of(home, "transcripts")}
    assert {str(row["id"]) for row in before} <= after.keys()
    if struck.returncode:
        clear(struck)
        assert "No space left" in struck.stderr, struck.stderr[-1500:]
    # The record is whole without the warehouse; who hears nothing of it has a whole warehouse, too.
    assert_one_row_each(home, keys)
    full_root.unlink()
    if struck.returncode == 0:
        assert victims.run("verify", settings=here).returncode == 0
    subprocess.run(["mount", "-o", "remount,size=60m", str(home.root)], check=True)
    assert victims.run(*RUN, settings=here).returncode == 0
    assert_one_row_each(home, keys)
    assert victims.run("verify", settings=here).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("handles", [20, 63, 64])
def test_without_file_handles_the_run_says_so_and_the_next_one_is_whole(
    handles: int,
    home: Home,
    victims: Victims,  # noqa: F811
    settings: dict[str, str],  # noqa: F811
    keys: set[str],  # noqa: F811
) -> None:
    here = settings | {"AUDIO_ASSETS_HOME": str(home.root)}
    before = None
    for round_ in range(2):
        struck = victims.run(*RUN, settings=here, open_files=handles)
        assert "Traceback" not in struck.stderr, struck.stderr[-2000:]
        if struck.returncode == 0:
            # So many are enough; then nothing may be missing.
            assert_one_row_each(home, keys)
        else:
            assert struck.returncode in (1, 3, 4, 5), struck
            told = struck.stderr + " ".join(str(r["error"]) for r in rows_of(home, "raw_audio"))
            assert "open files" in told, struck.stderr[-1500:]
        if round_:
            break
        assert victims.run(*RUN, settings=here).returncode == 0
        assert_one_row_each(home, keys)
        assert victims.run("verify", settings=here).returncode == 0
        before = rows_of(home, "transcripts")
    assert [r["transcription"] for r in rows_of(home, "transcripts")] == [r["transcription"] for r in before or []]
