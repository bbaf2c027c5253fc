"""A mirror within a number of bytes: what is dropped, what never is, and how it comes back."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from audio_assets.errors import FileFailed
from audio_assets.ingest import disk_budget
from audio_assets.ingest.disk_budget import DiskBudget
from audio_assets.ingest.download import download
from audio_assets.ingest.intake import Intake, IntakeOptions, ingest_prefix, restore_records
from audio_assets.ingest.listing import RemoteObject
from audio_assets.ingest.mirror import Mirror, identity_of
from audio_assets.ingest.selection import Selection
from audio_assets.ingest.supply import Supply
from audio_assets_tests.ingest.audio import write_tone
from audio_assets_tests.ingest.conftest import Bucket, bytes_in
from audio_assets_tests.ingest.faulty import ENTRY, LISTING, FaultyServer
from audio_assets_tests.ingest.test_intake import statuses


@pytest.fixture
def speech(tmp_path: Path) -> bytes:
    return write_tone(tmp_path / "tone.wav", seconds=0.2).read_bytes()


def on_disk(mirror: Mirror) -> int:
    """Bytes of everything that is or becomes a recording."""
    return sum(mirror.path_for(key).stat().st_size for key in mirror.files()) + mirror.parts_bytes()


def take(bucket: Bucket, mirror: Mirror, budget: DiskBudget, previous: Any = None, **options: Any) -> Intake:
    return ingest_prefix(
        bucket.client, bucket.name, "calls/", 1, mirror, previous, IntakeOptions(**options), budget=budget
    )


def test_a_prefix_larger_than_the_budget_is_taken_in_and_the_first_files_stay(
    bucket: Bucket, mirror: Mirror, speech: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(8):
        bucket.put(f"calls/{n}.wav", speech + bytes([n]))
    # One is looked at, one waits for that, one comes, none of which can be dropped; and the first of all.
    limit = 4 * (len(speech) + 1)
    budget = DiskBudget(mirror, limit)
    most: list[int] = []
    original = Mirror.record

    def watched(self: Mirror, state: Any) -> None:
        most.append(on_disk(self))
        original(self, state)

    monkeypatch.setattr(Mirror, "record", watched)
    first = take(bucket, mirror, budget, max_workers=1, batch_size=1)
    assert statuses(first.table) == {f"calls/{n}.wav": "ok" for n in range(8)}
    assert max(most) <= limit
    # What is transcribed first is still there.
    assert "calls/0.wav" in set(mirror.files())
    assert len(mirror.dropped()) == 4
    again = take(bucket, mirror, budget, first.table)
    assert (again.changed, again.downloaded, again.skipped) == (False, 0, 8)


def stored(mirror: Mirror, budget: DiskBudget, bucket: Bucket, *keys: str, size: int = 10) -> None:
    for key in keys:
        bucket.put(key, os.urandom(size))
    for key in keys:
        done = ingest_prefix(
            bucket.client, bucket.name, "", 0, mirror, None, IntakeOptions(key_prefixes=(key,)), budget=budget
        )
        assert done.downloaded == 1


def test_what_was_transcribed_goes_first_least_recently_used_first(bucket: Bucket, mirror: Mirror) -> None:
    budget = DiskBudget(mirror, 40)
    stored(mirror, budget, bucket, "a.wav", "b.wav", "c.wav", "d.wav")
    budget.spent(["a.wav", "b.wav", "c.wav"])
    with budget.reading("a.wav"):
        pass
    stored(mirror, budget, bucket, "e.wav")
    assert set(mirror.dropped()) == {"b.wav"}
    stored(mirror, budget, bucket, "f.wav", size=20)
    assert set(mirror.dropped()) == {"a.wav", "b.wav", "c.wav"}
    # Only what waits is left: the last that came goes.
    stored(mirror, budget, bucket, "g.wav")
    assert set(mirror.dropped()) == {"a.wav", "b.wav", "c.wav", "f.wav"}
    assert on_disk(mirror) <= 40


def test_what_vanished_is_not_dropped_for_what_comes_in_the_same_run(
    bucket: Bucket, mirror: Mirror, speech: bytes
) -> None:
    budget = DiskBudget(mirror, len(speech))
    bucket.put("calls/a.wav", speech)
    first = take(bucket, mirror, budget)
    bucket.delete("calls/a.wav")
    bucket.put("calls/b.wav", speech)
    second = take(bucket, mirror, budget, first.table)
    assert statuses(second.table) == {"calls/a.wav": "gone", "calls/b.wav": "failed"}
    assert set(mirror.files()) == {"calls/a.wav"}


def test_what_was_dropped_is_told_by_prefix(bucket: Bucket, mirror: Mirror) -> None:
    keys = {"calls/a.wav", "calls/ü.wav", "calls0.wav", "talks/a.wav", "ü/a.wav"}
    stored(mirror, DiskBudget(mirror, None), bucket, *sorted(keys))
    DiskBudget(mirror, 0).spent(keys)
    DiskBudget(mirror, 0).shrink()
    assert set(mirror.dropped()) == keys
    assert set(mirror.dropped("calls/")) == {"calls/a.wav", "calls/ü.wav"}
    assert set(mirror.dropped("ü/")) >= {"ü/a.wav"}


def test_a_file_in_use_is_not_dropped_and_the_download_waits_for_it(bucket: Bucket, mirror: Mirror) -> None:
    budget = DiskBudget(mirror, 10)
    stored(mirror, budget, bucket, "a.wav")
    came = threading.Event()

    def fetch() -> None:
        stored(mirror, DiskBudget(mirror, 10), bucket, "b.wav")
        came.set()

    with budget.reading("a.wav"):
        thread = threading.Thread(target=fetch)
        thread.start()
        assert not came.wait(0.5)
        assert set(mirror.files()) == {"a.wav"}
    thread.join(timeout=30)
    assert set(mirror.files()) == {"b.wav"}


def test_files_that_the_bucket_cannot_give_back_are_never_dropped(
    bucket: Bucket, mirror: Mirror, speech: bytes
) -> None:
    mirror.root.mkdir()
    (mirror.root / "mine.wav").write_bytes(b"x" * 10)
    budget = DiskBudget(mirror, 30)
    stored(mirror, budget, bucket, "gone.wav", "changed.wav")
    bucket.delete("gone.wav")
    rows = ingest_prefix(bucket.client, bucket.name, "", 0, mirror, None, budget=budget).table.slice(0, 0)
    known = rows.schema.empty_table()
    budget.keep(["gone.wav"])
    mirror.path_for("changed.wav").write_bytes(b"mine now")
    bucket.put("big.wav", b"x" * 25)
    done = ingest_prefix(
        bucket.client, bucket.name, "", 0, mirror, known, IntakeOptions(key_prefixes=("big",)), budget=budget
    )
    assert statuses(done.table) == {"big.wav": "failed"}
    assert "the mirror is full of files that the bucket cannot give back" in str(done.table.to_pylist()[0]["error"])
    assert {"mine.wav", "gone.wav", "changed.wav"} <= set(mirror.files())


def test_an_object_over_the_whole_budget_is_a_row_that_says_what_to_do(bucket: Bucket, mirror: Mirror) -> None:
    bucket.put("calls/a.wav", b"x" * 11)
    done = take(bucket, mirror, DiskBudget(mirror, 10))
    assert statuses(done.table) == {"calls/a.wav": "failed"}
    assert "raise that to take the object in" in str(done.table.to_pylist()[0]["error"])
    assert list(mirror.files()) == []


def test_a_vanished_object_keeps_its_last_copy(bucket: Bucket, mirror: Mirror) -> None:
    budget = DiskBudget(mirror, 20)
    stored(mirror, budget, bucket, "calls/a.wav")
    first = take(bucket, mirror, budget)
    bucket.delete("calls/a.wav")
    take(bucket, mirror, budget, first.table)
    stored(mirror, budget, bucket, "calls/b.wav", "calls/c.wav")
    assert "calls/a.wav" in set(mirror.files())


def test_an_index_that_was_lost_is_made_anew_from_the_files(bucket: Bucket, mirror: Mirror) -> None:
    budget = DiskBudget(mirror, 20)
    stored(mirror, budget, bucket, "a.wav", "b.wav")
    disk_budget.index_path(mirror.root).unlink()
    again = DiskBudget(mirror, 20)
    assert again.used_bytes() == 20
    stored(mirror, again, bucket, "c.wav")
    assert on_disk(mirror) == 20


def test_a_smaller_budget_is_kept_to_at_once(bucket: Bucket, mirror: Mirror) -> None:
    stored(mirror, DiskBudget(mirror, 40), bucket, "a.wav", "b.wav", "c.wav")
    DiskBudget(mirror, 10).shrink()
    assert on_disk(mirror) == 10


def test_holds_of_a_process_that_died_hold_nothing(bucket: Bucket, mirror: Mirror) -> None:
    budget = DiskBudget(mirror, 10)
    stored(mirror, budget, bucket, "a.wav")
    child = os.fork()
    if child == 0:
        hold = budget.reading("a.wav")
        hold.__enter__()
        os._exit(0)
    os.waitpid(child, 0)
    stored(mirror, budget, bucket, "b.wav")
    assert set(mirror.files()) == {"b.wav"}


def test_a_dead_process_that_had_our_number_holds_nothing(bucket: Bucket, mirror: Mirror) -> None:
    """In a container every process may be number 1: the next would wait for itself."""
    budget = DiskBudget(mirror, 10)
    stored(mirror, budget, bucket, "a.wav")
    with budget._transaction() as index:
        index.execute(
            "INSERT INTO held VALUES ('token', ?, 10, ?)", (b"b.wav", f"{os.getpid()}-0123456789abcdef.process")
        )
    stored(mirror, budget, bucket, "b.wav")
    assert set(mirror.files()) == {"b.wav"}


def test_what_a_process_has_fetched_before_it_was_killed_takes_its_room(bucket: Bucket, mirror: Mirror) -> None:
    budget = DiskBudget(mirror, 25)
    stored(mirror, budget, bucket, "a.wav")
    budget.spent(["a.wav"])
    found = RemoteObject("b.wav", bucket.put("b.wav", os.urandom(10)), 10, None)
    download(bucket.client, bucket.name, found, mirror)
    with budget._transaction() as index:
        index.execute(
            "INSERT INTO held VALUES ('token', ?, 10, ?)", (b"b.wav", f"{os.getpid()}-0123456789abcdef.process")
        )
    stored(mirror, budget, bucket, "c.wav")
    assert on_disk(mirror) <= 25
    assert set(mirror.files()) == {"b.wav", "c.wav"}


def test_a_broken_download_has_its_room_already(bucket: Bucket, mirror: Mirror) -> None:
    budget = DiskBudget(mirror, 10_000)
    content = os.urandom(9_000)
    found = RemoteObject("calls/a.wav", bucket.put("calls/a.wav", content), len(content), None)
    with pytest.raises(RuntimeError), mirror.storing(found.key, identity_of(found)) as part:
        os.write(part.handle, content[:8_000])
        raise RuntimeError("the connection broke")
    assert mirror.parts_bytes() == 8_000
    done = take(bucket, mirror, budget)
    assert done.downloaded == 1
    assert mirror.path_for("calls/a.wav").read_bytes() == content


def test_a_broken_download_makes_room_for_another_object(bucket: Bucket, mirror: Mirror) -> None:
    budget = DiskBudget(mirror, 10_000)
    old = RemoteObject("calls/a.wav", "of before", 9_000, None)
    with pytest.raises(RuntimeError), mirror.storing(old.key, identity_of(old)) as part:
        os.write(part.handle, b"x" * 8_000)
        raise RuntimeError("the connection broke")
    bucket.put("calls/a.wav", os.urandom(9_000))
    assert take(bucket, mirror, budget).downloaded == 1
    assert on_disk(mirror) == 9_000


def test_an_object_that_came_back_can_be_dropped_again(bucket: Bucket, mirror: Mirror) -> None:
    budget = DiskBudget(mirror, 30)
    content = os.urandom(20)
    bucket.put("calls/a.wav", content)
    table = take(bucket, mirror, budget).table
    bucket.delete("calls/a.wav")
    table = take(bucket, mirror, budget, table).table
    bucket.put("calls/a.wav", content)
    bucket.put("calls/b.wav", os.urandom(20))
    done = take(bucket, mirror, budget, table)
    assert done.failed == 0
    assert len(set(mirror.files())) == len(mirror.dropped()) == 1


def test_an_object_that_grew_since_it_was_listed_keeps_to_both_limits(
    faulty: FaultyServer, faulty_client: Any, mirror: Mirror
) -> None:
    def grow(key: str, size: int) -> str:
        """The object is replaced after the listing that is sent has told of ten bytes."""
        faulty.put(key, b"x" * 10)
        listing = LISTING.format(ENTRY.format(key, faulty.etags[key], 10))
        faulty.listing = listing
        faulty.put(key, os.urandom(size))
        return key

    budget = DiskBudget(mirror, 1_000)
    options = IntakeOptions(selection=Selection(max_object_bytes=500))
    key = grow("calls/a.wav", 800)
    done = ingest_prefix(faulty_client, "bucket", "calls/", 1, mirror, None, options, budget=budget)
    assert statuses(done.table) == {key: "invalid"}
    assert "over the limit of 500 for an object" in str(done.table.to_pylist()[0]["error"])
    key = grow("calls/b.wav", 5_000)
    done = ingest_prefix(faulty_client, "bucket", "calls/", 1, mirror, None, budget=budget)
    assert statuses(done.table)[key] == "failed"
    assert "the mirror may hold 1000 in all" in str(done.table.to_pylist()[-1]["error"])
    assert on_disk(mirror) == 0


def test_a_newer_version_finds_room_where_the_older_one_lies(bucket: Bucket, mirror: Mirror) -> None:
    budget = DiskBudget(mirror, 100)
    stored(mirror, budget, bucket, "a.wav", size=60)
    content = os.urandom(60)
    found = RemoteObject("a.wav", bucket.put("a.wav", content), 60, None)
    with supply(bucket, mirror, budget) as files, files.bring("a.wav", hashlib.sha256(content).hexdigest(), found):
        assert mirror.path_for("a.wav").read_bytes() == content


def test_a_dropped_file_comes_back_though_its_record_is_lost(bucket: Bucket, mirror: Mirror) -> None:
    budget = DiskBudget(mirror, 20)
    stored(mirror, budget, bucket, "a.wav", "b.wav", "c.wav")
    (missing,) = mirror.dropped()
    sha256 = shas(mirror, [missing])[missing]
    shutil.rmtree(mirror.root / ".state" / "objects")
    budget.spent(["a.wav", "b.wav", "c.wav"])
    with supply(bucket, mirror, DiskBudget(mirror, 30)) as files, files.bring(missing, sha256):
        assert mirror.path_for(missing).is_file()


@pytest.mark.parametrize("looked", [False, True], ids=["lost", "looked at since"])
def test_a_file_whose_record_is_lost_can_be_dropped_if_its_row_has_the_same_bytes(
    bucket: Bucket, mirror: Mirror, speech: bytes, looked: bool
) -> None:
    bucket.put("calls/a.wav", speech, Metadata={"speaker": "seven"})
    bucket.put("calls/b.wav", speech + b"b")
    rows = take(bucket, mirror, DiskBudget(mirror, None)).table
    before = mirror.state("calls/a.wav")
    shutil.rmtree(mirror.root / ".state" / "objects")
    mirror.path_for("calls/b.wav").write_bytes(b"mine now")
    if looked:
        assert mirror.inspect("calls/a.wav")
    budget = DiskBudget(mirror, 1)
    budget.shrink()
    assert budget.kept() == {"calls/a.wav", "calls/b.wav"}

    budget.came_back(restore_records(mirror, budget, rows))
    budget.shrink()

    assert (set(mirror.files()), set(mirror.dropped())) == ({"calls/b.wav"}, {"calls/a.wav"})
    assert mirror.state("calls/a.wav") == before


def shas(mirror: Mirror, keys: Sequence[str]) -> dict[str, str]:
    states = {key: mirror.state(key) for key in keys}
    return {key: state.sha256 for key, state in states.items() if state is not None}


def supply(bucket: Bucket, mirror: Mirror, budget: DiskBudget | None) -> Supply:
    return Supply(mirror, budget, lambda: (bucket.client, bucket.name))


def test_a_dropped_file_comes_back_when_it_is_needed(bucket: Bucket, mirror: Mirror) -> None:
    budget = DiskBudget(mirror, 20)
    stored(mirror, budget, bucket, "a.wav", "b.wav", "c.wav")
    (missing,) = mirror.dropped()
    before = mirror.state(missing)
    with supply(bucket, mirror, budget) as files, files.bring(missing, before.sha256 if before else None):
        assert mirror.path_for(missing).is_file()
        assert on_disk(mirror) <= 20
    assert missing not in mirror.dropped()


def test_files_are_brought_back_ahead_without_dropping_what_waits(bucket: Bucket, mirror: Mirror) -> None:
    budget = DiskBudget(mirror, 30_000)
    keys = [f"{n}.wav" for n in range(6)]
    stored(mirror, budget, bucket, *keys, size=10_000)
    assert set(mirror.files()) == {"0.wav", "1.wav", "5.wav"}
    with supply(bucket, mirror, budget) as files:
        files.ahead(shas(mirror, keys), lambda key: True)
        for key in keys:
            with files.bring(key):
                assert mirror.path_for(key).is_file()
                # Beside the recordings lies what is being noted of them.
                assert bytes_in(mirror.root) < 35_000
            files.spent([key])


def test_an_object_that_changed_meanwhile_is_not_taken_for_the_old_one(bucket: Bucket, mirror: Mirror) -> None:
    budget = DiskBudget(mirror, 10)
    stored(mirror, budget, bucket, "a.wav", "b.wav")
    (missing,) = mirror.dropped()
    before = mirror.state(missing)
    assert before is not None
    bucket.put(missing, b"new bytes!")
    with (
        supply(bucket, mirror, budget) as files,
        pytest.raises(FileFailed, match="changed since it was taken in"),
        files.bring(missing, before.sha256),
    ):
        pass


def test_an_object_that_changed_meanwhile_is_not_taken_for_the_old_one_when_it_was_fetched_ahead(
    bucket: Bucket, mirror: Mirror
) -> None:
    budget = DiskBudget(mirror, 10)
    stored(mirror, budget, bucket, "a.wav", "b.wav")
    (missing,) = mirror.dropped()
    contents = shas(mirror, [missing])
    bucket.put(missing, b"new bytes!")
    budget.spent(["a.wav", "b.wav"])
    with supply(bucket, mirror, budget) as files:
        files.ahead(contents, lambda key: True)
        for thread in files._threads:
            thread.join(timeout=30)
        with pytest.raises(FileFailed, match="changed since it was taken in"), files.bring(missing, contents[missing]):
            pass


def test_a_version_that_another_run_put_in_place_is_not_taken_for_the_old_one(bucket: Bucket, mirror: Mirror) -> None:
    bucket.put("a.wav", b"old bytes")
    ingest_prefix(bucket.client, bucket.name, "", 0, mirror)
    before = shas(mirror, ["a.wav"])["a.wav"]
    with supply(bucket, mirror, None) as files:
        with files.bring("a.wav", before):
            bucket.put("a.wav", b"new bytes")
            ingest_prefix(bucket.client, bucket.name, "", 0, mirror)
            with pytest.raises(FileFailed, match="changed since it was taken in"):
                files.check("a.wav", before)
        with pytest.raises(FileFailed, match="changed since it was taken in"), files.bring("a.wav", before):
            pass


def test_a_file_that_nobody_has_says_how_to_get_it(bucket: Bucket, tmp_path: Path) -> None:
    with (
        supply(bucket, Mirror(tmp_path), None) as files,
        pytest.raises(FileFailed, match="audio-assets run"),
        files.bring("a.wav"),
    ):
        pass
