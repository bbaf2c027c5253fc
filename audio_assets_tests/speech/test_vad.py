"""Windows of speech: where they begin and end, that none is lost, and that silence and noise have none."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from audio_assets.speech import vad
from audio_assets.speech.engine import SAMPLE_RATE_HZ, Samples, WindowPlan

PLAN = WindowPlan(max_s=15.0, cut_silence_s=1.0)


def silence(seconds: float) -> Samples:
    return np.zeros(int(seconds * SAMPLE_RATE_HZ), np.float32)


def test_streamed_probabilities_equal_those_of_the_whole(opening):
    frames = opening[: len(opening) // vad.FRAME * vad.FRAME]
    whole = vad.SpeechProbability()(frames)
    streamed = vad.SpeechProbability()
    parts = [streamed(part) for part in np.split(frames, [vad.FRAME * 7, vad.FRAME * 100])]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-4)


def test_a_file_that_begins_in_the_midst_of_speech_is_heard_as_if_silence_went_before(opening):
    """From a standing start the network takes half a second to believe in speech, which is all that a word lasts."""
    speech = opening[vad.FRAME * 40 : vad.FRAME * 60]
    behind_silence = vad.SpeechProbability()(np.concatenate([np.zeros(vad.FRAME * 16, np.float32), speech]))[16:]
    np.testing.assert_allclose(vad.SpeechProbability()(speech), behind_silence, atol=0.02)


@pytest.mark.parametrize("block", [1000, 16_000, 480_000])
def test_windows_do_not_depend_on_the_size_of_the_blocks(two_cities, block):
    whole = list(vad.windows([two_cities], PLAN))
    blocks = [two_cities[i : i + block] for i in range(0, len(two_cities), block)]
    streamed = list(vad.windows(blocks, PLAN))
    assert [(w.start, w.end, w.speech) for w in streamed] == [(w.start, w.end, w.speech) for w in whole]
    for window in streamed:
        np.testing.assert_array_equal(window.samples, two_cities[window.start : window.end])


def test_windows_are_in_order_apart_and_not_too_long(two_cities):
    windows = list(vad.windows([np.tile(two_cities, 3)], PLAN))
    assert len(windows) > 6
    for window in windows:
        assert 0 < window.duration_s <= PLAN.max_s + 0.1
        assert window.speech and all(window.start <= a < b <= window.end for a, b in window.speech)
    assert all(a.end <= b.start for a, b in pairwise(windows))


def test_no_speech_is_left_out(two_cities):
    """Whatever the plan, each frame that is surely speech lies in a window."""
    frames = two_cities[: len(two_cities) // vad.FRAME * vad.FRAME]
    sure = np.flatnonzero(vad.SpeechProbability()(frames) > 0.9) * vad.FRAME
    for plan in (PLAN, WindowPlan(5.0, 0.3, 0.1), WindowPlan(600.0, 2.0)):
        covered = np.zeros(len(two_cities), bool)
        for window in vad.windows([two_cities], plan):
            covered[window.start : window.end] = True
        assert covered[sure].mean() == 1.0


@pytest.mark.parametrize("still", [0.0, vad.SILENT])
@pytest.mark.parametrize("block", [99 * vad.FRAME, 5000 * vad.FRAME])
def test_soft_speech_is_heard_after_a_long_digital_silence_as_at_the_start(opening, still, block):
    soft = 0.1 * opening[: len(opening) // vad.FRAME * vad.FRAME]
    silence = still * np.random.default_rng(1).choice([-1, 1], 2000 * vad.FRAME).astype(np.float32)
    samples = np.concatenate([soft, silence, soft])
    probability = vad.SpeechProbability()
    found = np.concatenate([probability(samples[i : i + block]) for i in range(0, len(samples), block)])
    at_start, afterwards = found[: len(soft) // vad.FRAME], found[-len(soft) // vad.FRAME :]
    np.testing.assert_allclose(afterwards[2:], at_start[2:], atol=0.01)


def test_a_silence_as_between_sentences_changes_nothing(opening, monkeypatch):
    frames = opening[: len(opening) // vad.FRAME * vad.FRAME]
    samples = np.concatenate([frames, np.zeros(100 * vad.FRAME, np.float32), frames])
    found = vad.SpeechProbability()(samples)
    monkeypatch.setattr(vad, "FORGET_S", 1e9)
    np.testing.assert_array_equal(vad.SpeechProbability()(samples), found)


def test_a_long_silence_separates_two_windows_with_true_offsets(opening):
    clip = opening[: 4 * SAMPLE_RATE_HZ]
    samples = np.concatenate([silence(5), clip, silence(20), clip, silence(5)])
    windows = list(vad.windows([samples], WindowPlan(30.0, 2.0)))
    assert len(windows) == 2
    assert windows[1].start_s - windows[0].start_s == pytest.approx(24.0, abs=0.1)
    assert windows[0].start_s >= 4.5


NOISES = {
    "silence": silence(20),
    "noise": (np.random.default_rng(3).standard_normal(20 * SAMPLE_RATE_HZ) * 0.1).astype(np.float32),
    "faint noise": (np.random.default_rng(3).standard_normal(20 * SAMPLE_RATE_HZ) * 1e-4).astype(np.float32),
    "tone": (0.3 * np.sin(2 * np.pi * 440 * np.arange(20 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ)).astype(np.float32),
    "direct current": np.full(20 * SAMPLE_RATE_HZ, 0.5, np.float32),
    "10 ms": np.ones(160, np.float32) * 0.1,
    "nothing": silence(0),
}


@pytest.mark.parametrize("name", NOISES)
def test_what_is_not_speech_has_no_window(name):
    assert list(vad.windows([NOISES[name]], PLAN)) == []


def test_memory_stays_within_a_window_and_a_block():
    windower = vad.Windower(PLAN)
    for _ in range(20):
        list(windower.push(silence(30)))
    assert len(windower._samples) < 31 * SAMPLE_RATE_HZ
