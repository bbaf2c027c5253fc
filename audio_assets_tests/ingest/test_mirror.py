from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import tempfile
import time
import unicodedata
from datetime import datetime, timezone
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from audio_assets.errors import FileFailed
from audio_assets.ingest.listing import RemoteObject
from audio_assets.ingest.mirror import STATE_DIRECTORY, Mirror, ObjectState

ROOT = Path("/mirror")
# Made of the pieces that could break out, collide or be misread, far oftener than chance would make them.
PIECES = st.sampled_from(
    [
        "..",
        ".",
        "/",
        "//",
        "\\",
        "\x00",
        "\n",
        "%",
        "%2F",
        "%2E",
        "%25",
        "%ED%A0%80",
        ".state",
        ".wav",
        "a",
        "ü",
        "u\u0308",
        "é" * 90,
    ]
)
KEYS = st.one_of(st.text(), st.lists(st.one_of(PIECES, st.text(max_size=3)), max_size=40).map("".join)).filter(
    lambda key: len(key.encode()) <= 1024
)


@given(KEYS)
@example("../../etc/passwd")
@example("/etc/passwd")
@example("a/" * 500 + "x.wav")
@example("/" * 1020 + ".wav")
@example("\x00" * 1024)
@example("é" * 512)
@example("a" * 239 + "é" + "b" * 700)
@example("x" * 240 + "..")
def test_every_key_has_a_path_inside_the_mirror_and_comes_back(key: str) -> None:
    mirror = Mirror(ROOT)
    path = mirror.path_for(key)
    relative = path.relative_to(ROOT)
    assert Path(os.path.normpath(path)) == path
    assert relative.parts
    assert relative.parts[0] != STATE_DIRECTORY
    assert all(0 < len(part.encode()) <= 255 for part in relative.parts)
    assert all("\x00" not in part and "\\" not in part and "\n" not in part for part in relative.parts)
    # What Linux allows for a whole path, less a generous root.
    assert len(os.fsencode(relative)) < 4096 - 512
    assert mirror.key_for(path) == key
    assert mirror.key_for(relative) == key


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(KEYS)
def test_ten_thousand_keys_have_a_path_inside_the_mirror_and_come_back(key: str) -> None:
    test_every_key_has_a_path_inside_the_mirror_and_comes_back.hypothesis.inner_test(key)  # type: ignore[attr-defined]


@given(KEYS, KEYS)
def test_two_keys_never_share_a_path(one: str, other: str) -> None:
    mirror = Mirror(ROOT)
    assert (one == other) == (mirror.path_for(one) == mirror.path_for(other))


@given(KEYS, KEYS)
@example("a.wav", "a.wav/b")
@example("a.WAV", "a.WAV/.mp3")
def test_no_audio_file_stands_where_another_needs_a_folder(one: str, other: str) -> None:
    mirror = Mirror(ROOT)
    assert mirror.path_for(one + ".wav") not in mirror.path_for(other + ".wav").parents


@pytest.mark.parametrize(
    "key",
    ["calls/2024/01/a b.wav", "Zoë/naïve (1).mp3", "100%.wav", "a%20b.wav", "会議/録音.m4a", ".hidden.ogg", "a..b.wav"],
)
def test_ordinary_keys_keep_their_names(key: str) -> None:
    assert Mirror(ROOT).path_for(key) == ROOT / key


def test_a_path_that_no_key_has_is_named_and_never_guessed_at() -> None:
    mirror = Mirror(ROOT)
    with pytest.raises(ValueError, match=r"a%5Cb%2E\.wav is not the path of an object"):
        mirror.key_for(Path("a%5Cb%2E.wav"))
    with pytest.raises(ValueError, match="subpath"):
        mirror.key_for(Path("/elsewhere/a.wav"))


# Letters that differ in case or spelling only, far oftener than chance would make them.
TWIN_KEYS = st.lists(
    st.sampled_from(
        ["a", "A", "\u00e9", "e\u0301", "\u00c9", "ss", "ß", "/", ".wav", "%0a", "\n", "%7E", "%7e", "%41", "x"]
    ),
    min_size=1,
    max_size=6,
).map("".join)


def as_the_strangest_file_system(path: Path) -> str:
    """What a file system that folds case and spelling takes a path for."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", str(path.relative_to(ROOT))).casefold())


@given(st.lists(st.lists(st.one_of(TWIN_KEYS, KEYS), max_size=6, unique=True), max_size=4))
@example([["a.wav", "A.wav"], ["A.WAV"]])
@example([["Zo\u00eb/a.wav"], ["Zoe\u0308/a.wav", "zoe\u0308/A.wav"]])
@example([["x%0a.wav"], ["x\n.wav"]])
@example([["A.wav"], ["a.wav"], ["%7E%41.wav", "%7ea.wav"]])
def test_no_two_keys_can_share_a_file_on_any_file_system(batches: list[list[str]]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        there: list[str] = []
        for batch in batches:
            Mirror(root).settle_twins(batch, there)
            there = list(dict.fromkeys([*there, *batch]))
        mirror = Mirror(ROOT, Mirror(root).spelled_out)
        paths = {key: mirror.path_for(key) for key in there}
    assert len({as_the_strangest_file_system(path) for path in paths.values()}) == len(there)
    assert all(mirror.key_for(path) == key for key, path in paths.items())
    assert all(Path(os.path.normpath(path)) == path and path.is_relative_to(ROOT) for path in paths.values())


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@settings(max_examples=2_500)
@given(st.lists(st.lists(st.one_of(TWIN_KEYS, KEYS), max_size=6, unique=True), max_size=4))
def test_ten_thousand_keys_never_share_a_file(batches: list[list[str]]) -> None:
    test_no_two_keys_can_share_a_file_on_any_file_system.hypothesis.inner_test(batches)  # type: ignore[attr-defined]


def test_only_the_later_of_two_twins_is_spelled_out_and_stays_so(mirror: Mirror) -> None:
    mirror.settle_twins(["Calls/A.wav", "Calls/b.wav"], [])
    for key in ("Calls/A.wav", "Calls/b.wav"):
        assert stored(mirror, key) and mirror.path_for(key) == mirror.root / key
    again = Mirror(mirror.root)
    again.settle_twins(["Calls/a.wav", "calls/b.wav"], ["Calls/A.wav", "Calls/b.wav"])
    assert again.path_for("Calls/A.wav") == mirror.root / "Calls/A.wav"
    assert again.path_for("Calls/a.wav") == mirror.root / "Calls/%7Ea.wav"
    assert again.path_for("calls/b.wav") == mirror.root / "%7Ecalls/b.wav"
    for key in ("Calls/a.wav", "calls/b.wav"):
        stored(again, key)
    again.settle_twins(["Calls/A.wav"], ["Calls/a.wav", "calls/b.wav"])
    assert sorted(Mirror(mirror.root).files()) == ["Calls/A.wav", "Calls/a.wav", "Calls/b.wav", "calls/b.wav"]


def test_twins_that_lie_side_by_side_already_keep_their_names(mirror: Mirror) -> None:
    for key in ("A.wav", "a.wav"):
        stored(mirror, key)
    mirror.settle_twins(["A.wav", "a.wav"], [])
    assert mirror.path_for("a.wav") == mirror.root / "a.wav"
    assert mirror.spelled_out == frozenset()


def stored(mirror: Mirror, key: str, content: bytes = b"content", etag: str = "e1") -> ObjectState:
    with mirror.storing(key) as part:
        os.write(part.handle, content)
    now = mirror.inspect(key)
    assert now is not None
    state = ObjectState(**{**vars(now), "etag": etag, "content_type": "audio/wav", "metadata": {"speaker": "Ä"}})
    mirror.record(state)
    return state


def listed(key: str, etag: str = "e1", size: int = 7) -> RemoteObject:
    return RemoteObject(key, etag, size, datetime(2026, 1, 2, tzinfo=timezone.utc))


def test_state_comes_back_as_it_was_recorded(mirror: Mirror) -> None:
    state = stored(mirror, "calls/a.wav")
    assert mirror.state("calls/a.wav") == state
    assert mirror.state("calls/b.wav") is None


def test_holds_what_was_listed_and_nothing_else(mirror: Mirror) -> None:
    stored(mirror, "a.wav")
    assert mirror.holds(listed("a.wav"))
    assert not mirror.holds(listed("a.wav", etag="e2"))
    assert not mirror.holds(listed("a.wav", size=8))
    assert not mirror.holds(listed("b.wav"))


def test_a_removed_file_is_not_held(mirror: Mirror) -> None:
    stored(mirror, "a.wav")
    mirror.path_for("a.wav").unlink()
    assert not mirror.holds(listed("a.wav"))


def test_a_file_changed_in_place_is_not_held_even_at_the_same_size(mirror: Mirror) -> None:
    stored(mirror, "a.wav")
    path = mirror.path_for("a.wav")
    path.write_bytes(b"CONTENT")
    os.utime(path, ns=(0, 0))
    assert not mirror.holds(listed("a.wav"))
    changed = mirror.inspect("a.wav")
    assert changed is not None
    assert changed.etag is None


def test_a_file_that_was_only_touched_is_still_held(mirror: Mirror) -> None:
    stored(mirror, "a.wav")
    os.utime(mirror.path_for("a.wav"), ns=(1, 1))
    assert mirror.holds(listed("a.wav"))


def test_a_damaged_record_means_nothing_is_known(mirror: Mirror) -> None:
    stored(mirror, "a.wav")
    (record,) = (mirror.root / STATE_DIRECTORY / "objects").rglob("*.json")
    for damage in (b"", b"{", b"[]", b'{"key": "a.wav"}', record.read_bytes().replace(b"a.wav", b"b.wav")):
        record.write_bytes(damage)
        assert mirror.state("a.wav") is None
        assert not mirror.holds(listed("a.wav"))
        state = stored(mirror, "a.wav")
        assert mirror.state("a.wav") == state


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(mirror: Mirror) -> None:
    stored(mirror, "a.wav", b"old")
    with pytest.raises(RuntimeError), mirror.storing("a.wav") as part:
        os.write(part.handle, b"half")
        raise RuntimeError
    assert mirror.path_for("a.wav").read_bytes() == b"old"
    assert not list((mirror.root / STATE_DIRECTORY / "parts").iterdir())


def test_a_folder_in_the_way_is_an_error_of_that_file(mirror: Mirror) -> None:
    (mirror.root / "a.wav").mkdir(parents=True)
    with pytest.raises(FileFailed, match=r"a\.wav cannot be written"), mirror.storing("a.wav") as part:
        os.write(part.handle, b"x")


def test_files_are_found_however_they_came_there(mirror: Mirror) -> None:
    stored(mirror, "calls/a.wav")
    stored(mirror, "x.wav/../deep.mp3")
    copied = mirror.root / "calls" / "by hand" / "B.MP3"
    copied.parent.mkdir(parents=True)
    copied.write_bytes(b"x")
    (mirror.root / "calls" / "notes.txt").write_text("not audio")
    assert sorted(mirror.files()) == ["calls/a.wav", "calls/by hand/B.MP3", "x.wav/../deep.mp3"]
    assert sorted(mirror.files("calls/")) == ["calls/a.wav", "calls/by hand/B.MP3"]
    assert list(mirror.files("calls/by")) == ["calls/by hand/B.MP3"]
    assert list(mirror.files("nowhere/")) == []


def test_files_under_a_folder_spelled_in_nfd_are_found_by_its_nfc_name(mirror: Mirror) -> None:
    key = "Zoe\u0308/a.wav"
    stored(mirror, key)
    assert list(mirror.files("Zo\u00eb/")) == [key]


def test_a_name_that_is_no_objects_is_reported_and_not_read_as_another_key(mirror: Mirror) -> None:
    mirror.root.mkdir()
    (mirror.root / "a%2Eb.wav").write_bytes(b"x")
    Path(os.fsdecode(os.fsencode(mirror.root) + b"/latin\xe9.wav")).write_bytes(b"x")
    assert list(mirror.files()) == []
    assert sorted(mirror.misnamed()) == ["a%2Eb.wav", "latin\ufffd.wav"]


def test_leftovers_of_dead_downloads_go_after_a_day_and_living_ones_stay(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = mirror.root / STATE_DIRECTORY / "parts"
    parts.mkdir(parents=True)
    (parts / "dead.part").write_bytes(b"x")
    now = time.time()
    with mirror.storing("calls/a.wav", "etag 5") as living:
        for later_s, removed in ((3600, 0), (2 * 86400, 1)):
            monkeypatch.setattr("audio_assets.ingest.mirror.time.time", lambda at=now + later_s: at)
            assert mirror.remove_stale_parts() == removed
        assert list(parts.iterdir()) == [Path(living.path)]


@pytest.mark.parametrize("locks", [True, False])
@pytest.mark.parametrize("identity", [None, "etag 5"])
def test_a_download_that_is_being_put_in_place_is_not_taken_for_an_old_one(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch, identity: str | None, *, locks: bool
) -> None:
    """Its file has the time of its object, which may be years old, and some network file systems have no locks."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    if not locks:
        monkeypatch.setattr(fcntl, "flock", refuse)
    with mirror.storing("calls/a.wav", identity) as part:
        os.write(part.handle, b"bytes")
        os.utime(part.path, (0, 0))
        assert Mirror(mirror.root).remove_stale_parts() == 0
    assert mirror.path_for("calls/a.wav").read_bytes() == b"bytes"


def test_what_a_killed_process_left_half_written_goes_at_once_and_what_living_ones_write_stays(mirror: Mirror) -> None:
    code = (
        "import os, sys; from pathlib import Path; from audio_assets.ingest.mirror import Mirror\n"
        "mirror = Mirror(Path(sys.argv[1]))\n"
        "with mirror._part() as part:\n"
        "    os.write(part.handle, b'{half'); print(os.path.basename(part.path), flush=True); sys.stdin.read()"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(mirror.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    try:
        dead, living = (writer.stdout.readline().decode().strip() for writer in writers if writer.stdout)
        with mirror._part() as part:
            mine = Path(part.path)
            assert mirror.remove_stale_parts() == 0
            writers[0].kill()
            writers[0].wait(30)
            assert mirror.remove_stale_parts() == 1
            assert {part.name for part in mine.parent.iterdir()} == {living, mine.name}
            # A container starts its processes with the same numbers again and again.
            namesake = mine.with_name(f"{os.getpid()}-{'0' * 16}.part")
            namesake.write_bytes(b"{half")
            assert mirror.remove_stale_parts() == 1
            assert dead != living
            mine.unlink()
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
