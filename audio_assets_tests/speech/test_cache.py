"""What is stored comes back whole or not at all."""

from __future__ import annotations

import subprocess
import sys

import pytest

SHA, PRINT = "ab" * 32, "cd" * 32


def test_a_result_comes_back(cache):
    assert cache.get(SHA, PRINT) is None
    cache.put(SHA, PRINT, {"text": "été 日本"})
    assert cache.get(SHA, PRINT) == {"text": "été 日本"}
    assert cache.path_for(SHA, PRINT) == cache.root / "ab" / SHA / f"{PRINT}.json"


def test_other_bytes_or_another_engine_are_another_entry(cache):
    cache.put(SHA, PRINT, {"text": "a"})
    assert cache.get("ef" * 32, PRINT) is None
    assert cache.get(SHA, "ef" * 32) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b"best", b"wurst"),
        lambda data: b"null",
        lambda data: b"\xff\xfe\x00",
    ],
    ids=["empty", "torn", "altered", "null", "binary"],
)
def test_a_damaged_entry_is_a_miss(cache, damage):
    cache.put(SHA, PRINT, {"text": "the best of times"})
    path = cache.path_for(SHA, PRINT)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get(SHA, PRINT) is None


def test_windows_come_back_until_the_file_is_finished(cache):
    cache.put_window(SHA, PRINT, "0-100", {"n": 1})
    cache.put_window(SHA, PRINT, "100-200", {"n": 2})
    assert {k: v["n"] for k, v in cache.get_windows(SHA, PRINT).items()} == {"0-100": 1, "100-200": 2}
    cache.put(SHA, PRINT, {"text": "done"})
    assert cache.get_windows(SHA, PRINT) == {}


def test_a_torn_window_does_not_take_the_next_one_along(cache):
    cache.put_window(SHA, PRINT, "0-100", {"n": 1})
    path = next(cache.root.rglob("*.windows.jsonl"))
    path.write_bytes(path.read_bytes() + path.read_bytes()[:30])
    cache.put_window(SHA, PRINT, "100-200", {"n": 2})
    assert set(cache.get_windows(SHA, PRINT)) == {"0-100", "100-200"}


def test_one_holds_a_recording_and_the_next_gets_it_when_it_is_given_back(cache):
    held = cache.hold(SHA, PRINT)
    assert held is not None and cache.hold(SHA, PRINT) is None
    assert cache.hold(SHA, "e" * 64) is not None, "another model is another transcript"
    held.release()
    again = cache.hold(SHA, PRINT)
    assert again is not None
    again.release()
    assert not list(cache.root.rglob(f"{PRINT}.lock"))


def test_what_a_killed_writer_left_goes_when_the_result_is_written(cache):
    script = (
        "import os, sys; from pathlib import Path; from audio_assets.storage.atomic import replacing\n"
        "with replacing(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    path = cache.path_for(SHA, PRINT)
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == -9
    assert len(list(path.parent.iterdir())) == 1
    cache.put(SHA, PRINT, {"text": "x"})
    assert list(path.parent.iterdir()) == [path]


def test_a_lock_that_was_left_beside_a_result_goes_when_the_result_is_read(cache):
    cache.put(SHA, PRINT, {"text": "x"})
    lock = cache.path_for(SHA, PRINT).with_suffix(".lock")
    lock.touch()
    assert cache.get(SHA, PRINT) == {"text": "x"} and not lock.exists()
    held = cache.hold(SHA, PRINT)
    assert cache.get(SHA, PRINT) == {"text": "x"} and lock.exists(), "somebody has it"
    held.release()
    assert not lock.exists()


def test_a_lock_that_a_killed_process_left_holds_nobody_up(cache):
    script = (
        "import os, sys; from pathlib import Path; from audio_assets.speech.cache import TranscriptCache;"
        f"h = TranscriptCache(Path(sys.argv[1])).hold({SHA!r}, {PRINT!r}); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(cache.root)], check=False).returncode == -9
    assert len(list(cache.root.rglob("*.lock"))) == 1
    held = cache.hold(SHA, PRINT)
    assert held is not None
    held.release()
