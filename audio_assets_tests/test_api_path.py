"""The API from the command line and from Dagster, against a server on loopback that counts what would be paid."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from audio_assets import cli, schemas
from audio_assets.compare import word_distance, words_of
from audio_assets.demo import demo_objects
from audio_assets.settings import Home
from audio_assets.speech.capabilities import CAPABILITIES
from audio_assets.speech.retirement import WARN_DAYS, retirement
from audio_assets.storage.partition_files import PartitionStore
from audio_assets.summary.statistics import summarize_prefix
from audio_assets_tests.speech.conftest import FaultServer, fault_server, heard, reply  # noqa: F401

Command = Callable[..., dict[str, Any]]
PRICE = 0.006 / 60


@pytest.fixture
def mirror(home: Home) -> Path:
    """Four recordings, one of them twice, silence, and a text file named .mp3."""
    objects = {o.key: o.body for o in demo_objects()}
    chosen = {k: b for k, b in objects.items() if k.endswith((".mp3", ".ogg")) or "silence" in k}
    twin = next(k for k in chosen if k.startswith("best-of-times/") and k.endswith(".mp3"))
    for key, body in {**chosen, "in-short/copy.mp3": objects[twin]}.items():
        path = home.audio / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    return home.audio


@pytest.fixture
def command(
    mirror: Path,
    fault_server: FaultServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """``audio-assets … --json`` in this process, with the server as the API; gives the JSON object."""
    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    monkeypatch.setenv("OPENAI_BASE_URL", fault_server.url)

    def run(*arguments: str, expect: int = 0) -> dict[str, Any]:
        with pytest.raises(SystemExit) as stop:
            cli.main([*arguments, "--json"])
        out = capsys.readouterr()
        assert stop.value.code == expect, out.err
        return {"stderr": out.err, **(json.loads(out.out) if out.out else {})}

    return run


def read_table(home: Home, table: str) -> pa.Table:
    return PartitionStore(home.tables).read(schemas.TABLES[table])


def of(table: pa.Table, prefix: str) -> pa.Table:
    return table.filter(pc.equal(table.column("prefix"), prefix))


def rows(home: Home, table: str) -> list[dict[str, Any]]:
    return [r for path in sorted((home.tables / table).glob("*.parquet")) for r in pq.read_table(path).to_pylist()]


@pytest.mark.slow
def test_a_capped_run_stops_in_time_the_next_one_goes_on_and_the_book_adds_up(
    command: Command,
    home: Home,
    fault_server: FaultServer,  # noqa: F811
) -> None:
    fault_server.answers = [reply(200, {**heard(), "usage": {"type": "duration", "seconds": 4}}, x_request_id="r")]
    run = ("run", "--skip-ingestion", "--skip-summary")

    nothing = command(*run, "--max-cost", "0", expect=cli.EXIT_FILES_FAILED)
    assert fault_server.posts == [], "silence, text and duplicates cost nothing, and the rest may not"
    assert nothing["counts"] == {"empty": 1, "invalid": 1, "deferred": 5}
    assert all("--max-cost" in p["error"] for p in nothing["problems"] if p["status"] == "deferred")

    most = max(r["duration_s"] for r in rows(home, "raw_audio") if r["status"] == "ok")
    cap = 1.2 * most * PRICE
    first = command(*run, "--max-cost", f"{cap:.6f}", expect=cli.EXIT_FILES_FAILED)
    assert 0 < first["cost_usd"] <= cap and first["counts"]["deferred"] > 0 and first["refused_by_cap"] > 0
    paid = len(fault_server.posts)
    assert first["cost_usd"] == pytest.approx(paid * 4 * PRICE)

    second = command(*run)
    assert second["counts"] == {"ok": 5, "empty": 1, "invalid": 1}
    assert len(fault_server.posts) == 4, "five recordings, two of the same bytes"
    third = command(*run)
    assert (third["cost_usd"], third["transcribed"], len(fault_server.posts)) == (0, 0, 4)

    book = rows(home, "transcription_ledger")
    assert len(book) == sum(r["attempts"] for r in book) == 4
    assert sum(r["cost_usd"] for r in book) == pytest.approx(first["cost_usd"] + second["cost_usd"])
    assert {r["status"] for r in book} == {"ok"} and {r["request_id"] for r in book} == {"r"}
    assert {r["prefix"] for r in book} == {"best-of-times/", "in-short/"}
    spent = sum(r["cost_usd"] for r in book)
    transcripts = rows(home, "transcripts")
    assert sum(r["cost_usd"] or 0.0 for r in transcripts) == pytest.approx(spent), "a copy of paid bytes costs nothing"
    prefixes = {r["prefix"] for r in transcripts}
    raw, heard_in = (read_table(home, t) for t in ("raw_audio", "transcripts"))
    no_tokens = schemas.TOKENS.from_rows([])
    summaries = [summarize_prefix(p, of(raw, p), of(heard_in, p), no_tokens).to_pylist()[0] for p in prefixes]
    assert sum(s["cost_usd"] for s in summaries) == pytest.approx(spent), "and so do the summaries add up"


def test_a_wrong_key_is_one_line_that_names_it(command: Command, fault_server: FaultServer) -> None:  # noqa: F811
    fault_server.answers = [reply(401, {"error": {"message": "Incorrect API key", "code": "invalid_api_key"}})]
    said = command("run", "--skip-ingestion", "--skip-summary", "--max-workers", "2", expect=4)["stderr"]
    [error] = [line for line in said.splitlines() if line.startswith("error:")]
    assert "OPENAI_API_KEY" in error and "test-key" not in said
    assert 1 <= len(fault_server.posts) <= 2


def test_a_wrong_model_is_one_line_that_names_it(
    command: Command,
    fault_server: FaultServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WHISPER_MODEL", "whisper-9")
    fault_server.answers = [reply(404, {"error": {"message": "no such model", "code": "model_not_found"}})]
    said = command("run", "--skip-ingestion", "--skip-summary", "--max-workers", "2", expect=4)["stderr"]
    [error] = [line for line in said.splitlines() if line.startswith("error:")]
    assert "WHISPER_MODEL 'whisper-9'" in error and "Traceback" not in said
    assert 1 <= len(fault_server.posts) <= 2


def test_a_wrong_base_url_is_one_line_that_names_it(
    command: Command,
    fault_server: FaultServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "127.0.0.1/v1")
    said = command("run", "--skip-ingestion", "--skip-summary", expect=4)["stderr"]
    [error] = [line for line in said.splitlines() if line.startswith("error:")]
    assert "OPENAI_BASE_URL '127.0.0.1/v1'" in error and "Traceback" not in said


def test_what_a_failed_step_has_spent_is_on_record(
    command: Command,
    home: Home,
    fault_server: FaultServer,  # noqa: F811
) -> None:
    revoked = reply(401, {"error": {"message": "Incorrect API key", "code": "invalid_api_key"}})
    fault_server.answers = [reply(200, {**heard(), "usage": {"type": "duration", "seconds": 4}}), revoked]
    command("run", "--skip-ingestion", "--skip-summary", "--max-workers", "1", expect=4)
    book = rows(home, "transcription_ledger")
    assert sum(r["attempts"] for r in book) == len(fault_server.posts) == 2
    assert sorted(r["status"] for r in book) == ["failed", "ok"]
    assert sum(r["cost_usd"] for r in book) == pytest.approx(4 * PRICE)


@pytest.mark.slow
def test_the_runs_of_a_backfill_share_one_cap(
    command: Command,
    home: Home,
    fault_server: FaultServer,  # noqa: F811
) -> None:
    from audio_assets.definitions import defs

    command("run", "--skip-ingestion", "--skip-summary", "--max-cost", "0", expect=3)
    fault_server.answers = [reply(200, {**heard(), "usage": {"type": "duration", "seconds": 4}})]
    most = max(r["duration_s"] for r in rows(home, "raw_audio") if r["status"] == "ok")
    job = defs.resolve_job_def("prefix_job")
    with dg.DagsterInstance.get() as instance:
        for backfill, partition, paid in (
            ("first", "best-of-times", 1),
            ("first", "in-short", 1),
            ("second", "in-short", 2),
        ):
            result = job.execute_in_process(
                partition_key=partition,
                instance=instance,
                tags={"dagster/backfill": backfill},
                run_config={"ops": {"transcripts": {"config": {"max_cost_usd": (most + 1) * PRICE}}}},
                asset_selection=[dg.AssetKey("transcripts")],
            )
            assert result.success
            assert len(fault_server.posts) == paid, "what the first partition took, the second does not have"


def test_comparing_two_models_says_how_they_differ_and_what_is_lost(
    command: Command,
    home: Home,
    fault_server: FaultServer,  # noqa: F811
) -> None:
    def answer(handler: Any, number: int) -> None:
        old = b"whisper-1" in fault_server.posts[number - 1]
        text = "It was the best of times." if old else "It was the worst of times!"
        body = heard(text) if old else {"text": text}
        reply(200, body)(handler, number)

    fault_server.answers = [answer]
    command("run", "--skip-ingestion", "--skip-summary", "--limit", "2")
    before = len(fault_server.posts)
    made = command("compare-models", "whisper-1", "gpt-transcribe", "--sample", "2")
    assert made["word_error_rate"] == pytest.approx(1 / 6)
    assert {"segment times", "word times", "confidence of segments"} <= set(made["lost"])
    assert made["gained"] == ["keywords"]
    assert made["a"]["cached"] == 2 and made["b"]["cached"] == 0
    assert made["a"]["price_usd_per_minute"] == 0.006 and made["b"]["price_usd_per_minute"] == 0.0045
    assert made["a"]["cost_usd"] == 0 and made["b"]["cost_usd"] > 0
    assert len(fault_server.posts) - before == 2
    again = command("compare-models", "whisper-1", "gpt-transcribe", "--sample", "2", "--max-cost", "0")
    assert again["b"]["cached"] == 2 and len(fault_server.posts) - before == 2
    capped = command("compare-models", "whisper-1", "gpt-4o-transcribe", "--max-cost", "0.001", expect=3)
    assert capped["b"]["unfinished"] > 0 and capped["b"]["cost_usd"] == 0


class TestThePlanAsset:
    def test_it_prices_every_model_and_sends_nothing(
        self,
        command: Command,
        home: Home,
        fault_server: FaultServer,  # noqa: F811
    ) -> None:
        from audio_assets.definitions import defs

        command("run", "--skip-ingestion", "--skip-summary", "--max-cost", "0", expect=3)
        job = defs.resolve_implicit_global_asset_job_def()
        result = job.execute_in_process(asset_selection=[dg.AssetKey("transcription_plan")])
        assert result.success and fault_server.posts == []
        plan = {r["model"]: r for r in rows(home, "transcription_plan")}
        assert plan.keys() == CAPABILITIES.keys()
        chosen = plan["whisper-1"]
        assert [m for m, r in plan.items() if r["chosen"]] == ["whisper-1"]
        # The silent recording has a length, so it counts as a file; all of it is silence.
        assert (chosen["files"], chosen["duplicates"], chosen["cached"]) == (6, 1, 1)
        assert chosen["to_transcribe"] == 4 and chosen["silence_files"] == 4
        sent_s = (chosen["hours"] - chosen["silence_hours"]) * 3600
        assert sent_s * PRICE <= chosen["cost_usd"] <= (sent_s + chosen["to_transcribe"]) * PRICE
        assert plan["gpt-transcribe"]["retires"] is None and chosen["retires"] == "2027-02-26"


class TestRetirement:
    TODAY = date(2026, 11, 23)

    @pytest.mark.parametrize(
        ("announced", "listed", "state"),
        [
            (None, None, "ok"),
            (None, date(2027, 2, 26), "soon"),
            (date(2028, 1, 1), date(2027, 2, 26), "ok"),
            (date(2026, 11, 22), date(2027, 2, 26), "over"),
            (None, date(2026, 11, 23), "soon"),
        ],
        ids=["unknown", "table", "the-api-postpones", "the-api-hastens", "last-day"],
    )
    def test_the_endpoints_own_answer_counts_before_the_table(
        self, announced: date | None, listed: date | None, state: str
    ) -> None:
        assert retirement("m", announced, listed, self.TODAY).state == state

    def test_it_warns_a_hundred_and_twenty_days_ahead(self) -> None:
        assert retirement("m", None, date(2027, 3, 23), self.TODAY).days_left == WARN_DAYS == 120
        assert retirement("m", None, date(2027, 3, 23), self.TODAY).state == "soon"
        assert retirement("m", None, date(2027, 3, 24), self.TODAY).state == "ok"

    @pytest.mark.parametrize(
        ("answer", "passed", "severity", "source"),
        [
            ({"id": "whisper-1", "shutdown_date": "2020-01-01"}, False, dg.AssetCheckSeverity.ERROR, "the endpoint"),
            ({"id": "whisper-1", "shutdown_date": "2999-01-01"}, True, dg.AssetCheckSeverity.WARN, "the endpoint"),
            ({"id": "whisper-1"}, None, None, "by OpenAI's list"),
            ({"error": {"message": "no such model"}}, None, None, "by OpenAI's list"),
        ],
        ids=["over", "far", "not-said", "error"],
    )
    def test_the_check_asks_the_endpoint(
        self,
        models_server: Callable[[dict[str, Any]], str],
        answer: dict[str, Any],
        passed: Any,
        severity: Any,
        source: str,
    ) -> None:
        from audio_assets.assets.model_retirement import transcripts_model_retirement
        from audio_assets.resources.whisper import WhisperResource

        whisper = WhisperResource(engine="openai", api_key="k", base_url=models_server(answer))
        result: Any = transcripts_model_retirement(whisper=whisper)
        assert source in result.description
        if passed is not None:
            assert (result.passed, result.severity) == (passed, severity)


@pytest.fixture
def models_server() -> Any:
    """An endpoint that answers ``GET /v1/models/…``."""
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    body: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            reply(404 if "error" in body else 200, body)(self, 1)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()

        def start(answer: dict[str, Any]) -> str:
            body.update(answer)
            return f"http://127.0.0.1:{server.server_address[1]}/v1"

        yield start
        server.shutdown()
        thread.join()


class TestWordDistance:
    @pytest.mark.parametrize(
        ("a", "b"),
        [
            ("", ""),
            ("one", ""),
            ("It was the best of times", "it was, the BEST of times!"),
            ("it was the best of times", "it the best best of lime"),
            ("a b c d e", "e d c b a"),
            ("don’t stop", "don't you stop"),
        ],
    )
    def test_it_is_what_jiwer_counts(self, a: str, b: str) -> None:
        import jiwer

        left, right = words_of(a), words_of(b)
        if left:
            counted = jiwer.process_words(" ".join(left), " ".join(right))
            assert word_distance(left, right) == counted.substitutions + counted.deletions + counted.insertions
        assert word_distance(left, right) == word_distance(right, left)
