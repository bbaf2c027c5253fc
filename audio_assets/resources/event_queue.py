"""The queue of the bucket's event notifications, as a Dagster resource: Cloudflare Queues, pulled over HTTP."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dagster import ConfigurableResource, InitResourceContext
from pydantic import Field

from audio_assets import settings
from audio_assets.errors import AudioAssetsError, SettingsError
from audio_assets.resources.run_config import refuse_in_run_config
from audio_assets.resources.web import NoAnswerError, post_json

BATCH_SIZE = 100
"""Most messages that Cloudflare hands out at once."""

_ANSWER_MAX_BYTES = 64_000_000
"""A hundred messages of the most that a queue takes, 128 kB, in base64 inside JSON, and room to spare."""

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_QUOTE = 160


class EventQueueError(AudioAssetsError):
    """The queue did not answer, or not as documented; the next tick tries again."""


@dataclass(frozen=True)
class QueueMessage:
    """A message that is leased to us: nobody else gets it before the visibility timeout ends."""

    id: str
    body: object
    lease_id: str
    attempts: int


class EventQueueResource(ConfigurableResource):  # type: ignore[type-arg]
    """Pulls and acknowledges messages of a Cloudflare Queue.

    A field that is left out is read from the environment when a tick needs it, so that definitions load without any.

    For example:

        Definitions(sensors=[...], resources={"event_queue": EventQueueResource()})
    """

    queue_id: str | None = Field(default=None, description="Id of the queue. By default R2_EVENTS_QUEUE_ID.")
    account_id: str | None = Field(default=None, description="Cloudflare account id. By default R2_ACCOUNT_ID.")
    api_token: str | None = Field(
        default=None,
        repr=False,
        exclude=True,
        description="API token that may edit the queue. By default CLOUDFLARE_API_TOKEN.",
    )
    base_url: str | None = Field(
        default=None, description="Address of Cloudflare's API. By default CLOUDFLARE_BASE_URL, else Cloudflare's own."
    )
    visibility_timeout_s: float = Field(
        default=60.0, gt=0, description="Seconds until a message that was not acknowledged is handed out again."
    )
    timeout_s: float = Field(default=10.0, gt=0, description="Seconds for one request.")

    def setup_for_execution(self, context: InitResourceContext) -> None:
        """Refuse a run that would send the token elsewhere.

        Raises:
            SettingsError: the run's configuration says where the queue is, or has a token.
        """
        refuse_in_run_config(
            context,
            {"base_url": "CLOUDFLARE_BASE_URL", "account_id": "R2_ACCOUNT_ID", "api_token": "CLOUDFLARE_API_TOKEN"},
            type(self),
        )

    def configured(self) -> bool:
        """Whether a queue is named at all."""
        return bool(self.queue_id or settings.load().r2_events_queue_id)

    def account(self) -> str:
        """The Cloudflare account.

        Raises:
            SettingsError: neither the field nor R2_ACCOUNT_ID is set.
        """
        value = self.account_id or settings.load().r2_account_id
        return _checked_id(
            settings.require(value, "R2_ACCOUNT_ID", "the account that the queue is in"), "R2_ACCOUNT_ID"
        )

    def pull(self) -> list[QueueMessage]:
        """Up to `BATCH_SIZE` messages that lie there, without waiting for more.

        Raises:
            SettingsError: a setting is missing, or Cloudflare does not accept it; the message names its variable.
            EventQueueError: the queue did not answer, or not as documented.
        """
        answer = self._post(
            "pull", {"visibility_timeout_ms": int(self.visibility_timeout_s * 1000), "batch_size": BATCH_SIZE}
        )
        # The answer's result was a bare list before it got counters beside the messages.
        result = answer.get("messages", []) if isinstance(answer, dict) else answer
        if not isinstance(result, list):
            raise EventQueueError("the queue's answer has no messages; check CLOUDFLARE_BASE_URL")
        return [_message(m) for m in result if isinstance(m, dict) and isinstance(m.get("lease_id"), str)]

    def acknowledge(self, lease_ids: Sequence[str]) -> None:
        """Take these messages off the queue for good.

        Raises:
            SettingsError, EventQueueError: as for `pull`. The messages come again when their leases end.
        """
        for start in range(0, len(lease_ids), BATCH_SIZE):
            leases = [{"lease_id": lease} for lease in lease_ids[start : start + BATCH_SIZE]]
            self._post("ack", {"acks": leases, "retries": []})

    def _post(self, verb: str, body: dict[str, Any]) -> Any:
        configured = settings.load()
        queue = _checked_id(
            settings.require(
                self.queue_id or configured.r2_events_queue_id,
                "R2_EVENTS_QUEUE_ID",
                "the queue that gets the bucket's event notifications",
            ),
            "R2_EVENTS_QUEUE_ID",
        )
        token = settings.require(
            self.api_token or configured.cloudflare_api_token,
            "CLOUDFLARE_API_TOKEN",
            "a Cloudflare API token with the permission Queues Edit",
        )
        if not token.isascii() or not token.isprintable() or " " in token:
            raise SettingsError("CLOUDFLARE_API_TOKEN has characters that no token has; copy it again")
        base = settings.secure_url(self.base_url or configured.cloudflare_base_url, "CLOUDFLARE_BASE_URL")
        url = f"{base}/accounts/{self.account()}/queues/{queue}/messages/{verb}"
        try:
            status, answer = post_json(url, body, token=token, timeout_s=self.timeout_s, max_bytes=_ANSWER_MAX_BYTES)
        except NoAnswerError as error:
            raise EventQueueError(f"queue {queue} at {base}: {error}; the next tick tries again") from None
        return _result(status, answer, queue, base)


def _result(status: int, answer: bytes, queue: str, base: str) -> Any:
    try:
        told = json.loads(answer)
    except (ValueError, RecursionError):
        told = None
    told = told if isinstance(told, dict) else {}
    if status == 200 and told.get("success") is True:
        return told.get("result") or {}
    reason = _reason(told)
    if status == 401:
        raise SettingsError(
            f"CLOUDFLARE_API_TOKEN is not accepted (HTTP 401{reason}); set a token that is valid, with Queues Edit"
        )
    if status == 403:
        raise SettingsError(
            f"CLOUDFLARE_API_TOKEN may not read and acknowledge queue {queue} (HTTP 403{reason}); "
            "give it the permission Queues Edit on the account R2_ACCOUNT_ID"
        )
    if status == 404:
        raise SettingsError(
            f"R2_EVENTS_QUEUE_ID {queue} is not there (HTTP 404{reason}); it is the queue's id, not its name, in the "
            "account R2_ACCOUNT_ID"
        )
    if status == 429 or status >= 500:
        raise EventQueueError(f"queue {queue}: HTTP {status}{reason}; the next tick tries again")
    if status == 400:
        raise SettingsError(
            f"R2_EVENTS_QUEUE_ID {queue} cannot be pulled (HTTP 400{reason}); does it have an HTTP pull consumer?"
        )
    raise SettingsError(
        f"CLOUDFLARE_BASE_URL {base} does not answer like Cloudflare's API (HTTP {status}{reason}); check it"
    )


def _reason(told: dict[str, Any]) -> str:
    """Cloudflare's own words, made fit for one line."""
    errors = told.get("errors")
    first = errors[0] if isinstance(errors, list) and errors else None
    message = first.get("message") if isinstance(first, dict) else None
    shown = "".join(c if c.isprintable() else " " for c in message) if isinstance(message, str) else ""
    return f": {' '.join(shown.split())[:_QUOTE]}" if shown.strip() else ""


def _message(told: dict[str, Any]) -> QueueMessage:
    attempts = told.get("attempts")
    name = told.get("id")
    known = name if isinstance(name, str) and name else told["lease_id"]
    return QueueMessage(
        # JSON can name half a character, which neither a log nor a database can hold.
        id=known.encode("utf-8", "backslashreplace").decode(),
        body=told.get("body"),
        lease_id=told["lease_id"],
        attempts=attempts if isinstance(attempts, int) else 1,
    )


def _checked_id(value: str, variable: str) -> str:
    if not _ID.fullmatch(value):
        raise SettingsError(f"{variable} {value!r} is not an id; Cloudflare's are letters and digits")
    return value
