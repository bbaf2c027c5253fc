"""``audio-assets plan``: what it refuses. What it counts is in `test_cli`."""

from collections.abc import Iterator

import pytest

from audio_assets import schemas
from audio_assets.demo_server import WeedServer
from audio_assets.errors import NoSuchPrefixError, SettingsError
from audio_assets.ingest import intake
from audio_assets.ingest.intake import ingest_prefix
from audio_assets.plan import make_plan
from audio_assets.resources.home import HomeResource
from audio_assets.resources.r2 import R2Resource
from audio_assets.resources.whisper import WhisperResource
from audio_assets.settings import Home
from audio_assets.speech.transcribe import fingerprint
from audio_assets.storage.partition_files import PartitionStore
from audio_assets_tests.conftest import r2_environment
from audio_assets_tests.ingest.conftest import remove_bucket

BUCKET = "test-plan"


@pytest.fixture
def planned(weed: WeedServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A bucket with one audio file in it, and an engine that loads nothing."""
    for name, value in (r2_environment(weed) | {"R2_BUCKET": BUCKET}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WHISPER_ENGINE", "openai")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    client = weed.client()
    client.create_bucket(Bucket=BUCKET)
    client.put_object(Bucket=BUCKET, Key="calls/2026/a.wav", Body=b"no audio")
    client.put_object(Bucket=BUCKET, Key="calls/notes.txt", Body=b"no audio either")
    client.close()
    yield
    remove_bucket(weed, BUCKET)


@pytest.mark.usefixtures("planned")
def test_a_home_of_another_bucket_is_refused_as_a_run_refuses_it(home: Home) -> None:
    assert make_plan().files == 1
    assert not home.root.exists()
    HomeResource().claim("another")
    with pytest.raises(SettingsError, match="holds the corpus of the bucket 'another', and R2_BUCKET is 'test-plan'"):
        make_plan()


@pytest.mark.usefixtures("planned")
@pytest.mark.parametrize("note", [b"\xff\xfe", b"\0\0\0\0"])
def test_a_home_whose_note_of_its_bucket_is_damaged_says_what_to_do(home: Home, note: bytes) -> None:
    home.root.mkdir()
    home.bucket.write_bytes(note)
    for ask in (make_plan, lambda: HomeResource().claim(BUCKET)):
        with pytest.raises(
            SettingsError, match=f"{home.bucket}: damaged.*if it is that of '{BUCKET}', remove the file"
        ):
            ask()


@pytest.mark.usefixtures("planned")
@pytest.mark.parametrize("prefix", ["calls/nothing", "calls/notes", "/calls/", "call/"])
def test_a_prefix_under_which_nothing_lies_is_refused(prefix: str) -> None:
    assert make_plan(["calls/", "calls/2026"]).files == 1
    with pytest.raises(NoSuchPrefixError, match=f"--prefix '{prefix}': no audio lies there"):
        make_plan(["calls/", prefix])


@pytest.mark.usefixtures("planned")
def test_what_an_earlier_probe_refused_may_be_transcribed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    client, mirror = R2Resource().get_client(), HomeResource().mirror()
    done = ingest_prefix(client, BUCKET, "calls/", 1, mirror)
    PartitionStore(home.tables).write(schemas.RAW_AUDIO, done.table, "calls")
    assert (make_plan().to_download, make_plan().to_transcribe) == (0, 0)
    monkeypatch.setattr(intake, "PROBE_VERSION", intake.PROBE_VERSION + 1)
    assert (make_plan().to_download, make_plan().to_transcribe) == (0, 1)


@pytest.mark.usefixtures("planned")
def test_a_prefix_is_found_however_its_folders_are_spelled(weed: WeedServer) -> None:
    """A letter that NFC takes apart, as keyboards write it, and a name in NFD behind it, as a Mac does."""
    client = weed.client()
    client.put_object(Bucket=BUCKET, Key="\u09dc/Zoe\u0308/a.wav", Body=b"no audio")
    client.close()
    assert make_plan(["\u09a1\u09bc/Zo\u00eb/"]).files == 1


@pytest.mark.usefixtures("planned")
@pytest.mark.parametrize(("limit", "cached"), [("bytes", False), ("bytes", True), ("seconds", False), (None, False)])
def test_what_was_fetched_under_a_wider_limit_is_counted_as_a_run_treats_it(
    home: Home, weed: WeedServer, monkeypatch: pytest.MonkeyPatch, limit: str | None, cached: bool
) -> None:
    """It stays, its transcript comes from the cache, and what is not there is `invalid` and costs nothing."""
    key, sha256 = "calls/2026/a.wav", "a" * 64
    etag = weed.client().head_object(Bucket=BUCKET, Key=key)["ETag"].strip('"')
    row = {"id": key, "prefix": "calls/", "etag": etag, "size_bytes": 8, "sha256": sha256, "status": "ok"}
    rows = schemas.RAW_AUDIO.from_rows([{**row, "duration_s": 60.0}])
    PartitionStore(home.tables).write(schemas.RAW_AUDIO, rows, "calls")
    if cached:
        HomeResource().cache().put(sha256, fingerprint(WhisperResource().create_engine()), {"text": "said"})
    if limit == "seconds":
        monkeypatch.setenv("AUDIO_ASSETS_MAX_DURATION_S", "30")
    made = make_plan(max_object_bytes=4 if limit == "bytes" else None)
    assert (made.files, made.to_download, made.passed_over) == (1, 0, {"other_files": 1})
    assert (made.cached, made.to_transcribe) == (int(cached), int(limit is None))
    assert (made.cost_usd == 0) == (limit is not None)


@pytest.mark.usefixtures("planned")
def test_what_was_never_fetched_is_passed_over_when_it_is_too_large() -> None:
    made = make_plan(max_object_bytes=4)
    assert (made.files, made.passed_over) == (0, {"other_files": 1, "oversized_objects": 1})
