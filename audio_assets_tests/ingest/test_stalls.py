"""A network that stands still: nobody who wants to end waits for it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from audio_assets.ingest import workers
from audio_assets.ingest.intake import IntakeOptions, IntakeProgress, ingest_prefix
from audio_assets.ingest.mirror import Mirror
from audio_assets.settings import Home
from audio_assets_tests.conftest import subprocess_environment
from audio_assets_tests.ingest.faulty import FaultyServer

KEY = "calls/a.wav"


def stand_still(server: FaultyServer, where: str) -> None:
    server.put(KEY, bytes(500_000))
    if where == "listing":
        server.listing = "silence"
    else:
        server.faults[KEY] = [where] * 10


@pytest.mark.parametrize(
    ("where", "number"),
    [
        ("listing", signal.SIGINT),
        ("silence", signal.SIGTERM),
        pytest.param("stall", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_ends_within_ten_seconds(
    faulty: FaultyServer, home: Home, number: signal.Signals, where: str
) -> None:
    stand_still(faulty, where)
    home.root.mkdir()
    settings = {
        "R2_BUCKET": "recordings",
        "R2_ENDPOINT_URL": faulty.endpoint_url,
        "R2_ACCESS_KEY_ID": "test",
        "R2_SECRET_ACCESS_KEY": "test",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "audio_assets", "run"],
        env=subprocess_environment(home.root, **settings),
        cwd=home.root,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert faulty.asked.wait(150)
    started = time.monotonic()
    process.send_signal(number)
    stderr = process.communicate(timeout=60)[1]
    assert time.monotonic() - started < 10
    assert process.returncode == 130, stderr
    assert stderr.count("interrupted") == 1
    assert "Traceback" not in stderr


@pytest.mark.parametrize("where", ["silence", "stall"])
def test_an_intake_that_is_given_up_leaves_hanging_reads_behind(
    faulty: FaultyServer, mirror: Mirror, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    import boto3
    from botocore.config import Config

    monkeypatch.setattr(workers, "GRACE_S", 0.2)
    stand_still(faulty, where)
    faulty.put("calls/b.wav", b"no audio")
    client: Any = boto3.session.Session().client(
        "s3",
        endpoint_url=faulty.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(s3={"addressing_style": "path"}, read_timeout=60, retries={"total_max_attempts": 1}),
    )

    def give_up(_: IntakeProgress) -> None:
        assert faulty.asked.wait(10)
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        ingest_prefix(client, "b", "calls/", 1, mirror, None, IntakeOptions(), give_up)
    assert time.monotonic() - started < 10
    assert not list(mirror.files("calls/a"))
