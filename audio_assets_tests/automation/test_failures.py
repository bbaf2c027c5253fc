"""Runs that fail are told of, in the log and to a webhook; a webhook in trouble changes nothing."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import dagster as dg
import pytest

from audio_assets.automation import failures, run_failure_sensor
from audio_assets.definitions import build_definitions
from audio_assets.partitions import PARTITIONS_NAME

SECRET = "webhook-canary"


class Webhook:
    """A server on loopback that keeps what it is told. With ``hang`` it takes requests and never answers."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.status = 204
        self.hang = False
        self.closing = threading.Event()
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *arguments: object) -> None:
                pass

            def do_POST(self) -> None:
                webhook.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                if webhook.hang:
                    webhook.closing.wait(30)
                    return
                self.send_response(webhook.status)
                self.send_header("Location", f"http://127.0.0.1:{webhook.server.server_port}/elsewhere")
                self.end_headers()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/{SECRET}"


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    hook = Webhook()
    thread = threading.Thread(target=hook.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    monkeypatch.setenv("AUDIO_ASSETS_WEBHOOK_URL", hook.url)
    yield hook
    hook.closing.set()
    hook.server.shutdown()
    hook.server.server_close()
    thread.join()


Fail = Callable[[], dg.RunFailureSensorContext]


@pytest.fixture
def fail(instance: dg.DagsterInstance) -> Fail:
    """Let a run fail as a user's does, for want of a setting, and tell the sensor."""

    def run() -> dg.RunFailureSensorContext:
        instance.add_dynamic_partitions(PARTITIONS_NAME, ["calls"])
        result = (
            build_definitions()
            .resolve_job_def("prefix_job")
            .execute_in_process(
                instance=instance,
                partition_key="calls",
                asset_selection=[dg.AssetKey("raw_audio")],
                raise_on_error=False,
            )
        )
        assert not result.success
        context = dg.build_run_status_sensor_context(
            sensor_name="run_failure_sensor",
            dagster_event=result.get_run_failure_event(),
            dagster_instance=instance,
            dagster_run=result.dagster_run,
        ).for_run_failure()
        run_failure_sensor(context)
        return context

    return run


def test_a_run_that_failed_is_told_with_its_job_partition_and_reason(fail: Fail, webhook: Webhook) -> None:
    context = fail()
    [told] = webhook.told
    assert told == {
        "event": "run_failed",
        "run_id": context.dagster_run.run_id,
        "job": "prefix_job",
        "partition": "calls",
        "reason": told["reason"],
    }
    assert told["reason"].startswith("R2_BUCKET is not set: ")


def test_no_secret_is_told(fail: Fail, webhook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("R2_SECRET_ACCESS_KEY", "R2_ACCESS_KEY_ID", "OPENAI_API_KEY", "CLOUDFLARE_API_TOKEN"):
        monkeypatch.setenv(variable, f"canary-{variable.lower()}")
    assert failures.without_secrets(f"refused canary-openai_api_key, canary-r2_access_key_id, {webhook.url}") == (
        "refused ***, ***, ***"
    )
    fail()
    assert "canary" not in json.dumps(webhook.told)


@pytest.mark.parametrize("status", [302, 404, 500])
def test_a_webhook_that_refuses_is_a_warning_and_is_asked_once(fail: Fail, webhook: Webhook, status: int) -> None:
    webhook.status = status
    fail()
    assert len(webhook.told) == 1
    problem = failures.tell_webhook(webhook.url, {})
    assert problem == f"HTTP {status}"


def test_a_webhook_that_never_answers_holds_nothing_up(
    fail: Fail, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "WEBHOOK_TIMEOUT_S", 0.3)
    webhook.hang = True
    started = time.monotonic()
    problem = failures.tell_webhook(webhook.url, {})
    assert time.monotonic() - started < 10
    assert problem is not None and "answer" in problem and SECRET not in problem
    fail()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/" + SECRET, "http://example.com/" + SECRET, "nowhere", "http://["])
def test_a_webhook_that_cannot_be_reached_is_a_warning_that_keeps_its_address_to_itself(
    fail: Fail, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("AUDIO_ASSETS_WEBHOOK_URL", url)
    problem = failures.tell_webhook(url, {})
    assert problem is not None and SECRET not in problem
    fail()


def test_without_a_webhook_the_log_is_all(fail: Fail) -> None:
    assert failures.one_line_reason(fail()).startswith("R2_BUCKET is not set")
