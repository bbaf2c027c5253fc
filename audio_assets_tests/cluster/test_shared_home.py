"""A home in a bucket: any machine can do any file, and a run that was replaced publishes nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import duckdb
import pytest

from audio_assets import schemas, settings
from audio_assets.demo_server import WeedServer
from audio_assets.errors import SettingsError, SupersededError
from audio_assets.resources.home import HomeResource
from audio_assets.settings import Home
from audio_assets.speech import shared_cache
from audio_assets.speech.shared_cache import SharedTranscriptCache
from audio_assets.speech.shared_cap import BucketCap, Money
from audio_assets.storage import published
from audio_assets.storage.objects import Objects, read_json
from audio_assets.storage.partition_files import PartitionStore
from audio_assets_tests.conftest import PipelineRun, audio_assets, bucket_url, r2_environment, subprocess_environment
from audio_assets_tests.storage.rows import tokens

from .conftest import TwoNodes
from .test_pipeline import ONE_BY_ONE, assert_same_tables, one_by_one, tables_of  # noqa: F401

SHA, KEY = "ab" * 32, "f" * 16


@pytest.fixture
def place(weed: WeedServer, tmp_path: Path) -> str:
    return bucket_url(weed, f"home-{tmp_path.name}")


@pytest.fixture
def objects(place: str) -> Objects:
    return Objects(place)


def test_an_object_is_replaced_only_as_it_was_read(objects: Objects) -> None:
    first = objects.put("a", b"1", is_new=True)
    assert first is not None
    assert objects.put("a", b"2", is_new=True) is None
    second = objects.put("a", b"3", replaces=first)
    assert second is not None
    assert objects.put("a", b"4", replaces=first) is None
    assert objects.get("a") == (b"3", second)
    assert objects.get("b") is None
    assert list(objects.names("")) == ["a"]


def test_numbers_are_handed_out_once_however_many_ask(objects: Objects) -> None:
    out: list[int] = []
    threads = [threading.Thread(target=lambda: out.extend(objects.next_number("n") for _ in range(5))) for _ in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(out) == list(range(1, 21))


def test_what_one_machine_has_stored_another_finds(objects: Objects) -> None:
    here, there = SharedTranscriptCache(objects), SharedTranscriptCache(objects)
    here.put_window(SHA, KEY, "0-16000/1", {"text": "one"})
    here.put_window(SHA, KEY, "16000-32000/0", {"text": "two"})
    assert {w["text"] for w in there.get_windows(SHA, KEY).values()} == {"one", "two"}
    there.put(SHA, KEY, {"text": "one two"})
    assert here.get(SHA, KEY) == {"text": "one two"}
    assert here.get_windows(SHA, KEY) == {}


def test_what_was_looked_for_is_fetched_once_and_an_empty_folder_listed_once(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    fetched, listed = objects.get, objects.names
    monkeypatch.setattr(objects, "get", lambda name: asked.append("get") or fetched(name))
    monkeypatch.setattr(objects, "names", lambda folder: asked.append("list") or listed(folder))
    here, there = SharedTranscriptCache(objects), SharedTranscriptCache(objects)
    held = here.hold(SHA, KEY)
    assert held is not None
    assert (here.has(SHA, KEY), here.get(SHA, KEY)) == (False, None), "what is not there may come at any time"
    assert [here.get_windows(SHA, KEY), here.get_windows(SHA, KEY)] == [{}, {}]
    assert asked == ["get", "get", "list"]
    held.release()

    # Another machine goes on with the file meanwhile: whoever has the claim next finds what it has stored.
    held = there.hold(SHA, KEY)
    assert held is not None
    there.put_window(SHA, KEY, "0-16000/1", {"text": "one"})
    held.release()
    assert here.hold(SHA, KEY) is not None
    assert [w["text"] for w in here.get_windows(SHA, KEY).values()] == ["one"]

    here.put(SHA, KEY, {"text": "one"})
    asked.clear()
    assert there.has(SHA, KEY)
    assert there.get(SHA, KEY) == {"text": "one"}
    assert asked == ["get"]
    assert there.get(SHA, KEY) == {"text": "one"}
    assert asked == ["get", "get"], "it is kept for one reader only"
    assert there.has(SHA, KEY)
    there.drop(SHA)
    assert there.get(SHA, KEY) is None


def test_an_entry_stays_unless_it_is_made_anew_or_damaged(objects: Objects) -> None:
    cache = SharedTranscriptCache(objects)
    cache.put(SHA, KEY, {"by": "the first"})
    cache.put(SHA, KEY, {"by": "one that woke up late"})
    assert cache.get(SHA, KEY) == {"by": "the first"}
    cache.drop_windows(SHA, KEY)
    cache.put(SHA, KEY, {"by": "one that was asked for"})
    assert cache.get(SHA, KEY) == {"by": "one that was asked for"}
    objects.put(f"cache/{SHA[:2]}/{SHA}/{KEY}.json", b"{damaged")
    cache.put(SHA, KEY, {"by": "the next"})
    assert cache.get(SHA, KEY) == {"by": "the next"}


def test_a_claim_is_for_one_until_it_is_given_back_or_nobody_renews_it(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_cache, "LEASE_S", 5.0)
    monkeypatch.setattr(shared_cache, "_RENEW_S", 0.3)
    monkeypatch.setattr(shared_cache, "_LOOK_S", 0.1)
    here, there = SharedTranscriptCache(objects), SharedTranscriptCache(objects)
    held = here.hold(SHA, KEY)
    assert held is not None
    until = time.monotonic() + 7
    while time.monotonic() < until:
        assert there.hold(SHA, KEY) is None
        time.sleep(0.1)
    held.release()
    time.sleep(0.1)
    taken = there.hold(SHA, KEY)
    assert taken is not None

    # Here a machine is lost: its claim is there and nobody renews it.
    there._claims._mine.clear()
    lost = time.monotonic()
    while here.hold(SHA, KEY) is None:
        time.sleep(0.05)
        assert time.monotonic() - lost < 20
    assert time.monotonic() - lost >= 4
    # It wakes up and gives back what is no longer its own.
    taken.release()
    assert there.hold(SHA, KEY) is None


def test_a_run_that_was_replaced_cannot_unpublish_newer_rows(place: str) -> None:
    store = PartitionStore(settings.below(place, "tables"))
    old, new = 1, 2
    store.write(schemas.TOKENS, tokens("a/", {"a/1": ["first"]}), "a", old)
    store.write(schemas.TOKENS, tokens("a/", {"a/1": ["newer"]}), "a", new)
    with pytest.raises(SupersededError, match="a newer run has published this"):
        store.write(schemas.TOKENS, tokens("a/", {"a/1": ["older"]}), "a", old)
    assert store.read(schemas.TOKENS, ["a"]).column("tokens").to_pylist() == [["newer"]]
    store.write(schemas.TOKENS, tokens("a/", {"a/1": ["newer still"]}), "a", new)
    assert store.read(schemas.TOKENS, ["a"]).column("tokens").to_pylist() == [["newer still"]]


def test_of_writers_at_once_the_greatest_number_stays(place: str) -> None:
    store = PartitionStore(settings.below(place, "tables"))

    def write(number: int) -> None:
        with suppress(SupersededError):
            store.write(schemas.TOKENS, tokens("a/", {"a/1": [str(number)]}), "a", number)

    threads = [threading.Thread(target=write, args=(n,)) for n in (5, 1, 8, 3, 7, 2, 6, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.read(schemas.TOKENS, ["a"]).column("tokens").to_pylist() == [["8"]]


def test_a_process_that_was_stopped_and_replaced_wakes_up_and_is_refused(place: str, tmp_path: Path) -> None:
    code = (
        "import sys; from audio_assets import schemas, settings;"
        "from audio_assets.storage.objects import Objects; from audio_assets.errors import SupersededError;"
        "from audio_assets.storage.partition_files import PartitionStore;"
        "from audio_assets_tests.storage.rows import tokens;"
        "number = Objects(sys.argv[1]).next_number('fences/a.json'); print(number, flush=True); sys.stdin.read();"
        "store = PartitionStore(settings.below(sys.argv[1], 'tables'));"
        "store.write(schemas.TOKENS, tokens('a/', {'a/1': [str(number)]}), 'a', number)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code, place]
    pipe = subprocess.PIPE
    first = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)
    assert first.stdout is not None
    assert first.stdout.readline() == "1\n"
    first.send_signal(signal.SIGSTOP)
    try:
        second = subprocess.run(command, input="", capture_output=True, text=True, env=environment, timeout=60)
        assert second.stdout == "2\n", second.stderr
    finally:
        first.send_signal(signal.SIGCONT)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 1
    assert "SupersededError" in said
    rows = PartitionStore(settings.below(place, "tables")).read(schemas.TOKENS, ["a"])
    assert rows.column("tokens").to_pylist() == [["2"]]


def test_a_cap_in_the_bucket_is_passed_by_none_of_those_who_share_it(objects: Objects) -> None:
    caps = [BucketCap(objects, "ledger/caps/run.json", f"worker-{n}") for n in range(4)]
    spent = [0] * 4

    def spend(n: int) -> None:
        while caps[n].take(Money(0.1 * (spent[n] + 1)), 1.0 + 1e-9):
            spent[n] += 1

    threads = [threading.Thread(target=spend, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(spent) == 10
    assert caps[0].others().spent_usd == pytest.approx(0.1 * (10 - spent[0]))


def test_of_two_publishers_the_later_one_stays_and_the_file_comes_whole(objects: Objects, tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        path = tmp_path / f"{name}.duckdb"
        with duckdb.connect(str(path)) as connection:
            connection.execute("CREATE TABLE t AS SELECT ? AS name", [name])
        files.append(path)
    published.publish(objects, files[1], 2)
    with pytest.raises(SupersededError):
        published.publish(objects, files[0], 1)
    target = tmp_path / "fetched" / "warehouse.duckdb"
    assert published.fetch(objects, target)
    assert not published.fetch(objects, target)
    with duckdb.connect(str(target), read_only=True) as connection:
        assert connection.execute("SELECT name FROM t").fetchall() == [("two",)]


def test_a_publisher_that_is_overtaken_while_it_uploads_leaves_nothing_behind(
    objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("old", "new"):
        (tmp_path / name).write_text(name)
    upload = Objects.upload

    def overtaken(self: Objects, path: Path, name: str) -> None:
        monkeypatch.setattr(Objects, "upload", upload)
        upload(self, path, name)
        published.publish(objects, tmp_path / "new", 2)

    monkeypatch.setattr(Objects, "upload", overtaken)
    with pytest.raises(SupersededError):
        published.publish(objects, tmp_path / "old", 1)
    assert [name for name in objects.names("warehouse") if name != published.LATEST] == [
        (read_json(objects.get(published.LATEST)) or {})["file"]
    ]
    assert published.outdated(objects) == []


@pytest.fixture
def read_only(weed: WeedServer) -> Iterator[str]:
    """The server's address through a gate that refuses to write, as a token without that right would."""

    class Gate(BaseHTTPRequestHandler):
        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.command in ("PUT", "POST", "DELETE"):
                status, out = 403, b"<Error><Code>AccessDenied</Code><Message>read only</Message></Error>"
                headers = {"Content-Type": "application/xml"}
            else:
                connection = HTTPConnection(weed.endpoint_url.removeprefix("http://"))
                connection.request(self.command, self.path, body, dict(self.headers))
                answer = connection.getresponse()
                status, out, headers = answer.status, answer.read(), dict(answer.getheaders())
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(out)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(out)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_one  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Gate)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_shared_store_that_cannot_be_written_is_one_line(
    place: str, read_only: str, weed: WeedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = place.replace(weed.endpoint_url.removeprefix("http://"), read_only)
    monkeypatch.setenv("AUDIO_ASSETS_HOME", closed)
    with pytest.raises(SettingsError, match=r"access denied .*check AWS_ACCESS_KEY_ID") as raised:
        HomeResource().claim("bucket")
    assert "\n" not in str(raised.value)
    assert weed.secret_access_key not in str(raised.value)
    assert list(Objects(place).names("")) == []


def test_a_run_on_a_shared_store_that_cannot_be_written_exits_4_and_leaves_nothing(
    place: str, read_only: str, weed: WeedServer, home: Home, tmp_path: Path
) -> None:
    closed = place.replace(weed.endpoint_url.removeprefix("http://"), read_only)
    environment = subprocess_environment(
        home.root,
        **r2_environment(weed),
        WHISPER_ENGINE="openai",
        OPENAI_API_KEY="test-key",
    )
    environment |= {"AUDIO_ASSETS_HOME": closed, "AUDIO_ASSETS_SCRATCH": str(tmp_path / "scratch")}
    done = audio_assets("run", cwd=tmp_path, environment=environment)
    assert done.returncode == 4, done.stderr
    assert "access denied" in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error")]) == 1
    assert "Traceback" not in done.stderr
    assert list(Objects(place).names("")) == []


@pytest.mark.weights
def test_a_corpus_in_a_bucket_is_made_by_machines_that_share_nothing_else(
    pipeline: PipelineRun,
    one_by_one: Path,  # noqa: F811
    two_nodes: TwoNodes,
    weed: WeedServer,
    place: str,
    tmp_path: Path,
) -> None:
    two_nodes.have_second(AUDIO_ASSETS_SCRATCH=str(tmp_path / "second"))
    environment = {**pipeline.environment, "AUDIO_ASSETS_HOME": place, "AUDIO_ASSETS_SCRATCH": str(tmp_path / "first")}
    environment |= two_nodes.environment
    environment |= {"DAGSTER_HOME": str(tmp_path / "dagster")}
    done = audio_assets("run", "--json", *ONE_BY_ONE, cwd=tmp_path, environment=environment)
    two_nodes.kill_second()
    assert done.returncode == 0, done.stderr
    here, there = tables_of(one_by_one), tables_of(settings.below(place, "tables"))
    assert_same_tables(here, there)
    names = set(Objects(place).names(""))
    assert {"bucket", "report/index.html", "exports/corpus.jsonl", published.LATEST} <= names
    assert len([n for n in names if n.startswith("cache/") and n.endswith(".json")]) >= 8
    assert not [n for n in names if n.endswith(".claim")]

    # Another machine, with nothing but the settings, reads it.
    shutil.rmtree(tmp_path / "first")
    target = tmp_path / "warehouse.duckdb"
    fetched = audio_assets("fetch", str(target), cwd=tmp_path, environment=environment)
    assert fetched.returncode == 0, fetched.stderr
    with duckdb.connect(str(target), read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM transcripts").fetchall() == [(12,)]
