"""Real servers on loopback for the tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from audio_assets.demo_server import WeedServer

BUCKET = "recordings"


@contextmanager
def s3_server(directory: Path, bucket: str = BUCKET) -> Iterator[WeedServer]:
    """An empty S3 server with one bucket: ``endpoint_url``, ``access_key_id``, ``secret_access_key``, ``client()``."""
    with WeedServer(directory, bucket) as server:
        yield server


def put_files(server: WeedServer, files: dict[str, bytes | Path]) -> None:
    """Upload ``files`` by key, as a user would."""
    client = server.client()
    for key, content in files.items():
        client.put_object(
            Bucket=server.bucket, Key=key, Body=content if isinstance(content, bytes) else content.read_bytes()
        )
