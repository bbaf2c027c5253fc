"""A Dagster instance of the test's own, and what the daemon does with run requests."""

from collections.abc import Callable, Iterator

import dagster as dg
import pytest

from audio_assets.automation.jobs import prefix_job
from audio_assets.automation.runs import PARTITION_TAG, RUN_KEY_TAG

Result = dg.SensorResult | dg.SkipReason
Tick = Callable[[], Result]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def requests(result: Result) -> dict[str, str]:
    """Run key by partition."""
    assert isinstance(result, dg.SensorResult), result
    asked = {str(r.partition_key): str(r.run_key) for r in result.run_requests or []}
    assert len(asked) == len(result.run_requests or []), "a partition is asked for twice"
    return asked


def launch(
    instance: dg.DagsterInstance, asked: dict[str, str], status: dg.DagsterRunStatus = dg.DagsterRunStatus.SUCCESS
) -> None:
    """Do what the daemon does with run requests, and let the runs come to ``status``."""
    for partition, key in asked.items():
        tags = {RUN_KEY_TAG: key, PARTITION_TAG: partition}
        instance.add_run(dg.DagsterRun(job_name=prefix_job.name, status=status, tags=tags))
