"""What the command line shows: progress on stderr, results on stdout, plain text off a terminal."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audio_assets.forget import Forgotten
from audio_assets.ingest.selection import passed_over
from audio_assets.resources.progress import LogTask, Task, format_amount, format_duration
from audio_assets.runner import RunReport

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from audio_assets.derived import Written
    from audio_assets.search import Passage

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What drives a terminal, turns the direction of text, or (half a surrogate pair) cannot be written at all."""


def printable(text: str) -> str:
    """``text`` on one line, with control characters shown as ``\\xNN``: a key cannot drive the terminal.

    >>> printable("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    return _CONTROL.sub(lambda m: f"\\x{ord(m[0]):02x}" if ord(m[0]) < 256 else f"\\u{ord(m[0]):04x}", text)


def json_text(value: Any) -> str:
    """``value`` as one line of JSON that a terminal shows as it is: letters of all scripts, control characters escaped.

    >>> json_text({"id": "caf\u00e9\u009b31m"})
    '{"id": "café\\\\u009b31m"}'
    """
    # Between strings JSON has none of them.
    return _CONTROL.sub(lambda m: f"\\u{ord(m[0]):04x}", json.dumps(value, ensure_ascii=False))


def stderr_console(quiet: bool = False) -> Console:
    """The console for progress and messages; honours ``NO_COLOR``."""
    from rich.console import Console

    # Dagster sends a step's stderr into a file and copies that to the terminal: no place for bars. Keep the terminal.
    terminal = os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="utf-8") if sys.stderr.isatty() else sys.stderr
    return Console(file=terminal, quiet=quiet, highlight=False, soft_wrap=True)


class TerminalProgress:
    """Progress as bars on a terminal and as plain lines elsewhere."""

    def __init__(self, console: Console):
        self._console = console

    @contextmanager
    def task(self, label: str, unit: str, log: Callable[[str], None]) -> Iterator[Task]:
        """Show one task until the context closes."""
        if not self._console.is_terminal:
            yield LogTask(printable(label), unit, lambda line: self._console.print(line, markup=False))
            return
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        with RichProgress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[amount]}", markup=False),
            TextColumn("{task.fields[note]}", markup=False, style="dim"),
            TimeRemainingColumn(),
            console=self._console,
        ) as bars:
            yield _Bar(bars, bars.add_task(printable(label), total=None, amount="", note=""), unit)


class _Bar:
    def __init__(self, bars: RichProgress, task_id: TaskID, unit: str):
        self._bars, self._id, self._unit = bars, task_id, unit

    def update(self, done: float, total: float, note: str = "") -> None:
        amount = format_amount(done, total, self._unit)
        self._bars.update(self._id, completed=done, total=total, amount=amount, note=note)


def summary_line(report: RunReport) -> str:
    """The closing line: ``12 ok · 1 invalid · 3 cached · 0 failed · 41 s · $0.00``."""
    counts = dict(report.counts)
    parts = [f"{counts.pop('ok', 0)} ok"]
    failed = counts.pop("failed", 0)
    parts += [f"{n} {status}" for status, n in counts.items()]
    parts += [
        f"{report.cached} cached",
        f"{failed} failed",
        format_duration(report.elapsed_s),
        f"${report.cost_usd:.2f}",
    ]
    return " · ".join(parts)


def closing_lines(report: RunReport) -> list[str]:
    """The problems, the summary, where the results are, and what to do next."""
    lines = [f"{p['status']}: {printable(p['id'])}: {printable(p['error'])}" for p in report.problems[:20]]
    if len(report.problems) > 20:
        lines.append(f"… and {len(report.problems) - 20} more: the view latest_failures in the warehouse has them all")
    lines += [printable(Forgotten(**item).line) for item in report.forgotten]
    lines += [f"retired: {partition}, which held nothing else" for partition in report.retired]
    if report.refused_by_cap:
        lines.append(
            f"the cap of ${report.max_cost_usd:g} kept {report.refused_by_cap} requests from being sent; "
            "a higher --max-cost goes on where this ended"
        )
    if report.uncertain_usd:
        lines.append(
            f"${report.uncertain_usd:.4f} more may have been billed: requests that ended without an answer "
            "(table transcription_ledger)"
        )
    if report.passed_over:
        lines.append(f"passed over: {' · '.join(passed_over(Counter(report.passed_over)))}")
    lines += [summary_line(report), f"tables   {_shown(report.warehouse)}"]
    if report.mirror_bytes is not None:
        lines.append(
            f"mirror   {report.mirror_bytes / 1e6:.1f} MB; {report.dropped_files} files were dropped from it, and are "
            "fetched again when they are needed"
        )
    lines += [f"left out of the export: {printable(reason)}" for reason in report.left_out]
    lines += [f"export   {_shown(path)}" for path in report.exports]
    if report.older_exports:
        older = ", ".join(_shown(path) for path in report.older_exports)
        lines.append(f"older    {older}: not written by this run; --output-format refreshes it")
    if report.report:
        lines.append(f"report   {_shown(report.report)}")
    lines.append(
        "next     audio-assets run (tries the unfinished files again)" if report.unfinished else "next     make dev"
    )
    return lines


def passage_line(passage: Passage) -> str:
    """A passage on one line: file, time, text with the match in bold."""
    import click

    begin, end = passage.match
    text = (
        printable(passage.text[:begin])
        + click.style(printable(passage.text[begin:end]), bold=True)
        + printable(passage.text[end:])
    )
    return f"{printable(passage.id)}  {_clock(passage.start_s)}  {text}"


def written_lines(written: Written) -> list[str]:
    """What was left out and why, then where the rest is."""
    lines = [f"left out: {printable(id)}: {printable(reason)}" for id, reason in written.left_out[:20]]
    if len(written.left_out) > 20:
        lines.append(f"… and {len(written.left_out) - 20} more: --json names them all")
    length = f", {format_duration(written.seconds)} of audio" if written.seconds else ""
    return [*lines, f"{_shown(str(written.directory))}  {written.files} files, {written.segments} segments{length}"]


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def _shown(path: str) -> str:
    """``path`` as one would type it here: relative when it lies below the working directory."""
    absolute = Path(path)
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else path


def say_warning(message: str) -> None:
    """One line on stderr, for what does not stop the command."""
    print(f"warning: {printable(message)}", file=sys.stderr)  # noqa: T201 - the place where it belongs


def say_error(message: str) -> None:
    """One line on stderr."""
    print(f"error: {printable(message)}", file=sys.stderr)  # noqa: T201 - the place where it belongs
