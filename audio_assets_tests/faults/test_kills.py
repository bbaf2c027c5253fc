"""A run that is struck anywhere, by SIGKILL or SIGTERM, is finished by the next one, which pays for nothing twice.

``FAULT_BLOWS`` sets how often each point is struck by the slow test; ``make faults`` strikes ten times.
"""

from __future__ import annotations

import hashlib
import io
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
import soundfile

from audio_assets import dead_runs
from audio_assets.demo import BUCKET, demo_objects
from audio_assets.demo_server import WeedServer
from audio_assets.settings import Home
from audio_assets_tests.conftest import r2_environment, subprocess_environment
from audio_assets_tests.faults.campaign import tried
from audio_assets_tests.faults.invariant import assert_one_row_each, committed, files_of, unfinished_files
from audio_assets_tests.faults.victims import POINTS, Victims
from audio_assets_tests.speech.conftest import FaultServer, fault_server, serving_faults  # noqa: F401

BLOWS = int(os.environ.get("FAULT_BLOWS", "1"))
FILES = 6
WORKERS = 2
TO_END_S = 10.0
TO_START_S = 30.0
RUN = ("run", "--prefix", "kills/", "--max-workers", str(WORKERS), "--output-format", "json")
PASSED = {
    "list": 2,
    "download": 10,
    "downloaded": FILES,
    "decode": FILES,
    "request sent": FILES,
    "cached": FILES,
    "record written": 8,
    "warehouse transaction": 6,
    "committed": 8,
    "export": 1,
}
"""How often a run passes each point, at least."""

assert PASSED.keys() == POINTS.keys()


@pytest.fixture(scope="module")
def keys(weed: WeedServer) -> Iterator[set[str]]:
    """Recordings of a sentence, each of other bytes, in one prefix."""
    speech = next(o.body for o in demo_objects() if o.key.endswith("/01.wav"))
    samples, rate = soundfile.read(io.BytesIO(speech), dtype="float32")
    client, stored = weed.client(), set()
    for n in range(FILES):
        body = io.BytesIO()
        soundfile.write(body, (samples[: 3 * rate] * np.float32(1 - n / 20)), rate, format="WAV", subtype="PCM_16")
        client.put_object(Bucket=BUCKET, Key=f"kills/{n}.wav", Body=body.getvalue())
        stored.add(f"kills/{n}.wav")
    yield stored
    for key in stored:
        client.delete_object(Bucket=BUCKET, Key=key)


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victims]:
    directory = tmp_path_factory.mktemp("victims")
    with Victims(subprocess_environment(directory / "home"), directory) as warm:
        yield warm


def api_settings(weed: WeedServer, server: FaultServer) -> dict[str, str]:
    return r2_environment(weed) | {
        "WHISPER_ENGINE": "openai",
        "OPENAI_API_KEY": "test-key",
        "OPENAI_BASE_URL": server.url,
    }


@pytest.fixture
def settings(weed: WeedServer, fault_server: FaultServer) -> dict[str, str]:  # noqa: F811
    return api_settings(weed, fault_server)


@pytest.fixture(scope="module")
def undisturbed(
    victims: Victims, weed: WeedServer, keys: set[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Counter[str]]:
    """The files that two runs leave when nobody strikes them."""
    home = Home(tmp_path_factory.mktemp("undisturbed") / "home")
    with serving_faults() as server:
        here = api_settings(weed, server) | {"AUDIO_ASSETS_HOME": str(home.root)}
        for _ in range(2):
            assert victims.run(*RUN, settings=here).returncode == 0
        assert victims.run("verify", settings=here).returncode == 0
        assert len(server.posts) == FILES
    yield files_of(home)


def settled_count(server: FaultServer) -> int:
    """Requests that arrived: one that was sent before the blow may still be read by the server."""
    count, since = len(server.posts), time.monotonic()
    while time.monotonic() - since < 0.3:
        time.sleep(0.02)
        if len(server.posts) != count:
            count, since = len(server.posts), time.monotonic()
    return count


def strike_and_recover(
    victims: Victims,
    settings: dict[str, str],
    server: FaultServer,
    keys: set[str],
    undisturbed: Counter[str],
    directory: Path,
    at: str,
    nth: int,
    blow: signal.Signals,
) -> None:
    home = Home(directory / f"{at}-{nth}-{blow.name}".replace(" ", "-"))
    scratch = directory / "scratch"
    scratch.mkdir(exist_ok=True)
    here = settings | {"AUDIO_ASSETS_HOME": str(home.root), "TMPDIR": str(scratch)}
    server.posts.clear()

    struck = victims.run(*RUN, settings=here, at=at, nth=nth, blow=blow)
    if blow == signal.SIGKILL:
        assert struck.returncode == -signal.SIGKILL, f"nothing passes {at} for the {nth}. time: {struck.stderr[-400:]}"
    else:
        # A signal that comes with the last step may find nothing left to stop.
        assert struck.returncode in (0, 130), struck.stderr[-400:]
        assert "Traceback" not in struck.stderr
        assert struck.to_end_s is not None and struck.to_end_s < TO_END_S
    assert struck.survivors == ()
    stored, sent = committed(home), settled_count(server)

    again = victims.run(*RUN, settings=here)
    assert again.returncode == 0, again.stderr[-800:]
    assert again.survivors == ()
    assert again.first_s["listing"] < TO_START_S
    # What was stored is neither asked for nor decoded again.
    assert len(server.posts) - sent == FILES - stored
    assert again.counts["decoding"] <= FILES - stored
    assert len({hashlib.sha256(body).hexdigest() for body in server.posts}) >= FILES
    assert sent - stored <= WORKERS, "more than what was in flight was paid for again"

    assert_one_row_each(home, keys)
    verified = victims.run("verify", settings=here)
    assert verified.returncode == 0, verified.stderr[-400:]
    assert unfinished_files(home) == []
    assert not list(home.crash_marks.glob("*")), "a file is suspected that did nothing"
    assert files_of(home) == undisturbed, "as if nothing had happened"
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("at", ["download", "request sent", "warehouse transaction"])
def test_a_run_that_is_struck_is_finished_by_the_next(
    victims: Victims,
    settings: dict[str, str],
    fault_server: FaultServer,  # noqa: F811
    keys: set[str],
    undisturbed: Counter[str],
    tmp_path: Path,
    at: str,
) -> None:
    nth = 1 + PASSED[at] // 2
    strike_and_recover(victims, settings, fault_server, keys, undisturbed, tmp_path, at, nth, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM], ids=lambda blow: blow.name)
@pytest.mark.parametrize("at", POINTS)
def test_many_blows_at_each_point(
    victims: Victims,
    settings: dict[str, str],
    fault_server: FaultServer,  # noqa: F811
    keys: set[str],
    undisturbed: Counter[str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    at: str,
    blow: signal.Signals,
) -> None:
    for trial in range(BLOWS):
        directory = tmp_path / str(trial)
        directory.mkdir()
        nth = 1 + trial % PASSED[at]
        strike_and_recover(victims, settings, fault_server, keys, undisturbed, directory, at, nth, blow)
        tried(request, trial + 1)


# What Ctrl-C does is what SIGTERM does but for the signal: the campaign strikes everywhere.
@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("at", list(POINTS)[:: 1 if BLOWS > 1 else 2])
def test_ctrl_c_at_each_point(
    victims: Victims,
    settings: dict[str, str],
    fault_server: FaultServer,  # noqa: F811
    keys: set[str],
    undisturbed: Counter[str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    at: str,
) -> None:
    for trial in range(BLOWS):
        directory = tmp_path / str(trial)
        directory.mkdir()
        nth = 1 + trial % PASSED[at]
        strike_and_recover(victims, settings, fault_server, keys, undisturbed, directory, at, nth, signal.SIGINT)
        tried(request, trial + 1)


@pytest.mark.slow
def test_a_run_that_was_killed_does_not_count_as_started_for_ever(
    victims: Victims,
    settings: dict[str, str],
    keys: set[str],
    tmp_path: Path,
) -> None:
    home = Home(tmp_path / "home")
    here = settings | {"AUDIO_ASSETS_HOME": str(home.root)}
    assert victims.run(*RUN, settings=here, at="record written", nth=3).returncode == -signal.SIGKILL
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        [dead] = dead_runs.find(instance)
        again = victims.run(*RUN, settings=here)
        assert again.returncode == 0
        run = instance.get_run_by_id(dead.run_id)
        assert run is not None and run.status == dg.DagsterRunStatus.FAILURE
        assert not instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
