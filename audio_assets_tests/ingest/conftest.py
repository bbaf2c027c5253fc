"""Servers for the ingest tests: a bucket of the real one, one that takes odd keys, one that misbehaves."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audio_assets.demo_server import WeedServer
from audio_assets.ingest.get_object import Answer, get_object
from audio_assets.ingest.mirror import Mirror
from audio_assets_tests.ingest.faulty import FaultyServer


@pytest.fixture
def fetches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by the key of each object that a download asks for."""
    asked: list[str] = []

    def noted(client: Any, bucket: str, key: str, *arguments: Any) -> Answer:
        asked.append(key)
        return get_object(client, bucket, key, *arguments)

    monkeypatch.setattr("audio_assets.ingest.download.get_object", noted)
    return asked


@pytest.fixture
def bucket(weed: WeedServer, request: pytest.FixtureRequest) -> Iterator[Bucket]:
    """An empty bucket of the real server, one per test."""
    name = "test-" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]
    client = weed.client()
    client.create_bucket(Bucket=name)
    yield Bucket(client, name)
    client.close()
    remove_bucket(weed, name)


def remove_bucket(weed: WeedServer, name: str) -> None:
    """Give back the volumes that a bucket takes: the server has some hundred at most."""
    client = weed.client()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
        for found in page.get("Contents", []):
            client.delete_object(Bucket=name, Key=found["Key"])
    client.delete_bucket(Bucket=name)
    client.close()


class Bucket:
    """A bucket and the client to use it."""

    def __init__(self, client: Any, name: str) -> None:
        self.client = client
        self.name = name

    def put(self, key: str, content: bytes, **arguments: Any) -> str:
        """Store an object; returns its ETag."""
        return self.client.put_object(Bucket=self.name, Key=key, Body=content, **arguments)["ETag"].strip('"')

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=key)


@pytest.fixture
def faulty() -> Iterator[FaultyServer]:
    with FaultyServer() as server:
        yield server


@pytest.fixture
def faulty_client(faulty: FaultyServer) -> Iterator[Any]:
    """A client that does not retry by itself: what is retried, we retried."""
    client = plain_client(faulty.endpoint_url)
    yield client
    client.close()


def bytes_in(mirror: Path) -> int:
    """What lies in the mirror at one moment: recordings, and downloads under way.

    A look at a tree takes a while: what two looks have both seen was there between them.
    """
    first, second = _look(mirror), _look(mirror)
    return sum(size for inode, size in first.items() if inode in second)


def _look(mirror: Path) -> dict[int, int]:
    found = {}
    for path in mirror.rglob("*"):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        if path.suffix in (".wav", ".part"):
            found[status.st_ino] = status.st_size
    return found


def plain_client(endpoint_url: str) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint_url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(
            s3={"addressing_style": "path"},
            retries={"total_max_attempts": 1},
            connect_timeout=5,
            read_timeout=30,
            max_pool_connections=16,
        ),
    )


@pytest.fixture
def mirror(tmp_path: Path) -> Mirror:
    return Mirror(tmp_path / "audio")


@pytest.fixture(scope="session")
def odd_server() -> Iterator[str]:
    """The endpoint of a server that takes every key."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()
