from __future__ import annotations

import hashlib
import os
import threading
import time
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from audio_assets.errors import InvalidAudio, SettingsError
from audio_assets.ingest import intake
from audio_assets.ingest.intake import (
    Intake,
    IntakeOptions,
    IntakeProgress,
    ingest_mirror,
    ingest_prefix,
    mirror_prefixes,
)
from audio_assets.ingest.listing import discover_prefixes, list_objects
from audio_assets.ingest.mirror import Mirror
from audio_assets.ingest.probe import PROBE_VERSION, Probe, probe
from audio_assets.ingest.selection import EMPTY, EXCLUDED, MARKERS, OTHER_FILES, OVERSIZED, Selection
from audio_assets.schemas import RAW_AUDIO
from audio_assets_tests.ingest.audio import tone, write_tone
from audio_assets_tests.ingest.conftest import Bucket, plain_client
from audio_assets_tests.ingest.faulty import FaultyServer


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return tone(tmp_path_factory.mktemp("tone"))


def take(bucket: Bucket, mirror: Mirror, previous: pa.Table | None = None, **options: Any) -> Intake:
    return ingest_prefix(bucket.client, bucket.name, "calls/", 1, mirror, previous, IntakeOptions(**options))


def statuses(table: pa.Table) -> dict[str, str]:
    return dict(zip(table.column("id").to_pylist(), table.column("status").to_pylist(), strict=True))


def row(table: pa.Table, key: str) -> dict[str, Any]:
    (found,) = [r for r in table.to_pylist() if r["id"] == key]
    return found


def test_a_prefix_becomes_files_and_rows(bucket: Bucket, mirror: Mirror, speech: bytes) -> None:
    etag = bucket.put("calls/2024/a.wav", speech, ContentType="audio/wav", Metadata={"speaker": "seven"})
    bucket.put("other/b.wav", speech)
    intake = take(bucket, mirror)
    assert intake.table.schema == RAW_AUDIO.schema
    (found,) = intake.table.to_pylist()
    modified = found.pop("last_modified")
    assert modified.utcoffset().total_seconds() == 0
    assert found == {
        "id": "calls/2024/a.wav",
        "prefix": "calls/",
        "etag": etag,
        "size_bytes": len(speech),
        "content_type": "audio/wav",
        "metadata": [("speaker", "seven")],
        "sha256": hashlib.sha256(speech).hexdigest(),
        "container": "wav",
        "codec": "pcm_s16le",
        "sample_rate_hz": 16_000,
        "channels": 1,
        "duration_s": 1.0,
        "probe": PROBE_VERSION,
        "status": "ok",
        "error": None,
    }
    assert (mirror.root / "calls" / "2024" / "a.wav").read_bytes() == speech
    assert (intake.downloaded, intake.skipped, intake.failed, intake.listed) == (1, 0, 0, 1)
    assert intake.bytes_downloaded == len(speech)


def test_a_second_intake_fetches_nothing_and_says_the_same(
    bucket: Bucket, mirror: Mirror, speech: bytes, fetches: list[str]
) -> None:
    bucket.put("calls/a.wav", speech)
    bucket.put("calls/text.mp3", b"no audio")
    first = take(bucket, mirror)
    assert len(fetches) == 2
    requests: list[str] = []
    bucket.client.meta.events.register("before-sign.s3", lambda request, **_: requests.append(request.method))
    second = take(bucket, mirror, first.table)
    assert (requests, len(fetches)) == (["GET"], 2)  # the listing
    assert (second.downloaded, second.skipped, second.bytes_downloaded) == (0, 2, 0)
    assert second.table.equals(first.table)


def test_an_object_that_is_spelled_in_another_way_now_has_one_row(
    faulty: FaultyServer, faulty_client: Any, mirror: Mirror, speech: bytes
) -> None:
    def taken(key: str, previous: pa.Table | None) -> pa.Table:
        faulty.objects.clear()
        faulty.put(key, speech)
        return ingest_prefix(faulty_client, "b", "calls/", 1, mirror, previous).table

    first = taken("calls/Zoe\u0308.wav", None)
    # Its file is lost, so that there is something to do.
    mirror.path_for("calls/Zoe\u0308.wav").unlink()
    assert statuses(taken("calls/Zo\u00eb.wav", first)) == {"calls/Zo\u00eb.wav": "ok"}


def test_an_overwritten_object_alone_is_fetched_again(
    bucket: Bucket, mirror: Mirror, speech: bytes, tmp_path: Path
) -> None:
    bucket.put("calls/a.wav", speech)
    bucket.put("calls/b.wav", speech)
    first = take(bucket, mirror)
    bucket.put("calls/b.wav", tone(tmp_path, seconds=2.0))
    second = take(bucket, mirror, first.table)
    assert (second.downloaded, second.skipped) == (1, 1)
    assert row(second.table, "calls/b.wav")["duration_s"] == 2.0
    assert row(second.table, "calls/a.wav") == row(first.table, "calls/a.wav")


def test_a_vanished_object_is_gone_and_comes_back(bucket: Bucket, mirror: Mirror, speech: bytes) -> None:
    bucket.put("calls/a.wav", speech)
    bucket.put("calls/b.wav", speech)
    first = take(bucket, mirror)
    bucket.delete("calls/b.wav")
    second = take(bucket, mirror, first.table)
    assert statuses(second.table) == {"calls/a.wav": "ok", "calls/b.wav": "gone"}
    gone = row(second.table, "calls/b.wav")
    assert gone["sha256"] == row(first.table, "calls/b.wav")["sha256"]
    assert gone["error"] == "no longer in the bucket"
    assert take(bucket, mirror, second.table).table.equals(second.table)
    bucket.put("calls/b.wav", speech)
    assert statuses(take(bucket, mirror, second.table).table)["calls/b.wav"] == "ok"


def test_a_file_lost_from_the_mirror_is_fetched_again(bucket: Bucket, mirror: Mirror, speech: bytes) -> None:
    bucket.put("calls/a.wav", speech)
    first = take(bucket, mirror)
    mirror.path_for("calls/a.wav").write_bytes(b"overwritten by hand")
    assert take(bucket, mirror, first.table).downloaded == 1
    assert mirror.path_for("calls/a.wav").read_bytes() == speech


def test_bad_files_are_rows_with_a_reason_and_the_others_go_on(bucket: Bucket, mirror: Mirror, speech: bytes) -> None:
    bucket.put("calls/good.wav", speech)
    bucket.put("calls/header.wav", speech[:20])
    bucket.put("calls/text.mp3", b"This is text. " * 100)
    bucket.put("calls/zero.flac", b"")
    table = take(bucket, mirror).table
    assert statuses(table) == {
        "calls/good.wav": "ok",
        "calls/header.wav": "invalid",
        "calls/text.mp3": "invalid",
        "calls/zero.flac": "invalid",
    }
    errors = {r["id"]: r["error"] for r in table.to_pylist()}
    assert errors["calls/zero.flac"] == "the file has zero bytes"
    assert "not audio" in errors["calls/text.mp3"]
    invalid = [r for r in table.to_pylist() if r["status"] == "invalid"]
    assert {r["id"] for r in invalid if r["sha256"]} == {"calls/header.wav", "calls/text.mp3"}
    assert all(r["duration_s"] is None for r in invalid)


def by_an_earlier_probe(table: pa.Table, version: int | None) -> pa.Table:
    probed = pa.array([version] * table.num_rows, pa.int64())
    return table.set_column(table.schema.get_field_index("probe"), RAW_AUDIO.schema.field("probe"), probed)


@pytest.mark.parametrize("version", [None, PROBE_VERSION - 1])
def test_what_an_earlier_probe_refused_is_looked_at_once_more_where_it_lies(
    bucket: Bucket,
    mirror: Mirror,
    speech: bytes,
    fetches: list[str],
    monkeypatch: pytest.MonkeyPatch,
    version: int | None,
) -> None:
    def refuse(path: Path) -> Probe:
        raise InvalidAudio("not audio in a known format")

    looked: list[str] = []

    def note(path: Path) -> Probe:
        looked.append(path.name)
        return probe(path)

    for name in ("fine.wav", "misjudged.wav", "text.mp3"):
        bucket.put(f"calls/{name}", b"This is text." if name == "text.mp3" else speech + name.encode())
    monkeypatch.setattr(intake, "probe", refuse)
    old = by_an_earlier_probe(take(bucket, mirror).table, version)
    monkeypatch.setattr(intake, "probe", note)
    fine = by_an_earlier_probe(take(bucket, mirror, limit=1).table, version)
    old = pa.concat_tables([fine, old.slice(1)])
    looked.clear()
    fetches.clear()

    again = take(bucket, mirror, old)
    assert (sorted(looked), fetches, again.changed) == (["misjudged.wav", "text.mp3"], [], True)
    assert statuses(again.table) == {
        "calls/fine.wav": "ok",
        "calls/misjudged.wav": "ok",
        "calls/text.mp3": "invalid",
    }
    assert row(again.table, "calls/misjudged.wav")["codec"] == "pcm_s16le"
    assert ingest_mirror(mirror, "calls/", 1, old).table.equals(again.table)
    looked.clear()
    assert not take(bucket, mirror, again.table).changed
    assert not ingest_mirror(mirror, "calls/", 1, again.table).changed
    assert (looked, fetches) == ([], [])


def test_what_a_later_probe_refused_stays_refused(bucket: Bucket, mirror: Mirror) -> None:
    """Two machines with different versions would look at it in turn for ever."""
    bucket.put("calls/text.mp3", b"This is text.")
    later = by_an_earlier_probe(take(bucket, mirror).table, PROBE_VERSION + 1)
    assert not take(bucket, mirror, later).changed


def test_a_file_that_cannot_be_fetched_is_a_row_and_is_tried_again(
    faulty: FaultyServer, faulty_client: Any, mirror: Mirror, speech: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenacity.wait_random_exponential.__call__", lambda *_: 0.0)
    faulty.put("calls/a.wav", speech)
    faulty.put("calls/b.wav", speech)
    faulty.faults["calls/a.wav"] = ["corrupt"] * 5
    first = ingest_prefix(faulty_client, "b", "calls/", 1, mirror)
    assert statuses(first.table) == {"calls/a.wav": "failed", "calls/b.wav": "ok"}
    failed = row(first.table, "calls/a.wav")
    assert failed["sha256"] is None
    assert failed["etag"] == faulty.etags["calls/a.wav"]
    assert "MD5" in failed["error"]
    assert (first.downloaded, first.failed) == (1, 1)
    second = ingest_prefix(faulty_client, "b", "calls/", 1, mirror, first.table)
    assert statuses(second.table) == {"calls/a.wav": "ok", "calls/b.wav": "ok"}
    assert (second.downloaded, second.skipped) == (1, 1)


def test_refused_credentials_end_the_intake_at_once(
    faulty: FaultyServer, faulty_client: Any, mirror: Mirror, speech: bytes
) -> None:
    for i in range(50):
        faulty.put(f"calls/{i:02}.wav", speech)
        faulty.faults[f"calls/{i:02}.wav"] = [401]
    with pytest.raises(SettingsError, match="R2_ACCESS_KEY_ID"):
        ingest_prefix(faulty_client, "b", "calls/", 1, mirror, None, IntakeOptions(batch_size=5, max_workers=2))
    assert len(faulty.requests) <= 5


def test_an_error_that_dooms_every_file_waits_for_no_retries(
    faulty: FaultyServer, faulty_client: Any, mirror: Mirror, speech: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A minute between tries: only giving the wait up ends this in time.
    monkeypatch.setattr("tenacity.wait_random_exponential.__call__", lambda *_: 60.0)
    faulty.put("calls/slow.wav", speech)
    faulty.faults["calls/slow.wav"] = [503] * 100
    faulty.put("calls/wrong.wav", speech)
    faulty.faults["calls/wrong.wav"] = [401]
    # Both requests are under way before either is answered.
    faulty.barrier = threading.Barrier(2)
    started = time.monotonic()
    with pytest.raises(SettingsError):
        ingest_prefix(faulty_client, "b", "calls/", 1, mirror)
    assert time.monotonic() - started < 20
    assert faulty.gets("calls/slow.wav") == 1


def test_workers_fetch_at_the_same_time(
    faulty: FaultyServer, faulty_client: Any, mirror: Mirror, speech: bytes
) -> None:
    for i in range(8):
        faulty.put(f"calls/{i}.wav", speech)
    # No object is sent before four requests wait: fewer workers would never get any.
    faulty.barrier = threading.Barrier(4)
    options = IntakeOptions(batch_size=8, max_workers=4)
    assert ingest_prefix(faulty_client, "b", "calls/", 1, mirror, None, options).downloaded == 8
    assert faulty.most_at_once == 4


def test_a_batch_bounds_what_is_fetched_at_once(
    faulty: FaultyServer, faulty_client: Any, mirror: Mirror, speech: bytes
) -> None:
    for i in range(8):
        faulty.put(f"calls/{i}.wav", speech)
    faulty.barrier = threading.Barrier(2)
    options = IntakeOptions(batch_size=2, max_workers=8)
    assert ingest_prefix(faulty_client, "b", "calls/", 1, mirror, None, options).downloaded == 8
    assert faulty.most_at_once == 2


def test_downloads_do_not_wait_until_files_are_looked_at(
    faulty: FaultyServer, faulty_client: Any, mirror: Mirror, speech: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(20):
        faulty.put(f"calls/{i:02}.wav", speech)
    all_fetched = threading.Event()

    def probe_at_the_end(path: Path) -> Probe:
        assert all_fetched.wait(30)
        return probe(path)

    monkeypatch.setattr(intake, "probe", probe_at_the_end)
    faulty.on_answer = lambda: all_fetched.set() if len(faulty.requests) == 20 else None
    done = ingest_prefix(faulty_client, "b", "calls/", 1, mirror, None, IntakeOptions(max_workers=2))
    assert all_fetched.is_set()
    assert statuses(done.table) == {f"calls/{i:02}.wav": "ok" for i in range(20)}


def test_a_file_is_looked_at_while_others_are_still_on_their_way(
    faulty: FaultyServer, faulty_client: Any, mirror: Mirror, speech: bytes
) -> None:
    for i in range(9):
        faulty.put(f"calls/{i}.wav", speech)
    faulty.faults["calls/0.wav"] = ["held"]
    told: list[str] = []

    def on_progress(p: IntakeProgress) -> None:
        told.append(p.key)
        if len(told) == 8:
            faulty.held.set()

    ingest_prefix(faulty_client, "b", "calls/", 1, mirror, None, IntakeOptions(max_workers=2), on_progress)
    assert told[-1] == "calls/0.wav"
    assert len(told) == 9


def test_downloads_run_ahead_only_so_far(
    faulty: FaultyServer, faulty_client: Any, mirror: Mirror, speech: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(40):
        faulty.put(f"calls/{i:02}.wav", speech)
    monkeypatch.setattr(intake, "AHEAD", 8)
    # Eight that wait, two that are under way, and one that is handed over.
    most, enough, looked_at = 8 + 2 + 1, threading.Event(), []

    def late_probe(path: Path) -> Probe:
        if not looked_at:
            assert enough.wait(30)
            # Time for what should not happen.
            time.sleep(0.3)
            assert len(faulty.requests) <= most
        looked_at.append(path)
        return probe(path)

    monkeypatch.setattr(intake, "probe", late_probe)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    faulty.on_answer = lambda: enough.set() if len(faulty.requests) >= 8 else None
    done = ingest_prefix(faulty_client, "b", "calls/", 1, mirror, None, IntakeOptions(max_workers=2))
    assert (done.downloaded, len(looked_at)) == (40, 40)


def test_an_intake_that_ends_early_leaves_no_threads(
    faulty: FaultyServer, faulty_client: Any, mirror: Mirror, speech: bytes
) -> None:
    for i in range(40):
        faulty.put(f"calls/{i:02}.wav", speech)
    before = {thread.ident for thread in threading.enumerate()}

    def give_up(_: IntakeProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest_prefix(faulty_client, "b", "calls/", 1, mirror, None, IntakeOptions(max_workers=4), give_up)
    left = [t for t in threading.enumerate() if t.name.startswith("ingest") and t.ident not in before]
    for thread in left:
        thread.join(10)
    assert not [thread for thread in left if thread.is_alive()]


def test_limit_takes_the_first_keys_and_leaves_other_rows_alone(bucket: Bucket, mirror: Mirror, speech: bytes) -> None:
    for name in "cab":
        bucket.put(f"calls/{name}.wav", speech)
    first = take(bucket, mirror, limit=2)
    assert list(statuses(first.table)) == ["calls/a.wav", "calls/b.wav"]
    assert (first.listed, first.selected) == (3, 2)
    whole = take(bucket, mirror, first.table)
    narrowed = take(bucket, mirror, whole.table, limit=1)
    assert narrowed.table.equals(whole.table)
    assert (narrowed.skipped, narrowed.selected) == (1, 1)
    assert take(bucket, mirror, limit=0).table.num_rows == 0


def test_key_prefixes_narrow_the_intake_and_leave_other_rows_alone(
    bucket: Bucket, mirror: Mirror, speech: bytes
) -> None:
    for name in ("a1", "a2", "b1"):
        bucket.put(f"calls/{name}.wav", speech)
    whole = take(bucket, mirror)
    for name in ("a2", "b1"):
        bucket.delete(f"calls/{name}.wav")
    narrowed = take(bucket, mirror, whole.table, key_prefixes=("calls/a", "talks/"))
    assert statuses(narrowed.table) == {"calls/a1.wav": "ok", "calls/a2.wav": "gone", "calls/b1.wav": "ok"}
    assert narrowed.selected == 1


def test_globs_choose_by_the_whole_key_and_leave_other_rows_alone(
    bucket: Bucket, mirror: Mirror, speech: bytes
) -> None:
    for name in ("2024/a", "2024/a.tmp", "2025/b"):
        bucket.put(f"calls/{name}.wav", speech)
    first = take(bucket, mirror, selection=Selection(include=("calls/2024*",), exclude=("*.tmp.*",)))
    assert list(statuses(first.table)) == ["calls/2024/a.wav"]
    whole = take(bucket, mirror, first.table)
    assert whole.downloaded == 2
    assert not take(bucket, mirror, whole.table, selection=Selection(exclude=("*",))).changed


def test_an_object_over_the_limit_is_a_row_with_a_reason_and_is_not_fetched(
    bucket: Bucket, mirror: Mirror, speech: bytes
) -> None:
    bucket.put("calls/a.wav", speech)
    first = take(bucket, mirror, selection=Selection(max_object_bytes=len(speech) - 1))
    found = row(first.table, "calls/a.wav")
    assert (found["status"], found["size_bytes"], first.bytes_downloaded) == ("invalid", len(speech), 0)
    assert "raise it to take the object in" in found["error"]
    assert list(mirror.files()) == []
    assert not take(bucket, mirror, first.table, selection=Selection(max_object_bytes=len(speech) - 1)).changed
    assert statuses(take(bucket, mirror, first.table, selection=Selection(max_object_bytes=len(speech))).table) == {
        "calls/a.wav": "ok"
    }


def test_what_is_not_fetched_is_counted_and_has_a_status_where_it_counts(
    bucket: Bucket, mirror: Mirror, speech: bytes, fetches: list[str]
) -> None:
    bucket.put("calls/a.wav", speech)
    bucket.put("calls/empty.wav", b"")
    bucket.put("calls/huge.wav", speech * 2)
    bucket.put("calls/draft.wav", speech)
    bucket.put("calls/notes.txt", b"x")
    bucket.put("calls/folder/", b"")
    selection = Selection(exclude=("*draft*",), max_object_bytes=len(speech))
    first = take(bucket, mirror, selection=selection)
    assert statuses(first.table) == {"calls/a.wav": "ok", "calls/empty.wav": "invalid", "calls/huge.wav": "invalid"}
    assert fetches == ["calls/a.wav"]
    assert row(first.table, "calls/empty.wav")["error"] == "the file has zero bytes"
    assert dict(first.passed_over) == {MARKERS: 1, OTHER_FILES: 1, EXCLUDED: 1, EMPTY: 1, OVERSIZED: 1}
    again = take(bucket, mirror, first.table, selection=selection)
    assert (again.changed, len(fetches), again.passed_over) == (False, 1, first.passed_over)


def test_what_was_fetched_before_is_not_passed_over_under_a_lower_limit(
    bucket: Bucket, mirror: Mirror, speech: bytes
) -> None:
    bucket.put("calls/a.wav", speech)
    first = take(bucket, mirror)
    bucket.put("calls/b.wav", speech)
    again = take(bucket, mirror, first.table, selection=Selection(max_object_bytes=len(speech) - 1))
    assert statuses(again.table) == {"calls/a.wav": "ok", "calls/b.wav": "invalid"}
    assert again.passed_over[OVERSIZED] == 1


def test_a_directory_in_the_place_of_a_file_costs_that_file_alone(
    bucket: Bucket, mirror: Mirror, speech: bytes
) -> None:
    bucket.put("calls/a.wav", speech)
    bucket.put("calls/b.wav", speech)
    first = take(bucket, mirror)
    mirror.path_for("calls/a.wav").unlink()
    mirror.path_for("calls/a.wav").mkdir()
    bucket.put("calls/c.wav", speech)
    again = take(bucket, mirror, first.table)
    assert statuses(again.table) == {"calls/a.wav": "failed", "calls/b.wav": "ok", "calls/c.wav": "ok"}
    assert "a.wav cannot be read (Is a directory)" in row(again.table, "calls/a.wav")["error"]


def test_progress_is_told_once_per_file(bucket: Bucket, mirror: Mirror, speech: bytes) -> None:
    for name in "abc":
        bucket.put(f"calls/{name}.wav", speech)
    bucket.put("calls/zero.wav", b"")
    told: list[IntakeProgress] = []
    ingest_prefix(bucket.client, bucket.name, "calls/", 1, mirror, on_progress=told.append)
    assert [p.done for p in told] == [1, 2, 3, 4]
    assert {p.total for p in told} == {4}
    assert {(p.key, p.action, p.status) for p in told} == {
        ("calls/a.wav", "downloaded", "ok"),
        ("calls/b.wav", "downloaded", "ok"),
        ("calls/c.wav", "downloaded", "ok"),
        ("calls/zero.wav", "skipped", "invalid"),
    }
    assert told[-1].bytes_downloaded == 3 * len(speech)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"max_workers": 0}, {"limit": -1}])
def test_options_that_make_no_sense_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"limit|batch_size"):
        IntakeOptions(**options)


ODD_KEYS = [
    "../escape.wav",
    "../../escape.wav",
    "/absolute.wav",
    "a//b.wav",
    "./a.wav",
    "a/../b.wav",
    "x.wav",
    "x.wav/y.wav",
    "x.wav/y.wav/z.mp3",
    ".state/objects/a.wav",
    "back\\slash.wav",
    "bell\x07.wav",
    "tab\tand space .wav",
    "%2E%2E/%2e.wav",
    "a+b&c=d?e#f.wav",
    "quote\"'<>.wav",
    "A.WAV",
    "a.wav",
    "Zo\u00eb.wav",
    "Zoe\u0308.wav",
    "会議.wav",
    "🎙.wav",
    "l" * 300 + ".wav",
    "é" * 400 + "/a.wav",
    "x" * 240 + "../b.wav",
]


def test_odd_keys_come_through_whole_and_stay_inside(odd_server: str, mirror: Mirror, speech: bytes) -> None:
    client = plain_client(odd_server)
    client.create_bucket(Bucket="odd")
    contents = {key: speech + bytes([i]) for i, key in enumerate(ODD_KEYS)}
    for key, content in contents.items():
        client.put_object(Bucket="odd", Key=key, Body=content)
    outside = {p for p in mirror.root.parent.rglob("*") if not p.is_relative_to(mirror.root)}
    for depth in (0, 1, 2):
        table = pa.concat_tables(
            ingest_prefix(client, "odd", p.prefix, depth, mirror).table
            for p in discover_prefixes(list_objects(client, "odd"), depth)
        )
        assert statuses(table) == dict.fromkeys(ODD_KEYS, "ok")
        assert table.num_rows == len(ODD_KEYS)
    for key, content in contents.items():
        assert mirror.path_for(key).read_bytes() == content
    assert sorted(mirror.files()) == sorted(ODD_KEYS)
    folded = {unicodedata.normalize("NFC", str(mirror.path_for(key)).casefold()) for key in ODD_KEYS}
    assert len(folded) == len(ODD_KEYS), "two keys would share a file on some file systems"
    assert {p for p in mirror.root.parent.rglob("*") if not p.is_relative_to(mirror.root)} == outside
    client.close()


def test_two_intakes_at_once_end_with_one_complete_mirror(bucket: Bucket, mirror: Mirror, speech: bytes) -> None:
    for i in range(10):
        bucket.put(f"calls/{i}.wav", speech)
    found: list[Intake] = []
    threads = [threading.Thread(target=lambda: found.append(take(bucket, mirror))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0].table.equals(found[1].table)
    assert set(statuses(found[0].table).values()) == {"ok"}
    assert len(list(mirror.files("calls/"))) == 10


# Without a bucket: the files as they lie.


def test_files_copied_in_by_hand_are_rows_without_an_etag(mirror: Mirror) -> None:
    path = write_tone(mirror.root / "calls" / "my day" / "A.wav")
    (mirror.root / "calls" / "text.mp3").write_text("no audio")
    (mirror.root / "calls" / "readme.txt").write_text("not counted")
    intake = ingest_mirror(mirror, "calls/", 1)
    assert statuses(intake.table) == {"calls/my day/A.wav": "ok", "calls/text.mp3": "invalid"}
    found = row(intake.table, "calls/my day/A.wav")
    assert found["etag"] is None
    assert found["last_modified"] is None
    assert found["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found["size_bytes"] == path.stat().st_size
    assert (intake.downloaded, intake.skipped) == (0, 2)


def test_what_was_downloaded_reads_the_same_without_the_bucket(bucket: Bucket, mirror: Mirror, speech: bytes) -> None:
    bucket.put("calls/a.wav", speech, Metadata={"speaker": "seven"})
    bucket.put("calls/noise.wav", b"not audio")
    online = take(bucket, mirror)
    assert ingest_mirror(mirror, "calls/", 1).table.equals(online.table)
    assert ingest_mirror(mirror, "calls/", 1, online.table).table.equals(online.table)


def test_a_file_replaced_by_hand_is_no_longer_the_buckets(
    mirror: Mirror, bucket: Bucket, speech: bytes, tmp_path: Path
) -> None:
    bucket.put("calls/a.wav", speech)
    online = take(bucket, mirror)
    write_tone(mirror.path_for("calls/a.wav"), seconds=3.0)
    found = row(ingest_mirror(mirror, "calls/", 1, online.table).table, "calls/a.wav")
    assert found["etag"] is None
    assert found["duration_s"] == 3.0


def test_hashes_are_remembered_while_files_stay_as_they_are(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tone(mirror.root / "calls" / "a.wav")
    first = ingest_mirror(mirror, "calls/", 1)

    def never(path: Path) -> str:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr("audio_assets.ingest.mirror._sha256", never)
    assert ingest_mirror(mirror, "calls/", 1, first.table).table.equals(first.table)


def test_missing_files_are_gone_only_when_they_were_the_users_own(
    bucket: Bucket, mirror: Mirror, speech: bytes
) -> None:
    bucket.put("calls/remote.wav", speech)
    take(bucket, mirror)
    write_tone(mirror.root / "calls" / "own.wav")
    both = ingest_mirror(mirror, "calls/", 1).table
    for key in statuses(both):
        mirror.path_for(key).unlink()
    after = ingest_mirror(mirror, "calls/", 1, both).table
    assert statuses(after) == {"calls/own.wav": "gone", "calls/remote.wav": "ok"}


def test_a_file_name_that_is_no_key_is_a_row_that_says_so(mirror: Mirror) -> None:
    write_tone(mirror.root / "calls" / "a%2Fb.wav")
    table = ingest_mirror(mirror, "calls/", 1).table
    assert statuses(table) == {"calls/a%2Fb.wav": "failed"}
    assert "rename the file" in row(table, "calls/a%2Fb.wav")["error"]


def test_limit_and_key_prefixes_hold_without_a_bucket(mirror: Mirror) -> None:
    for name in ("a", "b", "c"):
        write_tone(mirror.root / "calls" / f"{name}.wav")
    assert list(statuses(ingest_mirror(mirror, "calls/", 1, None, IntakeOptions(limit=2)).table)) == [
        "calls/a.wav",
        "calls/b.wav",
    ]
    options = IntakeOptions(key_prefixes=("calls/b",))
    assert list(statuses(ingest_mirror(mirror, "calls/", 1, None, options).table)) == ["calls/b.wav"]


def test_prefixes_of_the_mirror(mirror: Mirror) -> None:
    assert mirror_prefixes(mirror, 1) == []
    size = write_tone(mirror.root / "a.wav").stat().st_size
    write_tone(mirror.root / "calls" / "2024" / "b.wav")
    found = {p.partition: (p.object_count, p.size_bytes) for p in mirror_prefixes(mirror, 1)}
    assert found == {"_root_": (1, size), "calls": (1, size)}
