"""SIGINT and SIGTERM end a run at any moment with exit code 130, and the next run goes on."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from audio_assets import interrupts
from audio_assets.settings import Home
from audio_assets_tests.conftest import audio_assets, subprocess_environment

SIGNALS = [signal.SIGINT, signal.SIGTERM]

RUN = """
import os, signal, sys
from audio_assets import cli
from audio_assets.runner import RunOptions, run_pipeline

number, where = signal.Signals(int(sys.argv[1])), sys.argv[2]

def here(line):
    if where in line:
        print("signalled", flush=True)
        os.kill(os.getpid(), number)

class Stderr:
    def __init__(self, file):
        self.file = file
    def write(self, text):
        here(text)
        return self.file.write(text)
    def __getattr__(self, name):
        return getattr(self.file, name)

sys.stderr = Stderr(sys.stderr)
options = RunOptions(skip_ingestion=True, skip_summary=True, verbose=where.isupper())
sys.exit(cli._guarded(lambda: print(run_pipeline(options, say=here).counts)))
"""


def background() -> None:
    """For ``preexec_fn``: a job that a script starts in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.fixture
def two_partitions(home: Home) -> Home:
    for name in ("a", "b"):
        (home.audio / name).mkdir(parents=True)
        (home.audio / name / "note.wav").write_text(f"no sound, but {name}")
    return home


def run(home: Home, code: str, *arguments: object, start: Callable[[], None] | None = None) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=subprocess_environment(home.root),
        cwd=home.root,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=start,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("number", SIGNALS)
def test_a_run_ends_between_two_partitions_though_started_in_the_background(
    two_partitions: Home, number: signal.Signals
) -> None:
    code, out, err = run(two_partitions, RUN, number, "[2/2]", start=background)
    assert (code, out) == (interrupts.EXIT_INTERRUPTED, "signalled\n"), err
    # Behind it DuckDB's binding may list what the interruption left for the end of the process to clear away.
    assert any(line.startswith("error: interrupted; what was transcribed is kept") for line in err.splitlines())
    assert "Traceback" not in err
    assert len(list((two_partitions.tables / "transcripts").glob("*.parquet"))) == 1


@pytest.mark.slow
def test_a_run_ends_when_dagster_takes_note_of_a_signal_and_drops_it(two_partitions: Home) -> None:
    """Behind the last step of a job Dagster's own handlers are in place, and no step is left to be interrupted."""
    code, out, err = run(two_partitions, RUN, signal.SIGTERM, "RUN_SUCCESS")
    assert (code, out) == (interrupts.EXIT_INTERRUPTED, "signalled\n"), err
    again = audio_assets(
        "run",
        "--skip-ingestion",
        "--skip-summary",
        "--json",
        cwd=two_partitions.root,
        environment=subprocess_environment(two_partitions.root),
    )
    assert json.loads(again.stdout)["counts"] == {"invalid": 2}


def test_a_command_that_does_not_unwind_ends_all_the_same(home: Home) -> None:
    stuck = """
import os, signal, sys, threading
from audio_assets import cli, interrupts

interrupts.UNWINDING_S = 0.5

def command():
    threading.Thread(target=threading.Event().wait).start()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        threading.Event().wait()

sys.exit(cli._guarded(command))
"""
    home.root.mkdir()
    code, out, err = run(home, stuck)
    assert (code, out) == (interrupts.EXIT_INTERRUPTED, "")
    assert err.count("interrupted") == 1


def test_a_signal_in_a_finalizer_is_not_lost(home: Home) -> None:
    """Python cannot raise out of a finalizer: it prints what was raised there, and goes on."""
    in_finalizers = """
import os, signal, sys, time, weakref
from audio_assets import cli, interrupts

class Interrupted(BaseException):
    'Dagster has one like it, raised by handlers of its own.'

def raise_it(number, frame):
    raise Interrupted

class Thing:
    pass

def command():
    signal.signal(signal.SIGINT, raise_it)
    thing = Thing()
    gone = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT))
    del thing
    print("went on", flush=True)
    try:
        # The repetition may be lost as well.
        thing = Thing()
        gone = weakref.ref(thing, lambda _: time.sleep(1))
        del thing
        time.sleep(60)
    except Interrupted:
        print("interrupted", flush=True)
        raise KeyboardInterrupt

interrupts.UNWINDING_S = 30
sys.exit(cli._guarded(command))
"""
    home.root.mkdir()
    started = time.monotonic()
    code, out, err = run(home, in_finalizers)
    assert (code, out) == (interrupts.EXIT_INTERRUPTED, "went on\ninterrupted\n")
    assert err.count("\n") == 1, err
    assert time.monotonic() - started < 30


def test_other_errors_in_finalizers_are_still_told(home: Home) -> None:
    failing = """
import weakref
from audio_assets import interrupts

class Thing:
    pass

def fail(_):
    raise ValueError("of a finalizer")

with interrupts.heeded():
    thing = Thing()
    gone = weakref.ref(thing, fail)
    del thing
"""
    home.root.mkdir()
    code, out, err = run(home, failing)
    assert (code, out) == (0, "")
    assert "ValueError: of a finalizer" in err


def test_a_process_that_does_not_end_by_itself_is_ended(home: Home) -> None:
    """The command unwinds, but a thread that nobody can interrupt keeps the interpreter from ending."""
    lingering = """
import os, signal, sys, threading
from audio_assets import cli, interrupts

interrupts.UNWINDING_S = 0.5

def command():
    threading.Thread(target=threading.Event().wait).start()
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait()

sys.exit(cli._guarded(command))
"""
    home.root.mkdir()
    code, out, err = run(home, lingering)
    assert (code, out) == (interrupts.EXIT_INTERRUPTED, "")
    assert err.count("interrupted") == 1


def test_handlers_are_given_back(home: Home) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with interrupts.heeded():
        assert [signal.getsignal(number) for number in SIGNALS] != before
        interrupts.check()
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_the_limit_is_within_ten_seconds() -> None:
    assert interrupts.UNWINDING_S < 10


def test_a_signal_is_seen_although_another_handler_has_it(home: Home) -> None:
    """In a process of its own: after a signal the process that it reached ends, whatever it does."""
    home.root.mkdir()
    taken = """
import signal
from audio_assets import interrupts

with interrupts.heeded():
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.raise_signal(signal.SIGTERM)
    try:
        interrupts.check()
    except KeyboardInterrupt:
        print("seen")
"""
    assert run(home, taken)[1] == "seen\n"
