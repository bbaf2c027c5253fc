"""``run --max-disk``: a bucket goes through a mirror that is smaller than the bucket."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from audio_assets.demo import encode, packaged_model, recording
from audio_assets.demo_server import WeedServer
from audio_assets.settings import Home
from audio_assets_tests.conftest import audio_assets, r2_environment, subprocess_environment
from audio_assets_tests.ingest.conftest import bytes_in

FILES = 12
MAX_DISK = 3_000_000


def recordings() -> Iterator[tuple[str, bytes]]:
    """Ten seconds of speech each, some 10 MB in all, in two prefixes."""
    samples, rate = recording()
    for n in range(FILES):
        yield (
            f"{'big' if n < 10 else 'small'}/{n:02}.wav",
            encode(samples[n * 2 * rate : (n * 2 + 10) * rate], rate, "wav"),
        )


@pytest.mark.slow
@pytest.mark.weights
def test_a_bucket_larger_than_the_budget_goes_through_in_one_run(weed: WeedServer, home: Home, tmp_path: Path) -> None:
    client = weed.client()
    client.create_bucket(Bucket="max-disk")
    size = 0
    for key, body in recordings():
        client.put_object(Bucket="max-disk", Key=key, Body=body)
        size += len(body)
    assert size > 3 * MAX_DISK
    environment = subprocess_environment(
        home.root, **{**r2_environment(weed), "R2_BUCKET": "max-disk", "WHISPER_MODEL": packaged_model()}
    )

    def run(*arguments: str) -> tuple[subprocess.CompletedProcess[str], int]:
        """The command, and the most bytes that were seen in the mirror meanwhile."""
        process = subprocess.Popen(
            [sys.executable, "-m", "audio_assets", *arguments],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        most = 0
        while process.poll() is None:
            most = max(most, bytes_in(home.audio))
            time.sleep(0.02)
        out, err = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err), most

    done, most = run("run", "--max-disk", "3MB", "--json", "--skip-summary")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["counts"] == {"ok": FILES}
    assert report["transcribed"] == FILES
    assert 0 < most <= MAX_DISK
    assert report["mirror_bytes"] <= MAX_DISK
    assert report["dropped_files"] >= FILES - 4

    # Nothing is fetched, and nothing is needed, when nothing is new.
    done, most = run("run", "--max-disk", "3MB", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["cached"], report["transcribed"]) == (0, FILES, 0)
    assert report["dropped_files"] >= FILES - 4

    # A lower limit holds although no prefix is visited, and what left the bucket is not what makes room.
    (mirror_copy, *_) = sorted(home.audio.rglob("*.wav"))
    key = mirror_copy.relative_to(home.audio).as_posix()
    client.delete_object(Bucket="max-disk", Key=key)
    assert json.loads(run("run", "--max-disk", "3MB", "--json")[0].stdout)["unchanged"] == 1
    done, _ = run("run", "--max-disk", "2MB", "--json")
    report = json.loads(done.stdout)
    assert (report["unchanged"], len(report["partitions"])) == (2, 2), done.stderr
    assert report["mirror_bytes"] <= 2_000_000
    assert mirror_copy.is_file()

    verified = audio_assets("verify", cwd=tmp_path, environment=environment)
    assert verified.returncode == 0, verified.stdout
    assert "dropped from the mirror" in verified.stdout

    # What needs the bytes gets them.
    environment["AUDIO_ASSETS_MAX_DISK"] = "3MB"
    made, most = run("audiofolder", "--include-flagged", "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["files"] == FILES - 1
    assert most <= MAX_DISK


@pytest.mark.parametrize("size", ["lots", "3XB", "-1", ""])
def test_a_budget_that_is_no_size_is_a_usage_error(size: str, home: Home, tmp_path: Path) -> None:
    done = audio_assets("run", "--max-disk", size, cwd=tmp_path, environment=subprocess_environment(home.root))
    assert done.returncode == 2
    assert "write it like 50GB" in done.stderr


def test_a_setting_that_is_no_size_is_named(home: Home, tmp_path: Path, weed: WeedServer) -> None:
    environment = subprocess_environment(home.root, **r2_environment(weed), AUDIO_ASSETS_MAX_DISK="lots")
    done = audio_assets("run", cwd=tmp_path, environment=environment)
    assert done.returncode == 4, done.stderr
    assert "AUDIO_ASSETS_MAX_DISK" in done.stderr
