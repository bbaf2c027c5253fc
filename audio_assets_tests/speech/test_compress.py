"""What is sent instead of WAV: how small it is, and what is left of the sound."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from audio_assets.speech.capabilities import AUDIO_FORMATS, FLAC, NEAR_LOSSLESS, OPUS
from audio_assets.speech.compress import SIGNAL_TO_NOISE_DB, compress
from audio_assets.speech.decode import decode
from audio_assets.speech.engine import SAMPLE_RATE_HZ, Samples
from audio_assets_tests.speech.test_decode import likeness


@pytest.fixture
def sent(tmp_path):
    def send(samples: Samples, form: str) -> Samples:
        made = compress(samples, form)
        path = tmp_path / made.name
        path.write_bytes(made.data)
        return decode(path).samples

    return send


@pytest.mark.parametrize(("form", "times_smaller"), [(NEAR_LOSSLESS, 3.1), (FLAC, 2.0), (OPUS, 5.5)])
def test_speech_is_so_many_times_smaller_than_wav(two_cities, form, times_smaller):
    clip = two_cities[: 10 * SAMPLE_RATE_HZ]
    assert len(compress(clip, form).data) * times_smaller < 44 + 2 * len(clip)


@pytest.mark.parametrize("form", AUDIO_FORMATS)
@pytest.mark.parametrize("seconds", [0.3, 2.0, 8.0])
def test_it_is_as_long_as_the_samples(sent, opening, form, seconds):
    samples = opening[: int(seconds * SAMPLE_RATE_HZ)]
    heard = sent(samples, form)
    assert len(heard) / SAMPLE_RATE_HZ == pytest.approx(seconds, abs=0.05)
    assert likeness(heard, samples) > 0.9


def test_flac_gives_every_16_bit_sample_back(sent, opening):
    samples = np.rint(opening * 32767) / 32767
    assert np.array_equal(np.rint(sent(samples, FLAC) * 32768), np.rint(samples * 32767))


@pytest.mark.parametrize("level", [1.0, 0.1, 0.01])
def test_rounding_stays_below_the_speech_however_loud_it_is(sent, two_cities, level):
    samples = (two_cities * level).astype(np.float32)
    error = sent(samples, NEAR_LOSSLESS) - np.rint(samples * 32767) / 32768
    for start in range(0, len(samples), 8192):
        part = slice(start, start + 8192)
        noise, sound = np.mean(error[part] ** 2), np.mean(samples[part] ** 2)
        # A step rounds no finer than 16 bits do.
        assert noise <= sound * 10 ** (-(SIGNAL_TO_NOISE_DB - 1) / 10) + (2 / 32768) ** 2


def test_samples_at_full_scale_do_not_wrap_around(sent):
    loud = np.sign(np.sin(np.arange(SAMPLE_RATE_HZ) / 9)).astype(np.float32)
    for form in (NEAR_LOSSLESS, FLAC):
        assert np.abs(sent(loud, form) - loud).max() < 0.05


def test_silence_stays_silence(sent):
    assert np.abs(sent(np.zeros(SAMPLE_RATE_HZ, np.float32), NEAR_LOSSLESS)).max() == 0


def test_threads_get_what_one_thread_gets(opening):
    alone = len(compress(opening, OPUS).data)
    sizes: list[int] = []
    threads = [threading.Thread(target=lambda: sizes.append(len(compress(opening, OPUS).data))) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sizes == [alone] * 8
