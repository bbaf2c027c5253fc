"""Runs whose process was killed: Dagster keeps them as started, and the slots they hold, until somebody ends them.

Dagster's run monitoring asks the launcher of a run, and a run of the command line has none: its process executes it.
Such a run carries the identity of its process as a tag, so that the next command can tell that it is gone.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from audio_assets import processes

if TYPE_CHECKING:
    import dagster as dg

PROCESS_TAG = "audio_assets/process"
"""Tag of a run of the command line: host, process id, and when that process began."""


def own_process() -> str:
    """This process, told apart from a later one with its number."""
    return _identity(os.getpid())


def end(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs of dead processes of this machine as failed and free the slots of runs that are over.

    Returns:
        One line for each thing that was mended.
    """
    return [*_end_runs(instance), *_free_slots(instance)]


def find(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """Runs that Dagster takes for unfinished, of processes of this machine that are gone."""
    import dagster as dg

    unfinished = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    records = instance.get_run_records(dg.RunsFilter(statuses=unfinished))
    return [r.dagster_run for r in records if _is_gone(r.dagster_run.tags.get(PROCESS_TAG))]


def _end_runs(instance: dg.DagsterInstance) -> list[str]:
    ended = []
    for run in find(instance):
        instance.report_run_failed(run, "Its process was killed; what it had stored is used by the next run.")
        ended.append(f"run {run.run_id[:8]} of {run.job_name}: its process is gone, marked as failed")
    return ended


def _free_slots(instance: dg.DagsterInstance) -> list[str]:
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return []
    freed = []
    for key in sorted(storage.get_concurrency_keys()):
        info = storage.get_concurrency_info(key)
        for run_id in sorted({*info.active_run_ids, *info.pending_run_ids}):
            run = instance.get_run_by_id(run_id)
            if run is None or run.is_finished:
                storage.free_concurrency_slots_for_run(run_id)
                freed.append(f"pool {key}: slots of run {run_id[:8]}, which is over, are free again")
    return freed


def _is_gone(process: str | None) -> bool:
    if process is None:
        return False
    host, _, rest = process.partition(" ")
    number, _, _ = rest.partition(" ")
    if host != socket.gethostname() or not number.isdigit():
        return False
    return not processes.exists(int(number)) or _identity(int(number)) != process


def _identity(pid: int) -> str:
    try:
        # The 22nd field, counted behind the name, which may hold spaces.
        began = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2].split()[19]
    except (OSError, IndexError):
        began = "?"
    return f"{socket.gethostname()} {pid} {began}"
