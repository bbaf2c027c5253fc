"""The openai engine against a server that misbehaves. What counts is how often it is asked, for each POST is paid."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import numpy as np
import pytest
import soundfile

from audio_assets.errors import FileDeferred, FileError, FileFailed, SettingsError
from audio_assets.speech import capabilities
from audio_assets.speech.capabilities import Capabilities
from audio_assets.speech.compress import compress
from audio_assets.speech.engine import SAMPLE_RATE_HZ, Clip, ClipResult, Samples
from audio_assets.speech.openai_api import OpenAIEngine, OpenAIOptions
from audio_assets.speech.pace import retry_after_s
from audio_assets.speech.transcribe import AudioFile, transcribe_files
from audio_assets_tests.speech.conftest import Answer, FaultServer, hang_up, heard, reply, trickle


@pytest.fixture
def make_engine(fault_server: FaultServer) -> Iterator[Callable[..., OpenAIEngine]]:
    made = []

    def make(**options: object) -> OpenAIEngine:
        defaults = {"api_key": "test-key", "base_url": fault_server.url, "first_backoff_s": 0.01, "attempts": 3}
        engine = OpenAIEngine(OpenAIOptions(**{**defaults, **options}))  # type: ignore[arg-type]
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.close()


def ask(engine: OpenAIEngine, samples: Samples) -> ClipResult | FileError:
    return next(engine.transcribe([Clip("a", samples)]))


def test_an_answer_becomes_segments_with_language_and_cost(make_engine, fault_server, opening):
    result = ask(make_engine(), opening)
    assert isinstance(result, ClipResult)
    assert [(s.start_s, s.end_s, s.text.strip()) for s in result.segments] == [(0.5, 2.0, "It was the best of times.")]
    assert (result.segments[0].avg_logprob, result.language) == (-0.2, "en")
    assert result.cost_usd == pytest.approx(0.006 * 9 / 60), "the price of the seconds that `usage` names"
    assert len(fault_server.posts) == 1


@pytest.mark.parametrize(("form", "magic"), [(None, b"fLaC"), ("near-lossless", b"fLaC"), ("opus", b"OpusHead")])
def test_the_request_carries_compressed_audio(make_engine, fault_server, opening, form, magic):
    ask(make_engine(audio_format=form), opening)
    [body] = fault_server.posts
    assert magic in body
    assert len(body) * 3 < 2 * len(opening), "the whole request is three times smaller than 16-bit samples"


def test_audio_can_be_sent_without_loss(make_engine, fault_server, opening):
    ask(make_engine(audio_format="flac"), opening)
    ask(make_engine(), opening)
    lossless, rounded = fault_server.posts
    assert compress(opening, "flac").data in lossless and len(rounded) < len(lossless)


class TestAFormatThatTheEndpointDoesNotRead:
    """Opus is chosen, the server wants FLAC."""

    @staticmethod
    def reads_flac(status: int) -> Answer:
        def answer(handler, number):
            read = b"fLaC" in handler.posts[number - 1]
            (reply(200, heard()) if read else reply(status, {"error": {"message": "unsupported"}}))(handler, number)

        return answer

    @pytest.mark.parametrize("status", [400, 415])
    def test_flac_is_sent_instead_and_opus_no_more(self, make_engine, fault_server, opening, status):
        fault_server.answers = [self.reads_flac(status)]
        found = list(make_engine(audio_format="opus").transcribe([Clip(str(i), opening) for i in range(3)]))
        assert all(isinstance(r, ClipResult) for r in found)
        assert [b"fLaC" in body for body in fault_server.posts] == [False, True, True, True]

    def test_a_bad_recording_is_no_reason_to_give_it_up(self, make_engine, fault_server, opening):
        refuse = reply(415, {"error": {"message": "unsupported"}})
        fault_server.answers = [refuse, refuse, reply(200, heard()), refuse, reply(200, heard())]
        bad, good, alone = make_engine(audio_format="opus").transcribe([Clip(c, opening) for c in "abc"])
        assert isinstance(bad, FileFailed) and isinstance(good, ClipResult)
        assert isinstance(alone, FileFailed), "Opus was read before: it is the recording"
        assert [b"fLaC" in body for body in fault_server.posts] == [False, True, False, False]

    def test_an_unknown_format_is_refused_before_anything_is_sent(self, make_engine, fault_server):
        with pytest.raises(SettingsError, match="near-lossless, flac or opus"):
            make_engine(audio_format="mp2")
        assert fault_server.posts == []


def test_the_request_carries_the_options(make_engine, fault_server, opening):
    ask(make_engine(language="en", prompt="Dickens"), opening)
    body = fault_server.posts[0]
    for field, value in (
        ("model", "whisper-1"),
        ("response_format", "verbose_json"),
        ("language", "en"),
        ("prompt", "Dickens"),
    ):
        assert f'name="{field}"\r\n\r\n{value}\r\n'.encode() in body


def test_a_model_without_timestamps_gets_one_segment_per_window(make_engine, fault_server, opening):
    fault_server.answers = [
        reply(200, {"text": "It was the best of times.", "usage": {"type": "tokens", "total_tokens": 9}})
    ]
    result = ask(make_engine(model="gpt-transcribe"), opening)
    assert isinstance(result, ClipResult)
    assert [(s.start_s, s.end_s) for s in result.segments] == [(0.0, pytest.approx(8.2))]
    assert result.cost_usd == pytest.approx(0.0045 * 8.2 / 60)
    assert b'name="response_format"\r\n\r\njson\r\n' in fault_server.posts[0]


@pytest.mark.parametrize(
    ("trouble", "posts"),
    [
        (reply(500, {"error": {"message": "oops"}}), 2),
        (reply(502, b"<html>bad gateway</html>", "text/html"), 2),
        (reply(503, b"<html>busy</html>", "text/html"), 2),
        (hang_up, 2),
        (reply(429, {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}), 2),
        (reply(200, b"<html>welcome to the proxy</html>", "text/html"), 2),
        (reply(200, {"error": {"message": "overloaded"}}), 2),
        (reply(200, {"text": None}), 2),
        (reply(200, b'{"text": "It was the b'), 2),
        (reply(200, {"text": "It was", "segments": [{"start": "soon", "end": 2, "text": "It was"}]}), 2),
        (reply(200, {"text": "It was the best of times", "segments": [{"start": 0, "end": 1, "text": "It"}]}), 2),
    ],
    ids=[
        "500",
        "502",
        "503",
        "reset",
        "429",
        "html-200",
        "error-200",
        "null-text",
        "cut-json",
        "bad-segments",
        "lost-text",
    ],
)
def test_a_passing_trouble_costs_one_more_post(make_engine, fault_server, opening, trouble, posts):
    fault_server.answers = [trouble, reply(200, heard())]
    assert isinstance(ask(make_engine(), opening), ClipResult)
    assert len(fault_server.posts) == posts


def test_a_lasting_trouble_fails_the_file_with_a_short_quote(make_engine, fault_server, opening):
    fault_server.answers = [reply(200, b"<html>" + b"x" * 5000, "text/html")]
    result = ask(make_engine(), opening)
    assert isinstance(result, FileFailed)
    assert "text/html that is not JSON" in str(result) and "3 attempts" in str(result)
    assert len(str(result)) < 450
    assert len(fault_server.posts) == 3


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_run_of_server_errors_fails_the_file_and_the_next_run_takes_it(
    make_engine, fault_server, cache, write_audio, opening, status
):
    file = write_audio("a.flac", opening)
    fault_server.answers = [reply(status, {"error": {"message": "oops"}})]
    [first] = transcribe_files([file], make_engine(), cache)
    assert (first.status, len(fault_server.posts)) == ("failed", 3) and str(status) in (first.error or "")
    fault_server.answers = [reply(200, heard())]
    [second] = transcribe_files([file], make_engine(), cache)
    assert (second.status, len(fault_server.posts)) == ("ok", 4)


def test_a_lasting_rate_limit_puts_the_file_off(make_engine, fault_server, opening):
    fault_server.answers = [reply(429, {"error": {"message": "slow down"}})]
    assert isinstance(ask(make_engine(), opening), FileDeferred)
    assert len(fault_server.posts) == 3


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(make_engine, fault_server, opening, form):
    in_two_s = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=3), usegmt=True)
    value = "1.5" if form == "seconds" else in_two_s
    fault_server.answers = [reply(429, {"error": {"message": "wait"}}, Retry_After=value), reply(200, heard())]
    started = time.monotonic()
    assert isinstance(ask(make_engine(), opening), ClipResult)
    assert 1.3 < time.monotonic() - started < 8
    assert len(fault_server.posts) == 2


def test_a_long_retry_after_defers_at_once_and_stops_later_requests(make_engine, fault_server, opening):
    fault_server.answers = [reply(429, {"error": {"message": "wait"}}, Retry_After="3600")]
    engine = make_engine()
    started = time.monotonic()
    first, second = engine.transcribe([Clip("a", opening), Clip("b", opening)])
    assert isinstance(first, FileDeferred) and "3600 s" in str(first)
    assert isinstance(second, FileDeferred)
    assert len(fault_server.posts) == 1, "the server said when to come back"
    assert time.monotonic() - started < 5


def test_a_trickling_answer_meets_the_deadline(make_engine, fault_server, opening):
    fault_server.answers = [trickle]
    started = time.monotonic()
    result = ask(make_engine(deadline_s=1.0, attempts=1), opening[:SAMPLE_RATE_HZ])
    assert isinstance(result, FileFailed) and "no answer within 2 s" in str(result)
    # The answer itself takes twenty.
    assert time.monotonic() - started < 15


def test_a_server_that_never_answers_meets_the_deadline_and_is_asked_again(make_engine, fault_server, opening):
    go_on = threading.Event()

    def silent(handler, number):
        go_on.wait(30)
        handler.close_connection = True

    fault_server.answers = [silent, reply(200, heard())]
    started = time.monotonic()
    result = ask(make_engine(deadline_s=2.5), opening[: SAMPLE_RATE_HZ // 2])
    go_on.set()
    assert isinstance(result, ClipResult) and len(fault_server.posts) == 2
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        (reply(401, {"error": {"message": "Incorrect API key", "code": "invalid_api_key"}}), "OPENAI_API_KEY"),
        (reply(403, {"error": {"message": "not allowed"}}), "OPENAI_API_KEY"),
        (reply(404, {"error": {"message": "no such model", "code": "model_not_found"}}), "WHISPER_MODEL"),
        (reply(400, {"error": {"message": "bad model", "code": "invalid_value", "param": "model"}}), "WHISPER_MODEL"),
        (reply(429, {"error": {"message": "no credit", "code": "insufficient_quota"}}), "OPENAI_API_KEY"),
    ],
    ids=["401", "403", "404", "unknown-model", "insufficient-quota"],
)
def test_what_dooms_every_file_stops_the_run(make_engine, fault_server, opening, answer, names):
    fault_server.answers = [answer]
    engine = make_engine()
    for _ in range(2):
        with pytest.raises(SettingsError, match=names) as caught:
            ask(engine, opening)
        assert "\n" not in str(caught.value) and "test-key" not in str(caught.value)
    assert len(fault_server.posts) == 1, "no second request with settings known to be wrong"


def test_a_bad_key_costs_at_most_one_post_per_worker(make_engine, fault_server, cache, write_audio, opening):
    fault_server.answers = [reply(401, {"error": {"message": "Incorrect API key"}})]
    files = [write_audio(f"{i}.wav", opening[i * 1600 :]) for i in range(12)]
    with pytest.raises(SettingsError):
        list(transcribe_files(files, make_engine(workers=3), cache))
    assert 1 <= len(fault_server.posts) <= 3


def test_a_refused_request_is_final_for_its_file_alone(make_engine, fault_server, opening):
    fault_server.answers = [reply(400, {"error": {"message": "cannot decode"}}), reply(200, heard())]
    bad, good = make_engine().transcribe([Clip("a", opening), Clip("b", opening)])
    assert isinstance(bad, FileFailed) and "400" in str(bad)
    assert isinstance(good, ClipResult)
    assert len(fault_server.posts) == 2


def test_a_request_too_large_is_cut_at_the_quietest_place(make_engine, fault_server, two_cities):
    fault_server.answers = [reply(413, {"error": {"message": "too large"}}), reply(200, heard())]
    result = ask(make_engine(), two_cities[: 20 * SAMPLE_RATE_HZ])
    assert isinstance(result, ClipResult)
    assert len(fault_server.posts) == 3
    first, second = result.segments
    assert first.start_s == 0.5
    assert 5 < second.start_s < 15.5, "the second half's times count from the start of the clip"
    assert result.cost_usd == pytest.approx(2 * 0.006 * 9 / 60)


def test_audio_over_the_limit_is_never_sent_whole(make_engine, fault_server, two_cities, monkeypatch):
    small = Capabilities("verbose_json", True, True, 600.0, 0.006, max_bytes=65_536 + 100_000)
    monkeypatch.setitem(capabilities.CAPABILITIES, "whisper-1", small)
    assert isinstance(ask(make_engine(), two_cities), ClipResult)
    assert len(fault_server.posts) >= 2
    assert max(len(body) for body in fault_server.posts) <= small.max_bytes


def test_an_unknown_model_of_a_compatible_server_has_no_known_price(make_engine, opening):
    result = ask(make_engine(model="whisper-large-v3"), opening)
    assert isinstance(result, ClipResult) and result.segments and result.cost_usd is None


def test_no_key_names_the_setting():
    with pytest.raises(SettingsError, match="OPENAI_API_KEY is not set"):
        OpenAIEngine(OpenAIOptions())


def test_the_key_is_not_shown():
    assert "sk-secret" not in repr(OpenAIOptions(api_key="sk-secret"))


def test_a_dated_snapshot_is_asked_like_its_model(make_engine, fault_server, opening):
    fault_server.answers = [reply(200, {"text": "It was the best of times."})]
    result = ask(make_engine(model="gpt-4o-mini-transcribe-2025-12-15"), opening)
    assert isinstance(result, ClipResult) and result.cost_usd == pytest.approx(0.003 * 8.2 / 60)
    assert b'name="response_format"\r\n\r\njson\r\n' in fault_server.posts[0]


def test_a_process_that_ends_without_closing_the_engine_ends_in_silence(fault_server):
    """One answer is in; another request is stalled when the process ends."""
    go_on = threading.Event()

    def stall(handler, number):
        go_on.wait(120)
        handler.close_connection = True

    fault_server.answers = [reply(200, heard()), stall]
    script = """
import sys, threading, time
import numpy as np
from audio_assets.speech.engine import Clip
from audio_assets.speech.openai_api import OpenAIEngine, OpenAIOptions
engine = OpenAIEngine(OpenAIOptions(api_key="k", base_url=sys.argv[1]))
clip = Clip("a", np.zeros(16000, np.float32))
print(next(engine.transcribe([clip])).segments[0].text, flush=True)
threading.Thread(target=lambda: list(engine.transcribe([clip])), daemon=True).start()
while not engine._under_way:
    time.sleep(0.01)
"""
    started = time.monotonic()
    child = [sys.executable, "-W", "always::ResourceWarning", "-c", script, fault_server.url]
    done = subprocess.run(child, capture_output=True, text=True, timeout=110, check=False)
    go_on.set()
    assert (done.returncode, done.stderr) == (0, "") and "best of times" in done.stdout
    assert time.monotonic() - started < 100, "not the deadline of two minutes"


def test_what_shapes_the_text_shapes_the_fingerprint(make_engine):
    base = make_engine().fingerprint()
    assert make_engine(workers=2, deadline_s=5.0, api_key="other").fingerprint() == base
    for change in (
        {"model": "gpt-transcribe"},
        {"language": "de"},
        {"prompt": "x"},
        {"base_url": "http://127.0.0.1:9/v1"},
    ):
        assert make_engine(**change).fingerprint() != base


def test_invalid_and_silent_files_cost_nothing(make_engine, fault_server, cache, write_audio, tmp_path):
    silence = write_audio("silence.wav", np.zeros(5 * SAMPLE_RATE_HZ, np.float32))
    text = tmp_path / "text.mp3"
    text.write_text("not audio")
    results = {r.id: r for r in transcribe_files([silence, AudioFile("t", text, "0" * 64)], make_engine(), cache)}
    assert (results["silence.wav"].status, results["t"].status) == ("empty", "invalid")
    assert fault_server.posts == []


def test_a_missing_window_makes_a_partial_file_and_only_it_is_sent_again(
    make_engine, fault_server, cache, write_audio, opening
):
    gap = np.zeros(3 * SAMPLE_RATE_HZ, np.float32)
    file = write_audio("two.flac", np.concatenate([opening, gap, opening]))
    fault_server.answers = [reply(200, heard()), reply(400, {"error": {"message": "no"}})]
    [first] = transcribe_files([file], make_engine(workers=1), cache)
    assert (first.status, first.transcription) == ("partial", "It was the best of times.")
    assert "incomplete" in first.flags and "1 of 2 windows" in (first.error or "")
    fault_server.answers = [reply(200, heard("It was the age of wisdom."))]
    posted = len(fault_server.posts)
    [second] = transcribe_files([file], make_engine(workers=1), cache)
    assert second.status == "ok"
    # The two windows are alike, and which of them is sent first is the threads' affair.
    assert second.transcription in (
        "It was the best of times. It was the age of wisdom.",
        "It was the age of wisdom. It was the best of times.",
    )
    assert len(fault_server.posts) - posted == 1, "the window that was paid for is kept"


def test_times_are_those_of_the_sound_in_the_recording_to_the_sample(
    make_engine, fault_server, cache, write_audio, two_cities
):
    """Windows between silences, one of them cut in two by a 413: where each answer says it is, is what was sent."""

    def quiet(seconds: float) -> Samples:
        return np.zeros(int(seconds * SAMPLE_RATE_HZ), np.float32)

    def said(start_s: int, end_s: int) -> Samples:
        return two_cities[start_s * SAMPLE_RATE_HZ : end_s * SAMPLE_RATE_HZ]

    parts = [quiet(2.7), said(0, 6), quiet(3.31), said(10, 22), quiet(4.123), said(30, 36), quiet(1)]
    recording = np.concatenate(parts)

    def audio(number: int) -> Samples:
        body = fault_server.posts[number - 1]
        return soundfile.read(io.BytesIO(body[body.index(b"fLaC") :]), dtype="float32")[0]

    def answer(handler, number):
        too_large = len(audio(number)) > 10 * SAMPLE_RATE_HZ
        (reply(413, {}) if too_large else reply(200, heard(str(number))))(handler, number)

    fault_server.answers = [answer]
    [result] = transcribe_files([write_audio("a.flac", recording)], make_engine(workers=1), cache)
    assert result.status == "ok" and len(result.segments) >= 4
    for segment in result.segments:
        sent = audio(int(segment.text))
        # Every answer puts its words half a second into what it was sent; times are kept to the millisecond.
        around = round((segment.start_s - 0.5) * SAMPLE_RATE_HZ)
        best = max(np.corrcoef(recording[o : o + len(sent)], sent)[0, 1] for o in range(around - 8, around + 9))
        assert best > 0.999


def test_the_same_bytes_are_paid_for_once(make_engine, fault_server, cache, write_audio, opening):
    file = write_audio("a.flac", opening)
    twins = [AudioFile(f"copy-{i}", file.path, file.sha256) for i in range(4)]
    results = list(transcribe_files(twins, make_engine(), cache))
    assert {r.status for r in results} == {"ok"} and len(results) == 4
    assert [r.cached for r in results].count(False) == 1
    assert len(fault_server.posts) == 1
    again = list(transcribe_files(twins, make_engine(), cache))
    for found in (results, again):
        assert sum(r.cost_usd or 0.0 for r in found) == pytest.approx(0.006 * 9 / 60), "its cost is told once"


def test_the_cost_stays_with_who_paid_whichever_copy_is_met_first(
    make_engine, fault_server, cache, write_audio, opening
):
    file = write_audio("a.flac", opening)
    payer, early = (AudioFile(name, file.path, file.sha256) for name in ("payer", "early"))
    assert [r.cost_usd for r in transcribe_files([payer], make_engine(), cache)] == [pytest.approx(0.006 * 9 / 60)]

    class Slow(type(cache)):
        def get(self, *key):
            time.sleep(0.3)  # so that the others wait for the first
            return super().get(*key)

    again = {r.id: r for r in transcribe_files([early, payer], make_engine(), Slow(cache.root))}
    assert {r.cached for r in again.values()} == {True} and len(fault_server.posts) == 1
    assert (again["early"].cost_usd, again["payer"].cost_usd) == (0.0, pytest.approx(0.006 * 9 / 60))


def test_requests_run_side_by_side(make_engine, fault_server, opening):
    together = threading.Barrier(4, timeout=10)

    def meet(handler, number):
        together.wait()
        reply(200, heard())(handler, number)

    fault_server.answers = [meet]
    engine = make_engine(workers=4)
    threads = [threading.Thread(target=ask, args=(engine, opening)) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not together.broken and len(fault_server.posts) == 4


def test_retry_after_reads_seconds_and_dates_and_nothing_else():
    assert retry_after_s({"retry-after": "2"}) == 2
    assert retry_after_s({"retry-after": "-1"}) == 0
    later = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=60), usegmt=True)
    assert 55 < (retry_after_s({"retry-after": later}) or 0) <= 60
    assert retry_after_s({"retry-after": "soon"}) is None
    assert retry_after_s({}) is None
