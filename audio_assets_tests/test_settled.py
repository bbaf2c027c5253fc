"""A prefix for which a run has nothing to do is told from one that looks like it."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from audio_assets import schemas, settled
from audio_assets.ingest import intake
from audio_assets.ingest.intake import IntakeOptions, ingest_prefix
from audio_assets.ingest.probe import PROBE_VERSION
from audio_assets.ingest.selection import EMPTY, Selection
from audio_assets.resources.home import HomeResource
from audio_assets.resources.r2 import R2Resource
from audio_assets.runner import tidy_mirror
from audio_assets.settings import Home
from audio_assets.settled import Settled, Unchanged
from audio_assets.speech.ledger import journal_directory
from audio_assets.storage.partition_files import PartitionStore
from audio_assets_tests.conftest import r2_environment
from audio_assets_tests.ingest.audio import write_tone
from audio_assets_tests.ingest.conftest import Bucket, bucket

__all__ = ["bucket"]

OPTIONS = IntakeOptions(selection=Selection(max_object_bytes=1_000_000))


class Corpus:
    """A home and a bucket with two prefixes, taken in and transcribed."""

    def __init__(self, home: Home, bucket: Bucket, speech: bytes) -> None:
        self.home, self.bucket, self.speech = home, bucket, speech
        self.store = PartitionStore(home.tables)
        self.made_by = {"calls": "run-1", "talks": "run-1"}
        for key in ("calls/a.wav", "calls/b.wav", "talks/a.wav"):
            bucket.put(key, speech + key.encode())
        bucket.put("calls/nothing.wav", b"")
        bucket.put("calls/large.wav", bytes(1_000_001))
        for partition in ("calls", "talks"):
            self.take(partition)
            self.note(partition)

    def take(self, partition: str, status: str = "ok") -> None:
        """What a run makes of a prefix."""
        stored = self.store.read(schemas.RAW_AUDIO, [partition])
        done = ingest_prefix(
            self.bucket.client, self.bucket.name, f"{partition}/", 1, HomeResource().mirror(), stored, OPTIONS
        )
        self.store.write(schemas.RAW_AUDIO, done.table, partition)
        rows = [
            {"id": id, "prefix": f"{partition}/", "segments": [], "flags": [], "cached": True, "status": status}
            for id in done.table.column("id").to_pylist()
        ]
        self.store.write(schemas.TRANSCRIPTS, schemas.TRANSCRIPTS.from_rows(rows), partition)

    def note(self, partition: str) -> None:
        """What a run does that found everything in the cache."""
        settled = self.settled()
        settled.note(partition, self.made_by[partition], settled._files(partition))  # type: ignore[arg-type]

    def settled(self, options: IntakeOptions = OPTIONS) -> Settled:
        return Settled(HomeResource(), R2Resource(), self.made_by.get, ["raw_audio", "transcripts"], options)

    def found(self, options: IntakeOptions = OPTIONS) -> dict[str, Unchanged | None]:
        with self.settled(options).among(["calls", "talks"]) as settled:
            return {partition: settled(partition) for partition in ("calls", "talks")}

    def names(self, options: IntakeOptions = OPTIONS) -> set[str]:
        return {partition for partition, found in self.found(options).items() if found is not None}


@pytest.fixture
def corpus(weed: object, home: Home, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    for variable, value in r2_environment(weed).items():  # type: ignore[arg-type]
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("R2_BUCKET", bucket.name)
    return Corpus(home, bucket, write_tone(tmp_path / "tone.wav", seconds=0.2).read_bytes())


def test_a_prefix_with_nothing_new_is_settled_and_its_refused_objects_are_counted(corpus: Corpus) -> None:
    found = corpus.found()
    assert set(found) == corpus.names() == {"calls", "talks"}
    calls = found["calls"]
    assert calls is not None and calls.passed_over[EMPTY] == 1


def test_what_vanished_and_was_marked_is_no_news(corpus: Corpus) -> None:
    corpus.bucket.delete("calls/a.wav")
    assert corpus.names() == {"talks"}
    corpus.take("calls")
    assert "gone" in corpus.store.read(schemas.RAW_AUDIO, ["calls"]).column("status").to_pylist()
    corpus.note("calls")
    assert corpus.names() == {"calls", "talks"}


CHANGES: dict[str, Callable[[Corpus], object]] = {
    "a new object": lambda c: c.bucket.put("calls/c.wav", c.speech),
    "an overwritten object": lambda c: c.bucket.put("calls/a.wav", c.speech + b"new"),
    "a deleted object": lambda c: c.bucket.delete("calls/b.wav"),
    "a file that left the mirror": lambda c: (c.home.audio / "calls/a.wav").unlink(),
    "a file that was changed in the mirror": lambda c: (c.home.audio / "calls/a.wav").write_bytes(b"x"),
    "a table that was written since": lambda c: c.take("calls"),
    "a table that was deleted": lambda c: c.store.delete(schemas.TRANSCRIPTS, "calls"),
    "a table that was changed by hand": lambda c: os.utime(c.home.tables / "transcripts/calls.parquet"),
    "a request that is not on record": lambda c: _journal(c.home, "calls/"),
    "a damaged note": lambda c: [path.write_bytes(b"{") for path in _notes(c, "calls")],
    "another run that made it": lambda c: c.made_by.update(calls="run-2"),
    "a history that was wiped": lambda c: c.made_by.pop("calls"),
    "a note that is old": lambda c: [_aged(path, 31) for path in _notes(c, "calls")],
    "a note of tomorrow": lambda c: [_aged(path, -1) for path in _notes(c, "calls")],
    "an object over the limit that was replaced": lambda c: c.bucket.put("calls/large.wav", b"x" * 1_000_001),
}


def _journal(home: Home, prefix: str) -> None:
    directory = journal_directory(home.ledger, prefix)
    directory.mkdir(parents=True)
    (directory / "x.jsonl").write_text("{}\n")


def _notes(corpus: Corpus, partition: str) -> list[Path]:
    return [corpus.settled()._path(partition)]


def _aged(path: Path, days: int) -> None:
    noted = json.loads(path.read_bytes())
    path.write_text(json.dumps(noted | {"at": noted["at"] - days * 24 * 3600}))


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changed_takes_its_prefix_alone_out(corpus: Corpus, change: str) -> None:
    CHANGES[change](corpus)
    assert corpus.names() == {"talks"}


def test_another_setting_another_package_or_another_limit_takes_all_out(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as other:
        other.setenv("AUDIO_ASSETS_STOP_WORDS", "um")
        assert corpus.names() == set()
    with monkeypatch.context() as other:
        other.setenv("WHISPER_MODEL", "small")
        assert corpus.names() == set()
    with monkeypatch.context() as other:
        other.setattr(settled, "_code", lambda: "newer")
        assert corpus.names() == set()
    with monkeypatch.context() as other:
        other.setattr(settled, "_libraries", lambda: ["spacy-99.dist-info"])
        assert corpus.names() == set()
    assert corpus.names(IntakeOptions(selection=Selection(max_object_bytes=2_000_000))) == set()
    # A key that was renewed changes nothing.
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "renewed")
    monkeypatch.setenv("R2_ACCESS_KEY_ID", "renewed")
    monkeypatch.setattr(R2Resource, "get_client", lambda _: corpus.bucket.client)
    assert corpus.names() == {"calls", "talks"}


def test_a_bucket_that_does_not_answer_leaves_it_to_the_run_to_say_so(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audio_assets.settled._made_with", lambda options: "same")
    corpus.note("calls")
    monkeypatch.setenv("R2_BUCKET", "no-such-bucket")
    assert corpus.names() == set()


def test_what_an_earlier_probe_refused_is_not_settled(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus.bucket.put("calls/text.mp3", b"This is text.")
    corpus.take("calls")
    corpus.note("calls")
    assert corpus.names() == {"calls", "talks"}
    monkeypatch.setattr(intake, "PROBE_VERSION", PROBE_VERSION + 1)
    assert corpus.names() == {"talks"}
    corpus.take("calls")
    corpus.note("calls")
    assert corpus.names() == {"calls", "talks"}


def test_unfinished_files_are_never_settled(corpus: Corpus) -> None:
    corpus.take("calls", status="failed")
    corpus.note("calls")
    assert corpus.names() == {"talks"}


def test_a_look_that_is_old_when_its_turn_comes_is_taken_again(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settled, "_LOOK_AGAIN_S", 0.0)
    with corpus.settled().among(["calls", "talks"]) as found:
        assert found("calls") is not None
        corpus.bucket.put("talks/b.wav", corpus.speech)
        assert found("talks") is None


def test_a_full_disk_writes_no_note_and_stops_nobody(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(settled.atomic, "write_bytes", full)
    corpus.note("calls")
    assert corpus.names() == {"talks"}


def test_what_a_killed_run_left_of_a_note_goes_with_the_next(corpus: Corpus) -> None:
    note = corpus.settled()._path("calls")
    left = note.with_name(f".{note.name}.4194304.0123abcd.tmp")
    left.write_bytes(b"{")
    assert corpus.names() == {"calls", "talks"}
    assert not left.exists()


def test_tables_that_two_runs_have_written_between_them_are_not_noted(corpus: Corpus) -> None:
    settled = corpus.settled()
    ours = settled._files("calls")
    corpus.take("calls")  # another run, which dies before it has written the rest
    settled.note("calls", "run-1", ours)  # type: ignore[arg-type]
    assert corpus.names() == {"talks"}


def test_what_is_installed_while_a_run_goes_on_is_not_what_it_worked_with(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled_ = corpus.settled()
    monkeypatch.setattr(settled, "_code", lambda: "newer")
    settled_.note("calls", "run-1", settled_._files("calls"))  # type: ignore[arg-type]
    assert corpus.names() == set()


def test_transcribing_anew_unsettles_every_prefix(corpus: Corpus) -> None:
    HomeResource().unsettle()
    assert corpus.names() == set()


def test_a_new_index_of_the_mirror_knows_which_copies_are_the_last(corpus: Corpus) -> None:
    """Also where no prefix is visited that would say so."""
    corpus.bucket.delete("calls/a.wav")
    corpus.take("calls")
    tidy_mirror(HomeResource(max_disk=1), corpus.store)
    left = {path.relative_to(corpus.home.audio).as_posix() for path in corpus.home.audio.rglob("*.wav")}
    assert left == {"calls/a.wav"}


def test_a_copy_whose_record_is_lost_gives_way_as_well(corpus: Corpus) -> None:
    shutil.rmtree(corpus.home.audio / ".state" / "objects")
    tidy_mirror(HomeResource(max_disk=1), corpus.store)
    assert not list(corpus.home.audio.rglob("*.wav"))


def test_looks_are_never_far_ahead_of_who_asks_and_end_with_the_block(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settled, "_AHEAD", 3)
    looked: list[str] = []
    monkeypatch.setattr(Settled, "_look", lambda self, partition, client: looked.append(partition))
    names = ["calls", *(f"p{n}" for n in range(50))]
    with corpus.settled().among(names) as found:
        assert found("calls") is None
        assert found("p0") is None
        time.sleep(0.3)
        assert len(looked) <= 2 + 3
    deadline = time.monotonic() + 10
    while [thread for thread in threading.enumerate() if thread.name.startswith("ingest-")]:
        assert time.monotonic() < deadline, "a thread was left behind"
        time.sleep(0.02)
