import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from audio_assets.storage import atomic


def temp_of(pid: int, directory: Path, suffix: str = "") -> Path:
    path = directory / f".file.txt.{pid}.0123abcd.tmp{suffix}"
    path.touch()
    return path


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_file_is_replaced_when_the_block_ends_well(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    atomic.write_bytes(target, b"old")
    with atomic.replacing(target) as temp:
        temp.write_bytes(b"new")
        assert target.read_bytes() == b"old"
        assert temp.parent == target.parent
    assert target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic.replacing(target) as temp:
        temp.write_bytes(b"half")
        raise RuntimeError
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_name_of_the_greatest_length_can_be_replaced(tmp_path: Path) -> None:
    target = tmp_path / ("é" * 127)
    atomic.write_bytes(target, b"x")
    assert target.read_bytes() == b"x"


def test_what_dead_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    dead = dead_pid()
    left = [temp_of(dead, tmp_path), temp_of(dead, tmp_path, ".wal")]
    kept = [tmp_path / "file.txt", tmp_path / ".hidden", tmp_path / ".file.txt.tmp"]
    for path in kept:
        path.touch()
    assert atomic.stale_temps(tmp_path) == left
    assert atomic.remove_stale_temps(tmp_path) == left
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_a_file_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    with atomic.replacing(tmp_path / "file.txt") as temp:
        beside = temp.with_name(temp.name + ".wal")
        beside.touch()
        assert atomic.remove_stale_temps(tmp_path) == []
        beside.unlink()
        temp.write_bytes(b"x")


def test_a_file_locked_by_a_process_that_is_not_seen_from_here_is_left_alone(tmp_path: Path) -> None:
    # As in another container that shares the directory: its process ids mean nothing here, its locks do.
    temp = temp_of(dead_pid(), tmp_path)
    with temp.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert atomic.remove_stale_temps(tmp_path) == []
    assert atomic.remove_stale_temps(tmp_path) == [temp]


def test_an_unlocked_file_of_a_living_process_is_left_alone_for_a_minute(tmp_path: Path) -> None:
    temp = temp_of(os.getppid(), tmp_path)
    assert atomic.remove_stale_temps(tmp_path) == []
    old = time.time() - 61
    os.utime(temp, (old, old))
    assert atomic.remove_stale_temps(tmp_path) == [temp]


def test_a_missing_directory_holds_nothing(tmp_path: Path) -> None:
    assert atomic.remove_stale_temps(tmp_path / "none") == []
