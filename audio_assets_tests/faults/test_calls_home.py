"""No library tells its makers anything: with the local engine nothing leaves this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from audio_assets.demo import demo_objects
from audio_assets_tests.conftest import subprocess_environment

LISTEN = """
import sys
from pathlib import Path
from audio_assets.resources.whisper import WhisperResource
from audio_assets.speech.cache import TranscriptCache
from audio_assets.speech.transcribe import AudioFile, transcribe_files

engine = WhisperResource(engine="local").create_engine()
files = [AudioFile(str(p), p, str(n) * 64) for n, p in enumerate(sorted(Path("audio").iterdir()))]
for result in transcribe_files(files, engine, TranscriptCache(Path("cache"))):
    print(result.status)
"""


def somebody(tmp_path: Path) -> dict[str, str]:
    """The environment of a user who has set nothing, with a home and a scratch of his own."""
    for name in ("user", "scratch"):
        (tmp_path / name).mkdir()
    bare = {k: v for k, v in subprocess_environment(tmp_path / "home").items() if "TELEMETRY" not in k}
    bare.pop("RAY_USAGE_STATS_ENABLED", None)
    return bare | {"HOME": str(tmp_path / "user"), "TMPDIR": str(tmp_path / "scratch"), "XDG_CACHE_HOME": ""}


def recordings(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    for item in demo_objects()[:2]:
        (tmp_path / "audio" / item.key.rpartition("/")[2]).write_bytes(item.body)


@pytest.mark.weights
def test_listening_leaves_no_name_of_the_machine_behind(tmp_path: Path) -> None:
    """onnxruntime 1.32, left alone, writes an id of the machine and a queue of what it wants to send."""
    recordings(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", LISTEN],
        cwd=tmp_path,
        env=somebody(tmp_path),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.stdout.split() == ["ok", "ok"], done.stderr
    assert [p for p in (tmp_path / "user").rglob("*") if p.is_file()] == []
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.slow
@pytest.mark.weights
def test_a_whole_run_speaks_to_nobody_and_opens_nothing_that_a_recording_names(tmp_path: Path) -> None:
    """What the kernel was asked for, by every thread and child, is written down."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    recordings(tmp_path)
    mirror = tmp_path / "home" / "audio" / "calls"
    mirror.parent.mkdir(parents=True)
    shutil.copytree(tmp_path / "audio", mirror)
    victim = tmp_path / "victim.wav"
    victim.write_bytes(demo_objects()[0].body)
    for name, script in {
        "concat": f"ffconcat version 1.0\nfile '{victim}'\n",
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:8,\nfile://{victim}\n#EXT-X-ENDLIST\n",
        "web": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:8,\nhttp://192.0.2.1/a.wav\n#EXT-X-ENDLIST\n",
        "page": f"<html><audio src='{victim}'></html>",
    }.items():
        for suffix in (".mp3", ".wav", ".m4a", ".ogg"):
            (mirror / f"{name}{suffix}").write_text(script)
    trace = tmp_path / "trace"
    command = [sys.executable, "-m", "audio_assets", "run", "--skip-ingestion"]
    done = subprocess.run(
        ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,open,openat", "-o", str(trace), *command],
        cwd=tmp_path,
        env=somebody(tmp_path) | {"OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    if "ptrace" in done.stderr and not trace.read_text():
        pytest.skip("strace may not trace here")
    assert "2 ok · 16 invalid" in done.stdout, done.stdout + done.stderr
    calls = trace.read_text(errors="replace").splitlines()
    opened = [call for call in calls if "open" in call]
    assert [call for call in opened if "calls/concat.mp3" in call], "the trace sees what is opened"
    assert [call for call in opened if "victim" in call] == []
    assert [call for call in calls if re.search(r"connect\(.*AF_INET", call) and "127.0.0.1" not in call] == []
    assert os.path.lexists(tmp_path / "home" / "report" / "index.html")
