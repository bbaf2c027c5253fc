"""What reading from a bucket through boto3 needs besides: no redirection, a second try, pieces of a large object."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any, TypeVar

from audio_assets.errors import StorageError

T = TypeVar("T")

_BODY_ATTEMPTS = 3
"""Times that a body is asked for which breaks off: the client tries again only until an answer begins."""


def without_redirects(client: Any) -> Any:
    """``client`` of S3, which takes an answer that points elsewhere for an error from now on.

    By itself it asks the bucket which region it is in, and sends the request there; a server that answers that
    question in the same way has it ask without end.
    """
    client.meta.events.register_last("before-parameter-build.s3", _as_if_redirected)
    return client


def _as_if_redirected(context: dict[str, Any], **_: Any) -> None:
    # Of a request that was redirected before, the client does not follow another redirection.
    context.setdefault("s3_redirect", {})["redirected"] = True


def points_elsewhere(response: dict[str, Any]) -> bool:
    """Whether the ``response`` of a botocore ``ClientError`` says that the bucket is reached in another place."""
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return 300 <= status < 400 or response.get("Error", {}).get("Code") in (
        "PermanentRedirect",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
    )


def whole(ask: Callable[[], T]) -> T:
    """What ``ask`` gives, which reads the body of an answer: it is asked again when the body breaks off."""
    from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError

    for _ in range(_BODY_ATTEMPTS - 1):
        try:
            return ask()
        except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError):
            continue
    return ask()


class Pieces(io.RawIOBase):
    """An object to read at random, in one request for each piece.

    Args:
        shown: its name for people.
        size_bytes: how long it is.
        fetch: gives the bytes from a place on, so and so many.
    """

    def __init__(self, shown: str, size_bytes: int, fetch: Callable[[int, int], bytes]) -> None:
        self._shown, self._size, self._fetch = shown, size_bytes, fetch
        self._at = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next piece begins."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go somewhere."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """The next bytes, fewer only at the end.

        Raises:
            StorageError: the bucket gave others.
        """
        left = max(0, self._size - self._at)
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted == 0:
            return b""
        data = self._fetch(self._at, wanted)
        if len(data) != wanted:
            raise StorageError(f"{self._shown}: the bucket gave {len(data)} bytes for {wanted}; run again")
        self._at += wanted
        return data
