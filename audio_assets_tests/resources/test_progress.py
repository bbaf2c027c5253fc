"""Progress: occasional log lines under Dagster, bars on a terminal."""

import io
import os
import pty
import re
import subprocess
import sys

import dagster as dg
import pytest
from rich.console import Console

from audio_assets.definitions import build_definitions
from audio_assets.demo import demo_objects, packaged_model
from audio_assets.partitions import PARTITIONS_NAME
from audio_assets.resources.progress import LOG_INTERVAL_S, AudioMinutes, LogTask
from audio_assets.settings import Home
from audio_assets.terminal import TerminalProgress, printable
from audio_assets_tests.conftest import subprocess_environment


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_comes_every_few_seconds_not_with_every_file() -> None:
    clock, lines = Clock(), []
    task = LogTask("transcripts", "files", lines.append, clock)
    for done in range(1, 101):
        clock.now += 0.25
        task.update(done, 10_000)
    assert len(lines) == int(100 * 0.25 / LOG_INTERVAL_S)


def test_a_line_says_how_much_how_fast_and_how_long_still() -> None:
    clock, lines = Clock(), []
    task = LogTask("transcripts calls", "files", lines.append, clock)
    clock.now = 100.0
    task.update(25, 100, "1.8x realtime")
    assert lines == ["transcripts calls: 25/100 files · 1.8x realtime · ETA 5 m 0 s"]


def test_the_end_is_said_once() -> None:
    lines: list[str] = []
    task = LogTask("raw_audio", "files", lines.append, Clock())
    task.update(3, 3)
    task.update(3, 3)
    assert lines == ["raw_audio: 3/3 files"]


def test_minutes_that_add_up_with_a_rounding_error_are_an_end_too() -> None:
    lines: list[str] = []
    task = LogTask("transcripts", "min", lines.append, Clock())
    task.update(sum([0.1] * 10), 1.0)
    assert sum([0.1] * 10) < 1.0
    assert lines == ["transcripts: 1.0/1.0 min"]


def test_one_recording_of_hours_shows_its_minutes_speed_and_time_left_while_it_is_transcribed() -> None:
    clock, lines = Clock(), []
    task = LogTask("transcripts talks", "min", lines.append, clock)
    minutes = AudioMinutes(task, {"talk.mp3": 36_000.0}, clock)
    for _ in range(720):
        clock.now += 1.0
        minutes.heard("talk.mp3", 50.0, known=False)
    assert lines[0] == "transcripts talks: 4.2/600.0 min · 0/1 files · 50.0x realtime · ETA 11 m 55 s"
    assert len(lines) == 720 / LOG_INTERVAL_S - 1
    minutes.finished("talk.mp3", known=False)
    assert lines[-1] == "transcripts talks: 600.0/600.0 min · 1/1 files · 50.0x realtime"


def test_what_was_known_counts_as_done_and_not_as_speed() -> None:
    clock, lines = Clock(), []
    minutes = AudioMinutes(
        LogTask("transcripts", "min", lines.append, clock), {"a": 60.0, "b": 60.0, "c": 120.0}, clock
    )
    clock.now = 10.0
    minutes.finished("a", known=True)
    clock.now = 20.0
    minutes.heard("b", 30.0, known=True)
    minutes.heard("b", 20.0, known=False)
    clock.now = 30.0
    minutes.finished("b", known=False)
    clock.now = 40.0
    minutes.finished("c", known=False)
    assert lines == [
        "transcripts: 1.0/4.0 min · 1/3 files · ETA 30 s",
        "transcripts: 1.5/4.0 min · 1/3 files · ETA 33 s",
        "transcripts: 2.0/4.0 min · 2/3 files · 1.0x realtime · ETA 30 s",
        "transcripts: 4.0/4.0 min · 3/3 files · 3.8x realtime",
    ]


@pytest.mark.weights
def test_in_dagster_the_steps_log_tells_minutes_and_speed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPER_ENGINE", "local")
    monkeypatch.setenv("WHISPER_MODEL", packaged_model())
    clip = next(o for o in demo_objects() if o.key.endswith(".ogg"))
    (home.audio / "a").mkdir(parents=True)
    (home.audio / "a" / "clip.ogg").write_bytes(clip.body)
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(PARTITIONS_NAME, ["a"])
        result = (
            build_definitions()
            .resolve_job_def("prefix_job")
            .execute_in_process(
                run_config={"ops": {"raw_audio": {"config": {"skip_ingestion": True}}}},
                instance=instance,
                partition_key="a",
                asset_selection=[dg.AssetKey("raw_audio"), dg.AssetKey("transcripts")],
            )
        )
        said = [e.user_message for e in instance.all_logs(result.run_id) if e.step_key == "transcripts"]
    line = re.compile(r"transcripts a: 0\.\d/0\.\d min · 1/1 files · \d+\.\dx realtime")
    assert [m for m in said if line.fullmatch(m)], said


def test_off_a_terminal_there_are_lines_and_no_control_codes() -> None:
    text = io.StringIO()
    with TerminalProgress(Console(file=text, highlight=False)).task("raw_audio", "files", print) as task:
        task.update(2, 2)
    assert text.getvalue() == "raw_audio: 2/2 files\n"


@pytest.mark.slow
def test_on_a_terminal_there_are_bars(home: Home) -> None:
    clip = next(o for o in demo_objects() if o.key.endswith(".ogg"))
    (home.audio / "a").mkdir(parents=True)
    (home.audio / "a" / "clip.ogg").write_bytes(clip.body)
    master, slave = pty.openpty()
    environment = subprocess_environment(home.root, WHISPER_MODEL=packaged_model(), TERM="xterm", COLUMNS="100")
    process = subprocess.Popen(
        [sys.executable, "-m", "audio_assets", "run", "--skip-ingestion", "--skip-summary"],
        env=environment,
        cwd=home.root,
        stderr=slave,
        stdout=subprocess.PIPE,
        text=True,
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    out = process.communicate(timeout=60)[0]
    os.close(master)
    assert process.returncode == 0
    assert "\x1b" not in out
    assert "━".encode() in shown
    assert b"1/1 files" in shown
    assert re.search(rb"0\.\d/0\.\d min .*1/1 files .*x realtime", shown), "minutes of audio and speed"
    assert re.search(rb"\d:\d\d:\d\d", shown), "time left"


def test_a_key_cannot_drive_the_terminal() -> None:
    assert printable("a\x1b[2Jb\r\nc\u202ed") == "a\\x1b[2Jb\\x0d\\x0ac\\u202ed"
