"""Subtitles and the labelled folder, from the demonstration's recordings and from keys that try to escape."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from audio_assets import cli, derived, schemas
from audio_assets.derived import write_audiofolder, write_subtitles
from audio_assets.errors import BusyError, NoSuchPrefixError
from audio_assets.ingest.mirror import Mirror
from audio_assets.ingest.supply import Supply
from audio_assets.settings import Home
from audio_assets.storage.atomic import replacing_directory
from audio_assets.storage.partition_files import PartitionStore
from audio_assets_tests.conftest import PipelineRun
from audio_assets_tests.summary.conftest import transcript_row

ODD = ["../../escape.wav", "x/a.wav", "x/a.mp3", "x/a.wav/inner.wav", "x/../b.wav", "x/[1]*?.wav", "x/" + "n" * 300]


def store(home: Home, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        row["prefix"] = "x/"
    PartitionStore(home.tables).write(schemas.TRANSCRIPTS, schemas.TRANSCRIPTS.from_rows(rows), "x")


def record(home: Home, key: str, seconds: float = 4.0) -> None:
    """A recording whose sample at t seconds is t / 100."""
    path = Mirror(home.audio).path_for(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.arange(round(seconds * 16_000), dtype=np.float32) / 1_600_000
    soundfile.write(path, ramp, 16_000, format="FLAC")


def labels(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


@pytest.fixture
def demo(pipeline: PipelineRun, home: Home) -> Home:
    """The tables and the mirror of a finished run, with exports of this test's own."""
    home.root.mkdir()
    for name in ("tables", "audio"):
        (home.root / name).symlink_to(pipeline.home.root / name)
    return home


@pytest.mark.weights
def test_subtitles_lie_under_the_recordings_own_names(demo: Home, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["subtitles", "--prefix", "best-of-times/"])

    assert stop.value.code == 0
    assert "exports/vtt  5 files, " in capsys.readouterr().out
    names = sorted(p.relative_to(demo.exports).as_posix() for p in demo.exports.glob("*/*/*"))
    assert names[:2] == ["srt/best-of-times/01.wav.srt", "srt/best-of-times/02.flac.srt"]
    assert len(names) == 10
    text = (demo.exports / "vtt" / "best-of-times" / "01.wav.vtt").read_text(encoding="utf-8")
    assert text.startswith("WEBVTT\n\n00:00:0")
    assert "best of times" in text


@pytest.mark.weights
def test_the_folder_holds_what_trains_a_model(demo: Home, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["audiofolder", "--json"])
    written = json.loads(capsys.readouterr().out)
    folder = demo.exports / "audiofolder"
    rows = labels(folder)

    assert stop.value.code == 0
    assert (written["directory"], written["files"], written["segments"]) == (str(folder), 10, len(rows))
    clips = {p.relative_to(folder).as_posix() for p in folder.rglob("*.flac")}
    assert clips == {row["file_name"] for row in rows}
    for row in rows:
        clip = soundfile.info(folder / row["file_name"])
        assert (clip.samplerate, clip.channels, clip.format) == (16_000, 1, "FLAC")
        assert clip.duration == pytest.approx(row["duration_s"], abs=0.001)
        assert row["transcription"]
    assert "best of times" in rows[0]["transcription"]
    assert set(rows[0]) == {
        *("file_name", "transcription", "language", "id", "prefix", "start_s", "end_s", "duration_s", "avg_logprob")
    }


def test_a_clip_is_exactly_its_segment(home: Home) -> None:
    record(home, "x/long.flac", 70.0)
    store(home, [transcript_row("x/long.flac", [(0.5, 2.0, "one"), (29.5, 31.25, "two"), (65, 70.02, "three")])])

    write_audiofolder(home)

    folder = home.exports / "audiofolder"
    for row in labels(folder):
        samples, _ = soundfile.read(folder / row["file_name"], dtype="float32")
        assert samples[0] == pytest.approx(row["start_s"] / 100, abs=1e-4)
        assert samples[-1] == pytest.approx(min(70.0, row["end_s"]) / 100, abs=1e-4)
    assert [row["transcription"] for row in labels(folder)] == ["one", "two", "three"]


def test_no_key_leads_out_of_the_folder_or_meets_another(home: Home) -> None:
    for key in ODD:
        record(home, key)
    store(home, [transcript_row(key, [(0, 2, f"text of {key}")]) for key in ODD])

    written = [*write_subtitles(home, ["srt", "vtt"]), write_audiofolder(home)]

    assert [w.files for w in written] == [len(ODD)] * 3
    assert not list(home.root.parent.glob("**/escape*.srt"))[1:]
    for name in ("srt", "vtt"):
        files = [p for p in (home.exports / name).rglob("*") if p.is_file()]
        keys = {Mirror(home.exports / name).key_for(p).removesuffix(f".{name}") for p in files}
        assert keys == set(ODD)
    for row in labels(home.exports / "audiofolder"):
        assert row["transcription"] == f"text of {row['id']}"
        assert (home.exports / "audiofolder" / row["file_name"]).is_file()


def test_doubtful_and_missing_recordings_are_left_out_and_named(home: Home) -> None:
    record(home, "x/good.wav")
    record(home, "x/flagged.wav")
    (home.audio / "x/text.wav").write_text("no audio")
    store(
        home,
        [
            transcript_row("x/good.wav", [(0, 1, "fine"), (1, 1.05, "too short")]),
            transcript_row("x/flagged.wav", [(0, 1, "odd")], flags=["repetition"]),
            transcript_row("x/away.wav", [(0, 1, "not here")]),
            transcript_row("x/text.wav", [(0, 1, "not audio")]),
            transcript_row("x/untimed.wav", [], transcription="words", segments=[]),
            transcript_row("x/gone.wav", [(0, 1, "was")], status="gone"),
        ],
    )

    written = write_audiofolder(home)

    assert [row["id"] for row in labels(written.directory)] == ["x/good.wav"]
    reasons = dict(written.left_out)
    assert reasons["x/flagged.wav"] == "flagged: repetition"
    assert reasons["x/away.wav"].startswith("not in the mirror; run `audio-assets run`")
    assert reasons["x/text.wav"].startswith("not audio that can be decoded")
    assert reasons["x/untimed.wav"] == "no segment with times and text"
    assert "x/gone.wav" not in reasons
    assert {row["id"] for row in labels(write_audiofolder(home, include_flagged=True).directory)} == {
        "x/good.wav",
        "x/flagged.wav",
    }


def test_a_new_export_takes_the_place_of_the_old(home: Home) -> None:
    store(home, [transcript_row("x/a.wav", [(0, 1, "old")]), transcript_row("x/b.wav", [(0, 1, "old")])])
    write_subtitles(home, ["srt"])
    store(home, [transcript_row("x/b.wav", [(0, 1, "new")])])
    write_subtitles(home, ["srt"])

    assert [p.name for p in (home.exports / "srt" / "x").iterdir()] == ["b.wav.srt"]
    assert "new" in (home.exports / "srt/x/b.wav.srt").read_text(encoding="utf-8")


def test_a_prefix_without_transcripts_is_refused_and_replaces_nothing(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    record(home, "x/a.wav")
    store(home, [transcript_row("x/a.wav", [(0, 1, "kept")]), transcript_row("x/gone.wav", [], status="gone")])
    write_subtitles(home, ["srt"])
    write_audiofolder(home)

    for command in ("subtitles", "audiofolder"):
        with pytest.raises(SystemExit) as stop:
            cli.main([command, "--prefix", "x/", "--prefix", "y/"])
        out = capsys.readouterr()
        assert (stop.value.code, out.out) == (2, "")
        [line] = out.err.splitlines()
        assert "--prefix 'y/': no transcript lies there, and nothing was changed" in line
        assert "Prefixes with transcripts: 'x/'" in line
    with pytest.raises(NoSuchPrefixError):
        write_subtitles(home, ["srt"], ["X/"])

    assert (home.exports / "srt" / "x" / "a.wav.srt").is_file()
    assert len(labels(home.exports / "audiofolder")) == 1
    [emptied] = write_subtitles(home, ["srt"], ["x/gone"])
    assert emptied.files == 0, "a recording that has no text is no mistyped one"


def test_an_export_that_fails_leaves_the_old_one(home: Home) -> None:
    target = home.exports / "srt"
    with replacing_directory(target) as fresh:
        (fresh / "kept").touch()
    with pytest.raises(RuntimeError), replacing_directory(target) as fresh:
        (fresh / "half").touch()
        raise RuntimeError
    assert [p.name for p in target.iterdir()] == ["kept"]
    with replacing_directory(target), pytest.raises(BusyError, match="another process"), replacing_directory(target):
        pass


def test_what_is_forgotten_leaves_the_exports_too(home: Home) -> None:
    for key in ("x/a.wav", "x/b.wav"):
        record(home, key)
    store(home, [transcript_row("x/a.wav", [(0, 1, "secret")]), transcript_row("x/b.wav", [(0, 1, "kept")])])
    write_subtitles(home, ["srt", "vtt"])
    write_audiofolder(home)

    derived.forget(home, ["x/a.wav"])

    left = [p for p in home.exports.rglob("*") if p.is_file() and not p.name.endswith(".lock")]
    assert not [p for p in left if "secret" in p.read_bytes().decode("utf-8", "replace") or "a.wav" in str(p)]
    assert [row["id"] for row in labels(home.exports / "audiofolder")] == ["x/b.wav"]
    assert len([p for p in left if p.suffix == ".flac"]) == 1


def test_what_ends_a_line_in_other_places_ends_none_in_the_labels(home: Home) -> None:
    odd = "one\u2028two\u2029three\u0085four"
    for key in ("x/a.wav", "x/b.wav"):
        record(home, key)
    store(home, [transcript_row("x/a.wav", [(0, 1, odd)]), transcript_row("x/b.wav", [(0, 1, odd)])])
    write_audiofolder(home)

    derived.forget(home, ["x/a.wav"])

    assert [(row["id"], row["transcription"]) for row in labels(home.exports / "audiofolder")] == [("x/b.wav", odd)]


def test_an_empty_corpus_gives_empty_folders(home: Home) -> None:
    [srt] = write_subtitles(home, ["srt"])
    folder = write_audiofolder(home)
    assert (srt.files, folder.files) == (0, 0)
    derived.forget(home, ["x/a.wav"])
    assert labels(folder.directory) == []


@pytest.mark.parametrize("there", [True, False], ids=["still filling", "between two renames"])
def test_what_a_killed_writer_left_is_forgotten_too(home: Home, there: bool) -> None:
    store(home, [transcript_row(key, [(0.5, 2.0, f"text of {key}")]) for key in ("x/a.wav", "x/b.wav")])
    write_subtitles(home, ["srt"])
    srt = home.exports / "srt"
    for name in [".srt.new"] + [".srt.old"] * (not there):
        shutil.copytree(srt, home.exports / name)
    if not there:
        shutil.rmtree(srt)

    derived.forget(home, ["x/a.wav"])

    kept = [path.relative_to(home.exports) for path in home.exports.rglob("*.srt") if path.is_file()]
    assert kept == [Path("srt/x/b.wav.srt")]


def test_another_version_of_a_recording_is_not_cut(home: Home) -> None:
    record(home, "x/a.flac", 5.0)
    record(home, "x/b.flac", 5.0)
    sha256 = hashlib.sha256((home.audio / "x" / "a.flac").read_bytes()).hexdigest()
    rows = [transcript_row(key, [(0.5, 2.0, "one")]) for key in ("x/a.flac", "x/b.flac")]
    store(home, [rows[0] | {"sha256": sha256}, rows[1] | {"sha256": "0" * 64}])
    supply = Supply(Mirror(home.audio), None, lambda: pytest.fail("nothing is to be fetched"))

    written = write_audiofolder(home, bring=supply.bring)

    assert [row["id"] for row in labels(written.directory)] == ["x/a.flac"]
    assert dict(written.left_out)["x/b.flac"].startswith("the object has changed since it was taken in")
