"""What runs by the clock."""

import dataclasses
import datetime
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dagster as dg
import pytest

from audio_assets import schemas
from audio_assets.automation import corpus_schedule, discover_schedule, nightly_schedule
from audio_assets.automation.jobs import prefix_job
from audio_assets.automation.runs import PARTITION_TAG
from audio_assets.demo import demo_objects
from audio_assets.demo_server import WeedServer
from audio_assets.ingest.discovery import discover
from audio_assets.ingest.intake import ingest_prefix
from audio_assets.ingest.mirror import Mirror
from audio_assets.partitions import PARTITIONS_NAME, prefix_for
from audio_assets.resources.duckdb_io import PartitionedDuckDBIOManager
from audio_assets.resources.home import HomeResource
from audio_assets.settings import Home
from audio_assets.storage.partition_files import PartitionStore
from audio_assets.text.tokenize import tokenize
from audio_assets_tests.ingest.conftest import remove_bucket

CLIP = next(o.body for o in demo_objects() if o.key.endswith(".ogg"))
NIGHT = datetime.datetime(2026, 11, 23, 3, tzinfo=datetime.timezone.utc)


@dataclass(frozen=True)
class Story:
    """A bucket, its tables, and the nights."""

    client: Any
    bucket: str
    instance: dg.DagsterInstance
    home: Home

    def put(self, *keys: str) -> None:
        for key in keys:
            self.client.put_object(Bucket=self.bucket, Key=key, Body=CLIP)

    def discover(self, count: bool = True) -> None:
        """What `discover_schedule` does."""
        found = discover(self.client, self.bucket, 1, count=count).prefixes
        rows = [dataclasses.asdict(p) for p in found]
        self.store.write(schemas.R2_PREFIXES, schemas.R2_PREFIXES.from_rows(rows), None)
        self.instance.add_dynamic_partitions(PARTITIONS_NAME, [p.partition for p in found])
        self.instance.report_runless_asset_event(dg.AssetMaterialization("r2_prefixes"))

    def run(self, partition: str, status: str | None = "ok", *, words: bool = True) -> None:
        """What a run of the partition does; without a ``status`` it ends before anything is transcribed.

        Without ``words`` it ends before the transcripts are split into words.
        """
        previous = self.store.read(schemas.RAW_AUDIO, [partition])
        prefix = prefix_for(partition)
        table = ingest_prefix(self.client, self.bucket, prefix, 1, Mirror(self.home.audio), previous).table
        self.store.write(schemas.RAW_AUDIO, table, partition)
        made = [
            {
                "id": r["id"],
                "prefix": prefix,
                "sha256": r["sha256"],
                "transcription": f"text of {r['sha256']}",
                "segments": [],
                "flags": [],
                "cached": False,
                "status": "gone" if r["status"] == "gone" else status,
            }
            for r in table.to_pylist()
        ]
        if status is not None:
            table = schemas.TRANSCRIPTS.from_rows(made)
            self.store.write(schemas.TRANSCRIPTS, table, partition)
            if words:
                self.store.write(schemas.TOKENS, tokenize(table), partition)

    def night(self) -> list[str]:
        """The partitions that the nightly schedule asks for."""
        with dg.build_schedule_context(
            instance=self.instance,
            scheduled_execution_time=NIGHT,
            resources={"home": HomeResource(), "warehouse": PartitionedDuckDBIOManager()},
        ) as context:
            made = list(nightly_schedule(context))
        asked = [request for request in made if isinstance(request, dg.RunRequest)]
        assert len({r.run_key for r in asked}) == len(asked) and (asked or isinstance(made[0], dg.SkipReason))
        return [str(r.partition_key) for r in asked]

    @property
    def store(self) -> PartitionStore:
        return PartitionStore(self.home.tables)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as instance:
        yield instance


@pytest.fixture
def story(
    weed: WeedServer, home: Home, instance: dg.DagsterInstance, request: pytest.FixtureRequest
) -> Iterator[Story]:
    name = "nightly-" + hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    client = weed.client()
    client.create_bucket(Bucket=name)
    yield Story(client, name, instance, home)
    remove_bucket(weed, name)


def test_a_night_asks_for_what_changed_and_for_nothing_else(story: Story) -> None:
    story.put("calls/a.ogg", "lectures/b.ogg")
    story.discover()
    assert story.night() == ["calls", "lectures"]
    story.run("calls")
    story.run("lectures")
    assert story.night() == []
    story.put("calls/new.ogg")
    story.discover()
    assert story.night() == ["calls"]


def test_a_night_asks_for_prefixes_with_unfinished_files(story: Story) -> None:
    story.put("calls/a.ogg", "lectures/b.ogg", "talks/c.ogg")
    story.discover()
    story.run("calls")
    story.run("lectures", status="deferred")
    story.run("talks", status=None)
    assert story.night() == ["lectures", "talks"]


def test_a_night_asks_for_prefixes_whose_run_died_between_two_tables(story: Story) -> None:
    story.put("calls/a.ogg", "lectures/b.ogg", "talks/c.ogg", "fine/d.ogg")
    story.discover()
    for partition in ("calls", "lectures", "talks", "fine"):
        story.run(partition)
    assert story.night() == []
    # Overwritten and vanished since, and taken in; what was transcribed is of before.
    story.client.put_object(Bucket=story.bucket, Key="calls/a.ogg", Body=CLIP + b"\0")
    story.client.delete_object(Bucket=story.bucket, Key="lectures/b.ogg")
    story.discover()
    story.run("calls", status=None)
    story.run("lectures", status=None)
    story.client.put_object(Bucket=story.bucket, Key="talks/c.ogg", Body=CLIP + b"\0\0")
    story.discover()
    story.run("talks", words=False)
    assert story.night() == ["calls", "lectures", "talks"]
    for partition in ("calls", "lectures", "talks"):
        story.run(partition)
    assert story.night() == []


def test_a_night_asks_for_prefixes_whose_latest_run_failed(story: Story) -> None:
    story.put("calls/a.ogg", "lectures/b.ogg")
    story.discover()
    story.run("calls")
    story.run("lectures")

    def launched(partition: str, status: dg.DagsterRunStatus) -> None:
        tags = {PARTITION_TAG: partition}
        story.instance.add_run(dg.DagsterRun(job_name=prefix_job.name, status=status, tags=tags))

    launched("calls", dg.DagsterRunStatus.FAILURE)
    launched("lectures", dg.DagsterRunStatus.FAILURE)
    launched("lectures", dg.DagsterRunStatus.SUCCESS)
    assert story.night() == ["calls"]


def test_a_prefix_that_vanished_is_asked_for_until_its_rows_say_so(story: Story) -> None:
    story.put("calls/a.ogg")
    story.discover()
    story.run("calls")
    story.client.delete_object(Bucket=story.bucket, Key="calls/a.ogg")
    story.discover()
    assert story.night() == ["calls"]
    story.run("calls")
    assert story.night() == []


@pytest.mark.parametrize("last", ["never", "uncounted"])
def test_without_a_listing_that_tells_what_changed_every_prefix_is_asked_for(story: Story, last: str) -> None:
    story.put("calls/a.ogg", "lectures/b.ogg")
    story.discover()
    story.run("calls")
    story.run("lectures")
    if last == "never":
        story.instance.wipe_assets([dg.AssetKey("r2_prefixes")])
    else:
        story.discover(count=False)
    assert story.night() == ["calls", "lectures"]


def test_nothing_runs_by_itself_until_it_is_switched_on() -> None:
    for schedule in (discover_schedule, nightly_schedule, corpus_schedule):
        assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
