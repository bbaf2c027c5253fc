"""What Dagster knows of the runs that the sensors asked for."""

import datetime
import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import dagster as dg

from audio_assets.automation.jobs import prefix_job
from audio_assets.errors import AudioAssetsError

P = ParamSpec("P")
Result = TypeVar("Result")

MAX_RUN_REQUESTS = 100
"""Run requests per tick. A tick must end within Dagster's 60 s; the rest waits for the next one."""

RUN_KEY_TAG = "dagster/run_key"
PARTITION_TAG = "dagster/partition"

_IN_FLIGHT = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def partitions_in_flight(instance: dg.DagsterInstance) -> set[str]:
    """Partitions that a run of `prefix_job` is at work on, or is queued for."""
    runs = instance.get_runs(filters=dg.RunsFilter(job_name=prefix_job.name, statuses=_IN_FLIGHT))
    return {run.tags[PARTITION_TAG] for run in runs if PARTITION_TAG in run.tags}


def partitions_given_up(instance: dg.DagsterInstance, since: datetime.datetime) -> set[str]:
    """Partitions whose latest run of `prefix_job` was made after ``since`` and failed, or was ended."""
    given_up = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
    filters = dg.RunsFilter(job_name=prefix_job.name, statuses=given_up, created_after=since)
    candidates = {run.tags[PARTITION_TAG] for run in instance.get_runs(filters=filters) if PARTITION_TAG in run.tags}
    return {partition for partition in candidates if _latest_status(instance, partition) in given_up}


def _latest_status(instance: dg.DagsterInstance, partition: str) -> dg.DagsterRunStatus | None:
    filters = dg.RunsFilter(job_name=prefix_job.name, tags={PARTITION_TAG: partition})
    return next((run.status for run in instance.get_runs(filters=filters, limit=1)), None)


def has_run(instance: dg.DagsterInstance, run_key: str) -> bool:
    """Whether Dagster took the run of this key over: it was launched, or queued, whatever became of it.

    A run that was made and never launched, since the daemon was killed in between, does not count: Dagster launches it
    when the same key is asked for again.
    """
    runs = instance.get_runs(filters=dg.RunsFilter(tags={RUN_KEY_TAG: run_key}))
    return any(run.status != dg.DagsterRunStatus.NOT_STARTED for run in runs)


def readable_tick(sensor: Callable[P, Result]) -> Callable[P, Result]:
    """Leave out of a failed tick where in the code and in the libraries below it was noticed.

    Dagster writes all of it to the daemon's log with each tick, pages a minute for a bucket that is down.
    """

    @functools.wraps(sensor)
    def tick(*args: P.args, **kwargs: P.kwargs) -> Result:
        try:
            return sensor(*args, **kwargs)
        except AudioAssetsError as error:
            raise error.with_traceback(None) from None

    return tick
