"""GetObject with a boto3 client's credentials and settings, without what boto3 spends on each request.

Building, sending and reading one request costs boto3 five times the CPU that it takes by hand, all of it under Python's
lock: with many small objects that is what downloads wait for. So the usual request, a key below the endpoint's own
address, is signed by botocore and sent over connections of our own. What is unusual, an HTTP proxy, another way of
addressing, a redirection, a client certificate, goes through the client.
"""

from __future__ import annotations

import http.client
import re
import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_METADATA = "x-amz-meta-"
# A wrong region or endpoint: the client knows where to go instead.
_FOR_THE_CLIENT = frozenset({301, 302, 303, 307, 308, 400})
_ERROR_BYTES = 64 * 1024
_ERROR_S = 30.0


class Body(Protocol):
    """The bytes of an answer, as they come."""

    def read1(self, size: int, /) -> bytes:
        """At most ``size`` bytes, as soon as there are any; none at the end. Raises OSError and urllib3's errors."""
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
    connections = _connections_of(client)
    answer = None
    if connections is not None and _BUCKET.fullmatch(bucket):
        answer = _directly(client, connections, bucket, key, headers)
    return answer or _through_client(client, bucket, key, headers)


class _Connections:
    """Connections to one endpoint; those that nobody uses wait for the next. Threads share them."""

    def __init__(self, endpoint_url: str, tls: Any, connect_timeout_s: float, read_timeout_s: float, most_idle: int):
        parts = urlsplit(endpoint_url)
        self.endpoint_url = endpoint_url
        self._host, self._port = str(parts.hostname), parts.port
        self._tls = tls
        self._connect_timeout_s, self._read_timeout_s = connect_timeout_s, read_timeout_s
        self._idle: deque[http.client.HTTPConnection] = deque(maxlen=most_idle)

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

    def give_back(self, connection: http.client.HTTPConnection) -> None:
        if len(self._idle) == self._idle.maxlen:
            connection.close()
        else:
            self._idle.append(connection)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _waiting(self) -> http.client.HTTPConnection | None:
        from urllib3.util.wait import wait_for_read

        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            # Nothing was asked: what there is to read is the server's end of it.
            if not wait_for_read(connection.sock, timeout=0.0):
                return connection
            connection.close()

    def _connected(self) -> http.client.HTTPConnection:
        timeout_s = self._connect_timeout_s
        if self._tls is None:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        else:
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=timeout_s, context=self._tls)
        try:
            connection.connect()
            connection.sock.settimeout(self._read_timeout_s)
        except BaseException:
            connection.close()
            raise
        return connection

    def _ask(self, connection: http.client.HTTPConnection, target: str, headers: dict[str, str]) -> _Body:
        try:
            connection.request("GET", target, headers=headers)
            return _Body(self, connection, connection.getresponse())
        except http.client.HTTPException as error:
            connection.close()
            if isinstance(error, OSError):
                raise
            raise ConnectionError(f"no HTTP answer ({type(error).__name__})") from error
        except BaseException:
            connection.close()
            raise


class _Body:
    """A response and its connection, which goes back to the others once all of it was read."""

    def __init__(
        self, connections: _Connections, connection: http.client.HTTPConnection, response: http.client.HTTPResponse
    ) -> None:
        self.status = response.status
        self.headers = response.headers
        self._connections = connections
        self._connection: http.client.HTTPConnection | None = connection
        self._response = response
        # Of a body in chunks or up to the end of the connection nothing is left to reuse.
        self._reusable = response.length is not None and not response.will_close

    def read1(self, size: int, /) -> bytes:
        try:
            block = self._response.read1(size)
        except http.client.HTTPException as error:
            raise ConnectionError(f"the answer broke off ({type(error).__name__})") from error
        if not block:
            self._end(self._reusable and not self._response.length)
        return block

    def close(self) -> None:
        self._end(self._reusable and self._response.length == 0)

    def _end(self, reusable: bool) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._response.close()
        if reusable:
            self._connections.give_back(connection)
        else:
            connection.close()


_known: weakref.WeakKeyDictionary[Any, _Connections | None] = weakref.WeakKeyDictionary()
_known_lock = threading.Lock()


def _connections_of(client: Any) -> _Connections | None:
    """The connections for a client, one set as long as it lives; None when its requests are not the usual ones."""
    try:
        return _known[client]
    except KeyError:
        with _known_lock:
            if client not in _known:
                connections = _known[client] = _new_connections(client)
                if connections is not None:
                    weakref.finalize(client, connections.close)
            return _known[client]


def _new_connections(client: Any) -> _Connections | None:
    config = client.meta.config
    settings = {name: value for name, value in (config.s3 or {}).items() if value}
    try:
        session = client._endpoint.http_session
        url = client.meta.endpoint_url
        usual = (
            hasattr(client, "_request_signer")
            and settings.pop("addressing_style", None) == "path"
            and not settings
            and urlsplit(url).path in ("", "/")
            and session._proxy_config.proxy_url_for(url) is None
            and not session._cert_file
        )
        if not usual:
            return None
        tls = _tls(session._verify) if url.startswith("https:") else None
    except AttributeError:
        # Another botocore than those we know.
        return None
    return _Connections(url.rstrip("/"), tls, config.connect_timeout, config.read_timeout, config.max_pool_connections)


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


def _directly(client: Any, connections: _Connections, bucket: str, key: str, headers: dict[str, str]) -> Answer | None:
    from botocore.awsrequest import AWSRequest
    from botocore.utils import percent_encode

    target = f"/{bucket}/{percent_encode(key, safe='/~')}"
    request = AWSRequest("GET", connections.endpoint_url + target, headers=headers)
    client._request_signer.sign("GetObject", request)
    body = connections.send(target, dict(request.headers.items()))
    if body.status < 300:
        found = body.headers
        encryption = found.get("x-amz-server-side-encryption", "")
        own_key = found.get("x-amz-server-side-encryption-customer-algorithm")
        return Answer(
            body=body,
            etag=_bare(found.get("ETag")),
            content_range=found.get("Content-Range", ""),
            content_type=found.get("Content-Type"),
            metadata={
                name[len(_METADATA) :]: value for name, value in found.items() if name.lower().startswith(_METADATA)
            },
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
    content = b""
    deadline = time.monotonic() + _ERROR_S
    while len(content) < _ERROR_BYTES and time.monotonic() < deadline:
        block = body.read1(_ERROR_BYTES)
        if not block:
            break
        content += block
    return content


def _through_client(client: Any, bucket: str, key: str, headers: dict[str, str]) -> Answer:
    arguments = {name.replace("-", ""): value for name, value in headers.items()}
    response = client.get_object(Bucket=bucket, Key=key, **arguments)
    return Answer(
        # The stream itself has `read1`, which comes back with what there is; botocore's wrapper has not.
        body=response["Body"]._raw_stream,
        etag=_bare(response.get("ETag")),
        content_range=response.get("ContentRange", ""),
        content_type=response.get("ContentType"),
        metadata=dict(response.get("Metadata") or {}),
        hashed_by_etag=_is_hash(response.get("SSECustomerAlgorithm"), response.get("ServerSideEncryption") or ""),
    )


def _is_hash(own_key: str | None, encryption: str) -> bool:
    return not own_key and not encryption.startswith("aws:kms")


def _bare(etag: str | None) -> str | None:
    return etag.strip('"') if etag else None
