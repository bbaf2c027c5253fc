"""The pipeline: real files in, rows out."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from audio_assets import schemas
from audio_assets.errors import FileFailed, SettingsError
from audio_assets.speech.decode import Limits, trial_of
from audio_assets.speech.engine import SAMPLE_RATE_HZ, Clip, ClipResult, Samples, Segment, WindowPlan, Word
from audio_assets.speech.transcribe import AudioFile, TranscribeOptions, transcribe_files
from audio_assets_tests.speech.conftest import as_file

BOOK = """
it was the best of times it was the worst of times it was the age of wisdom it was the age of foolishness it was the
epoch of belief it was the epoch of incredulity it was the season of light it was the season of darkness it was the
spring of hope it was the winter of despair we had everything before us we had nothing before us we were all going
direct to heaven we were all going direct the other way in short the period was so far like the present period that some
of its noisiest authorities insisted on its being received for good or for evil in the superlative degree of comparison
only
"""


class Parrot:
    """An engine that says how long each clip is, counts its calls and fails when told to."""

    name, model, language, batch_size, parallelism = "local", "parrot", None, 4, 2
    plan = WindowPlan(max_s=15.0, cut_silence_s=1.0)

    def __init__(self) -> None:
        self.heard: list[Clip] = []
        self.batches: list[int] = []
        self.fail = ""
        self.dies_after: int | None = None
        self.delay_s = 0.0
        self._lock = threading.Lock()

    def fingerprint(self) -> str:
        return "0" * 64

    def transcribe(self, clips: Sequence[Clip]) -> Iterator[ClipResult | FileFailed]:
        time.sleep(self.delay_s)
        with self._lock:
            if self.dies_after is not None and len(self.batches) >= self.dies_after:
                raise SettingsError("no such model any longer; choose another")
            self.heard += clips
            self.batches.append(len(clips))
        for clip in clips:
            if self.fail == "settings":
                raise SettingsError("no such model; choose another")
            if self.fail and self.fail in clip.id:
                yield FileFailed("the parrot is tired; the next run tries again")
                continue
            text = f"a clip of {clip.duration_s:.0f} seconds"
            yield ClipResult((Segment(0.0, clip.duration_s, text, -0.1, 0.0, 1.0),), "en", 0.99)


class Endless(Parrot):
    """An engine whose score of long clips is no number that JSON knows."""

    def transcribe(self, clips: Sequence[Clip]) -> Iterator[ClipResult | FileFailed]:
        for clip in clips:
            score = float("-inf") if clip.duration_s > 4 else -0.1
            yield ClipResult((Segment(0.0, clip.duration_s, "a clip", score, 0.0, 1.0),), "en", 0.99)


@pytest.fixture
def parrot() -> Parrot:
    return Parrot()


@pytest.fixture
def speech_files(write_audio, opening) -> list[AudioFile]:
    """Six clips of different length and bytes."""
    return [write_audio(f"{i}.wav", opening[: int((3 + 0.8 * i) * SAMPLE_RATE_HZ)]) for i in range(6)]


@pytest.mark.weights
def test_the_recording_is_transcribed_with_times_and_without_flags(local_engine, cache, two_cities_path):
    import jiwer
    from whisper_normalizer.english import EnglishTextNormalizer

    [result] = transcribe_files([as_file(two_cities_path)], local_engine, cache)
    normal = EnglishTextNormalizer()
    assert jiwer.wer(normal(BOOK), normal(result.transcription)) < 0.12
    assert (result.status, result.flags, result.cached) == ("ok", (), False)
    assert result.duration_s == pytest.approx(44.4, abs=0.1)
    assert 25 < result.speech_s < 44
    assert len(result.segments) >= 3
    assert result.segments[0].start_s == pytest.approx(0.9, abs=0.4)
    assert result.segments[-1].end_s == pytest.approx(42.0, abs=0.5)
    assert all(a.end_s <= b.start_s for a, b in pairwise(result.segments))


@pytest.mark.weights
def test_silence_noise_and_tones_are_empty_and_nothing_is_invented(local_engine, cache, write_audio):
    rate = SAMPLE_RATE_HZ
    noise = (np.random.default_rng(5).standard_normal(10 * rate) * 0.1).astype(np.float32)
    tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(10 * rate) / rate)).astype(np.float32)
    files = [
        write_audio("silence.flac", np.zeros(10 * rate, np.float32)),
        write_audio("noise.wav", noise),
        write_audio("tone.mp3", tone),
        write_audio("dc.wav", np.full(5 * rate, 0.4, np.float32)),
        write_audio("blip.wav", np.full(160, 0.1, np.float32)),
    ]
    results = {r.id: r for r in transcribe_files(files, local_engine, cache)}
    assert {(r.status, r.transcription, r.segments, r.speech_s) for r in results.values()} == {("empty", "", (), 0.0)}
    assert len(results) == 5


def test_rows_fit_the_table(parrot, cache, speech_files, tmp_path):
    bad = tmp_path / "bad.mp3"
    bad.write_text("no sound")
    results = list(transcribe_files([*speech_files, as_file(bad)], parrot, cache))
    table = schemas.TRANSCRIPTS.from_rows([r.row("calls/") for r in results])
    assert table.num_rows == 7
    assert set(table["status"].to_pylist()) == {"ok", "invalid"}
    assert {*results[0].row("").keys()} == set(schemas.TRANSCRIPTS.column_names)


def test_bad_files_have_a_reason_and_the_others_go_on(parrot, cache, speech_files, tmp_path):
    (tmp_path / "zero.wav").write_bytes(b"")
    (tmp_path / "text.mp3").write_text("no sound")
    parrot.fail = "3.wav"
    files = [as_file(tmp_path / "zero.wav"), *speech_files, as_file(tmp_path / "text.mp3")]
    results = {r.id: r for r in transcribe_files(files, parrot, cache)}
    assert {i: r.status for i, r in results.items() if r.status != "ok"} == {
        "zero.wav": "invalid",
        "text.mp3": "invalid",
        "3.wav": "failed",
    }
    assert (
        results["zero.wav"].transcription is None
        and results["zero.wav"].error == "zero bytes; upload the recording again"
    )
    assert "tired" in results["3.wav"].error


def test_a_second_run_asks_the_engine_nothing(parrot, cache, speech_files):
    first = {r.id: r for r in transcribe_files(speech_files, parrot, cache)}
    asked = len(parrot.heard)
    second = {r.id: r for r in transcribe_files(speech_files, parrot, cache)}
    assert len(parrot.heard) == asked == 6
    assert all(r.cached for r in second.values()) and not any(r.cached for r in first.values())
    assert {i: (r.transcription, r.segments, r.speech_s) for i, r in first.items()} == {
        i: (r.transcription, r.segments, r.speech_s) for i, r in second.items()
    }


def test_a_renamed_file_is_free_and_a_changed_engine_is_not(parrot, cache, speech_files, monkeypatch):
    file = speech_files[0]
    list(transcribe_files([file], parrot, cache))
    [moved] = transcribe_files([AudioFile("elsewhere.wav", file.path, file.sha256)], parrot, cache)
    assert (moved.id, moved.cached) == ("elsewhere.wav", True)
    monkeypatch.setattr(Parrot, "fingerprint", lambda self: "1" * 64)
    [again] = transcribe_files([file], parrot, cache)
    assert not again.cached


def test_without_the_cache_everything_is_transcribed_and_stored(parrot, cache, speech_files):
    list(transcribe_files(speech_files, parrot, cache))
    list(transcribe_files(speech_files, parrot, cache, TranscribeOptions(use_cache=False)))
    assert len(parrot.heard) == 12
    [stored] = transcribe_files(speech_files[:1], parrot, cache)
    assert stored.cached


def test_only_the_fresh_ones_are_transcribed_anew(parrot, cache, speech_files):
    list(transcribe_files(speech_files, parrot, cache))
    options = TranscribeOptions(fresh_ids=frozenset({"1.wav", "2.wav"}))
    results = list(transcribe_files(speech_files, parrot, cache, options))
    assert {r.id for r in results if not r.cached} == {"1.wav", "2.wav"}


def test_the_same_bytes_are_transcribed_once_even_without_the_cache(parrot, cache, speech_files):
    file = speech_files[0]
    files = [AudioFile(f"{i}", file.path, file.sha256) for i in range(5)]
    results = list(transcribe_files(files, parrot, cache, TranscribeOptions(use_cache=False)))
    assert len(results) == 5 and len(parrot.heard) == 1


def test_windows_of_many_files_share_a_call(parrot, cache, write_audio, opening):
    files = [write_audio(f"{i}.wav", opening[: (4 * SAMPLE_RATE_HZ) + 160 * i]) for i in range(24)]
    options = TranscribeOptions(max_workers=1)
    assert len(list(transcribe_files(files, parrot, cache, options))) == 24
    assert max(parrot.batches) == 4
    assert len(parrot.batches) <= 8


def test_the_first_result_comes_before_there_is_a_choice_of_windows(parrot, cache, speech_files):
    heard = threading.Event()

    def slow_source() -> Iterator[AudioFile]:
        yield from speech_files[:2]
        assert heard.wait(30), "nothing is transcribed as long as only two windows are there"
        yield from speech_files[2:]

    options = TranscribeOptions(max_workers=1, readers=1)
    results = list(transcribe_files(slow_source(), parrot, cache, options, lambda _: heard.set()))
    assert len(results) == 6 and {r.status for r in results} == {"ok"}


def test_the_longest_windows_go_first_once_everything_is_read(parrot, cache, write_audio, opening):
    lengths = [2.5 + 0.25 * (7 * i % 20) for i in range(20)]
    files = [write_audio(f"{i}.wav", opening[: int(s * SAMPLE_RATE_HZ)]) for i, s in enumerate(lengths)]
    read = threading.Event()

    def source() -> Iterator[AudioFile]:
        yield from files
        read.set()

    class Patient(Parrot):
        def transcribe(self, clips: Sequence[Clip]) -> Iterator[ClipResult | FileFailed]:
            if self.batches:
                assert read.wait(30)
                # Until it has told so, a batch may still be chosen by age.
                while any(t.name == "speech_read-0" and t.is_alive() for t in threading.enumerate()):
                    time.sleep(0.01)
            yield from super().transcribe(clips)

    engine = Patient()
    list(transcribe_files(source(), engine, cache, TranscribeOptions(max_workers=1, readers=1)))
    starts = np.cumsum([0, *engine.batches])
    longest = [max(c.duration_s for c in engine.heard[a:b]) for a, b in pairwise(starts)]
    assert len(longest) >= 5
    assert longest[2:] == sorted(longest[2:], reverse=True)


def test_each_window_of_a_long_file_is_told_before_the_file_is_done(parrot, cache, write_audio, opening):
    pause = np.zeros(3 * SAMPLE_RATE_HZ, np.float32)
    file = write_audio("long.wav", np.concatenate([np.concatenate([opening, pause]) for _ in range(8)]))
    told: list[tuple[str, float, bool]] = []
    before: list[int] = []
    options = TranscribeOptions(on_window=lambda *heard: told.append(heard))
    [result] = transcribe_files([file], parrot, cache, options, lambda _: before.append(len(told)))
    assert before == [len(told)] and len(told) >= 8
    assert all(id == "long.wav" and seconds > 0 and not known for id, seconds, known in told)
    done_s = sum(seconds for _, seconds, _ in told)
    assert result.duration_s - 3.5 < done_s <= result.duration_s


def test_windows_that_an_earlier_run_has_heard_are_told_as_known(parrot, cache, write_audio, opening):
    pause = np.zeros(3 * SAMPLE_RATE_HZ, np.float32)
    file = write_audio("long.wav", np.concatenate([np.concatenate([opening, pause]) for _ in range(8)]))
    parrot.dies_after = 2
    with pytest.raises(SettingsError):
        list(transcribe_files([file], parrot, cache, TranscribeOptions(max_workers=1, batch_size=1)))
    parrot.dies_after = None
    told: list[bool] = []
    list(transcribe_files([file], parrot, cache, TranscribeOptions(on_window=lambda *heard: told.append(heard[2]))))
    assert told.count(True) == 2 and told.count(False) == len(told) - 2


@pytest.mark.parametrize(("best", "asked", "most"), [(4, None, 4), (4, 2, 2), (4, 9, 9), (1, 9, 1)])
def test_a_call_takes_as_many_windows_as_are_asked_for_if_it_takes_several(
    parrot, cache, write_audio, opening, best, asked, most
):
    files = [write_audio(f"{i}.wav", opening[: 2 * SAMPLE_RATE_HZ + 160 * i]) for i in range(30)]
    parrot.batch_size, parrot.delay_s = best, 0.05
    list(transcribe_files(files, parrot, cache, TranscribeOptions(max_workers=1, batch_size=asked)))
    assert max(parrot.batches) == most


def test_batches_hold_clips_of_similar_length(parrot, cache, write_audio, opening):
    lengths = [2.5, 8.0] * 8
    files = [write_audio(f"{i}.wav", opening[: int(s * SAMPLE_RATE_HZ) + 160 * i]) for i, s in enumerate(lengths)]
    parrot.delay_s = 0.05
    list(transcribe_files(files, parrot, cache, TranscribeOptions(max_workers=1)))
    mixed = 0
    at = 0
    for size in parrot.batches:
        seconds = [c.duration_s for c in parrot.heard[at : at + size]]
        mixed += max(seconds) - min(seconds) > 3
        at += size
    assert mixed <= 1


def test_what_waits_for_the_model_is_bounded(parrot, cache, write_audio, opening):
    files = [write_audio(f"{i}.wav", opening[: (4 * SAMPLE_RATE_HZ) + 160 * i]) for i in range(20)]
    parrot.delay_s = 0.02
    waiting: list[int] = []
    from audio_assets.speech import transcribe

    put = transcribe._Pool.put

    def watched(self, task):
        waiting.append(len(self._waiting))
        return put(self, task)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transcribe._Pool, "put", watched)
        assert len(list(transcribe_files(files, parrot, cache, TranscribeOptions(ahead_s=12.0)))) == 20
    assert max(waiting) <= 6


def test_a_setting_that_dooms_all_stops_the_run(parrot, cache, speech_files):
    parrot.fail = "settings"
    with pytest.raises(SettingsError, match="no such model"):
        list(transcribe_files(speech_files, parrot, cache))
    assert not [t for t in threading.enumerate() if t.name.startswith("speech_")]


def test_a_caller_that_stops_listening_leaves_no_threads(parrot, cache, speech_files):
    results = transcribe_files(speech_files, parrot, cache)
    next(results)
    results.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("speech_")]


def test_results_are_stored_before_they_are_given(parrot, cache, speech_files):
    seen = []

    def stored(result):
        seen.append(any(cache.root.rglob("*.json")))

    list(transcribe_files(speech_files[:1], parrot, cache, on_result=stored))
    assert seen == [True]


def long_recording(two_cities: Samples, minutes: int) -> Samples:
    return np.tile(np.concatenate([two_cities, np.zeros(SAMPLE_RATE_HZ, np.float32)]), round(minutes * 60 / 45.4))


def test_times_do_not_drift_over_half_an_hour(parrot, cache, tmp_path, opening):
    """A word at a known place near the end of a 44.1 kHz file of 30 minutes is found there."""
    import soundfile

    rate = 44_100
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", rate, 1) as file:
        file.write(np.zeros(rate * 1790, np.float32))
        clip = np.interp(np.arange(int(4 * rate)) / rate, np.arange(len(opening)) / SAMPLE_RATE_HZ, opening)
        file.write(clip.astype(np.float32))
        file.write(np.zeros(rate * 6, np.float32))
    [result] = transcribe_files([as_file(path)], parrot, cache)
    assert result.duration_s == pytest.approx(1800, abs=0.01)
    assert len(result.segments) == 1
    # The first word of the recording begins 0.85 s into it.
    assert result.segments[0].start_s == pytest.approx(1790 + 0.85, abs=0.5)


def test_a_killed_long_file_goes_on_where_it_stopped(tmp_path, two_cities, cache, parrot):
    import soundfile

    path = tmp_path / "long.wav"
    soundfile.write(path, long_recording(two_cities, 3), SAMPLE_RATE_HZ)
    script = textwrap.dedent(
        """
        import os, sys
        from pathlib import Path
        from audio_assets.speech.cache import TranscriptCache
        from audio_assets.speech.transcribe import transcribe_files
        from audio_assets_tests.speech.conftest import as_file
        from audio_assets_tests.speech.test_transcribe import Parrot

        class Mortal(Parrot):
            batch_size, parallelism = 1, 1
            def transcribe(self, clips):
                if len(self.heard) == 5:
                    os.kill(os.getpid(), 9)
                yield from super().transcribe(clips)

        list(transcribe_files([as_file(Path(sys.argv[1]))], Mortal(), TranscriptCache(Path(sys.argv[2]))))
        """
    )
    command = [sys.executable, "-c", script, str(path), str(cache.root)]
    killed = subprocess.run(command, capture_output=True, timeout=60, cwd=Path(__file__).parents[2])
    assert killed.returncode == -9, killed.stderr.decode()
    [result] = transcribe_files([as_file(path)], parrot, cache)
    assert result.status == "ok"
    windows = len(result.segments)
    assert windows > 10
    assert len(parrot.heard) == windows - 5, "the five windows that were done are not done again"


@pytest.mark.parametrize("seconds", [0.5, 1.0])
def test_a_truncated_file_is_transcribed_and_flagged(parrot, cache, write_audio, opening, seconds):
    file = write_audio("cut.wav", opening)
    data = file.path.read_bytes()
    file.path.write_bytes(data[: -int(seconds * 32_000)])
    [result] = transcribe_files([as_file(file.path)], parrot, cache)
    assert result.status == "ok" and "truncated" in result.flags


def test_timings_say_where_the_time_went(parrot, cache, speech_files):
    options = TranscribeOptions()
    list(transcribe_files(speech_files, parrot, cache, options))
    assert {"decode", "vad", "idle"} <= options.timings.seconds.keys()


def test_a_file_that_vanished_is_a_row_too(parrot, cache, tmp_path):
    [result] = transcribe_files([AudioFile("gone.wav", Path(tmp_path / "gone.wav"), "0" * 64)], parrot, cache)
    assert result.status == "invalid" and "cannot be read" in result.error


def test_a_file_that_is_another_by_now_is_not_heard(parrot, cache, speech_files):
    def check(file: AudioFile) -> None:
        if file.id == speech_files[2].id:
            raise FileFailed("the object has changed")

    results = list(transcribe_files(speech_files, parrot, cache, TranscribeOptions(check=check)))
    assert {r.id: r.status for r in results} == {f.id: "failed" if f is speech_files[2] else "ok" for f in speech_files}
    assert speech_files[2].id not in {clip.id for clip in parrot.heard}


def test_a_file_that_is_written_to_while_it_is_read_leaves_nothing_behind(parrot, cache, tmp_path, two_cities):
    import soundfile

    path = tmp_path / "long.wav"
    soundfile.write(path, long_recording(two_cities, 2), SAMPLE_RATE_HZ)
    file = as_file(path)
    heard = threading.Event()

    class Writing(Parrot):
        def transcribe(self, clips):
            if not heard.is_set():
                heard.set()
                with path.open("r+b") as other:
                    other.seek(1000)
                    other.write(b"something else")
            yield from super().transcribe(clips)

    options = TranscribeOptions(ahead_s=10.0, max_workers=1, readers=1)
    [result] = transcribe_files([file], Writing(), cache, options)
    assert (result.status, result.error) == (
        "failed",
        "the file was written to while it was read; the next run takes it in anew",
    )
    assert cache.get_windows(file.sha256, result.fingerprint) == {}


def test_a_file_that_another_replaces_while_it_is_read_is_heard_to_its_end(parrot, cache, tmp_path, two_cities):
    import soundfile

    path = tmp_path / "long.wav"
    soundfile.write(path, long_recording(two_cities, 2), SAMPLE_RATE_HZ)
    file = as_file(path)

    def check(_: AudioFile) -> None:
        (tmp_path / "new.wav").write_bytes(b"of a newer run")
        (tmp_path / "new.wav").replace(path)

    [result] = transcribe_files([file], parrot, cache, TranscribeOptions(check=check))
    assert result.status == "ok"
    assert not result.flags
    assert result.duration_s > 100


def test_channels_are_transcribed_apart_when_asked(parrot, cache, write_audio, opening):
    """Two people on a call: the second begins to speak six seconds after the first."""
    wait = np.zeros(6 * SAMPLE_RATE_HZ, np.float32)
    one, two = opening[: 4 * SAMPLE_RATE_HZ], opening[: 3 * SAMPLE_RATE_HZ]
    left, right = np.concatenate([one, wait]), np.concatenate([wait, two, wait[:SAMPLE_RATE_HZ]])
    file = write_audio("call.wav", np.stack([left, right]))
    [mixed] = transcribe_files([file], parrot, cache)
    assert {s.channel for s in mixed.segments} == {None}
    parrot.plan = WindowPlan(max_s=15.0, cut_silence_s=1.0, split_channels=True)
    [apart] = transcribe_files([file], parrot, cache)
    assert not apart.cached, "another plan is another result"
    assert [s.channel for s in apart.segments] == [0, 1]
    assert apart.segments[1].start_s == pytest.approx(6.85, abs=0.4)
    assert apart.duration_s == pytest.approx(10.0, abs=0.05)


def test_a_channel_that_got_no_text_is_not_covered_by_the_other(parrot, cache, write_audio, opening, monkeypatch):
    """Two people talk at the same time, and the engine loses one of them."""

    def deaf(self, clips):
        for clip in clips:
            text = "" if clip.window.endswith("/1") else "It was the best of times, it was the worst of times."
            yield ClipResult((Segment(0.0, clip.duration_s, text, -0.1, 0.0, 1.0),), "en", 0.9)

    monkeypatch.setattr(Parrot, "transcribe", deaf)
    parrot.plan = WindowPlan(max_s=15.0, cut_silence_s=1.0, split_channels=True)
    [result] = transcribe_files([write_audio("call.wav", np.stack([opening, opening[::-1]]))], parrot, cache)
    assert [s.channel for s in result.segments] == [0]
    assert "uncovered_speech" in result.flags


@pytest.mark.weights
def test_music_is_empty_and_a_single_word_in_silence_is_not(local_engine, cache, write_audio, two_cities):
    """Voice activity detection takes a quarter of a second of this sung vowel for speech, and Whisper says "Ahh!"."""
    t = np.arange(20 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    hertz = 150 + 5 * np.sin(2 * np.pi * 5 * t)
    voice = np.fft.rfft(2 * (np.cumsum(hertz) / SAMPLE_RATE_HZ % 1) - 1)
    at = np.fft.rfftfreq(len(t), 1 / SAMPLE_RATE_HZ)
    throat = sum(1 / (1 + ((at - f) / width) ** 2) for f, width in ((700, 80), (1200, 90), (2600, 120)))
    vowel = np.fft.irfft(voice * throat, len(t)).astype(np.float32)
    word = two_cities[29 * SAMPLE_RATE_HZ : int(29.8 * SAMPLE_RATE_HZ)]
    still = np.zeros(9 * SAMPLE_RATE_HZ, np.float32)
    sung = write_audio("sung.wav", vowel / np.abs(vowel).max() / 2)
    said = write_audio("said.wav", np.concatenate([still, word, still]))
    found = {r.id: r for r in transcribe_files([sung, said], local_engine, cache)}
    assert found["sung.wav"].speech_s > 0
    assert (found["sung.wav"].status, found["sung.wav"].transcription) == ("empty", "")
    assert found["said.wav"].status == "ok"
    assert found["said.wav"].speech_s < 0.05 * found["said.wav"].duration_s


def test_rounding_moves_no_word_out_of_its_segment(parrot, cache, speech_files, monkeypatch):
    def timed(self, clips):
        words = (Word(0.1234567, 0.4999999, "best", 0.9),)
        segment = Segment(0.1234567, 0.4999999, "best", -0.1, 0.0, 1.0, words)
        return (ClipResult((segment,), "en", 0.9) for _ in clips)

    monkeypatch.setattr(Parrot, "transcribe", timed)
    [result] = transcribe_files(speech_files[:1], parrot, cache)
    for segment in result.segments:
        [word] = segment.words
        assert (word.start_s, word.end_s) == (segment.start_s, segment.end_s)


def test_each_segment_carries_its_flags(parrot, cache, speech_files, monkeypatch):
    def loops(self, clips):
        for clip in clips:
            yield ClipResult((Segment(0.0, clip.duration_s, "and then " * 9, -0.1, 0.0, 5.0),), "en", 0.9)

    monkeypatch.setattr(Parrot, "transcribe", loops)
    [result] = transcribe_files(speech_files[:1], parrot, cache)
    assert "repetition" in result.flags
    assert "repetition" in result.segments[0].flags
    [stored] = transcribe_files(speech_files[:1], parrot, cache)
    assert stored.segments == result.segments


@pytest.mark.slow
def test_ten_hours_need_no_more_memory_than_a_minute(tmp_path, opening):
    """10 h of FLAC, with speech every ten minutes and all the time, in a process of its own."""
    import soundfile

    def record(path: Path, minutes: int, every: int) -> Path:
        talk = np.resize(np.concatenate([opening, np.zeros(SAMPLE_RATE_HZ, np.float32)]), 60 * SAMPLE_RATE_HZ)
        with soundfile.SoundFile(path, "w", SAMPLE_RATE_HZ, 1, format="FLAC") as file:
            for minute in range(minutes):
                samples = np.zeros(60 * SAMPLE_RATE_HZ, np.float32)
                if minute % 10 == 0:
                    samples[: len(opening)] = opening
                file.write(talk if every == 1 else samples)
        return path

    script = textwrap.dedent(
        """
        import hashlib, resource, sys
        from pathlib import Path
        from audio_assets.speech.cache import TranscriptCache
        from audio_assets.speech.transcribe import AudioFile, transcribe_files
        from audio_assets_tests.speech.test_transcribe import Parrot

        class Forgetful(Parrot):
            def transcribe(self, clips):
                yield from super().transcribe(clips)
                self.heard.clear()

        path = Path(sys.argv[1])
        file = AudioFile(path.name, path, hashlib.sha256(path.name.encode()).hexdigest())
        [result] = transcribe_files([file], Forgetful(), TranscriptCache(Path(sys.argv[2])))
        print(result.duration_s, len(result.segments), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        """
    )
    peak = {}
    for name, minutes, every in (("short", 1, 10), ("long", 600, 10), ("talk", 600, 1)):
        path = record(tmp_path / f"{name}.flac", minutes, every)
        command = [sys.executable, "-c", script, str(path), str(tmp_path / "cache")]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
        duration_s, segments, peak[name] = map(float, done.stdout.split())
        assert duration_s == pytest.approx(minutes * 60, abs=0.1)
        assert segments > 2000 if every == 1 else segments == -(-minutes // 10)
    assert peak["long"] - peak["short"] < 150
    assert peak["talk"] - peak["short"] < 200


def test_two_runs_at_once_share_the_work_and_wait_for_each_other(cache, speech_files):
    """The second goes the other way round, so that each holds what the other waits for."""
    first, second = Parrot(), Parrot()
    found: list[list[str]] = [[], []]

    def run(n: int, parrot: Parrot, files: list[AudioFile]) -> None:
        parrot.delay_s = 0.1
        found[n] = sorted(r.id for r in transcribe_files(files, parrot, cache) if r.status == "ok")

    threads = [
        threading.Thread(target=run, args=(0, first, speech_files)),
        threading.Thread(target=run, args=(1, second, speech_files[::-1])),
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert found == [sorted(f.id for f in speech_files)] * 2
    assert sorted(c.id for c in first.heard + second.heard) == sorted(f.id for f in speech_files)
    assert not list(cache.root.rglob("*.lock"))


def test_a_result_that_cannot_be_stored_fails_its_file_and_no_other(cache, write_audio, opening):
    short, long = opening[: 4 * SAMPLE_RATE_HZ], opening
    both = np.concatenate([long, np.zeros(3 * SAMPLE_RATE_HZ, np.float32), short])
    files = [write_audio("long.wav", long), write_audio("both.wav", both), write_audio("short.wav", short)]
    found = {r.id: r for r in transcribe_files(files, Endless(), cache)}
    assert {id: r.status for id, r in found.items()} == {"long.wav": "failed", "both.wav": "partial", "short.wav": "ok"}
    assert "cannot be stored" in str(found["long.wav"].error) and "cannot be stored" in str(found["both.wav"].error)


def test_a_file_is_tried_with_its_channels_as_it_will_be_decoded(cache, parrot, speech_files):
    class Marks:
        trials: ClassVar[list[Sequence[str]]] = []

        def around(self, name, trial, timeout_s):
            self.trials.append(trial)
            return nullcontext()

    parrot.plan = WindowPlan(max_s=15.0, cut_silence_s=1.0, split_channels=True)
    list(transcribe_files(speech_files[:1], parrot, cache, TranscribeOptions(marks=Marks())))
    [trial] = Marks.trials
    assert trial == trial_of(speech_files[0].path, Limits(), split_channels=True)[0]
