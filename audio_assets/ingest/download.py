"""One object from the bucket into the mirror: the bytes that were listed, verified, or nothing."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any, cast

from audio_assets.errors import FileFailed
from audio_assets.ingest.get_object import Answer, Body, get_object
from audio_assets.ingest.listing import RemoteObject
from audio_assets.ingest.mirror import Mirror, ObjectState, identity_of, write_all
from audio_assets.ingest.pages import bare_etag
from audio_assets.ingest.remote_errors import settings_error, short, status_of

ATTEMPTS = 5
"""How often one object is asked for before it is given up."""
FIRST_WAIT_S = 0.5
"""Mean of the first wait between attempts; it doubles from there."""
LONGEST_WAIT_S = 20.0

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_CHUNK_BYTES = 256 * 1024
# Up to this size an object is received in memory, and a file is made of it when all of it is there.
_WHOLE_BYTES = 512 * 1024
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
    deadline_s: float | None = None,
    on_change: Callable[[RemoteObject], object] = lambda found: None,
) -> ObjectState:
    """Fetch one object into ``mirror`` and record its state.

    The request pins the listed ETag. Size and, where the ETag is one, MD5 are compared before the file is put in
    place. What a broken try brought is kept: the next one, of this run or a later one, asks for the rest only. An
    object that was overwritten meanwhile is looked up anew, once; the state then tells of the new one.

    Args:
        client: a boto3 S3 client; safe to share between threads.
        bucket: name of the bucket.
        found: the object as listed, with its ETag.
        mirror: where the file and its state go.
        attempts: tries in all, on 429, 5xx, broken connections, short or damaged bodies.
        first_wait_s: mean of the first wait between tries, in seconds.
        cancelled: once set, waits end, no further try is made, and a body in flight is dropped.
        deadline_s: seconds for the object, all tries together; by default what its size needs at 50 kB/s, and 120 s.
        on_change: called with the new object before that is fetched instead of what was listed; may raise.

    Raises:
        SettingsError: credentials or bucket are refused (401, 403): no file can be had.
        ObjectGone: the object was deleted since it was listed.
        FileFailed: given up.
    """
    cancelled = cancelled or threading.Event()
    try:
        return _with_retries(client, bucket, found, mirror, attempts, first_wait_s, cancelled, deadline_s)
    except _ChangedError:
        found = _look_again(client, bucket, found.key)
    on_change(found)
    try:
        return _with_retries(client, bucket, found, mirror, attempts, first_wait_s, cancelled, deadline_s)
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
    deadline_s: float | None,
) -> ObjectState:
    import tenacity

    limit_s = _DEADLINE_BASE_S + found.size_bytes / _SLOWEST_BYTES_PER_S if deadline_s is None else deadline_s
    deadline = time.monotonic() + limit_s

    over = tenacity.stop_any(tenacity.stop_after_attempt(attempts), tenacity.stop_when_event_set(cancelled))
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(_RetryError),
        # The deadline that the attempts go by, not one of tenacity's own that began a moment later.
        stop=lambda state: over(state) or time.monotonic() > deadline,
        wait=tenacity.wait_random_exponential(multiplier=2 * first_wait_s, max=LONGEST_WAIT_S),
        sleep=tenacity.sleep_using_event(cancelled),
        reraise=True,
    )
    try:
        return retrying(_once, client, bucket, found, mirror, cancelled, deadline)
    except _RetryError as error:
        if cancelled.is_set():
            raise FileFailed("the download was cancelled; the next run tries again") from error
        if time.monotonic() > deadline:
            raise FileFailed(f"not downloaded within {limit_s:.0f} s: {error}; the next run goes on there") from error
        raise FileFailed(f"download failed {attempts} times: {error}; the next run tries again") from error


def _once(
    client: Any, bucket: str, found: RemoteObject, mirror: Mirror, cancelled: threading.Event, deadline: float
) -> ObjectState:
    if cancelled.is_set():
        raise _RetryError("cancelled")
    how = _in_part
    if found.size_bytes <= _WHOLE_BYTES and not mirror.has_part(found.key, identity_of(found)):
        how = _in_memory
    answer, received, mtime_ns = how(client, bucket, found, mirror, cancelled, deadline)
    state = ObjectState(
        key=found.key,
        etag=found.etag,
        size_bytes=received.size,
        sha256=received.sha256.hexdigest(),
        last_modified=found.last_modified,
        content_type=answer.content_type,
        metadata=answer.metadata,
        mtime_ns=mtime_ns,
    )
    mirror.record(state)
    return state


def _in_memory(
    client: Any, bucket: str, found: RemoteObject, mirror: Mirror, cancelled: threading.Event, deadline: float
) -> tuple[Answer, _Received, int]:
    """Get an object whole and then make its file: most of what a small one costs is files."""
    received = _InMemory()
    try:
        answer = _fetch(client, bucket, found, received, cancelled, deadline)
    except _RetryError:
        if received.size:
            # The next try asks for the rest.
            with mirror.storing(found.key, identity_of(found)) as part:
                os.ftruncate(part.handle, 0)
                received.write(part.handle)
                raise
        raise
    with mirror.storing(found.key) as part:
        received.write(part.handle)
        return answer, received, _date(part.handle, found.last_modified)


def _in_part(
    client: Any, bucket: str, found: RemoteObject, mirror: Mirror, cancelled: threading.Event, deadline: float
) -> tuple[Answer, _Received, int]:
    """Get an object into its file, or what that lacks from a try before."""
    with mirror.storing(found.key, identity_of(found)) as part:
        # At least the last byte is asked for: the answer has the object's type and metadata.
        received = _InPart(part.handle, most=max(found.size_bytes - 1, 0))
        try:
            answer = _fetch(client, bucket, found, received, cancelled, deadline)
        except _ChangedError:
            # There will be no rest to what is here.
            received.clear()
            raise
        finally:
            received.flush()
        return answer, received, _date(part.handle, found.last_modified)


def _fetch(
    client: Any, bucket: str, found: RemoteObject, received: _Received, cancelled: threading.Event, deadline: float
) -> Answer:
    """Add to ``received`` what it lacks of the object, and check the whole."""
    answer = _request(client, bucket, found, received.size)
    if answer.content_range and not _goes_on(answer, received.size, found.size_bytes):
        # Neither the rest nor the whole: without our range the server has no reason to send a piece.
        answer.body.close()
        received.clear()
        raise _RetryError(f"another piece was sent than was asked for ({answer.content_range[:60]})")
    if received.size and not answer.content_range:
        received.clear()
    with contextlib.closing(answer.body) as body:
        _receive(body, received, found.size_bytes, cancelled, deadline)
    if received.size != found.size_bytes:
        raise _RetryError(f"{received.size} of {found.size_bytes} bytes arrived")
    received.flush()
    if found.etag and answer.hashed_by_etag and _PLAIN_MD5.fullmatch(found.etag):
        seen = received.md5.hexdigest()
        if seen != found.etag:
            received.clear()
            raise _RetryError(f"the bytes have MD5 {seen}, the listing says {found.etag}")
    return answer


_memory = threading.local()


def _buffer() -> memoryview:
    """Memory for what arrives, one piece for each thread: taking it anew each time costs more than filling it."""
    try:
        return cast(memoryview, _memory.buffer)
    except AttributeError:
        # One byte more than there should be tells of a server that sends too much.
        buffer = _memory.buffer = memoryview(bytearray(_WHOLE_BYTES + 1))
        return buffer


class _Received(ABC):
    """What has arrived of an object: its bytes, how many there are, and their hashes so far.

    Bytes are hashed by the block: each time costs a turn at Python's lock.
    """

    def __init__(self) -> None:
        self._buffer = _buffer()
        self._restart()

    @property
    def room(self) -> memoryview:
        """Where the next bytes go; `came` says how many there are."""
        return self._buffer[self._waiting :]

    def came(self, count: int) -> None:
        self.size += count
        self._waiting += count
        if self._waiting == len(self._buffer):
            self.flush()

    @abstractmethod
    def flush(self) -> None:
        """Hash what came since the last time."""

    def clear(self) -> None:
        """Forget all of it."""
        self._restart()

    def _restart(self) -> None:
        self.size, self.sha256, self.md5 = 0, hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        self._waiting = 0

    def _hash(self, block: memoryview) -> None:
        if block:
            self.sha256.update(block)
            self.md5.update(block)


class _InMemory(_Received):
    """An object that is in memory until all of it is there."""

    def flush(self) -> None:
        self._hash(self._buffer[: self.size])

    def write(self, handle: int) -> None:
        """Write what there is to an open file that is empty."""
        write_all(handle, self._buffer[: self.size])


class _InPart(_Received):
    """An object in an open file, which may have its first bytes already; of those at most ``most`` are believed in."""

    def __init__(self, handle: int, most: int) -> None:
        super().__init__()
        self._buffer = self._buffer[:_CHUNK_BYTES]
        self._handle = handle
        while count := os.readv(handle, [self._buffer[: most - self.size]]):
            self.size += count
            self._hash(self._buffer[:count])
        os.lseek(handle, self.size, os.SEEK_SET)
        os.ftruncate(handle, self.size)

    def flush(self) -> None:
        """Hash and write what came since the last time."""
        rest = self._buffer[: self._waiting]
        self._waiting = 0
        self._hash(rest)
        write_all(self._handle, rest)

    def clear(self) -> None:
        os.lseek(self._handle, 0, os.SEEK_SET)
        os.ftruncate(self._handle, 0)
        super().clear()


def _date(handle: int, last_modified: datetime | None) -> int:
    """Give a file the time of its object, if that is known; the file's time, in ns since 1970.

    One look at a folder then tells which of its files are untouched.
    """
    if last_modified is not None:
        modified_us = (last_modified - EPOCH) // timedelta(microseconds=1)
        os.utime(handle, ns=(time.time_ns(), modified_us * 1000))
    return os.fstat(handle).st_mtime_ns


def _request(client: Any, bucket: str, found: RemoteObject, start: int) -> Answer:
    try:
        answer = get_object(client, bucket, found.key, found.etag, start)
    except Exception as error:
        raise _judged(error, client, bucket) from error
    # Not every server minds If-Match.
    if answer.etag is not None and answer.etag != found.etag:
        answer.body.close()
        raise _ChangedError(f"its ETag is {answer.etag} now")
    return answer


def _goes_on(answer: Answer, start: int, size: int) -> bool:
    """Whether the body is the rest that was asked for; a server may send everything instead."""
    return answer.content_range.startswith(f"bytes {start}-{size - 1}/")


def _receive(body: Body, received: _Received, expected: int, cancelled: threading.Event, deadline: float) -> None:
    """Add the body to what is there."""
    from urllib3.exceptions import HTTPError

    # What has come, not what was asked for: to wait until all of a chunk is there would let a trickle hold it for hours
    # past the deadline.
    while True:
        room = received.room
        # Also a bound on the disk: a server that sends without end is not written out without end.
        left = expected - received.size
        try:
            count = body.readinto(room[: left + 1])
        except (HTTPError, OSError) as error:
            have = f"{received.size} of {expected} bytes"
            raise _RetryError(f"the connection broke after {have} ({short(error)})") from error
        if not count:
            return
        if count > left:
            received.clear()
            raise _RetryError(f"more than {expected} bytes arrived")
        received.came(count)
        if cancelled.is_set():
            raise _RetryError("cancelled")
        if time.monotonic() > deadline:
            raise _RetryError(f"{received.size} of {expected} bytes arrived")


def _look_again(client: Any, bucket: str, key: str) -> RemoteObject:
    try:
        head = client.head_object(Bucket=bucket, Key=key)
    except Exception as error:
        judged = _judged(error, client, bucket)
        if isinstance(judged, _ChangedError):
            raise ObjectGone("deleted from the bucket between listing and download") from error
        if isinstance(judged, _RetryError | ValueError):
            # A time that is none is botocore's plain ValueError.
            raise FileFailed(f"changed since it was listed, and cannot be looked up: {judged}") from error
        raise judged from error
    if "ETag" not in head or "ContentLength" not in head:
        raise FileFailed(
            "changed since it was listed, and the bucket does not say what it is now; the next run tries again"
        )
    return RemoteObject(key, bare_etag(head["ETag"]), head["ContentLength"], head.get("LastModified"))


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
