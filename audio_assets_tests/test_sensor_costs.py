"""`plan --sensors`: what each way of noticing objects costs, from the number of keys."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from audio_assets import cli
from audio_assets.demo_server import WeedServer
from audio_assets.ingest.bucket_scan import BucketCount
from audio_assets.sensor_costs import sensor_costs
from audio_assets_tests.conftest import r2_environment


def cost(name: str, count: BucketCount, changes: int | None = None) -> tuple[int, float]:
    [way] = [way for way in sensor_costs(count, changes).ways if way.name == name]
    return way.operations, way.cost_usd


def test_a_listing_a_minute_is_a_class_a_operation_for_each_thousand_keys() -> None:
    # 43,200 minutes, 1,000 pages, the first million free, $4.50 a million.
    assert cost("new_r2_objects_sensor", BucketCount(1_000_000, 0, 0)) == (43_200_000, 189.90)
    assert cost("new_r2_objects_sensor", BucketCount(1_001, 0, 0)) == (86_400, 0.0)
    assert cost("new_r2_objects_sensor", BucketCount(0, 0, 0)) == (43_200, 0.0)


def test_an_event_is_three_operations_of_a_queue_however_many_keys_there_are() -> None:
    assert cost("r2_event_sensor", BucketCount(10**9, 0, 0), changes=1_000_000) == (3_000_000, 0.80)
    assert cost("r2_event_sensor", BucketCount(10, 0, 0), changes=0) == (0, 0.0)


def test_the_nightly_schedules_list_everything_once() -> None:
    assert cost("nightly schedules", BucketCount(1_000_000, 0, 500)) == (30 * (2 + 1000 + 500), 0.0)


def test_the_costs_are_those_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIO_ASSETS_LISTING_INTERVAL_S", "600")
    assert cost("new_r2_objects_sensor", BucketCount(1_000_000, 0, 0)) == (4_320_000, 14.94)


def test_prefixes_that_are_listed_apart_are_paid_for() -> None:
    assert cost("new_r2_objects_sensor", BucketCount(1_000_000, 0, 100)) == (43_200 * 1101, 209.53)


def plan(*arguments: str) -> str:
    done = CliRunner().invoke(cli.cli, ["plan", "--sensors", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_plan_computes_it_for_a_number_of_keys_without_any_setting() -> None:
    told = json.loads(plan("--keys", "1200000", "--json"))
    assert (told["keys"], told["changes"], told["changes_are"]) == (
        1_200_000,
        100_000,
        "assumed: a twelfth of the objects",
    )
    assert "r2_event_sensor" in plan("--keys", "1200000") and "$0.00 a month" in plan("--keys", "1200000")


def test_plan_counts_the_bucket_when_no_number_is_given(weed: WeedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    client = weed.client()
    client.create_bucket(Bucket="costs")
    for key in ("a/1.wav", "a/2.wav", "b/3.wav", "readme.txt"):
        client.put_object(Bucket="costs", Key=key, Body=b"x")
    for name, value in {**r2_environment(weed), "R2_BUCKET": "costs"}.items():
        monkeypatch.setenv(name, value)
    told = json.loads(plan("--json"))
    assert (told["keys"], told["prefixes"], told["changes"]) == (4, 2, 4)
    assert told["changes_are"] == "uploads of the last 30 days"
    assert json.loads(plan("--changes", "7", "--json"))["changes"] == 7


def test_options_of_the_sensors_need_the_flag() -> None:
    done = CliRunner().invoke(cli.cli, ["plan", "--keys", "5"])
    assert done.exit_code == 2 and "--sensors" in done.output


def test_the_readmes_figures_are_those_of_the_command() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    for way in sensor_costs(BucketCount(1_000_000, 0, 0), 50_000).ways:
        assert f"| {way.operations:,} " in readme and f"| ${way.cost_usd:.2f} |" in readme
