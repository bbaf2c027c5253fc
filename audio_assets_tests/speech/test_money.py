"""What is spent, what is kept, what is written down. Every POST to the fault server stands for a bill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from audio_assets.errors import FileDeferred, FileFailed, SettingsError
from audio_assets.speech import openai_api
from audio_assets.speech.engine import SAMPLE_RATE_HZ, Clip, ClipResult, Samples
from audio_assets.speech.ledger import Account, journal_directory, prune_journal, read_journal
from audio_assets.speech.openai_api import CachedPieces, OpenAIEngine, OpenAIOptions
from audio_assets.speech.shared_cap import Money, SharedCap
from audio_assets.speech.transcribe import TranscribeOptions, fingerprint, transcribe_files
from audio_assets_tests.speech.conftest import FaultServer, hang_up, heard, reply, trickle

PRICE = 0.006 / 60
"""Of a second of whisper-1."""


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


def clips(samples: Samples, count: int) -> list[Clip]:
    return [Clip(f"a/{i}.wav", samples, sha256=f"{i:064x}") for i in range(count)]


def ask_at_once(engine: OpenAIEngine, wanted: list[Clip]) -> list[ClipResult | Exception]:
    found: list[ClipResult | Exception] = [RuntimeError()] * len(wanted)

    def one(i: int) -> None:
        [found[i]] = engine.transcribe([wanted[i]])

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(wanted))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return found


def seconds_used(seconds: float) -> dict[str, object]:
    return {**heard(), "usage": {"type": "duration", "seconds": seconds}}


class TestTheCap:
    def test_concurrent_requests_never_overshoot_it(self, make_engine, fault_server, opening):
        fault_server.answers = [reply(200, seconds_used(9))]
        account = Account(cap_usd=5.5 * 9 * PRICE)
        found = ask_at_once(make_engine(workers=16).billed_to(account), clips(opening, 16))
        assert sum(isinstance(r, ClipResult) for r in found) == len(fault_server.posts) == 5
        refused = [r for r in found if isinstance(r, FileDeferred)]
        assert len(refused) == account.refused == 11 and "--max-cost" in str(refused[0])
        assert account.cost_usd == pytest.approx(5 * 9 * PRICE)
        assert account.spent_usd <= account.cap_usd

    def test_what_a_request_did_not_need_pays_for_the_next(self, make_engine, fault_server, opening):
        fault_server.answers = [reply(200, seconds_used(3))]
        account = Account(cap_usd=2 * 9 * PRICE)
        found = ask_at_once(make_engine(workers=16).billed_to(account), clips(opening, 16))
        # Nine seconds are set aside for each, three are billed: the fourth leaves nine, the fifth would not.
        assert sum(isinstance(r, ClipResult) for r in found) == 4
        assert account.reserved_usd == pytest.approx(0)

    def test_an_attempt_without_an_answer_counts_as_if_it_were_billed(self, make_engine, fault_server, opening):
        fault_server.answers = [hang_up]
        account = Account(cap_usd=2.5 * 9 * PRICE)
        [result] = make_engine(attempts=5).billed_to(account).transcribe(clips(opening, 1))
        assert isinstance(result, FileDeferred)
        assert len(fault_server.posts) == 2
        assert (account.cost_usd, account.uncertain_usd) == (0, pytest.approx(2 * 9 * PRICE))

    def test_a_refusal_costs_nothing(self, make_engine, fault_server, opening):
        fault_server.answers = [reply(503, {}), reply(429, {}), reply(200, seconds_used(9))]
        account = Account(cap_usd=9 * PRICE)
        [result] = make_engine().billed_to(account).transcribe(clips(opening, 1))
        assert isinstance(result, ClipResult)
        assert account.spent_usd == pytest.approx(9 * PRICE)

    def test_a_model_billed_by_tokens_reserves_all_that_it_may_write(self, make_engine, fault_server, opening):
        usage = {
            "type": "tokens",
            "input_tokens": 100,
            "output_tokens": 20,
            "input_token_details": {"audio_tokens": 90, "text_tokens": 10},
        }
        fault_server.answers = [reply(200, {"text": "It was the best of times.", "usage": usage})]
        engine = make_engine(model="gpt-4o-transcribe")
        account = Account(cap_usd=0.01)
        [result] = engine.billed_to(account).transcribe(clips(opening, 1))
        assert isinstance(result, FileDeferred), "2,000 tokens of text alone may cost two cents"
        account = Account(cap_usd=0.03)
        [result] = engine.billed_to(account).transcribe(clips(opening, 1))
        assert isinstance(result, ClipResult)
        assert account.cost_usd == pytest.approx(90 * 6e-6 + 10 * 2.5e-6 + 20 * 10e-6)

    def test_a_cap_without_a_price_is_refused_before_anything_is_sent(self, make_engine, fault_server):
        with pytest.raises(SettingsError, match="OPENAI_PRICE_USD_PER_MINUTE"):
            make_engine(model="parakeet").billed_to(Account(cap_usd=1))
        make_engine(model="parakeet", price_usd_per_minute=0.001).billed_to(Account(cap_usd=1))
        assert fault_server.posts == []

    def test_files_that_it_keeps_out_are_deferred_and_the_next_run_takes_them(
        self, make_engine, fault_server, cache, write_audio, opening
    ):
        fault_server.answers = [reply(200, seconds_used(9))]
        files = [write_audio(f"{i}.flac", opening[: (8 - i) * SAMPLE_RATE_HZ]) for i in range(4)]
        engine = make_engine(workers=2)
        account = Account(cap_usd=2 * 9 * PRICE)
        first = {r.id: r.status for r in transcribe_files(files, engine.billed_to(account), cache)}
        assert sorted(first.values()) == ["deferred", "deferred", "ok", "ok"]
        second = list(transcribe_files(files, engine.billed_to(Account(cap_usd=1)), cache))
        assert {r.status for r in second} == {"ok"}
        assert sum(r.cached for r in second) == 2 and len(fault_server.posts) == 4


class TestACapThatRunsShare:
    def test_two_runs_at_once_stay_within_it_together(self, make_engine, fault_server, opening, tmp_path):
        fault_server.answers = [reply(200, seconds_used(9))]
        cap_usd = 7.5 * 9 * PRICE
        accounts = [Account(cap_usd, run=run, shared=SharedCap(tmp_path / "cap.json", run)) for run in ("a", "b")]
        found: list[list[ClipResult | Exception]] = [[], []]

        def run(n: int) -> None:
            found[n] = ask_at_once(make_engine(workers=4).billed_to(accounts[n]), clips(opening, 8))

        threads = [threading.Thread(target=run, args=(n,)) for n in range(2)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert sum(isinstance(r, ClipResult) for r in found[0] + found[1]) == len(fault_server.posts) == 7
        assert sum(a.spent_usd for a in accounts) <= cap_usd

    def test_what_others_do_not_need_pays_for_the_next(self, make_engine, fault_server, opening, tmp_path):
        fault_server.answers = [reply(200, seconds_used(3))]
        other = SharedCap(tmp_path / "cap.json", "other")
        assert other.take(Money(0.0, 9 * PRICE), 1.0)
        threading.Timer(0.3, other.settle, [Money(3 * PRICE, 0.0)]).start()
        account = Account(2 * 9 * PRICE - 6 * PRICE, run="r", shared=SharedCap(tmp_path / "cap.json", "r"))
        [result] = make_engine().billed_to(account).transcribe(clips(opening, 1))
        assert isinstance(result, ClipResult)

    def test_what_a_killed_run_had_set_aside_counts(self, make_engine, fault_server, opening, tmp_path):
        assert SharedCap(tmp_path / "cap.json", "killed").take(Money(9 * PRICE, 0.0), 1.0)
        account = Account(9 * PRICE, run="r", shared=SharedCap(tmp_path / "cap.json", "r"))
        [result] = make_engine().billed_to(account).transcribe(clips(opening, 1))
        assert isinstance(result, FileDeferred) and fault_server.posts == []

    @pytest.mark.parametrize("damage", ["", "{", "[]", '{"other": [NaN, 0]}', '{"other": [1]}', '{"other": [-1, 0]}'])
    def test_a_damaged_one_is_no_money_to_spend(self, make_engine, fault_server, opening, tmp_path, damage):
        path = tmp_path / "cap.json"
        path.write_text(damage)
        account = Account(100.0, run="r", shared=SharedCap(path, "r"))
        with pytest.raises(SettingsError, match=r"cap\.json is damaged.*transcription_ledger"):
            list(make_engine().billed_to(account).transcribe(clips(opening, 1)))
        assert fault_server.posts == []

    def test_damage_while_a_request_is_under_way_loses_no_result(self, make_engine, fault_server, opening, tmp_path):
        path = tmp_path / "cap.json"

        def damaged(*arguments):
            path.write_text("")
            reply(200, seconds_used(9))(*arguments)

        fault_server.answers = [damaged]
        account = Account(100.0, run="r", shared=SharedCap(path, "r"))
        [result] = make_engine().billed_to(account).transcribe(clips(opening, 1))
        assert isinstance(result, ClipResult)
        with pytest.raises(SettingsError, match="damaged"):
            account._shared.others()


class TestTheBook:
    def test_it_adds_up(self, make_engine, fault_server, opening, tmp_path):
        fault_server.answers = [
            reply(200, seconds_used(9), x_request_id="req-1"),
            reply(500, {}),
            hang_up,
            reply(200, seconds_used(8)),
            reply(400, {"error": {"message": "cannot decode"}}),
        ]
        account = Account(None, tmp_path / "ledger", lambda id: id.split("/")[0] + "/", "run-1")
        list(make_engine().billed_to(account).transcribe(clips(opening, 3)))
        account.close()
        rows = sorted(read_journal(tmp_path / "ledger", "a/").values(), key=lambda r: r["started_at"])
        assert [(r["id"], r["attempts"], r["status"]) for r in rows] == [
            ("a/0.wav", 1, "ok"),
            ("a/1.wav", 3, "ok"),
            ("a/2.wav", 1, "failed"),
        ]
        assert sum(r["attempts"] for r in rows) == len(fault_server.posts) == 5
        assert sum(r["cost_usd"] for r in rows) == pytest.approx(account.metadata()["cost_usd"])
        assert sum(r["uncertain_usd"] for r in rows) == pytest.approx(account.metadata()["uncertain_usd"])
        assert rows[0]["request_id"] == "req-1" and rows[0]["window"] == f"0-{len(opening)}"
        assert {r["run"] for r in rows} == {"run-1"} and "400" in rows[2]["error"]
        assert read_journal(tmp_path / "ledger", "b/") == {}

    def test_damaged_lines_are_left_out(self, make_engine, opening, tmp_path):
        account = Account(None, tmp_path, run="r")
        list(make_engine().billed_to(account).transcribe(clips(opening, 1)))
        account.close()
        [path] = journal_directory(tmp_path, "").iterdir()
        with path.open("ab") as file:
            file.write(b'{"request": "torn\n[]\nnull\n\xff\n{"request"')
        assert len(read_journal(tmp_path, "")) == 1

    def test_a_journal_goes_when_all_of_it_is_on_record(self, make_engine, opening, tmp_path):
        account = Account(None, tmp_path, run="r")
        list(make_engine().billed_to(account).transcribe(clips(opening, 2)))
        account.close()
        rows = list(read_journal(tmp_path, "").values())
        later = time.time() + 7200
        assert prune_journal(tmp_path, "", rows[:1], later) == 0
        assert prune_journal(tmp_path, "", rows, time.time()) == 0, "somebody may still write to it"
        assert prune_journal(tmp_path, "", rows, later) == 1
        assert read_journal(tmp_path, "") == {}


CHILD = """
import sys, json
from pathlib import Path
from audio_assets.speech.cache import TranscriptCache
from audio_assets.speech.ledger import Account
from audio_assets.speech.openai_api import CachedPieces, OpenAIEngine, OpenAIOptions
from audio_assets.speech.transcribe import AudioFile, fingerprint, transcribe_files
root, url = Path(sys.argv[1]), sys.argv[2]
files = [AudioFile(n, root / n, s) for n, s in json.loads(sys.argv[3])]
cache = TranscriptCache(root / "cache")
engine = OpenAIEngine(OpenAIOptions(api_key="k", base_url=url, workers=2))
account = Account(None, root / "ledger", lambda id: "", "killed")
for r in transcribe_files(files, engine.billed_to(account, CachedPieces(cache, fingerprint(engine))), cache):
    print(r.id, r.status, flush=True)
"""


def test_a_killed_run_pays_again_only_for_what_was_in_flight(
    make_engine, fault_server, cache, write_audio, opening, tmp_path
):
    """SIGKILL while two requests are under way; four are committed."""
    files = [write_audio(f"{i}.flac", opening[: (8 * 10 - i) * SAMPLE_RATE_HZ // 10]) for i in range(8)]
    release = threading.Event()

    def hold(handler, number):
        release.wait(20)
        hang_up(handler, number)

    fault_server.answers = [reply(200, seconds_used(9))] * 4 + [hold]
    arguments = [sys.executable, "-c", CHILD, str(tmp_path), fault_server.url]
    names = json.dumps([[f.path.name, f.sha256] for f in files])
    child = subprocess.Popen([*arguments, names], stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while len(fault_server.posts) < 6 and time.monotonic() < deadline:
            time.sleep(0.02)
        done = [child.stdout.readline().split()[1] for _ in range(4)]  # type: ignore[union-attr]
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()  # type: ignore[union-attr]
        release.set()
    assert done == ["ok"] * 4 and len(fault_server.posts) == 6
    rows = list(read_journal(tmp_path / "ledger", "").values())
    assert sorted(r["status"] for r in rows) == ["interrupted"] * 2 + ["ok"] * 4
    in_flight = [r for r in rows if r["status"] == "interrupted"]
    assert all(r["uncertain_usd"] >= r["seconds"] * PRICE and r["attempts"] == 1 for r in in_flight)

    fault_server.answers = [reply(200, seconds_used(9))]
    again = list(transcribe_files(files, make_engine(workers=2), cache))
    assert {r.status for r in again} == {"ok"} and sum(r.cached for r in again) == 4
    assert len(fault_server.posts) == 6 + 4, "two that were in flight, two that were never sent"


def test_two_processes_pay_once_for_the_same_bytes(fault_server, write_audio, opening, tmp_path):
    files = [write_audio(f"{i}.flac", opening[: (8 * 10 - i) * SAMPLE_RATE_HZ // 10]) for i in range(6)]
    both_are_there = threading.Barrier(2)

    def slow(handler, number):
        if number <= 2:
            # One request of each process, or two of the first: the answers come when both processes had their chance.
            both_are_there.wait(30)
        time.sleep(0.2)
        reply(200, seconds_used(9))(handler, number)

    fault_server.answers = [slow]
    names = json.dumps([[f.path.name, f.sha256] for f in files])
    arguments = [sys.executable, "-c", CHILD, str(tmp_path), fault_server.url, names]
    children = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [child.communicate(timeout=90)[0].split() for child in children]
    assert all(words[1::2] == ["ok"] * 6 for words in said)
    assert sorted(said[0][::2]) == sorted(said[1][::2]) == [f.id for f in files]
    assert len(fault_server.posts) == 6


class TestPieces:
    """A window that the server finds too large is sent in parts, and each part is kept."""

    def test_a_part_that_was_paid_for_is_not_sent_again(
        self, make_engine, fault_server, cache, write_audio, two_cities
    ):
        file = write_audio("long.flac", two_cities[: 20 * SAMPLE_RATE_HZ])
        fault_server.answers = [
            reply(413, {"error": {"message": "too large"}}),
            reply(200, heard("It was the best of times,")),
            reply(400, {"error": {"message": "no"}}),
        ]
        engine = make_engine(workers=1)
        pieces = CachedPieces(cache, fingerprint(engine))
        [first] = transcribe_files([file], engine.billed_to(Account(), pieces), cache)
        assert first.status == "failed" and len(fault_server.posts) == 3
        fault_server.answers = [reply(200, heard("it was the worst of times."))]
        engine = make_engine(workers=1)
        [second] = transcribe_files([file], engine.billed_to(Account(), pieces), cache)
        assert second.transcription == "It was the best of times, it was the worst of times."
        assert len(fault_server.posts) == 4, "neither the whole nor the first part again"

    def test_what_was_refused_as_too_large_is_not_tried_with_the_next_file(self, make_engine, fault_server, two_cities):
        def large_is_refused(handler, number):
            large = len(fault_server.posts[number - 1]) > 200_000
            (reply(413, {}) if large else reply(200, heard()))(handler, number)

        fault_server.answers = [large_is_refused]
        engine = make_engine(audio_format="flac")
        clip = Clip("a", two_cities[: 20 * SAMPLE_RATE_HZ])
        for refused_more in (True, False):
            before = len(fault_server.posts)
            [result] = engine.transcribe([clip])
            assert isinstance(result, ClipResult)
            assert any(len(body) > 200_000 for body in fault_server.posts[before:]) == refused_more

    def test_a_text_that_ends_at_the_models_limit_is_asked_for_in_parts(self, make_engine, fault_server, two_cities):
        def tokens(count: int) -> dict[str, object]:
            return {"text": "It was.", "usage": {"type": "tokens", "input_tokens": 9, "output_tokens": count}}

        fault_server.answers = [reply(200, tokens(2000)), reply(200, tokens(40))]
        account = Account()
        engine = make_engine(model="gpt-4o-mini-transcribe").billed_to(account)
        [result] = engine.transcribe([Clip("a", two_cities[: 20 * SAMPLE_RATE_HZ])])
        assert isinstance(result, ClipResult) and len(result.segments) == 2
        assert len(fault_server.posts) == 3
        assert account.cost_usd == pytest.approx(3 * 9 * 3e-6 + 2080 * 5e-6), "the cut answer was billed too"


def test_an_answer_delivered_twice_is_not_taken_for_the_next_request(make_engine, fault_server, opening):
    def twice(handler, number):
        reply(200, heard(f"answer {number}"))(handler, number)
        reply(200, heard(f"answer {number}"))(handler, number)

    fault_server.answers = [twice]
    found = list(make_engine().transcribe(clips(opening, 4)))
    assert [r.segments[0].text.strip() for r in found] == [f"answer {n}" for n in (1, 2, 3, 4)]
    assert len(fault_server.posts) == 4


def test_a_connection_that_the_server_drops_after_an_error_costs_the_next_request_nothing(
    make_engine, fault_server, opening
):
    def fail_and_drop(handler, number):
        handler.close_connection = True
        reply(500, {"error": {"message": "bad audio"}})(handler, number)

    fault_server.answers = [fail_and_drop, reply(200, heard())]
    account = Account()
    bad, good = make_engine(attempts=1).billed_to(account).transcribe(clips(opening, 2))
    assert isinstance(bad, FileFailed) and isinstance(good, ClipResult)
    assert len(fault_server.posts) == 2 and account.uncertain_usd == 0


def test_a_wrong_base_url_is_named_and_nothing_is_sent(write_audio, cache, opening):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    engine = OpenAIEngine(
        OpenAIOptions(api_key="k", base_url=f"http://127.0.0.1:{port}/v1", first_backoff_s=0.01, attempts=2)
    )
    with pytest.raises(SettingsError, match="OPENAI_BASE_URL") as caught:
        list(transcribe_files([write_audio("a.flac", opening)], engine, cache))
    assert "\n" not in str(caught.value) and caught.value.exit_code == 4
    engine.close()
    for wrong in ("api.example.com/v1", "ftp://example.com", "http://"):
        with pytest.raises(SettingsError, match="OPENAI_BASE_URL"):
            OpenAIEngine(OpenAIOptions(api_key="k", base_url=wrong))


def test_a_key_that_is_revoked_mid_run_loses_no_paid_result(make_engine, fault_server, cache, write_audio, opening):
    files = [write_audio(f"{i}.flac", opening[: (80 - i) * SAMPLE_RATE_HZ // 10]) for i in range(9)]
    fault_server.answers = [reply(200, heard())] * 3 + [reply(401, {"error": {"message": "revoked"}})]
    with pytest.raises(SettingsError, match="OPENAI_API_KEY"):
        list(transcribe_files(files, make_engine(workers=2), cache))
    assert 4 <= len(fault_server.posts) <= 5, "as many refusals as workers, at most"
    fault_server.answers = [reply(200, heard())]
    before = len(fault_server.posts)
    again = list(transcribe_files(files, make_engine(workers=2), cache))
    assert sum(r.cached for r in again) == 3 and len(fault_server.posts) - before == 6


def test_a_run_that_ends_sends_nothing_more_and_keeps_what_is_under_way(
    make_engine, fault_server, cache, write_audio, opening
):
    files = [write_audio(f"{i}.flac", opening[: (80 - i) * SAMPLE_RATE_HZ // 10]) for i in range(4)]
    second_is_there = threading.Event()

    def slow(handler, number):
        second_is_there.set()
        time.sleep(0.5)
        reply(200, heard())(handler, number)

    wait_long = reply(429, {}, Retry_After="60")
    fault_server.answers = [reply(200, heard()), slow, wait_long]
    engine = make_engine(workers=3).billed_to(Account())
    options = TranscribeOptions(on_stop=engine.halt)
    results = transcribe_files(files, engine, cache, options)
    next(results)
    second_is_there.wait(10)
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < 10, "no wait for the rate limit"
    key = fingerprint(engine)
    assert sum(cache.get(f.sha256, key) is not None for f in files) == 2, "what was paid for is stored"


def test_a_run_that_ends_does_not_wait_for_a_server_that_has_stalled(
    make_engine, fault_server, cache, write_audio, opening, monkeypatch
):
    monkeypatch.setattr(openai_api, "_GRACE_S", 0.3)
    files = [write_audio(f"{i}.flac", opening[: (80 - i) * SAMPLE_RATE_HZ // 10]) for i in range(2)]
    stalled, go_on = threading.Event(), threading.Event()

    def stall(handler, number):
        stalled.set()
        go_on.wait(120)
        handler.close_connection = True

    fault_server.answers = [reply(200, heard()), stall]
    account = Account()
    engine = make_engine(workers=1).billed_to(account)
    results = transcribe_files(files, engine, cache, TranscribeOptions(on_stop=engine.halt))
    next(results)
    assert stalled.wait(30)
    started = time.monotonic()
    results.close()
    go_on.set()
    assert time.monotonic() - started < 60, "not the deadline of two minutes"
    assert account.uncertain_usd > 0, "it may be billed all the same"


def test_the_trickle_is_counted_as_money_that_may_be_gone(make_engine, fault_server, opening):
    fault_server.answers = [trickle]
    account = Account()
    [result] = (
        make_engine(deadline_s=0.5, attempts=1).billed_to(account).transcribe(clips(opening[: SAMPLE_RATE_HZ // 2], 1))
    )
    assert isinstance(result, FileFailed)
    assert account.uncertain_usd == pytest.approx(1 * PRICE)


def test_a_date_an_hour_ahead_defers_everything_after_one_post(make_engine, fault_server, cache, write_audio, opening):
    from datetime import datetime, timedelta, timezone
    from email.utils import format_datetime

    value = format_datetime(datetime.now(timezone.utc) + timedelta(hours=1), usegmt=True)
    fault_server.answers = [reply(429, {"error": {"message": "wait"}}, Retry_After=value)]
    files = [write_audio(f"{i}.flac", opening[: (80 - i) * SAMPLE_RATE_HZ // 10]) for i in range(5)]
    started = time.monotonic()
    found = list(transcribe_files(files, make_engine(workers=1), cache))
    assert [r.status for r in found] == ["deferred"] * 5
    assert len(fault_server.posts) == 1 and time.monotonic() - started < 15


def test_a_recording_over_25_mb_goes_in_windows_with_true_offsets(
    make_engine, fault_server, cache, tmp_path, two_cities
):
    """14 minutes of WAV at 16 kHz: 27 MB."""
    import soundfile

    from audio_assets_tests.speech.conftest import as_file

    path = tmp_path / "long.wav"
    soundfile.write(path, np.tile(two_cities, 20), SAMPLE_RATE_HZ, subtype="PCM_16")
    assert path.stat().st_size > 26_214_400
    fault_server.answers = [reply(200, heard())]
    [result] = transcribe_files([as_file(path)], make_engine(), cache)
    assert result.status == "ok"
    assert len(fault_server.posts) >= 2 and max(map(len, fault_server.posts)) < 26_214_400
    starts = [s.start_s for s in result.segments]
    assert starts == sorted(starts) and starts[-1] > 400
    sent = sum(map(len, fault_server.posts))
    assert sent * 3 < path.stat().st_size


@pytest.mark.slow
def test_a_recording_of_two_hours_is_complete(make_engine, fault_server, cache, tmp_path, two_cities):
    import soundfile

    from audio_assets_tests.speech.conftest import as_file

    path = tmp_path / "hours.flac"
    rounds = int(7200 / (len(two_cities) / SAMPLE_RATE_HZ)) + 1
    with soundfile.SoundFile(path, "w", SAMPLE_RATE_HZ, 1, "PCM_16") as file:
        for _ in range(rounds):
            file.write(two_cities)
    seconds = rounds * len(two_cities) / SAMPLE_RATE_HZ
    fault_server.answers = [reply(200, heard())]
    account = Account()
    [result] = transcribe_files([as_file(path)], make_engine().billed_to(account), cache)
    assert result.status == "ok" and result.duration_s == pytest.approx(seconds, abs=0.1)
    assert 7200 / 600 <= len(fault_server.posts) == account.requests
    assert result.segments[-1].start_s > seconds - 660


def test_an_answer_without_words_for_speech_is_not_believed_in_silence(
    make_engine, fault_server, cache, write_audio, two_cities
):
    """One of the real servers answers so when it is asked for a model that it does not have."""
    fault_server.answers = [reply(200, {"text": "", "segments": [], "language": "en"})]
    [result] = transcribe_files([write_audio("a.flac", two_cities[: 30 * SAMPLE_RATE_HZ])], make_engine(), cache)
    assert result.status == "empty" and "uncovered_speech" in result.flags


class TestModels:
    def test_the_diarizer_gives_its_own_times(self, make_engine, fault_server, opening):
        segments = [{"id": "s0", "type": "x", "start": 0.5, "end": 2.0, "text": "It was.", "speaker": "A"}]
        fault_server.answers = [reply(200, {"text": "It was.", "segments": segments, "task": "transcribe"})]
        [result] = make_engine(model="gpt-4o-transcribe-diarize", prompt="x").transcribe(clips(opening, 1))
        assert [(s.start_s, s.end_s) for s in result.segments] == [(0.5, 2.0)]
        [body] = fault_server.posts
        assert b"diarized_json" in body and b'name="chunking_strategy"' in body and b'name="prompt"' not in body

    def test_log_probabilities_become_the_confidence(self, make_engine, fault_server, opening):
        logprobs = [{"token": "It", "logprob": -0.2}, {"token": " was", "logprob": -0.4}]
        fault_server.answers = [reply(200, {"text": "It was", "logprobs": logprobs})]
        [result] = make_engine(model="gpt-4o-transcribe").transcribe(clips(opening, 1))
        assert result.segments[0].avg_logprob == pytest.approx(-0.3)
        assert b"logprobs" in fault_server.posts[0]

    def test_keywords_go_to_the_model_that_takes_them(self, make_engine, fault_server, opening):
        fault_server.answers = [reply(200, {"text": "It was", "languages": [{"code": "en"}]})]
        [result] = make_engine(model="gpt-transcribe", keywords=("Dickens",)).transcribe(clips(opening, 1))
        assert result.language == "en"
        list(make_engine(model="gpt-4o-transcribe", keywords=("Dickens",)).transcribe(clips(opening, 1)))
        assert [b"Dickens" in body for body in fault_server.posts] == [True, False]
