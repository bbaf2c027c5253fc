"""The API engine against OpenAI-compatible servers that others wrote, with the packaged tiny.en weights.

``open-asr-server`` for the contract, ``faster-whisper-server`` for real confidence scores. They are installed from
requirements-api-test.txt into .venv-api, by ``make api-test``.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from audio_assets.errors import FileFailed
from audio_assets.speech import openai_api
from audio_assets.speech.cache import TranscriptCache
from audio_assets.speech.capabilities import AUDIO_FORMATS
from audio_assets.speech.compress import Compressed
from audio_assets.speech.engine import SAMPLE_RATE_HZ, Clip, ClipResult
from audio_assets.speech.ledger import Account, read_journal
from audio_assets.speech.local import packaged_model
from audio_assets.speech.openai_api import OpenAIEngine, OpenAIOptions
from audio_assets.speech.transcribe import AudioFile, transcribe_files

BIN = Path(__file__).parents[2] / ".venv-api" / "bin"
START_S = 120.0
OPENING = "it was the best of times"

pytestmark = pytest.mark.weights


@dataclass(frozen=True)
class Server:
    url: str
    model: str
    scores: bool


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module", params=["open-asr-server", "faster-whisper-server"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    program = BIN / request.param
    weights = packaged_model()
    if not program.is_file() or weights is None:
        pytest.skip(f"{request.param} or the packaged weights are not installed: make api-test")
    port = free_port()
    model = f"faster-whisper:{weights}" if request.param == "open-asr-server" else str(weights)
    arguments = {
        "open-asr-server": ["serve", "--host", "127.0.0.1", "--port", str(port), "--preload", model],
        "faster-whisper-server": ["--host", "127.0.0.1", "--port", str(port), model],
    }
    log = tmp_path_factory.mktemp("server") / "log"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, *arguments[request.param]], stdout=output, stderr=output, env=environment, cwd=log.parent
        )
        try:
            deadline = time.monotonic() + START_S
            while True:
                assert process.poll() is None, log.read_text()[-2000:]
                assert time.monotonic() < deadline, log.read_text()[-2000:]
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield Server(f"http://127.0.0.1:{port}/v1", model, scores=request.param == "faster-whisper-server")
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture
def make_engine(server: Server) -> Iterator[Callable[..., OpenAIEngine]]:
    made = []

    def make(**options: object) -> OpenAIEngine:
        defaults = {"model": server.model, "base_url": server.url, "first_backoff_s": 0.05, "workers": 2}
        made.append(OpenAIEngine(OpenAIOptions(**{**defaults, **options})))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def test_speech_comes_back_as_text_with_times(
    make_engine, server: Server, cache: TranscriptCache, two_cities_path: Path, tmp_path: Path
) -> None:
    from audio_assets_tests.speech.conftest import as_file

    account = Account(1.0, tmp_path / "ledger", run="test")
    engine = make_engine(price_usd_per_minute=0.006).billed_to(account)
    [result] = transcribe_files([as_file(two_cities_path)], engine, cache)
    account.close()
    assert (result.status, result.language) == ("ok", "en")
    assert result.transcription is not None and result.transcription.lower().startswith(OPENING)
    # Whisper tiny hears "comparison" or "compassion" there, as the last digit of the arithmetic falls.
    assert "superlative degree of" in result.transcription
    starts = [s.start_s for s in result.segments]
    assert len(starts) > 3 and starts == sorted(starts) and result.segments[-1].end_s <= 45
    if server.scores:
        assert all(s.avg_logprob is not None and -1.5 < s.avg_logprob < 0 for s in result.segments)
    rows = list(read_journal(tmp_path / "ledger", "").values())
    assert sum(r["cost_usd"] for r in rows) == pytest.approx(account.cost_usd) == pytest.approx(result.cost_usd)
    [again] = transcribe_files([as_file(two_cities_path)], engine, cache)
    assert again.cached and len(rows) == account.requests


@pytest.mark.parametrize("form", AUDIO_FORMATS)
def test_it_reads_every_format(make_engine, opening, form: str) -> None:
    [result] = make_engine(audio_format=form).transcribe([Clip("a", opening)])
    assert isinstance(result, ClipResult)
    assert "".join(s.text for s in result.segments).strip().lower().startswith(OPENING)


def test_a_good_request_survives_what_the_server_does_after_a_bad_one(
    make_engine, opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One answers 500 to bytes that are no audio and drops the connection, the other finds no words in them."""
    compress = openai_api.compress
    sent: list[str] = []

    def first_is_garbage(samples, form):  # type: ignore[no-untyped-def]
        sent.append(form)
        return (
            Compressed(b"not audio" * 100, "clip.flac", "audio/flac", form)
            if len(sent) == 1
            else compress(samples, form)
        )

    monkeypatch.setattr(openai_api, "compress", first_is_garbage)
    bad, good = make_engine(attempts=1).transcribe([Clip("bad", opening), Clip("good", opening)])
    assert isinstance(bad, FileFailed) or bad.segments == ()
    assert isinstance(good, ClipResult), good
    assert "".join(s.text for s in good.segments).strip().lower().startswith(OPENING)


def test_invalid_and_silent_files_are_never_sent(make_engine, cache, write_audio, tmp_path: Path) -> None:
    text = tmp_path / "text.mp3"
    text.write_text("not audio")
    silence = write_audio("silence.wav", np.zeros(5 * SAMPLE_RATE_HZ, np.float32))
    account = Account()
    engine = make_engine().billed_to(account)
    found = {r.id: r.status for r in transcribe_files([AudioFile("t", text, "0" * 64), silence], engine, cache)}
    assert found == {"t": "invalid", "silence.wav": "empty"} and account.attempts == 0


def test_the_server_announces_no_shutdown(make_engine) -> None:
    assert make_engine().announced_shutdown() is None
