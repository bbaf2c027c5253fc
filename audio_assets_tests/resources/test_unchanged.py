"""A prefix with nothing new: one listing, no rewrite, the same data version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from audio_assets.definitions import build_definitions
from audio_assets.demo import demo_objects
from audio_assets.demo_server import WeedServer
from audio_assets.partitions import PARTITIONS_NAME
from audio_assets.settings import Home
from audio_assets_tests.conftest import r2_environment

CLIP = next(o.body for o in demo_objects() if o.key.endswith(".ogg"))


def materialize(instance: dg.DagsterInstance) -> tuple[str, dict[str, Any]]:
    job = build_definitions().resolve_job_def("prefix_job")
    done = job.execute_in_process(instance=instance, partition_key="calls", asset_selection=[dg.AssetKey("raw_audio")])
    [event] = [e for e in done.all_events if e.is_step_materialization]
    version = (event.materialization.tags or {})["dagster/data_version"]
    return version, {name: value.value for name, value in event.materialization.metadata.items()}


def test_nothing_new_is_one_listing_and_leaves_the_file_alone(
    weed: WeedServer, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in r2_environment(weed).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("R2_BUCKET", "unchanged-prefix")
    client = weed.client()
    client.create_bucket(Bucket="unchanged-prefix")
    client.put_object(Bucket="unchanged-prefix", Key="calls/a.ogg", Body=CLIP)
    with dg.instance_for_test() as instance:
        instance.add_dynamic_partitions(PARTITIONS_NAME, ["calls"])
        first, _ = materialize(instance)
        (file,) = Path(home.tables, "raw_audio").iterdir()
        written = file.stat()

        sent: list[str] = []
        from audio_assets.resources.r2 import R2Resource

        make = R2Resource.get_client

        def counting(self: R2Resource) -> Any:
            made = make(self)
            made.meta.events.register("before-sign.s3", lambda request, **_: sent.append(request.url))
            return made

        monkeypatch.setattr(R2Resource, "get_client", counting)
        from audio_assets.ingest import download

        with monkeypatch.context() as forbidding:
            forbidding.setattr(download, "get_object", lambda *_: pytest.fail("an object was fetched again"))
            again, metadata = materialize(instance)
        assert len(sent) == 1 and "list-type=2" in sent[0]
        assert again == first
        assert (file.stat().st_ino, file.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
        assert metadata["unchanged"] is True
        assert metadata["dagster/partition_row_count"] == 1

        client.put_object(Bucket="unchanged-prefix", Key="calls/b.ogg", Body=CLIP)
        later, metadata = materialize(instance)
        assert later != first
        assert metadata["dagster/partition_row_count"] == 2
        assert file.stat().st_ino != written.st_ino
    client.close()
