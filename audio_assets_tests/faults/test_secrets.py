"""Canaries in every secret setting are found in nothing that a run, good or bad, leaves or says."""

from __future__ import annotations

import gzip
import sqlite3
import threading
import zlib
from collections.abc import Collection, Iterator
from contextlib import closing, suppress
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audio_assets.settings import Home, Settings
from audio_assets_tests.faults.campaign import tried
from audio_assets_tests.faults.test_kills import RUN, keys, settings, victims  # noqa: F401
from audio_assets_tests.faults.victims import Victims
from audio_assets_tests.speech.conftest import FaultServer, fault_server, reply  # noqa: F401

SECRETS = {name.upper() for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
OF_THE_SERVER = "R2_SECRET_ACCESS_KEY"
"""The one that must be right; the server made it up at random."""


def contents(path: Path) -> Iterator[bytes]:
    """What a file says: as it lies there, and unpacked where its format packs it."""
    data = path.read_bytes()
    yield data
    if data[:2] == b"\x1f\x8b":
        yield gzip.decompress(data)
    elif data[:4] == b"PAR1":
        yield repr(pq.read_table(path).to_pylist()).encode()
    elif data[:15] == b"SQLite format 3":
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            for (table,) in tables:
                for row in connection.execute(f'SELECT * FROM "{table}"'):
                    for value in row:
                        blob = value if isinstance(value, bytes) else str(value).encode()
                        yield blob
                        # Dagster packs what it remembers of jobs and plans.
                        with suppress(zlib.error):
                            yield zlib.decompress(blob)
    elif data[8:12] == b"DUCK":
        with duckdb.connect(str(path), read_only=True) as warehouse:
            for schema, table in warehouse.execute("SELECT schema_name, table_name FROM duckdb_tables()").fetchall():
                yield repr(warehouse.execute(f'SELECT * FROM "{schema}"."{table}"').fetchall()).encode()


def holders(root: Path, canaries: Collection[str]) -> list[tuple[Path, str]]:
    """Files under ``root`` that hold a canary, packed or not."""
    sought = [(canary, canary.encode()) for canary in canaries]
    return [
        (path, canary)
        for path in root.rglob("*")
        if path.is_file()
        for text in contents(path)
        for canary, encoded in sought
        if encoded in text
    ]


class Processes:
    """What everybody on the machine sees of everybody's commands, as ``ps`` shows it, while the block lasts."""

    def __enter__(self) -> Processes:
        self.seen: set[bytes] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.05):
            for process in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    self.seen.add(process.read_bytes())


def test_the_search_finds_what_is_packed(tmp_path: Path) -> None:
    """Or it would prove nothing."""
    canary = "canary-in-the-mine-7f3a"
    (tmp_path / "a.gz").write_bytes(gzip.compress(canary.encode() * 9))
    pq.write_table(pa.table({"x": [canary] * 1000}), tmp_path / "b.parquet", compression="zstd")
    with closing(sqlite3.connect(tmp_path / "c.db")) as connection, connection:
        connection.execute("CREATE TABLE t (x BLOB)")
        connection.execute("INSERT INTO t VALUES (?)", [zlib.compress(canary.encode() * 9)])
    with duckdb.connect(str(tmp_path / "d.duckdb")) as warehouse:
        warehouse.execute("CREATE TABLE t AS SELECT ? AS x FROM range(5000)", [canary])
    (tmp_path / "plain.log").write_text(f"key={canary}")
    assert {path.name for path, _ in holders(tmp_path, [canary])} == {
        *("a.gz", "b.parquet", "c.db", "d.duckdb", "plain.log")
    }


@pytest.mark.parametrize(
    "trouble",
    [
        *("none", "401 that repeats the key", "no bucket"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("wrong endpoint", "html", "crash")),
    ],
)
def test_no_canary_is_found_anywhere(
    trouble: str,
    tmp_path: Path,
    victims: Victims,  # noqa: F811
    settings: dict[str, str],  # noqa: F811
    fault_server: FaultServer,  # noqa: F811
    keys: set[str],  # noqa: F811
    request: pytest.FixtureRequest,
) -> None:
    home = Home(tmp_path / "home")
    canaries = {name: f"canary-{name.lower().replace('_', '-')}-7f3a" for name in SECRETS - {OF_THE_SERVER}}
    canaries["AUDIO_ASSETS_WEBHOOK_URL"] = "https://canary-webhook-7f3a.invalid/hook"
    here = settings | canaries | {"AUDIO_ASSETS_HOME": str(home.root)}
    if trouble.startswith("401"):
        told = f"Incorrect API key provided: {canaries['OPENAI_API_KEY']}"
        fault_server.answers = [reply(401, {"error": {"message": told, "code": "invalid_api_key"}})]
    elif trouble == "html":
        fault_server.answers = [reply(200, f"<html>{canaries['OPENAI_API_KEY']}</html>".encode(), "text/html")]
    elif trouble == "no bucket":
        here["R2_BUCKET"] = "nobody-has-this"
    elif trouble == "wrong endpoint":
        here["R2_ENDPOINT_URL"] = "http://127.0.0.1:9"

    said = []
    commands = ((*RUN, "--verbose"), ("doctor",), ("verify",), ("report",), ("plan",))
    with Processes() as processes:
        for command in commands:
            # An exception that nobody foresaw, in the middle of a transcription, with everything at hand.
            at = "request sent" if trouble == "crash" and command[0] == "run" else None
            ended = victims.run(*command, settings=here, at=at, blow=0)
            assert ended.returncode in (0, 1, 3, 4, 5), (command, ended)
            said.append(ended.output)
    assert b"audio-assets" in b" ".join(processes.seen) or processes.seen

    canaries[OF_THE_SERVER] = settings[OF_THE_SERVER]
    for name, canary in canaries.items():
        assert not [text for text in said if canary in text], name
        assert not [command for command in processes.seen if canary.encode() in command], name
    assert holders(home.root, canaries.values()) == []
    if trouble == "crash":
        assert "nobody foresaw this" in said[0]
    tried(request, len(canaries))
