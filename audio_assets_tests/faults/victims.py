"""Commands that are killed at a named point: children of one process that has everything imported already.

A command of its own process takes seconds to import what it needs; a fork of one that has imported it starts at once,
so that a point can be hit many times. The product knows nothing of these points: the child wraps the function there.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

POINTS: dict[str, tuple[str, str, bool]] = {
    # name: module, attribute, whether the blow falls after the call instead of before it
    "list": ("audio_assets.ingest.pages", "parse_page", True),
    "download": ("audio_assets.ingest.get_object", "_Body.readinto", True),
    "downloaded": ("audio_assets.ingest.mirror", "Mirror.record", True),
    "decode": ("audio_assets.speech.vad", "SpeechProbability.__call__", True),
    "request sent": ("httpx2", "AsyncClient.send", True),
    "cached": ("audio_assets.speech.cache", "TranscriptCache.put", True),
    "record written": ("audio_assets.storage.partition_files", "PartitionStore.write", True),
    "warehouse transaction": ("audio_assets.storage.atomic", "crash_point=warehouse:in-transaction", False),
    "committed": ("audio_assets.storage.warehouse", "Warehouse.refresh", True),
    "export": ("audio_assets.storage.atomic", "crash_point=export:half-written", False),
}
"""Where a run is struck."""

COUNTED: dict[str, tuple[str, str]] = {
    "listing": ("audio_assets.ingest.pages", "parse_page"),
    "decoding": ("audio_assets.speech.decode", "AudioStream._open"),
}
"""What is counted in every command, and when it first happens: module, attribute."""

GRACE_S = 5.0
"""What a command started may outlive it by so much."""

_IMPORTED = (
    "audio_assets.cli",
    "audio_assets.definitions",
    "audio_assets.runner",
    "audio_assets.speech.openai_api",
    "audio_assets.speech.silero",
    "audio_assets.summary.report",
    "duckdb",
    "openai",
    "pandas",
    "pyarrow.compute",
    "pyarrow.dataset",
    "spacy",
)


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    ``returncode`` is the exit status (negative: the signal), ``output`` all that it said, ``stderr`` the errors.
    ``to_end_s`` is the time from the blow to the end, ``survivors`` are processes that it left behind. Of what is in
    `COUNTED`, ``counts`` has how often it happened, and ``first_s`` when it first did; a killed one tells neither.
    """

    returncode: int
    output: str
    stderr: str
    seconds: float
    to_end_s: float | None
    survivors: tuple[str, ...]
    counts: dict[str, int]
    first_s: dict[str, float]


class Victims:
    """Runs commands of ``audio-assets`` as forks of one warm process.

    Raises:
        RuntimeError: the warm process has died.
    """

    def __init__(self, environment: dict[str, str], directory: Path):
        self._directory = directory
        self._process = subprocess.Popen(
            [sys.executable, "-m", "audio_assets_tests.faults.victims"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=directory,
            env=environment | {"PYTHONPATH": str(Path(__file__).parents[2]), "OPENBLAS_NUM_THREADS": "1"},
        )
        self._numbers = itertools.count()

    def __enter__(self) -> Victims:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def run(
        self,
        *arguments: str,
        settings: dict[str, str],
        at: str | None = None,
        nth: int = 1,
        blow: int = signal.SIGKILL,
        open_files: int | None = None,
    ) -> Ended:
        """Run a command; with ``at``, signal ``blow`` (0: an exception) strikes it where it passes that point for the
        nth time.

        ``open_files`` is the most file handles that it may have.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        number = next(self._numbers)
        output, errors = self._directory / f"output-{number}", self._directory / f"stderr-{number}"
        struck, counts = self._directory / f"struck-{number}", self._directory / f"counts-{number}"
        order = {
            "arguments": arguments,
            "settings": settings,
            "at": at,
            "nth": nth,
            "blow": int(blow),
            "open_files": open_files,
            "output": str(output),
            "stderr": str(errors),
            "struck": str(struck),
            "counts": str(counts),
        }
        began = time.monotonic()
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the process that runs the commands has died")
        ended = time.monotonic()
        told: dict[str, list[float]] = json.loads(counts.read_text()) if counts.exists() else {}
        stderr = errors.read_text()
        return Ended(
            json.loads(answer),
            output.read_text() + stderr,
            stderr,
            ended - began,
            ended - float(struck.read_text()) if struck.exists() else None,
            tuple(_survivors(settings["AUDIO_ASSETS_HOME"])) if "AUDIO_ASSETS_HOME" in settings else (),
            {name: len(times) for name, times in told.items()},
            {name: times[0] - began for name, times in told.items() if times},
        )


def _survivors(home: str) -> list[str]:
    """Programs that were started with this home and still run after `GRACE_S`."""
    until = time.monotonic() + GRACE_S
    mark = f"AUDIO_ASSETS_HOME={home}".encode()
    while True:
        found = []
        for process in Path("/proc").iterdir():
            try:
                if process.name.isdigit() and mark in (process / "environ").read_bytes().split(b"\0"):
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    # A zombie has no command line any more.
                    found += [f"{process.name} {command}"] if command else []
            except OSError:
                continue
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.1)


def _count() -> dict[str, list[float]]:
    """Wrap what is in `COUNTED`; returns the times at which each happens, as they happen."""
    told: dict[str, list[float]] = {}
    for name, (module_name, path) in COUNTED.items():
        times = told[name] = []
        owner, attribute, counted = _find(module_name, path)

        def wrapped(
            *args: Any, counted: Callable[..., Any] = counted, times: list[float] = times, **options: Any
        ) -> Any:
            times.append(time.monotonic())
            return counted(*args, **options)

        _replace(owner, attribute, counted, wrapped)
    return told


def _strike(at: str, nth: int, blow: int, told: Path) -> None:
    """Wrap the function of point ``at`` so that it strikes this process at its nth call, and tells the time."""
    module_name, path, after = POINTS[at]
    path, _, argument = path.partition("=")
    owner, name, struck = _find(module_name, path)
    calls = itertools.count(1)

    def strike() -> None:
        told.write_text(repr(time.monotonic()))
        if not blow:
            raise RuntimeError("nobody foresaw this")
        os.kill(os.getpid(), blow)

    async def wrapped_async(*args: Any, **options: Any) -> Any:
        now = next(calls) == nth
        result = await struck(*args, **options)
        if now:
            strike()
        return result

    def wrapped_plain(*args: Any, **options: Any) -> Any:
        counts = not argument or args[0] == argument
        now = counts and next(calls) == nth
        if now and not after:
            strike()
        result = struck(*args, **options)
        if now and after:
            strike()
        return result

    _replace(owner, name, struck, wrapped_async if inspect.iscoroutinefunction(struck) else wrapped_plain)


def _find(module_name: str, path: str) -> tuple[Any, str, Any]:
    """Owner, name and value of an attribute."""
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module_name)
    for part in owners:
        owner = getattr(owner, part)
    return owner, name, getattr(owner, name)


def _replace(owner: Any, name: str, old: Any, new: Any) -> None:
    setattr(owner, name, new)
    if inspect.ismodule(owner):
        for other in list(sys.modules.values()):
            if getattr(other, name, None) is old:
                setattr(other, name, new)


def _child(order: dict[str, Any]) -> None:
    for stream, name in ((1, "output"), (2, "stderr")):
        with Path(order[name]).open("a") as file:
            os.dup2(file.fileno(), stream)
    with Path(os.devnull).open("r+") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.environ.update(order["settings"])
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
    if order["open_files"]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (order["open_files"], order["open_files"]))
    told = _count()
    if order["at"]:
        _strike(order["at"], order["nth"], order["blow"], Path(order["struck"]))
    from audio_assets import cli

    sys.argv = ["audio-assets", *order["arguments"]]
    try:
        cli.main(order["arguments"])
    finally:
        with contextlib.suppress(OSError):
            Path(order["counts"]).write_text(json.dumps(told))


def serve() -> None:
    """Fork a child for each line of standard input; answer with its exit status."""
    for name in _IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            try:
                _child(order)
            except SystemExit as stop:
                code = stop.code
                sys.stderr.flush()
                os._exit(code if isinstance(code, int) else 0 if code is None else 1)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                sys.stderr.flush()
                os._exit(70)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)


if __name__ == "__main__":
    serve()
