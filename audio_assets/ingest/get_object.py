"""GetObject with a boto3 client's credentials and settings, without what boto3 spends on each request.

Building, sending and reading one request costs boto3 ten times the CPU that it takes by hand, all of it under Python's
lock: with many small objects that is what downloads wait for. So the usual request, a key below the endpoint's own
address with a plain Signature Version 4, is signed and sent here, over connections of our own, and its body is read
into the caller's memory. What is unusual, an HTTP proxy, another way of addressing or signing, a redirection, a client
certificate, goes through the client; an answer that is no plain 200 or 206 is read by `http.client`.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import io
import re
import socket
import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from audio_assets.ingest.pages import bare_etag

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
# What may stand in a header as it is; whatever else a listing says is put there by botocore, or refused.
_ETAG = re.compile(r"[!#-~]+")
_METADATA = "x-amz-meta-"
_EMPTY_SHA256 = hashlib.sha256().hexdigest()
# A wrong region or endpoint: the client knows where to go instead.
_FOR_THE_CLIENT = frozenset({301, 302, 303, 307, 308, 400})
_ERROR_BYTES = 64 * 1024
_ERROR_S = 30.0
# Metadata of an object has at most 2 kB in S3, 8 kB in R2.
_HEAD_BYTES = 64 * 1024
_FRAMING = frozenset({"transfer-encoding", "content-encoding", "connection"})
_INTERIM = re.compile(rb"HTTP/1\.1 1[0-9]{2}[ \r]")
_USUAL = re.compile(r"HTTP/1\.1 (20[06])(?: .*)?")


class Body(Protocol):
    """The bytes of an answer, as they come."""

    def readinto(self, into: memoryview, /) -> int:
        """Fill the start of ``into`` with what there is, as soon as there is any; how many bytes, 0 at the end.

        Raises OSError and urllib3's errors.
        """
        ...

    def close(self) -> None:
        """Let go of the connection, whatever has been read."""
        ...


@dataclass(frozen=True)
class Answer:
    """The head of an object's answer, and its body, which is still to be read and closed.

    ``etag`` is without quotes and None when the server sends none. ``hashed_by_etag`` is False where the object is
    encrypted in a way that gives its ETag the shape of an MD5 which it is not.
    """

    body: Body
    etag: str | None
    content_range: str
    content_type: str | None
    metadata: dict[str, str]
    hashed_by_etag: bool


def get_object(client: Any, bucket: str, key: str, etag: str | None, start: int = 0) -> Answer:
    """Ask for the object ``key`` with this ETag, from byte ``start`` on; nothing is retried.

    Args:
        client: a boto3 S3 client; safe to share between threads.
        bucket: name of the bucket.
        key: the object's key.
        etag: the version that is wanted, as listed; any other is answered by 412.
        start: byte to begin with; a server may send everything all the same.

    Raises:
        botocore.exceptions.ClientError: the server's refusal, as from the client's own ``get_object``.
        botocore.exceptions.BotoCoreError: no credentials, and what else the client itself raises.
        OSError: no connection, or it broke.
    """
    headers = {"If-Match": f'"{etag}"'} | ({"Range": f"bytes={start}-"} if start else {})
    direct = _direct_of(client)
    answer = None
    if direct is not None and _BUCKET.fullmatch(bucket) and _ETAG.fullmatch(str(etag)):
        answer = _directly(direct, bucket, key, headers)
    return answer or _through_client(client, bucket, key, headers)


class _Signer:
    """AWS Signature Version 4 of requests without a body, for the credentials and the region of a boto3 client.

    Source: "Authenticating Requests: Using the Authorization Header" in Amazon's S3 API reference. The key of a day is
    derived once, and a signature is two hashes then.
    """

    def __init__(self, credentials: Any, region: str, host: str) -> None:
        self._credentials, self._region, self._host = credentials, region, host
        self._key: tuple[tuple[str, str], bytes] = (("", ""), b"")

    def signed(self, target: str, headers: dict[str, str]) -> dict[str, str]:
        """``headers``, those of the signature and ``Host``; ``target`` is the path, encoded.

        Raises:
            botocore.exceptions.BotoCoreError: credentials that have to be fetched are not to be had.
        """
        credentials = self._credentials.get_frozen_credentials()
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        scope = f"{stamp[:8]}/{self._region}/s3/aws4_request"
        sent = {"Host": self._host, "X-Amz-Content-SHA256": _EMPTY_SHA256, "X-Amz-Date": stamp} | headers
        if credentials.token:
            sent["X-Amz-Security-Token"] = credentials.token
        names = sorted((name.lower(), value) for name, value in sent.items())
        listed = ";".join(name for name, _ in names)
        lines = "".join(f"{name}:{value}\n" for name, value in names)
        request = f"GET\n{target}\n\n{lines}\n{listed}\n{_EMPTY_SHA256}"
        to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        key = self._key_of(credentials.secret_key, stamp[:8])
        sent["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, SignedHeaders={listed}, "
            f"Signature={hmac.digest(key, to_sign.encode(), 'sha256').hex()}"
        )
        return sent

    def _key_of(self, secret: str, day: str) -> bytes:
        known, key = self._key
        if known != (secret, day):
            key = f"AWS4{secret}".encode()
            for part in (day, self._region, "s3", "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._key = (secret, day), key
        return key


class _Connections:
    """Connections to one endpoint; those that nobody uses wait for the next. Threads share them."""

    def __init__(self, endpoint_url: str, tls: Any, connect_timeout_s: float, read_timeout_s: float, most_idle: int):
        parts = urlsplit(endpoint_url)
        self._host = str(parts.hostname)
        self._port = parts.port or (80 if tls is None else 443)
        self._tls = tls
        self._connect_timeout_s, self._read_timeout_s = connect_timeout_s, read_timeout_s
        self._idle: deque[socket.socket] = deque(maxlen=most_idle)

    def send(self, target: str, headers: dict[str, str]) -> _Body:
        """Send a GET; the answer's head has come.

        Raises:
            OSError: no connection, or it broke.
        """
        waited = self._waiting()
        if waited is not None:
            # A server may hang up on a connection that waits; only a new one tells whether it answers.
            with suppress(ConnectionError):
                return self._ask(waited, target, headers)
        return self._ask(self._connected(), target, headers)

    def give_back(self, connection: socket.socket) -> None:
        if len(self._idle) == self._idle.maxlen:
            connection.close()
        else:
            self._idle.append(connection)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _waiting(self) -> socket.socket | None:
        from urllib3.util.wait import wait_for_read

        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            # Nothing was asked: what there is to read is the server's end of it.
            if not wait_for_read(connection, timeout=0.0):
                return connection
            connection.close()

    def _connected(self) -> socket.socket:
        connection = socket.create_connection((self._host, self._port), self._connect_timeout_s)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_hostname=self._host)
            connection.settimeout(self._read_timeout_s)
        except BaseException:
            connection.close()
            raise
        return connection

    def _ask(self, connection: socket.socket, target: str, headers: dict[str, str]) -> _Body:
        try:
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            connection.sendall(f"GET {target} HTTP/1.1\r\nAccept-Encoding: identity\r\n{lines}\r\n".encode())
            came, end = self._head(connection)
            usual = _usual_head(came[:end])
            if usual is not None:
                return _Body(self, connection, *usual, came[end + 4 :])
            response = http.client.HTTPResponse(cast(socket.socket, _Came(came, connection)), method="GET")
            response.begin()
            return _OddBody(self, connection, response)
        except http.client.HTTPException as error:
            connection.close()
            if isinstance(error, OSError):
                raise
            raise ConnectionError(f"no HTTP answer ({type(error).__name__})") from error
        except BaseException:
            connection.close()
            raise

    def _head(self, connection: socket.socket) -> tuple[bytes, int]:
        """What came until there was a whole head, and where that ends."""
        deadline = time.monotonic() + self._read_timeout_s
        came = b""
        while (end := came.find(b"\r\n\r\n")) < 0 or _INTERIM.match(came):
            if end >= 0:
                # Not yet the answer, such as 100 Continue or 103 Early Hints.
                came = came[end + 4 :]
                continue
            if len(came) > _HEAD_BYTES:
                raise ConnectionError(f"the head of the answer has more than {_HEAD_BYTES} bytes")
            block = connection.recv(_HEAD_BYTES)
            if not block:
                raise ConnectionError(f"the connection ended after {len(came)} bytes of an answer's head")
            came += block
            # Timeouts are per read, and a trickle beats them.
            if time.monotonic() > deadline:
                raise TimeoutError("the head of the answer did not come in time")
        return came, end


def _usual_head(head: bytes) -> tuple[int, _Headers, int] | None:
    """Status, headers and length of an answer 200 or 206 of known length; None for any other."""
    first, *lines = head.decode("latin-1").split("\r\n")
    status = _USUAL.fullmatch(first)
    if status is None:
        return None
    headers: list[tuple[str, str]] = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            return None
        headers.append((name, value.strip(" \t")))
    found = _Headers(headers)
    length = found.get("content-length", "")
    # Which of two lengths counts, or a length with chunks, is what servers and proxies have been tricked with.
    if found.is_odd or not (length.isascii() and length.isdigit()):
        return None
    return int(status[1]), found, int(length)


class _Headers(dict[str, str]):
    """Headers by their names in lower case, the first of several; `listed` has them as they came."""

    def __init__(self, listed: list[tuple[str, str]]) -> None:
        super().__init__((name.lower(), value) for name, value in reversed(listed))
        self.listed = listed

    @property
    def is_odd(self) -> bool:
        """Whether some are named twice, or say that the body is not simply what follows."""
        return len(self) != len(self.listed) or not _FRAMING.isdisjoint(self)

    def metadata(self) -> dict[str, str]:
        """The object's own metadata, names as they came."""
        if not any(name.startswith(_METADATA) for name in self):
            return {}
        return {name[len(_METADATA) :]: value for name, value in self.listed if name.lower().startswith(_METADATA)}


class _Came(io.RawIOBase):
    """What came over a connection already, then what comes; `http.client` takes it for a socket."""

    def __init__(self, came: bytes, connection: socket.socket) -> None:
        self._came, self._connection = came, connection

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any, /) -> int:
        if self._came:
            count = min(len(into), len(self._came))
            into[:count] = self._came[:count]
            self._came = self._came[count:]
            return count
        return self._connection.recv_into(into)


class _Body:
    """An answer of known length and its connection, which goes back to the others once all of it was read."""

    def __init__(
        self,
        connections: _Connections,
        connection: socket.socket,
        status: int,
        headers: _Headers,
        length: int,
        came: bytes,
    ) -> None:
        self.status = status
        self.headers = headers
        self._connections = connections
        self._connection: socket.socket | None = connection
        self._came = memoryview(came)[:length]
        self._rest = length - len(self._came)
        # Bytes behind the end are nobody's answer.
        self._reusable = len(came) <= length

    def readinto(self, into: memoryview, /) -> int:
        if self._came:
            count = min(len(into), len(self._came))
            into[:count] = self._came[:count]
            self._came = self._came[count:]
            return count
        if not self._rest or self._connection is None:
            self.close()
            return 0
        count = self._connection.recv_into(into, min(len(into), self._rest))
        self._rest -= count
        if not count:
            self._end(reusable=False)
        return count

    def close(self) -> None:
        self._end(self._reusable and not self._rest)

    def _end(self, reusable: bool) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if reusable:
            self._connections.give_back(connection)
        else:
            connection.close()


class _OddBody(_Body):
    """The same of any other answer, as `http.client` reads it."""

    def __init__(
        self, connections: _Connections, connection: socket.socket, response: http.client.HTTPResponse
    ) -> None:
        super().__init__(connections, connection, response.status, _Headers(list(response.headers.items())), 0, b"")
        self._response = response
        # Of a body in chunks or up to the end of the connection nothing is left to reuse.
        self._reusable = response.length is not None and not response.will_close

    def readinto(self, into: memoryview, /) -> int:
        try:
            block = self._response.read1(len(into))
        except http.client.HTTPException as error:
            raise ConnectionError(f"the answer broke off ({type(error).__name__})") from error
        into[: len(block)] = block
        return len(block)

    def close(self) -> None:
        self._end(self._reusable and self._response.length == 0)
        self._response.close()


class _Stream:
    """The body of an answer that came through the client."""

    def __init__(self, stream: Any) -> None:
        # The stream itself has `read1`, which comes back with what there is; botocore's wrapper has not.
        self._stream = stream._raw_stream

    def readinto(self, into: memoryview, /) -> int:
        block: bytes = self._stream.read1(len(into))
        into[: len(block)] = block
        return len(block)

    def close(self) -> None:
        self._stream.close()


@dataclass(frozen=True)
class _Direct:
    """How a client's requests are signed and sent without it."""

    signer: _Signer
    connections: _Connections


_known: weakref.WeakKeyDictionary[Any, _Direct | None] = weakref.WeakKeyDictionary()
_known_lock = threading.Lock()


def _direct_of(client: Any) -> _Direct | None:
    """How to ask without the client, one set of connections as long as it lives; None when its requests are unusual."""
    try:
        return _known[client]
    except KeyError:
        with _known_lock:
            if client not in _known:
                direct = _known[client] = _new_direct(client)
                if direct is not None:
                    weakref.finalize(client, direct.connections.close)
            return _known[client]


def _new_direct(client: Any) -> _Direct | None:
    config = client.meta.config
    settings = {name: value for name, value in (config.s3 or {}).items() if value}
    try:
        session = client._endpoint.http_session
        signer = client._request_signer
        url = urlsplit(client.meta.endpoint_url)
        usual = (
            (signer.signature_version, signer.signing_name) == ("s3v4", "s3")
            and signer._credentials is not None
            and settings.pop("addressing_style", None) == "path"
            and not settings
            and url.path in ("", "/")
            and url.username is None
            and session._proxy_config.proxy_url_for(url.geturl()) is None
            and not session._cert_file
        )
        if not usual:
            return None
        tls = _tls(session._verify) if url.scheme == "https" else None
        host = str(url.hostname)
        host = f"[{host}]" if ":" in host else host
        if url.port not in (None, 80 if tls is None else 443):
            host = f"{host}:{url.port}"
        signed_by = _Signer(signer._credentials, signer.region_name, host)
    except AttributeError:
        # Another botocore than those we know.
        return None
    return _Direct(
        signed_by,
        _Connections(url.geturl(), tls, config.connect_timeout, config.read_timeout, config.max_pool_connections),
    )


def _tls(verify: Any) -> Any:
    """What botocore would check an endpoint's certificate with."""
    import ssl

    from botocore.httpsession import create_urllib3_context, get_cert_path

    context = create_urllib3_context()
    if verify is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    path = get_cert_path(True if verify is None else verify)
    context.check_hostname = True
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(**({"capath": path} if Path(path).is_dir() else {"cafile": path}))
    return context


def _directly(direct: _Direct, bucket: str, key: str, headers: dict[str, str]) -> Answer | None:
    from botocore.utils import percent_encode

    target = f"/{bucket}/{percent_encode(key, safe='/~')}"
    body = direct.connections.send(target, direct.signer.signed(target, headers))
    found = body.headers
    if body.status < 300:
        encryption = found.get("x-amz-server-side-encryption", "")
        own_key = found.get("x-amz-server-side-encryption-customer-algorithm")
        return Answer(
            body=body,
            etag=_bare(found.get("etag")),
            content_range=found.get("content-range", ""),
            content_type=found.get("content-type"),
            metadata=found.metadata(),
            hashed_by_etag=_is_hash(own_key, encryption),
        )
    try:
        if body.status in _FOR_THE_CLIENT:
            return None
        raise _refusal(body)
    finally:
        body.close()


def _refusal(body: _Body) -> Exception:
    from botocore.exceptions import ClientError
    from botocore.parsers import create_parser

    parsed: dict[str, Any] = create_parser("rest-xml").parse(
        {"status_code": body.status, "headers": body.headers, "body": _start_of(body)}, None
    )
    refusal: Exception = ClientError(parsed, "GetObject")
    return refusal


def _start_of(body: _Body) -> bytes:
    """The body of a refusal; only the start of one that is long or does not come."""
    content = memoryview(bytearray(_ERROR_BYTES))
    size = 0
    deadline = time.monotonic() + _ERROR_S
    while size < _ERROR_BYTES and time.monotonic() < deadline:
        count = body.readinto(content[size:])
        if not count:
            break
        size += count
    return bytes(content[:size])


def _through_client(client: Any, bucket: str, key: str, headers: dict[str, str]) -> Answer:
    arguments = {name.replace("-", ""): value for name, value in headers.items()}
    response = client.get_object(Bucket=bucket, Key=key, **arguments)
    return Answer(
        body=_Stream(response["Body"]),
        etag=_bare(response.get("ETag")),
        content_range=response.get("ContentRange", ""),
        content_type=response.get("ContentType"),
        metadata=dict(response.get("Metadata") or {}),
        hashed_by_etag=_is_hash(response.get("SSECustomerAlgorithm"), response.get("ServerSideEncryption") or ""),
    )


def _is_hash(own_key: str | None, encryption: str) -> bool:
    return not own_key and not encryption.startswith("aws:kms")


def _bare(etag: str | None) -> str | None:
    return bare_etag(etag) if etag else None
