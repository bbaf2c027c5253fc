"""What runs by the clock."""

import datetime
from collections.abc import Iterator

import dagster as dg
import pytest

from audio_assets.automation import corpus_schedule, discover_schedule, nightly_schedule
from audio_assets.definitions import build_definitions
from audio_assets.partitions import PARTITIONS_NAME


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as instance:
        yield instance


def test_every_night_every_prefix_is_brought_up_to_date(instance: dg.DagsterInstance) -> None:
    instance.add_dynamic_partitions(PARTITIONS_NAME, ["calls", "lectures"])
    night = datetime.datetime(2026, 11, 23, 3, tzinfo=datetime.timezone.utc)
    definitions = build_definitions()
    context = dg.build_schedule_context(
        instance=instance, scheduled_execution_time=night, repository_def=definitions.get_repository_def()
    )
    requests = nightly_schedule.evaluate_tick(context).run_requests
    assert requests is not None
    assert [r.partition_key for r in requests] == ["calls", "lectures"]
    assert len({r.run_key for r in requests}) == 2


def test_nothing_runs_by_itself_until_it_is_switched_on() -> None:
    for schedule in (discover_schedule, nightly_schedule, corpus_schedule):
        assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
