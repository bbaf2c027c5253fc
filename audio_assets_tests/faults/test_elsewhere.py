"""Keys, signatures and recordings go to the addresses that the environment names, and nowhere else."""

from __future__ import annotations

import gzip
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import dagster as dg
import pytest

from audio_assets import schemas
from audio_assets.automation.failures import tell_webhook
from audio_assets.errors import AudioAssetsError, FileError, SettingsError
from audio_assets.ingest.download import download
from audio_assets.ingest.listing import RemoteObject
from audio_assets.ingest.mirror import Mirror
from audio_assets.ingest.pages import list_pages
from audio_assets.resources.duckdb_io import PartitionedDuckDBIOManager
from audio_assets.resources.event_queue import EventQueueResource
from audio_assets.resources.home import HomeResource
from audio_assets.resources.r2 import R2Resource
from audio_assets.resources.whisper import WhisperResource
from audio_assets.speech import openai_api
from audio_assets.speech.engine import Clip
from audio_assets.speech.openai_api import OpenAIEngine, OpenAIOptions
from audio_assets.storage.objects import Objects
from audio_assets.storage.partition_files import PartitionStore
from audio_assets_tests.speech.conftest import (  # noqa: F401
    FaultServer,
    fault_server,
    heard,
    opening,
    reply,
    two_cities,
    two_cities_path,
)

REDIRECTS = [*(pytest.param(n, marks=pytest.mark.slow) for n in (301, 302, 303, 308)), 307]
"""307 and 308 ask for the same request with the same body, so that a recording would go along."""

WEB = "https://elsewhere.example"


@dataclass
class Web:
    """A server that points to another one, and what that other one was sent."""

    url: str = ""
    elsewhere: str = ""
    status: int = 307
    names_region: bool = True
    asked: list[str] = field(default_factory=list)
    gone_elsewhere: list[tuple[str, dict[str, str]]] = field(default_factory=list)


@pytest.fixture
def web() -> Iterator[Web]:
    made = Web()

    class First(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            made.asked.append(self.path)
            self.send_response(made.status)
            self.send_header("Location", made.elsewhere + self.path)
            # What S3 says of a bucket that lies in another region.
            if made.names_region:
                self.send_header("x-amz-bucket-region", "eu-west-1")
            body = b"<Error><Code>PermanentRedirect</Code><Endpoint>" + made.elsewhere.encode() + b"</Endpoint></Error>"
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_POST = do_HEAD = do_PUT = answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Second(First):
        def answer(self) -> None:
            made.gone_elsewhere.append((self.path, dict(self.headers)))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = do_HEAD = do_PUT = answer  # noqa: N815

    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for handler in (First, Second)]
    made.url, made.elsewhere = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    for server in servers:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield made
    for server in servers:
        server.shutdown()
        server.server_close()


def _bucket(web: Web) -> Any:
    return R2Resource(
        bucket="calls", endpoint_url=web.url, aws_access_key_id="id", aws_secret_access_key="secret", max_attempts=1
    ).get_client()


def _engine(web: Web) -> OpenAIEngine:
    return OpenAIEngine(OpenAIOptions(api_key="canary", base_url=f"{web.url}/v1", attempts=2, first_backoff_s=0.01))


def _list(web: Web, mirror: Mirror, samples: Any) -> None:
    with closing(_bucket(web)) as client:
        list(list_pages(client, "calls"))


def _download(web: Web, mirror: Mirror, samples: Any) -> None:
    found = RemoteObject("a/a.wav", "0" * 32, 10, None)
    with closing(_bucket(web)) as client:
        download(client, "calls", found, mirror, attempts=2, first_wait_s=0.01)


def _transcribe(web: Web, mirror: Mirror, samples: Any) -> None:
    engine = _engine(web)
    try:
        [result] = engine.transcribe([Clip("a", samples)])
    finally:
        engine.close()
    assert isinstance(result, FileError)
    raise result


def _ask_for_the_model(web: Web, mirror: Mirror, samples: Any) -> None:
    engine = _engine(web)
    try:
        assert engine.announced_shutdown() is None
    finally:
        engine.close()
    raise SettingsError("nothing was learned")


def _pull(web: Web, mirror: Mirror, samples: Any) -> None:
    EventQueueResource(queue_id="q", account_id="a", api_token="canary", base_url=web.url).pull()


def _webhook(web: Web, mirror: Mirror, samples: Any) -> None:
    problem = tell_webhook(f"{web.url}/hook", {"reason": "x"})
    assert problem is not None
    raise SettingsError(problem)


def _home(web: Web) -> str:
    return f"s3://id:canary@corpus/home?endpoint_override={web.url}"


def _write_a_table(web: Web, mirror: Mirror, samples: Any) -> None:
    PartitionStore(_home(web)).write(schemas.TOKENS, schemas.TOKENS.empty(), "a")


def _write_a_table_with_a_number(web: Web, mirror: Mirror, samples: Any) -> None:
    PartitionStore(_home(web)).write(schemas.TOKENS, schemas.TOKENS.empty(), "a", 1)


def _read_a_table(web: Web, mirror: Mirror, samples: Any) -> None:
    with PartitionStore(_home(web)).open(schemas.TOKENS, "a"):
        pass


def _list_tables(web: Web, mirror: Mirror, samples: Any) -> None:
    PartitionStore(_home(web)).partitions(schemas.TOKENS)


def _put_an_object(web: Web, mirror: Mirror, samples: Any) -> None:
    Objects(_home(web)).put("a", b"private", is_new=True)


def _get_an_object(web: Web, mirror: Mirror, samples: Any) -> None:
    Objects(_home(web)).get("a")


def _upload(web: Web, mirror: Mirror, samples: Any) -> None:
    path = mirror.root.parent / "private"
    path.write_bytes(b"private")
    Objects(_home(web)).upload(path, "a")


def _fetch(web: Web, mirror: Mirror, samples: Any) -> None:
    Objects(_home(web)).download("a", mirror.root.parent / "fetched")


HOME = [
    _write_a_table,
    _write_a_table_with_a_number,
    _read_a_table,
    _list_tables,
    _put_an_object,
    _get_an_object,
    _upload,
    _fetch,
]


# botocore leaves the body of a redirected answer unread, and its connection to the garbage collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("status", REDIRECTS)
@pytest.mark.parametrize(
    "ask",
    [_list, _download, _transcribe, _ask_for_the_model, _pull, _webhook, *HOME],
    ids=lambda ask: ask.__name__.strip("_"),
)
def test_a_redirection_is_not_followed(
    ask: Callable[[Web, Mirror, Any], None],
    status: int,
    web: Web,
    mirror: Mirror,
    opening: Any,  # noqa: F811
) -> None:
    web.status = status
    with pytest.raises(AudioAssetsError) as told:
        ask(web, mirror, opening)
    assert web.asked, "it was asked at all"
    assert len(web.asked) <= 5
    assert web.gone_elsewhere == []
    assert "canary" not in str(told.value)


@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("ask", [_list, *HOME], ids=lambda ask: ask.__name__.strip("_"))
def test_a_server_that_points_elsewhere_whatever_it_is_asked_does_not_keep_a_client_asking(
    ask: Callable[[Web, Mirror, Any], None], web: Web, mirror: Mirror
) -> None:
    web.names_region = False
    with pytest.raises(AudioAssetsError):
        ask(web, mirror, None)
    assert len(web.asked) == 1
    assert web.gone_elsewhere == []


@pytest.fixture
def mirror(tmp_path: Any) -> Mirror:
    return Mirror(tmp_path / "audio")


ADDRESSES = [
    ("http://r2.example", "is not https"),
    ("http://127.0.0.1.evil.example", "is not https"),
    ("http://10.0.0.7:9000", "is not https"),
    ("https://me:canary@r2.example", "password in it"),
    ("http://me:canary@127.0.0.1", "password in it"),
]


@pytest.mark.parametrize(("address", "reason"), ADDRESSES)
def test_an_address_that_is_neither_https_nor_this_machine_is_refused(address: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=f"R2_ENDPOINT_URL .*{reason}") as of_bucket:
        R2Resource(endpoint_url=address).endpoint()
    with pytest.raises(SettingsError, match=f"OPENAI_BASE_URL .*{reason}") as of_api:
        OpenAIEngine(OpenAIOptions(api_key="k", base_url=address))
    assert "canary" not in str(of_bucket.value) + str(of_api.value)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8333", "http://[::1]:9", "http://localhost", "https://r2.example"]
)
def test_https_and_this_machine_are_fine(address: str) -> None:
    assert R2Resource(endpoint_url=address).endpoint() == address
    OpenAIEngine(OpenAIOptions(api_key="k", base_url=f"{address}/v1")).close()


RESOURCES = {
    "whisper": WhisperResource(),
    "r2": R2Resource(),
    "event_queue": EventQueueResource(),
    "home": HomeResource(),
    "warehouse": PartitionedDuckDBIOManager(),
}


@pytest.fixture(scope="module")
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


@dg.op(required_resource_keys=set(RESOURCES))
def reaches_out() -> None:
    """Somebody who would send something."""
    raise AssertionError("it runs")


@dg.job(resource_defs=RESOURCES)
def outward() -> None:
    """One step that reaches out."""
    reaches_out()


@pytest.mark.parametrize(
    ("resource", "config", "variable"),
    [
        ("whisper", {"base_url": WEB}, "OPENAI_BASE_URL"),
        ("whisper", {"api_key": "canary"}, "OPENAI_API_KEY"),
        ("r2", {"endpoint_url": WEB}, "R2_ENDPOINT_URL"),
        ("r2", {"account_id": "stranger"}, "R2_ACCOUNT_ID"),
        ("r2", {"verify": False}, "R2_ENDPOINT_URL"),
        ("r2", {"use_ssl": False}, "R2_ENDPOINT_URL"),
        ("event_queue", {"base_url": WEB}, "CLOUDFLARE_BASE_URL"),
        ("home", {"root": f"s3://k:s@bucket/folder?endpoint_override={WEB}"}, "AUDIO_ASSETS_HOME"),
        ("warehouse", {"tables_root": f"s3://k:s@bucket/folder?endpoint_override={WEB}"}, "AUDIO_ASSETS_HOME"),
    ],
)
def test_whoever_starts_a_run_cannot_send_secrets_elsewhere(
    resource: str, config: dict[str, Any], variable: str, instance: dg.DagsterInstance
) -> None:
    """Dagster lets a run overwrite the fields of resources, and its UI has no login."""
    started = {"resources": {resource: {"config": config}}}
    ended = outward.execute_in_process(run_config=started, instance=instance, raise_on_error=False)
    failures = [e for e in ended.all_events if e.is_failure]
    assert not ended.success
    told = " ".join(str(e.event_specific_data) + str(e.message) for e in failures)
    assert f"set {variable} in the environment" in told
    assert "it runs" not in told


@pytest.mark.parametrize(
    ("made", "given"),
    [
        *((made, {}) for made in RESOURCES.values()),
        (R2Resource(use_ssl=False, endpoint_url=WEB), {"use_ssl": False, "endpoint_url": WEB}),
    ],
)
def test_what_the_launchpad_fills_in_is_no_address_of_a_stranger(
    made: Any, given: dict[str, Any], instance: dg.DagsterInstance
) -> None:
    """It fills in every field that has a value: what the definitions set, else the default."""
    seen = []

    @dg.op
    def look(resource: dg.ResourceParam[Any]) -> None:
        seen.append({name: getattr(resource, name) for name in given})

    @dg.job(resource_defs={"resource": made})
    def looking() -> None:
        look()

    defaults = {name: f.default for name, f in type(made).model_fields.items() if isinstance(f.default, str | int)}
    config = {"resources": {"resource": {"config": {**defaults, **given}}}}
    assert looking.execute_in_process(run_config=config, instance=instance).success
    assert seen == [given]


def test_other_fields_stay_free_in_a_run(instance: dg.DagsterInstance) -> None:
    seen = []

    @dg.op
    def look(whisper: WhisperResource) -> None:
        seen.append(whisper.beam_size)

    @dg.job(resource_defs={"whisper": WhisperResource(base_url="http://127.0.0.1:1/v1")})
    def looking() -> None:
        look()

    config = {"resources": {"whisper": {"config": {"beam_size": 1}}}}
    assert looking.execute_in_process(run_config=config, instance=instance).success
    assert seen == [1]


@pytest.fixture
def engine(fault_server: FaultServer) -> Iterator[OpenAIEngine]:  # noqa: F811
    made = OpenAIEngine(
        OpenAIOptions(api_key="sk-canary-7f3a", base_url=fault_server.url, attempts=2, first_backoff_s=0.01)
    )
    yield made
    made.close()


@pytest.mark.parametrize(
    "answer",
    [
        reply(400, {"error": {"message": "you sent Authorization: Bearer sk-canary-7f3a"}}),
        reply(401, {"error": {"message": "Incorrect API key provided: sk-canary-7f3a"}}),
        reply(403, b"<html>sk-canary-7f3a has no right</html>", "text/html"),
        reply(500, {"error": {"message": "x" * 150 + "sk-canary-7f3a"}}),
        reply(200, b"<html>Bearer sk-canary-7f3a</html>", "text/html"),
        reply(200, {"text": None, "seen": "sk-canary-7f3a"}),
    ],
)
def test_a_server_that_repeats_the_key_is_not_quoted(
    answer: Any,
    fault_server: FaultServer,  # noqa: F811
    engine: OpenAIEngine,
    opening: Any,  # noqa: F811
) -> None:
    fault_server.answers = [answer]
    try:
        [result] = engine.transcribe([Clip("a", opening)])
    except SettingsError as error:
        result = error
    assert isinstance(result, Exception)
    # With all that it was caused by: Dagster's log shows that too.
    told = "".join(traceback.format_exception(result))
    assert str(result) in told and "canary" not in told


def test_an_answer_without_end_is_broken_off(
    fault_server: FaultServer,  # noqa: F811
    engine: OpenAIEngine,
    opening: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openai_api, "_ANSWER_BYTES", 1_000_000)
    sent = []

    def endless(handler: BaseHTTPRequestHandler, number: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.close_connection = True
        try:
            for _ in range(4000):
                handler.wfile.write(b" " * 100_000)
                sent.append(100_000)
        except OSError:
            return

    fault_server.answers = [endless]
    [result] = engine.transcribe([Clip("a", opening)])
    assert isinstance(result, FileError) and "longer than" in str(result)
    assert len(fault_server.posts) == 2
    assert sum(sent) < 100_000_000


def test_a_packed_answer_is_not_unpacked(
    fault_server: FaultServer,  # noqa: F811
    engine: OpenAIEngine,
    opening: Any,  # noqa: F811
) -> None:
    """A megabyte may stand for a gigabyte."""
    bomb = gzip.compress(b'{"text": "' + b" " * 50_000_000 + b'"}')
    fault_server.answers = [reply(200, bomb, Content_Encoding="gzip"), reply(200, heard())]
    [result] = engine.transcribe([Clip("a", opening)])
    assert not isinstance(result, FileError), "the next answer counts"
    assert len(fault_server.posts) == 2
