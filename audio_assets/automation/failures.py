"""The sensor that tells of runs that failed: in Dagster's log, and to a webhook when one is set."""

from __future__ import annotations

from typing import Any

import dagster as dg
from pydantic import SecretStr

from audio_assets import settings
from audio_assets.automation.runs import PARTITION_TAG
from audio_assets.errors import AudioAssetsError
from audio_assets.resources.web import post_json

WEBHOOK_TIMEOUT_S = 5.0
_REASON_LENGTH = 300
_SHORTEST_SECRET = 4


def one_line_reason(context: dg.RunFailureSensorContext) -> str:
    """Why the run failed: the message of its first failed step, else of the run; one line, without secrets."""
    told = context.failure_event.message or "no reason given"
    for event in context.get_step_failure_events():
        failure: Any = event.event_specific_data
        described = failure.user_failure_data.description if failure.user_failure_data else None
        error = failure.error
        while error is not None and error.cause is not None:
            error = error.cause
        told = described or (error.message if error is not None else None) or told
        break
    shown = " ".join("".join(c if c.isprintable() else " " for c in told).split())
    return without_secrets(shown)[:_REASON_LENGTH]


def without_secrets(text: str) -> str:
    """``text`` with the values of all settings that are secret, and of the access key, replaced by ``***``."""
    try:
        found = settings.load()
    except AudioAssetsError:
        return text
    values = [value for value in dict(found).values() if isinstance(value, SecretStr)]
    secrets = [value.get_secret_value() for value in values] + [found.r2_access_key_id or ""]
    for secret in secrets:
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "***")
    return text


def tell_webhook(url: str, body: dict[str, str | None]) -> str | None:
    """Post ``body``; returns what went wrong, if anything did. It never raises, and never says the address."""
    try:
        address = settings.secure_url(url, "AUDIO_ASSETS_WEBHOOK_URL")
        status, _ = post_json(address, body, timeout_s=WEBHOOK_TIMEOUT_S)
    except AudioAssetsError as error:
        return str(error)
    return None if 200 <= status < 300 else f"HTTP {status}"


@dg.run_failure_sensor(
    name="run_failure_sensor",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING if settings.sensors_on() else dg.DefaultSensorStatus.STOPPED,
    description="Runs that failed: logs one line for each, and posts it to AUDIO_ASSETS_WEBHOOK_URL when that is set.",
)
def run_failure_sensor(context: dg.RunFailureSensorContext) -> None:
    """Tell of one run that failed. A webhook that does not answer is a warning; the sensor goes on."""
    run = context.dagster_run
    partition = run.tags.get(PARTITION_TAG)
    reason = one_line_reason(context)
    where = f"{run.job_name}, partition {partition}" if partition else run.job_name
    context.log.error(f"run {run.run_id} of {where} failed: {reason}")
    try:
        url = settings.load().audio_assets_webhook_url
    except AudioAssetsError as error:
        context.log.warning(str(error))
        return
    if url is None:
        return
    problem = tell_webhook(
        url.get_secret_value(),
        {
            "event": "run_failed",
            "run_id": run.run_id,
            "job": run.job_name,
            "partition": partition,
            "reason": reason,
        },
    )
    if problem:
        context.log.warning(f"the webhook of AUDIO_ASSETS_WEBHOOK_URL was not told: {problem}")
