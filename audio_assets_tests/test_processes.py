"""Who is alive, by locked files: numbers of processes are given again, and in containers all are number 1."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from audio_assets import processes

HOLDER = """
import sys
from pathlib import Path
from audio_assets import processes
print(processes.own_name(Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def test_a_process_is_alive_until_it_ends_however_it_ends(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    name = other.stdout.readline().strip()
    assert processes.is_alive(tmp_path, name)
    other.kill()
    other.communicate()
    assert not processes.is_alive(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_one_that_had_our_number_is_not_taken_for_us(tmp_path: Path) -> None:
    own = processes.own_name(tmp_path)
    assert processes.own_name(tmp_path) == own
    assert processes.is_alive(tmp_path, own)
    before = tmp_path / f"{os.getpid()}-0123456789abcdef.process"
    before.touch()
    assert not processes.is_alive(tmp_path, before.name)
    assert not before.exists()


def test_what_the_dead_left_is_removed_and_the_living_stay(tmp_path: Path) -> None:
    own = processes.own_name(tmp_path)
    (tmp_path / "1-0123456789abcdef.process").touch()
    processes.remove_dead(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [own]


def test_a_name_is_made_anew_when_somebody_clears_the_folder(tmp_path: Path) -> None:
    first = processes.own_name(tmp_path)
    (tmp_path / first).unlink()
    second = processes.own_name(tmp_path)
    assert second != first
    assert processes.is_alive(tmp_path, second)
