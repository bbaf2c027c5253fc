"""The direct way of asking for an object against the client's own: the same answers, the same care."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from audio_assets.ingest.get_object import Answer, _direct_of, get_object
from audio_assets_tests.ingest.conftest import Bucket, plain_client
from audio_assets_tests.ingest.faulty import FaultyServer

ODD_KEYS = [
    "a b/ä+.wav",
    "100%.wav",
    "a//b.wav",
    "../escape.wav",
    "q?x=1&y#z.wav",
    "back\\slash~'()*!.wav",
    "日本/.wav",
]


def read(answer: Answer) -> bytes:
    with contextlib.closing(answer.body) as body:
        into = memoryview(bytearray(1000))
        return b"".join(iter(lambda: bytes(into[: body.readinto(into)]), b""))


def calls_of(client: Any) -> list[str]:
    """Grows with each request that goes through the client's own `get_object`."""
    calls: list[str] = []
    client.meta.events.register("before-call.s3.GetObject", lambda **_: calls.append("GetObject"))
    return calls


@contextlib.contextmanager
def listening(answer: Any, tls: ssl.SSLContext | None = None) -> Iterator[tuple[str, list[tuple[str, dict[str, str]]]]]:
    """A server's address and what it was asked; ``answer(path)`` gives status, headers and body."""
    asked: list[tuple[str, dict[str, str]]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append((self.path, dict(self.headers.items())))
            status, headers, body = answer(self.path)
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ok(_: str) -> tuple[int, dict[str, str], bytes]:
    return 200, {"ETag": '"e"', "Content-Type": "audio/wav"}, b"sound"


def client_with(endpoint_url: str, config: dict[str, Any] | None = None, **arguments: Any) -> Any:
    import boto3
    from botocore.config import Config

    settings = {"s3": {"addressing_style": "path"}, "retries": {"total_max_attempts": 1}, "read_timeout": 5}
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint_url,
        region_name="auto",
        config=Config(**(settings | (config or {}))),
        **({"aws_access_key_id": "test", "aws_secret_access_key": "test"} | arguments),
    )


@pytest.mark.parametrize("key", ODD_KEYS)
def test_the_answer_is_the_clients_for_every_key(odd_server: str, key: str) -> None:
    client = plain_client(odd_server)
    calls = calls_of(client)
    client.create_bucket(Bucket="direct")
    put = client.put_object(Bucket="direct", Key=key, Body=b"sound", ContentType="audio/x-wav", Metadata={"who": "me"})
    answer = get_object(client, "direct", key, put["ETag"].strip('"'))
    assert (read(answer), calls) == (b"sound", [])
    own = client.get_object(Bucket="direct", Key=key)
    assert answer.etag == own["ETag"].strip('"')
    assert (answer.content_type, answer.metadata) == (own["ContentType"], own["Metadata"])
    assert answer.hashed_by_etag
    own["Body"].close()
    client.close()


def test_the_real_server_takes_the_signature_and_sends_a_range(bucket: Bucket) -> None:
    etag = bucket.put("calls/ä b.wav", bytes(range(256)))
    calls = calls_of(bucket.client)
    answer = get_object(bucket.client, bucket.name, "calls/ä b.wav", etag, start=200)
    assert (answer.content_range, read(answer)) == ("bytes 200-255/256", bytes(range(200, 256)))
    assert calls == []


@pytest.mark.parametrize("fault", [401, 403, 404, 412, 429, 500, 503])
def test_a_refusal_is_the_clients(faulty: FaultyServer, faulty_client: Any, fault: int) -> None:
    faulty.put("a.wav", b"sound")
    faulty.faults["a.wav"] = [fault, fault]
    with pytest.raises(ClientError) as own:
        faulty_client.get_object(Bucket="bucket", Key="a.wav")
    calls = calls_of(faulty_client)
    with pytest.raises(ClientError) as direct:
        get_object(faulty_client, "bucket", "a.wav", faulty.etags["a.wav"])
    assert calls == []
    assert direct.value.response["Error"] == own.value.response["Error"]
    assert direct.value.response["ResponseMetadata"]["HTTPStatusCode"] == fault
    assert direct.value.operation_name == own.value.operation_name


def test_connections_are_used_again() -> None:
    with listening(ok) as (url, asked):
        ports = set()
        client = client_with(url)
        for _ in range(3):
            answer = get_object(client, "bucket", "a.wav", "e")
            ports.add(answer.body._connection.getsockname()[1])  # type: ignore[attr-defined]
            assert read(answer) == b"sound"
        client.close()
    assert (len(asked), len(ports)) == (3, 1)


def test_a_connection_that_the_server_closed_meanwhile_is_replaced(faulty: FaultyServer, faulty_client: Any) -> None:
    faulty.put("a.wav", b"sound")
    faulty.faults["a.wav"] = [500, "reset"]
    with pytest.raises(ClientError):
        get_object(faulty_client, "bucket", "a.wav", faulty.etags["a.wav"])
    # The one that is kept breaks at the next request; a new one is tried before anybody is told.
    assert read(get_object(faulty_client, "bucket", "a.wav", faulty.etags["a.wav"])) == b"sound"


def test_credentials_are_not_carried_to_where_a_redirection_points() -> None:
    with listening(ok) as (elsewhere, asked_elsewhere):
        moved = (307, {"Location": f"{elsewhere}/bucket/a.wav"}, b"")
        with listening(lambda _: moved) as (url, asked):
            client = client_with(url)
            with pytest.raises(ClientError):
                get_object(client, "bucket", "a.wav", "e")
            client.close()
    assert asked
    assert asked_elsewhere == []


def test_a_session_token_is_sent_and_signed() -> None:
    with listening(ok) as (url, asked):
        client = client_with(url, aws_session_token="token-of-the-session")
        assert read(get_object(client, "bucket", "a.wav", "e")) == b"sound"
        client.close()
    ((_, headers),) = asked
    assert headers["X-Amz-Security-Token"] == "token-of-the-session"
    assert "x-amz-security-token" in headers["Authorization"]
    # R2 knows no checksum trailers, and the ETag is pinned.
    assert not [name for name in headers if "checksum" in name.lower() or "trailer" in name.lower()]
    assert headers["If-Match"] == '"e"'


@pytest.mark.parametrize("token", [None, "token"])
@pytest.mark.parametrize(
    "endpoint", ["https://account.r2.cloudflarestorage.com", "http://127.0.0.1:8333", "http://[::1]"]
)
def test_a_signature_is_the_one_that_botocore_makes(endpoint: str, token: str | None) -> None:
    import re

    from botocore.awsrequest import AWSRequest
    from botocore.utils import percent_encode

    client = client_with(endpoint, aws_session_token=token)
    direct = _direct_of(client)
    assert direct is not None
    for key in ODD_KEYS:
        target = "/bucket/" + percent_encode(key, safe="/~")
        headers = {"If-Match": '"e"', "Range": "bytes=5-"}
        ours = direct.signer.signed(target, headers)
        for _ in range(100):  # another second may begin
            theirs = AWSRequest("GET", endpoint + target, headers=headers)
            client._request_signer.sign("GetObject", theirs)
            if theirs.headers["X-Amz-Date"] == ours["X-Amz-Date"]:
                break
            ours = direct.signer.signed(target, headers)
        signature = re.compile("Signature=.*")
        assert signature.search(ours["Authorization"])[0] == signature.search(theirs.headers["Authorization"])[0]  # type: ignore[index]
        assert ours["Authorization"] == theirs.headers["Authorization"]
    client.close()


@contextlib.contextmanager
def saying(*answers: bytes) -> Iterator[tuple[str, list[int]]]:
    """A server's address and the ports it was asked from; each connection gives ``answers``, byte for byte, in turn."""
    import socket

    ports: list[int] = []
    waiting = list(answers)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    over = threading.Event()

    def serve() -> None:
        open_ones = []
        while not over.is_set() and waiting:
            try:
                connection, (_, port) = listener.accept()
            except TimeoutError:
                continue
            open_ones.append(connection)
            connection.settimeout(5)
            answer = b""
            with contextlib.suppress(OSError):
                while waiting and b"\r\n\r\n" in connection.recv(65536):
                    ports.append(port)
                    answer = waiting.pop(0)
                    connection.sendall(answer)
                    if b"HTTP/1.0" in answer or b"close" in answer:
                        break
            if b"HTTP/1.0" in answer or b"close" in answer:
                connection.close()
        over.wait(5)
        for connection in open_ones:
            connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", ports
    finally:
        over.set()
        thread.join()
        listener.close()


HEAD = b'HTTP/1.1 200 OK\r\nETag: "e"\r\n'


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"Content-Length: 5\r\n\r\nsound",
        HEAD + b"X-Folded: a\r\n b\r\nContent-Length: 5\r\n\r\nsound",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nso\r\n3\r\nund\r\n0\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nConnection: close\r\n\r\nsound",
        HEAD + b"Connection: close\r\n\r\nsound",
        HEAD.replace(b"1.1", b"1.0") + b"\r\nsound",
        b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"Content-Length: 5\r\n\r\nsound",
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 2 + HEAD + b"Content-Length: 5\r\n\r\nsound",
        HEAD + b"X-Long: " + b"x" * 20_000 + b"\r\nContent-Length: 5\r\n\r\nsound",
    ],
    ids=["plain", "folded", "chunked", "close", "no length", "HTTP/1.0", "after 100", "after 103", "long head"],
)
def test_an_answer_is_understood_however_it_is_put(answer: bytes) -> None:
    with saying(answer) as (url, _):
        client = client_with(url)
        got = get_object(client, "bucket", "a.wav", "e")
        assert (got.etag, read(got)) == ("e", b"sound")
        client.close()


@pytest.mark.parametrize(
    "answer",
    [b"", b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 200 OK close\r\nContent-Le", HEAD + b"close: " + b"x" * 100_000],
    ids=["nothing", "no http", "half a head", "endless head"],
)
def test_what_is_no_answer_is_a_broken_connection(answer: bytes) -> None:
    with saying(answer + b"close" * (not answer)) as (url, _):
        client = client_with(url)
        with pytest.raises(OSError, match=r"\S"):
            get_object(client, "bucket", "a.wav", "e")
        client.close()


def test_bytes_behind_the_end_of_an_answer_are_not_taken_for_the_next_one() -> None:
    forged = HEAD + b"Content-Length: 5\r\n\r\nother"
    plain = HEAD + b"Content-Length: 5\r\n\r\nsound"
    with saying(plain + forged, plain) as (url, ports):
        client = client_with(url)
        for _ in range(2):
            assert read(get_object(client, "bucket", "a.wav", "e")) == b"sound"
        client.close()
    assert len(set(ports)) == 2


def test_the_head_of_an_answer_may_come_in_pieces_but_not_for_ever() -> None:
    import socket

    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(HEAD)
            for _ in range(100):
                connection.sendall(b"X")
                threading.Event().wait(0.05)

    thread = threading.Thread(target=serve)
    thread.start()
    client = client_with(f"http://127.0.0.1:{listener.getsockname()[1]}", {"read_timeout": 2.0})
    with pytest.raises(TimeoutError, match="did not come in time"):
        get_object(client, "bucket", "a.wav", "e")
    client.close()
    thread.join()
    listener.close()


@pytest.mark.parametrize("etag", ['e"\r\nX-Evil: 1', "e\n", "ä"])
def test_an_etag_cannot_put_headers_into_a_request(etag: str) -> None:
    with listening(ok) as (url, asked):
        client = client_with(url)
        with contextlib.suppress(Exception):
            get_object(client, "bucket", "a.wav", etag)
        client.close()
    assert not any("x-evil" in name.lower() for _, headers in asked for name in headers)


def test_an_unsigned_client_signs_nothing() -> None:
    from botocore import UNSIGNED

    with listening(ok) as (url, asked):
        client = client_with(url, {"signature_version": UNSIGNED})
        assert read(get_object(client, "bucket", "a.wav", "e")) == b"sound"
        client.close()
    assert "Authorization" not in asked[0][1]


def test_an_http_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(ok) as (proxy, asked):
        monkeypatch.setenv("HTTP_PROXY", proxy)
        client = client_with("http://bucket-server.invalid")
        assert read(get_object(client, "bucket", "a.wav", "e")) == b"sound"
        client.close()
    assert asked[0][0].startswith("http://bucket-server.invalid/bucket/a.wav")


def test_another_way_of_addressing_goes_through_the_client(faulty: FaultyServer) -> None:
    faulty.put("a.wav", b"sound")
    client = client_with(faulty.endpoint_url, {"s3": {}})
    calls = calls_of(client)
    assert read(get_object(client, "bucket", "a.wav", faulty.etags["a.wav"])) == b"sound"
    assert calls == ["GetObject"]
    client.close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that vouches for itself, with its key."""
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(timezone.utc)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    plain = serialization.NoEncryption()
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    return path


@pytest.mark.parametrize("trust", ["bundle", "environment", "off"])
def test_a_certificate_that_is_trusted_is_taken(certificate: Path, trust: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments: dict[str, Any] = {"bundle": {"verify": str(certificate)}, "off": {"verify": False}}.get(trust, {})
    if trust == "environment":
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with listening(ok, tls) as (url, _):
        client = client_with(url, **arguments)
        calls = calls_of(client)
        assert read(get_object(client, "bucket", "a.wav", "e")) == b"sound"
        assert calls == []
        client.close()


def test_a_certificate_that_nobody_vouches_for_is_refused(certificate: Path) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with listening(ok, tls) as (url, asked):
        client = client_with(url)
        with pytest.raises(ssl.SSLCertVerificationError):
            get_object(client, "bucket", "a.wav", "e")
        client.close()
    assert asked == []
