"""A file that kills the process which decodes it ends one run, and is one row of the next."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from audio_assets.crashes import CrashMarks
from audio_assets.demo import demo_objects
from audio_assets.errors import FileFailed, InvalidAudio

ROOT = Path(__file__).parents[2]

# The decoder dies for real, in whatever process it is, of files that are named so.
SITE = """
import os, signal
if os.environ.get("DEADLY"):
    import av
    opened = av.open
    def open(file, *arguments, **options):
        if os.environ["DEADLY"] in (file if isinstance(file, str) else file.seek.__self__.name):
            os.kill(os.getpid(), int(os.environ["DEADLY_SIGNAL"]))
        return opened(file, *arguments, **options)
    av.open = open
"""

TRANSCRIBE = """
import hashlib, json, sys
from pathlib import Path
from audio_assets.crashes import CrashMarks
from audio_assets.speech.cache import TranscriptCache
from audio_assets.speech.local import LocalEngine, LocalOptions, packaged_model
from audio_assets.speech.transcribe import AudioFile, TranscribeOptions, transcribe_files

root = Path(sys.argv[1])
files = [AudioFile(p.name, p, hashlib.sha256(p.read_bytes()).hexdigest()) for p in sorted((root / "audio").iterdir())]
engine = LocalEngine(LocalOptions(model=str(packaged_model()), device="cpu"))
with CrashMarks(root / "marks") as marks:
    found = list(transcribe_files(files, engine, TranscriptCache(root / "cache"), TranscribeOptions(marks=marks)))
print(json.dumps({f.id: [f.status, f.error] for f in found}))
"""

TAKE_IN = """
import json, sys
from pathlib import Path
from audio_assets.crashes import CrashMarks
from audio_assets.ingest.intake import IntakeOptions, Task, take
from audio_assets.ingest.mirror import Mirror

root = Path(sys.argv[1])
mirror = Mirror(root / "audio")
tasks = [Task(key, None, None) for key in sorted(mirror.files())]
with CrashMarks(root / "marks") as marks:
    found = list(take(tasks, "", mirror, IntakeOptions(), marks=marks))
print(json.dumps({t.row["id"]: [t.row["status"], t.row["error"]] for t in found}))
"""


LISTEN = """
import json, sys
from pathlib import Path
from audio_assets.crashes import CrashMarks
from audio_assets.speech.estimate import Candidate, measure_silence
from audio_assets.speech.local import LocalEngine, LocalOptions, packaged_model

root = Path(sys.argv[1])
candidates = [Candidate(p.name, p.name, 3.0, p.name, p) for p in sorted((root / "audio").iterdir())]
engine = LocalEngine(LocalOptions(model=str(packaged_model()), device="cpu"))
with CrashMarks(root / "marks") as marks:
    print(json.dumps(measure_silence(candidates, engine, marks).files))
"""


@pytest.fixture
def deadly(tmp_path: Path) -> Path:
    """A folder of recordings of which one is named `deadly`."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    audio = tmp_path / "audio"
    audio.mkdir()
    for obj, name in zip(
        (o for o in demo_objects() if o.key.startswith("in-short/")), ("deadly", "a", "z"), strict=False
    ):
        (audio / f"{name}.mp3").write_bytes(obj.body)
    return tmp_path


def run(code: str, root: Path, blow: signal.Signals | None = signal.SIGSEGV) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(root / "site"), str(ROOT)])
    deadly = {} if blow is None else {"DEADLY": "deadly", "DEADLY_SIGNAL": str(int(blow))}
    return subprocess.run(
        [sys.executable, "-c", code, str(root)],
        env={**os.environ, "PYTHONPATH": path, **deadly},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("code", [pytest.param(TAKE_IN, id="taken in"), pytest.param(TRANSCRIBE, id="transcribed")])
def test_a_file_that_crashes_the_decoder_ends_one_run_and_is_a_row_of_the_next(code: str, deadly: Path) -> None:
    assert run(code, deadly).returncode == -signal.SIGSEGV
    for _ in range(2):
        again = run(code, deadly)
        assert again.returncode == 0, again.stderr[-800:]
        rows = json.loads(again.stdout)
        status, reason = rows.pop("deadly.mp3")
        assert status == "invalid"
        assert "crashes the decoder (SIGSEGV)" in reason
        assert {tuple(row) for row in rows.values()} == {("ok", None)}
    # A decoder that was mended is believed.
    mended = run(code, deadly, None)
    assert json.loads(mended.stdout)["deadly.mp3"] == ["ok", None]
    assert list((deadly / "marks").iterdir()) == []


def test_a_plan_leaves_out_a_file_that_crashes_the_decoder(deadly: Path) -> None:
    assert run(LISTEN, deadly).returncode == -signal.SIGSEGV
    assert json.loads(run(LISTEN, deadly).stdout) == 2
    assert json.loads(run(LISTEN, deadly, None).stdout) == 3


def test_a_file_of_which_memory_runs_out_is_tried_again(deadly: Path) -> None:
    """The kernel's out-of-memory killer sends SIGKILL."""
    assert run(TRANSCRIBE, deadly, signal.SIGKILL).returncode == -signal.SIGKILL
    again = run(TRANSCRIBE, deadly, signal.SIGKILL)
    status, reason = json.loads(again.stdout)["deadly.mp3"]
    assert status == "failed"
    assert "ended by SIGKILL; if memory ran out" in reason


class TestMarks:
    TRIAL = ("audio_assets.ingest.probe", "no such file")

    def left(self, directory: Path, *names: str) -> None:
        """Have a process die that holds marks."""
        code = (
            "import os, signal, sys; from pathlib import Path; from contextlib import ExitStack\n"
            "from audio_assets.crashes import CrashMarks\n"
            "marks, stack = CrashMarks(Path(sys.argv[1])), ExitStack()\n"
            "for name in sys.argv[2:]: stack.enter_context(marks.around(name, (), 1.0))\n"
            "os.kill(os.getpid(), signal.SIGKILL)"
        )
        subprocess.run([sys.executable, "-c", code, str(directory), *names], cwd=ROOT)

    def test_a_process_that_was_only_killed_costs_one_trial(self, tmp_path: Path) -> None:
        self.left(tmp_path, "a", "b")
        assert len(list(tmp_path.iterdir())) == 2
        with CrashMarks(tmp_path) as marks, marks.around("a", self.TRIAL, 30.0):
            assert len(list(tmp_path.iterdir())) == 2  # the mark of b, and a's own
        assert len(list(tmp_path.iterdir())) == 1
        with CrashMarks(tmp_path) as marks, marks.around("b", self.TRIAL, 30.0):
            pass
        assert list(tmp_path.iterdir()) == []

    def test_what_a_living_process_decodes_is_not_suspected(self, tmp_path: Path) -> None:
        with CrashMarks(tmp_path) as one, one.around("a", (), 1.0), CrashMarks(tmp_path) as other:
            trials: list[str] = []
            with other.around("a", ("no.such.module",), 0.0):
                trials.append("none")
            assert trials == ["none"]

    def test_a_trial_that_takes_too_long_is_a_failure(self, tmp_path: Path) -> None:
        self.left(tmp_path, "a")
        with (
            CrashMarks(tmp_path) as marks,
            pytest.raises(FileFailed, match="takes longer"),
            marks.around("a", self.TRIAL, 0.0),
        ):
            pass
        assert len(list(tmp_path.iterdir())) == 1, "it stays suspected"

    def test_marks_are_used_again_and_gone_at_the_end(self, tmp_path: Path) -> None:
        with CrashMarks(tmp_path) as marks:
            for n in range(50):
                with marks.around(str(n), (), 1.0), marks.around(f"{n}b", (), 1.0):
                    assert len(list(tmp_path.iterdir())) == 2
        assert list(tmp_path.iterdir()) == []

    def test_a_disk_that_refuses_stops_nobody(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with CrashMarks(tmp_path / "file" / "marks") as marks, marks.around("a", (), 1.0):
            pass

    def test_a_full_disk_stops_nobody(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "pwrite", full)
        done = []
        with CrashMarks(tmp_path) as marks, marks.around("a", (), 1.0):
            done.append("a")
        assert done == ["a"]
        assert list(tmp_path.iterdir()) == []

    def test_old_marks_are_forgotten(self, tmp_path: Path) -> None:
        self.left(tmp_path, "a")
        for path in tmp_path.iterdir():
            os.utime(path, (0, 0))
        with CrashMarks(tmp_path) as marks, marks.around("a", ("no.such.module",), 0.0):
            pass
        assert list(tmp_path.iterdir()) == []

    def test_an_error_in_the_block_is_no_crash(self, tmp_path: Path) -> None:
        with CrashMarks(tmp_path) as marks:
            for _ in range(2):
                with pytest.raises(InvalidAudio), marks.around("a", (), 1.0):
                    raise InvalidAudio("no audio")
        assert list(tmp_path.iterdir()) == []
