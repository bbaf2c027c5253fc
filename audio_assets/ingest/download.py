"""One object from the bucket into the mirror: the bytes that were listed, verified, or nothing."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from audio_assets.errors import FileFailed
from audio_assets.ingest.listing import RemoteObject
from audio_assets.ingest.mirror import Mirror, ObjectState
from audio_assets.ingest.remote_errors import settings_error, short, status_of

ATTEMPTS = 5
"""How often one object is asked for before it is given up."""
FIRST_WAIT_S = 0.5
"""Mean of the first wait between attempts; it doubles from there."""
LONGEST_WAIT_S = 20.0

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_CHUNK_BYTES = 256 * 1024
# Read timeouts are per read, and a trickle beats them: the whole object has a deadline too.
_DEADLINE_BASE_S = 120.0
_SLOWEST_BYTES_PER_S = 50_000
_PLAIN_MD5 = re.compile(r"[0-9a-f]{32}")


class ObjectGone(FileFailed):
    """The object was deleted between the listing and the download."""

    status = "gone"


class _RetryError(Exception):
    """One attempt failed in a way that another may not."""


class _ChangedError(Exception):
    """The object is no longer the one that was listed."""


def download(
    client: Any,
    bucket: str,
    found: RemoteObject,
    mirror: Mirror,
    *,
    attempts: int = ATTEMPTS,
    first_wait_s: float = FIRST_WAIT_S,
    cancelled: threading.Event | None = None,
) -> ObjectState:
    """Fetch one object into ``mirror`` and record its state.

    The request pins the listed ETag. Size and, where the ETag is one, MD5 are compared before the file is put in
    place. An object that was overwritten meanwhile is looked up anew, once; the state then tells of the new one.

    Args:
        client: a boto3 S3 client; safe to share between threads.
        bucket: name of the bucket.
        found: the object as listed, with its ETag.
        mirror: where the file and its state go.
        attempts: tries in all, on 429, 5xx, broken connections, short or damaged bodies.
        first_wait_s: mean of the first wait between tries, in seconds.
        cancelled: once set, waits end, no further try is made, and a body in flight is dropped.

    Raises:
        SettingsError: credentials or bucket are refused (401, 403): no file can be had.
        ObjectGone: the object was deleted since it was listed.
        FileFailed: given up.
    """
    cancelled = cancelled or threading.Event()
    try:
        return _with_retries(client, bucket, found, mirror, attempts, first_wait_s, cancelled)
    except _ChangedError:
        found = _look_again(client, bucket, found.key)
    try:
        return _with_retries(client, bucket, found, mirror, attempts, first_wait_s, cancelled)
    except _ChangedError as error:
        raise FileFailed(
            f"the object keeps changing while it is fetched ({error}); the next run tries again"
        ) from error


def _with_retries(
    client: Any,
    bucket: str,
    found: RemoteObject,
    mirror: Mirror,
    attempts: int,
    first_wait_s: float,
    cancelled: threading.Event,
) -> ObjectState:
    import tenacity

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(_RetryError),
        stop=tenacity.stop_any(tenacity.stop_after_attempt(attempts), tenacity.stop_when_event_set(cancelled)),
        wait=tenacity.wait_random_exponential(multiplier=2 * first_wait_s, max=LONGEST_WAIT_S),
        sleep=tenacity.sleep_using_event(cancelled),
        reraise=True,
    )
    try:
        return retrying(_once, client, bucket, found, mirror, cancelled)
    except _RetryError as error:
        if cancelled.is_set():
            raise FileFailed("the download was cancelled; the next run tries again") from error
        raise FileFailed(f"download failed {attempts} times: {error}; the next run tries again") from error


def _once(client: Any, bucket: str, found: RemoteObject, mirror: Mirror, cancelled: threading.Event) -> ObjectState:
    if cancelled.is_set():
        raise _RetryError("cancelled")
    with mirror.storing(found.key) as part:
        response = _request(client, bucket, found)
        with contextlib.closing(response["Body"]) as body:
            sha256, md5, size = _receive(body, part, found.size_bytes, cancelled)
        if size != found.size_bytes:
            raise _RetryError(f"{size} of {found.size_bytes} bytes arrived")
        if _etag_is_md5(found.etag, response) and md5 != found.etag:
            raise _RetryError(f"the bytes have MD5 {md5}, the listing says {found.etag}")
        if found.last_modified is not None:
            # The file's time is the object's: one look at a folder then tells which of its files are untouched.
            modified_us = (found.last_modified - EPOCH) // timedelta(microseconds=1)
            os.utime(part, ns=(time.time_ns(), modified_us * 1000))
        mtime_ns = part.stat().st_mtime_ns
    state = ObjectState(
        key=found.key,
        etag=found.etag,
        size_bytes=size,
        sha256=sha256,
        last_modified=found.last_modified,
        content_type=response.get("ContentType"),
        metadata=dict(response.get("Metadata") or {}),
        mtime_ns=mtime_ns,
    )
    mirror.record(state)
    return state


def _request(client: Any, bucket: str, found: RemoteObject) -> Any:
    try:
        return client.get_object(Bucket=bucket, Key=found.key, IfMatch=f'"{found.etag}"')
    except Exception as error:
        raise _judged(error, client, bucket) from error


def _receive(body: Any, part: Path, expected: int, cancelled: threading.Event) -> tuple[str, str, int]:
    """Write the body to ``part``; returns SHA-256, MD5 and size of what arrived."""
    from botocore.exceptions import BotoCoreError
    from urllib3.exceptions import HTTPError

    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    limit_s = _DEADLINE_BASE_S + expected / _SLOWEST_BYTES_PER_S
    deadline = time.monotonic() + limit_s
    with part.open("wb") as file:
        while True:
            try:
                block = body.read(_CHUNK_BYTES)
            except (BotoCoreError, HTTPError, OSError) as error:
                raise _RetryError(f"the connection broke after {size} of {expected} bytes ({short(error)})") from error
            if not block:
                break
            size += len(block)
            # Also a bound on the disk: a server that sends without end is not written out without end.
            if size > expected:
                break
            sha256.update(block)
            md5.update(block)
            file.write(block)
            if cancelled.is_set():
                raise _RetryError("cancelled")
            if time.monotonic() > deadline:
                raise _RetryError(f"only {size} of {expected} bytes arrived within {limit_s:.0f} s")
    return sha256.hexdigest(), md5.hexdigest(), size


def _look_again(client: Any, bucket: str, key: str) -> RemoteObject:
    try:
        head = client.head_object(Bucket=bucket, Key=key)
    except Exception as error:
        judged = _judged(error, client, bucket)
        if isinstance(judged, _ChangedError):
            raise ObjectGone("deleted from the bucket between listing and download") from error
        if isinstance(judged, _RetryError):
            raise FileFailed(f"changed since it was listed, and cannot be looked up: {judged}") from error
        raise judged from error
    return RemoteObject(key, head["ETag"].strip('"'), head["ContentLength"], head["LastModified"])


def _judged(error: Exception, client: Any, bucket: str) -> Exception:
    """What an error of one request means: `_ChangedError`, `_RetryError`, or the error to raise."""
    from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError
    from botocore.parsers import ResponseParserError

    # One object's trouble with the network is that object's; the endpoint answered the listing a moment ago.
    if isinstance(error, HTTPClientError | ConnectionError | ResponseParserError | OSError):
        return _RetryError(short(error))
    doomed = settings_error(error, bucket=bucket, endpoint=str(client.meta.endpoint_url))
    if doomed is not None:
        return doomed
    if isinstance(error, ClientError):
        status = status_of(error)
        if status in (404, 412):
            return _ChangedError(short(error))
        if status == 429 or status >= 500:
            return _RetryError(short(error))
    if isinstance(error, ClientError | BotoCoreError):
        return FileFailed(f"refused by the bucket: {short(error)}")
    return error


def _etag_is_md5(etag: str | None, response: Any) -> bool:
    # Under these kinds of encryption the ETag has the shape of an MD5 and is none.
    encrypted = response.get("SSECustomerAlgorithm") or str(response.get("ServerSideEncryption", "")).startswith(
        "aws:kms"
    )
    return bool(etag and _PLAIN_MD5.fullmatch(etag) and not encrypted)
