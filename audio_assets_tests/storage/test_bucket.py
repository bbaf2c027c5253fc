"""The same record in a bucket, on a real S3 server."""

import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote

import boto3
import duckdb
import pyarrow as pa
import pytest

from audio_assets import schemas
from audio_assets.demo import BUCKET
from audio_assets.demo_server import WeedServer
from audio_assets.errors import SettingsError, StorageError, SupersededError
from audio_assets.settings import Home
from audio_assets.storage.exports import export_corpus
from audio_assets.storage.objects import Objects
from audio_assets.storage.partition_files import PartitionStore
from audio_assets.storage.places import place_for
from audio_assets.storage.verify import verify
from audio_assets.storage.warehouse import Refresh, Warehouse
from audio_assets_tests.conftest import bucket_url

from .rows import tokens, transcripts

TRANSCRIPTS, TOKENS = schemas.TRANSCRIPTS, schemas.TOKENS
# The server refuses `..` anywhere in a key; our names have none, whatever the partition is called.
KEYS = ["calls/2024", "it's", "x'; DROP TABLE tokens; --", "../..", "Calls", "calls", "ünï 🎙️\n", "z" * 1024, "%2F"]


@pytest.fixture
def bucket(weed: WeedServer, tmp_path: Path) -> PartitionStore:
    return PartitionStore(bucket_url(weed, f"tables-{tmp_path.name}"))


def test_partitions_are_written_read_listed_and_deleted(bucket: PartitionStore) -> None:
    assert bucket.partitions(TRANSCRIPTS) == []
    assert bucket.read(TRANSCRIPTS, ["none"]).num_rows == 0
    for key in KEYS:
        bucket.write(TRANSCRIPTS, transcripts(key, {key: "old"}), key)
        bucket.write(TRANSCRIPTS, transcripts(key, {key: key, key + "2": "x"}), key)
    assert {f.partition for f in bucket.partitions(TRANSCRIPTS)} == set(KEYS)
    for key in KEYS:
        assert bucket.find(TRANSCRIPTS, key) is not None
        assert bucket.read(TRANSCRIPTS, [key], ["transcription"]).column(0).to_pylist() == [key, "x"]
    assert bucket.delete(TRANSCRIPTS, KEYS[0])
    assert not bucket.delete(TRANSCRIPTS, KEYS[0])
    assert bucket.find(TRANSCRIPTS, KEYS[0]) is None
    assert bucket.read(TRANSCRIPTS).num_rows == 2 * len(KEYS) - 2


def test_a_partition_larger_than_one_upload_comes_back(bucket: PartitionStore) -> None:
    import random

    source = random.Random(0)
    data = transcripts("a/", {f"{n:05}": source.randbytes(2_000).hex() for n in range(12_000)})
    written = bucket.write(TRANSCRIPTS, data, "a")
    assert written.size_bytes > 20 * 2**20
    assert bucket.read(TRANSCRIPTS, ["a"]).equals(data)
    few = bucket.read(TRANSCRIPTS, ["a"], ["id"])
    assert few.column("id").to_pylist() == [f"{n:05}" for n in range(12_000)]


def test_a_large_partition_is_read_in_pieces_as_often_as_it_is_asked_for(bucket: PartitionStore) -> None:
    import random

    source = random.Random(0)
    parts = {
        key: transcripts(f"{key}/", {f"{key}/{n:05}": source.randbytes(2_000).hex() for n in range(4_000)})
        for key in "ab"
    }
    for key, rows in parts.items():
        assert bucket.write(TRANSCRIPTS, rows, key).size_bytes > 5 * 2**20
    relation = duckdb.connect().from_arrow(bucket.dataset(TRANSCRIPTS))
    assert relation.filter("id = 'b/00007'").fetchall() == [tuple(parts["b"].slice(7, 1).to_pylist()[0].values())]
    assert relation.count("*").fetchall() == [(8_000,)]
    assert bucket.dataset(TRANSCRIPTS).to_table().sort_by("id").equals(pa.concat_tables(parts.values()))


def test_a_partition_that_is_replaced_while_it_is_read_is_no_mixture(bucket: PartitionStore) -> None:
    import random

    source = random.Random(0)
    rows = transcripts("a/", {f"{n:05}": source.randbytes(2_000).hex() for n in range(4_000)})
    bucket.write(TRANSCRIPTS, rows, "a")
    dataset = bucket.dataset(TRANSCRIPTS, ["a"])
    bucket.write(TRANSCRIPTS, rows.slice(1), "a")
    with pytest.raises(StorageError, match=r"a\.parquet"):
        dataset.to_table()


def test_an_answer_that_breaks_off_is_asked_for_again() -> None:
    body = pa.BufferOutputStream()
    asked: list[str] = []

    class Breaks(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", "10")
            self.end_headers()
            self.wfile.write(b"0123456789" if len(asked) > 1 else b"012")

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Breaks) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        place = place_for(f"s3://key:secret@bucket/x?endpoint_override=127.0.0.1:{server.server_port}&scheme=http")
        with place.open("tokens/a.parquet") as opened:
            body.write(opened.read())
        server.shutdown()
    assert body.getvalue().to_pybytes() == b"0123456789"
    assert len(asked) == 2


def test_every_write_has_an_identity_of_its_own(bucket: PartitionStore) -> None:
    identities = [bucket.write(TOKENS, tokens("a/", {"x": ["same"]}), "a").identity for _ in range(5)]
    assert len(set(identities)) == 5
    assert [f.identity for f in bucket.partitions(TOKENS)] == identities[-1:]
    assert [bucket.find(TOKENS, "a")] == bucket.partitions(TOKENS)


def test_the_warehouse_and_exports_follow_a_bucket(bucket: PartitionStore, tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path / "warehouse.duckdb", bucket)
    for key in "abc":
        bucket.write(TRANSCRIPTS, transcripts(f"{key}/", {f"{key}/1": key}), key)
        bucket.write(TOKENS, tokens(f"{key}/", {f"{key}/1": [key]}), key)
    assert warehouse.refresh() == Refresh(loaded=6)
    bucket.write(TOKENS, tokens("b/", {"b/1": ["new"]}), "b")
    bucket.delete(TOKENS, "c")
    assert warehouse.refresh() == Refresh(loaded=1, removed=1)
    with warehouse.connect() as connection:
        found = connection.execute("SELECT id, token FROM token_occurrences ORDER BY ALL").fetchall()
    assert found == [("a/1", "a"), ("b/1", "new")]
    (file,) = export_corpus(bucket, tmp_path / "exports", ["json"])
    assert file.row_count == 3
    relation = bucket.dataset(TRANSCRIPTS, ["a", "c"]).to_table(columns=["id"])
    assert relation.column("id").to_pylist() == ["a/1", "c/1"]


def test_a_foreign_object_is_named_and_the_rest_is_loaded(
    bucket: PartitionStore, weed: WeedServer, tmp_path: Path
) -> None:
    bucket.write(TOKENS, tokens("a/", {"a/1": ["x"]}), "a")
    weed_client(weed).put_object(Bucket=BUCKET, Key=f"tables-{tmp_path.name}/tokens/b.parquet", Body=b"foreign")
    refresh = Warehouse(tmp_path / "warehouse.duckdb", bucket).refresh()
    assert refresh.loaded == 1
    assert [uri for uri, _ in refresh.skipped] == [f"{bucket.root}/tokens/b.parquet"]


def weed_client(server: WeedServer) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id=server.access_key_id,
        aws_secret_access_key=server.secret_access_key,
    )


def test_a_writer_that_is_killed_before_its_upload_leaves_the_old_partition(
    weed: WeedServer, bucket: PartitionStore, tmp_path: Path
) -> None:
    bucket.write(TOKENS, tokens("a/", {"a/1": ["old"]}), "a")
    code = (
        "import sys; from audio_assets import schemas; from audio_assets.storage.partition_files import PartitionStore;"
        "rows = schemas.TOKENS.from_rows([{'id': 'a/1', 'prefix': 'a/', 'tokens': ['new']}]);"
        "PartitionStore(sys.argv[1]).write(schemas.TOKENS, rows, 'a')"
    )
    root = bucket_url(weed, f"tables-{tmp_path.name}")
    for point, expected in (
        ("before-write", "old"),
        ("half-written", "old"),
        ("before-rename", "old"),
        ("after-rename", "new"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, root],
            env={"AUDIO_ASSETS_CRASH_AT": f"partition:{point}", "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
        )
        assert done.returncode == -9, done.stderr
        assert bucket.read(TOKENS, ["a"]).column("tokens").to_pylist() == [[expected]]


def test_wrong_credentials_and_a_missing_bucket_name_the_setting(weed: WeedServer) -> None:
    with pytest.raises(SettingsError, match="AWS_SECRET_ACCESS_KEY"):
        PartitionStore(bucket_url(weed, "tables", secret="wrong")).write(TOKENS, TOKENS.empty(), "a")
    with pytest.raises(SettingsError, match="AWS_SECRET_ACCESS_KEY"):
        PartitionStore(bucket_url(weed, "tables", secret="wrong")).partitions(TOKENS)
    with pytest.raises(SettingsError, match="no bucket 'none-such'"):
        PartitionStore(bucket_url(weed, "tables", bucket="none-such")).partitions(TOKENS)


def test_r2_urls_take_their_settings_from_the_r2_variables(weed: WeedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="R2_ACCOUNT_ID"):
        PartitionStore("r2://recordings/tables")
    monkeypatch.setenv("R2_ENDPOINT_URL", weed.endpoint_url)
    with pytest.raises(SettingsError, match="R2_ACCESS_KEY_ID"):
        PartitionStore("r2://recordings/tables")
    monkeypatch.setenv("R2_ACCESS_KEY_ID", weed.access_key_id)
    monkeypatch.setenv("R2_SECRET_ACCESS_KEY", weed.secret_access_key)
    store = PartitionStore(f"r2://{BUCKET}/tables-r2")
    written = store.write(TOKENS, tokens("a/", {"a/1": ["x"]}), "a")
    assert written.uri == f"r2://{BUCKET}/tables-r2/tokens/a.parquet"
    assert store.read(TOKENS).num_rows == 1


@pytest.mark.parametrize("address", ["http://127.0.0.2:1", "https://me:canary@r2.example", "https://[r2"])
def test_an_endpoint_that_the_recordings_client_refuses_is_none_for_tables_either(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("R2_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("R2_SECRET_ACCESS_KEY", "secret")
    for variable, root in (
        ("R2_ENDPOINT_URL", "r2://corpus/tables"),
        ("AWS_ENDPOINT_URL", "s3://corpus/tables"),
        ("AWS_ENDPOINT_URL_S3", "s3://corpus/tables"),
        ("endpoint_override", f"s3://corpus/tables?endpoint_override={quote(address)}"),
    ):
        with monkeypatch.context() as set_here:
            set_here.setenv(variable, address)
            with pytest.raises(SettingsError, match=variable) as told:
                PartitionStore(root)
        assert "canary" not in str(told.value)


def test_an_endpoint_of_awss_configuration_file_is_looked_at_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text("[default]\nendpoint_url = http://127.0.0.2:1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    with pytest.raises(SettingsError, match=r"endpoint_url .*is not https"):
        PartitionStore("s3://key:secret@corpus/tables").partitions(TOKENS)


def test_tables_are_not_put_into_the_bucket_that_the_endpoint_ends_in(
    weed: WeedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in weed.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("R2_BUCKET", "calls")
    monkeypatch.setenv("R2_ENDPOINT_URL", f"{weed.endpoint_url}/calls")
    folder = f"ending-{tmp_path.name}"
    PartitionStore(f"r2://{BUCKET}/{folder}").write(TOKENS, TOKENS.empty(), "a")
    found = weed_client(weed).list_objects_v2(Bucket=BUCKET, Prefix=folder)["Contents"]
    assert [item["Key"] for item in found] == [f"{folder}/tokens/a.parquet"]


def test_a_server_that_is_not_there_is_a_storage_error_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    store = PartitionStore("s3://key:secret@bucket/tables?endpoint_override=127.0.0.1:9&scheme=http")
    start = time.monotonic()
    with pytest.raises(StorageError, match="tables/tokens"):
        store.partitions(TOKENS)
    assert time.monotonic() - start < 30


def test_an_upload_is_one_plain_put_as_r2_wants_it() -> None:
    # R2 refuses the checksum trailers that newer S3 clients add unasked.
    seen: list[tuple[str, dict[str, str]]] = []

    class Recorder(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer()

        def do_HEAD(self) -> None:
            self.answer()

        def answer(self) -> None:
            seen.append((self.command, {k.lower(): v for k, v in self.headers.items()}))
            self.send_response(200)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Recorder) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        root = f"s3://key:secret@bucket/tables?endpoint_override=127.0.0.1:{server.server_port}&scheme=http"
        PartitionStore(root).write(TOKENS, TOKENS.empty(), "a")
        server.shutdown()
    assert [method for method, _ in seen] == ["HEAD", "PUT"]
    headers = seen[-1][1]
    assert not {"x-amz-trailer", "x-amz-sdk-checksum-algorithm", "content-encoding"} & headers.keys()


@pytest.mark.parametrize("counter", [None, b"", b"{", b"[]", b'{"number": "7"}', b'{"number": 2}'])
def test_a_counter_that_is_lost_or_damaged_goes_on_behind_what_was_published(
    counter: bytes | None, weed: WeedServer, tmp_path: Path
) -> None:
    objects = Objects(bucket_url(weed, f"counter-{tmp_path.name}"))
    if counter is not None:
        objects.put("n", counter)
    assert [objects.next_number("n", 7), objects.next_number("n"), objects.next_number("n", 7)] == [8, 9, 10]


def test_a_partition_has_the_greatest_number_of_its_files(bucket: PartitionStore) -> None:
    assert bucket.number("A/b") == 0
    bucket.write(TOKENS, TOKENS.empty(), "A/b", 5)
    bucket.write(TRANSCRIPTS, TRANSCRIPTS.empty(), "A/b", 11)
    bucket.write(TRANSCRIPTS, TRANSCRIPTS.empty(), "b", 12)
    assert bucket.number("A/b") == 11


def test_a_write_without_a_number_gives_way_to_no_older_run(bucket: PartitionStore) -> None:
    bucket.write(TOKENS, tokens("a/", {"a/1": ["newest"]}), "a", 2)
    bucket.write(TOKENS, tokens("a/", {"a/1": ["mended"]}), "a")
    with pytest.raises(SupersededError):
        bucket.write(TOKENS, tokens("a/", {"a/1": ["woke up"]}), "a", 1)
    assert bucket.read(TOKENS, ["a"]).column("tokens").to_pylist() == [["mended"]]


def test_a_repaired_partition_gives_way_to_no_older_run(weed: WeedServer, bucket: PartitionStore, home: Home) -> None:
    bucket.write(TOKENS, tokens("a/", {"a/1": ["newest"]}), "a", 2)
    warehouse = Warehouse(home.warehouse, bucket)
    warehouse.refresh()
    place = place_for(bucket_url(weed, bucket.root.rpartition("/")[2]))
    place.write("tokens/a.parquet", lambda sink: sink.write(b"damaged"))
    found = verify(home, bucket, warehouse, repair=True)
    assert [d.repaired for d in found if "a.parquet" in d.where] == [True]
    assert bucket.read(TOKENS, ["a"]).column("tokens").to_pylist() == [["newest"]]
    with pytest.raises(SupersededError):
        bucket.write(TOKENS, tokens("a/", {"a/1": ["woke up"]}), "a", 1)


def test_of_two_requests_at_once_the_one_that_aws_refuses_is_sent_again() -> None:
    puts: list[int] = []

    class Conflicts(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            puts.append(409 if not puts else 200)
            body = b"<Error><Code>ConditionalRequestConflict</Code></Error>" if puts[-1] == 409 else b""
            self.send_response(puts[-1])
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Conflicts) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        root = f"s3://key:secret@bucket/tables?endpoint_override=127.0.0.1:{server.server_port}&scheme=http"
        PartitionStore(root).write(TOKENS, TOKENS.empty(), "a", 1)
        server.shutdown()
    assert puts == [409, 200]
