"""One request to a JSON interface: bounded in time and size, no redirect followed, no secret in an error."""

from __future__ import annotations

import json
import queue
import threading
import time
from typing import TYPE_CHECKING, Any

from audio_assets.errors import AudioAssetsError

if TYPE_CHECKING:
    import requests

_CHUNK_BYTES = 65_536


class NoAnswerError(AudioAssetsError):
    """The other side did not answer, or not in time. The message says why, and leaves out the address."""


def post_json(
    url: str, body: object, *, token: str | None = None, timeout_s: float, max_bytes: int = 0
) -> tuple[int, bytes]:
    """Send ``body`` as JSON and return the status and the first ``max_bytes`` of the answer.

    Args:
        url: where to; `settings.secure_url` has looked at it.
        body: anything that JSON can carry.
        token: sent as ``Authorization: Bearer``.
        timeout_s: seconds for everything, however slowly the answer trickles.
        max_bytes: an answer that is longer is an error; with 0 the answer is not read.

    Raises:
        NoAnswerError: no connection, no answer in time, or one that is too long.
    """
    outcome: queue.SimpleQueue[tuple[int, bytes] | Exception] = queue.SimpleQueue()

    def work() -> None:
        try:
            outcome.put(_post(url, body, token, time.monotonic() + timeout_s, max_bytes))
        except Exception as error:  # handed over to the caller's thread
            outcome.put(error)

    # Timeouts of a socket are for each read: a server that sends a header line now and then would hold a tick for ever.
    threading.Thread(target=work, daemon=True, name="post-json").start()
    try:
        result = outcome.get(timeout=timeout_s + 1)
    except queue.Empty:
        raise NoAnswerError(f"no answer within {timeout_s:.0f} s") from None
    if isinstance(result, Exception):
        raise result
    return result


def _post(url: str, body: object, token: str | None, deadline: float, max_bytes: int) -> tuple[int, bytes]:
    import requests

    def left() -> float:
        return max(0.1, deadline - time.monotonic())

    try:
        with requests.post(
            url,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            # An authentication of our own also keeps a .netrc from putting another one in its place.
            auth=_Bearer(token),
            timeout=left(),
            allow_redirects=False,
            stream=True,
        ) as answer:
            read = b""
            if max_bytes:
                for chunk in answer.iter_content(_CHUNK_BYTES):
                    read += chunk
                    if len(read) > max_bytes:
                        raise NoAnswerError(f"the answer is longer than {max_bytes} bytes")
                    if time.monotonic() > deadline:
                        raise NoAnswerError("the answer took too long")
            return answer.status_code, read
    except requests.Timeout:
        raise NoAnswerError("no answer in time") from None
    except (requests.RequestException, OSError) as error:
        # The text of these errors repeats the address, which may hold a secret.
        cause: Any = error
        while isinstance(getattr(cause, "reason", None), Exception) or (
            cause.args and isinstance(cause.args[0], OSError)
        ):
            cause = cause.reason if isinstance(getattr(cause, "reason", None), Exception) else cause.args[0]
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else type(cause).__name__
        raise NoAnswerError(f"no connection ({reason})") from None


class _Bearer:
    def __init__(self, token: str | None) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token is not None:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request
