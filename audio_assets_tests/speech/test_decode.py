"""Every container that ingestion takes, every way a file can be bad, and no other file opened."""

from __future__ import annotations

import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from audio_assets.errors import FileFailed, InvalidAudio
from audio_assets.ingest import probe
from audio_assets.speech import decode as decode_module
from audio_assets.speech import mixing
from audio_assets.speech.clock import Clock
from audio_assets.speech.decode import LOUDEST, Audio, AudioStream, Limits, decode, trial_of
from audio_assets.speech.engine import SAMPLE_RATE_HZ, Samples
from audio_assets_tests.speech.conftest import encode, film

CONTAINERS = ["a.wav", "a.mp3", "a.flac", "a.m4a", "a.ogg", "a.opus", "a.webm", "a.aac", "a.mp4"]


def likeness(a: Samples, b: Samples) -> float:
    """The best correlation of two signals over small shifts: encoders add a little silence in front."""
    n = min(len(a), len(b))
    a, b = a[:n], b[:n]
    spectrum = np.fft.rfft(a, 2 * n) * np.conj(np.fft.rfft(b, 2 * n))
    return float(np.fft.irfft(spectrum).max() / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_the_sound_that_went_in(tmp_path, opening, name):
    encode(tmp_path / name, opening)
    audio = decode(tmp_path / name)
    assert audio.samples.dtype == np.float32 and audio.samples.ndim == 1
    assert audio.duration_s == pytest.approx(8.2, abs=0.15)
    assert likeness(audio.samples, opening) > 0.9
    assert not audio.truncated and not audio.clipped


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("moov-first.m4a", {"options": {"movflags": "+faststart"}}),
        ("telephone.wav", {"rate": 8000, "codec": "pcm_mulaw"}),
        ("studio.wav", {"rate": 44_100, "codec": "pcm_s24le"}),
        ("float.wav", {"codec": "pcm_f32le"}),
        ("cd.flac", {"rate": 44_100}),
    ],
)
def test_other_rates_and_encodings_give_the_same_sound(tmp_path, opening, name, how):
    encode(tmp_path / name, opening, **how)
    audio = decode(tmp_path / name)
    assert audio.duration_s == pytest.approx(8.2, abs=0.1)
    assert likeness(audio.samples, opening) > 0.9


def test_stereo_is_mixed_or_kept_apart(tmp_path, opening):
    encode(tmp_path / "call.wav", np.stack([opening, np.zeros_like(opening)]), rate=44_100)
    assert likeness(decode(tmp_path / "call.wav").samples, opening) > 0.99
    with AudioStream(tmp_path / "call.wav", split_channels=True) as stream:
        both = np.concatenate(list(stream.blocks()), axis=-1)
    assert both.shape[0] == 2
    assert likeness(both[0], opening) > 0.99 and np.abs(both[1]).max() < 1e-3


def decoded_channels(path: Path, *channels: Samples) -> Audio:
    import soundfile

    soundfile.write(path, np.stack(channels, axis=-1), SAMPLE_RATE_HZ, subtype="FLOAT")
    return decode(path)


@pytest.mark.parametrize("count", [2, 6, 9, 17, 64])
def test_channels_are_mixed_no_louder_than_they_are(tmp_path, opening, count):
    loud = opening / np.abs(opening).max() * 0.97
    audio = decoded_channels(tmp_path / "same.wav", *[loud] * count)
    np.testing.assert_allclose(audio.samples, loud, atol=1e-4)
    assert not audio.clipped


def test_two_speakers_are_both_in_the_mix(tmp_path, two_cities):
    left, right = np.split(two_cities[: 16 * SAMPLE_RATE_HZ].copy(), 2)
    left[4 * SAMPLE_RATE_HZ :] = 0
    right[: 4 * SAMPLE_RATE_HZ] = 0
    audio = decoded_channels(tmp_path / "call.wav", left, right, np.zeros_like(left))
    np.testing.assert_allclose(audio.samples, (left + right) / 3, atol=1e-4)


@pytest.mark.parametrize("split", [False, True])
def test_one_overdriven_channel_beside_a_silent_one_is_clipped(tmp_path, opening, split):
    decoded_channels(tmp_path / "a.wav", np.clip(opening / np.abs(opening).max() * 8, -1, 1), np.zeros_like(opening))
    with AudioStream(tmp_path / "a.wav", split_channels=split) as stream:
        list(stream.blocks())
    assert stream.clipped


@pytest.mark.parametrize("turned_from_s", [0, 3])
def test_a_channel_that_is_the_other_turned_over_does_not_silence_it(tmp_path, opening, turned_from_s):
    turned = 0.8 * opening
    turned[turned_from_s * SAMPLE_RATE_HZ :] *= -1
    audio = decoded_channels(tmp_path / "turned.wav", opening, turned)
    heard = audio.samples[4 * SAMPLE_RATE_HZ :]
    np.testing.assert_allclose(heard, opening[4 * SAMPLE_RATE_HZ :], atol=1e-4)


def test_the_mix_does_not_depend_on_where_the_decoder_cuts(opening):
    noise = np.random.default_rng(1).normal(0, 0.001, len(opening)).astype(np.float32)
    both = np.stack([opening, np.where(np.arange(len(opening)) < 40_000, opening, noise - opening)])

    def mixed(step: int) -> Samples:
        pieces = (both[:, start : start + step] for start in range(0, both.shape[1], step))
        return np.concatenate(list(mixing.mixed(pieces)))

    for step in (37, 1152, 16_000, 50_000):
        np.testing.assert_array_equal(mixed(step), mixed(len(opening)))


def test_a_file_may_change_its_channels_half_way(tmp_path, opening):
    encode(tmp_path / "one.mp3", opening)
    encode(tmp_path / "two.mp3", np.stack([opening, opening]))
    (tmp_path / "both.mp3").write_bytes(b"".join((tmp_path / n).read_bytes() for n in ("one.mp3", "two.mp3")))
    audio = decode(tmp_path / "both.mp3")
    assert audio.duration_s == pytest.approx(16.4, abs=0.3)
    half = len(opening)
    assert likeness(audio.samples[half:], opening) > 0.9
    assert np.abs(audio.samples[half:]).max() == pytest.approx(np.abs(audio.samples[:half]).max(), rel=0.1)


@pytest.mark.parametrize("format", ["WAV", "FLAC"])
@pytest.mark.parametrize("count", [3, 8, 9, 16, 64])
def test_any_number_of_channels_is_kept_apart(tmp_path, opening, count, format):
    """In a process of its own: what goes wrong with many channels is no exception."""
    import soundfile

    if format == "FLAC" and count > 8:
        pytest.skip("FLAC has eight channels at most")
    gains = np.linspace(0.1, 1, count)
    soundfile.write(tmp_path / "many", opening[:, None] * gains, SAMPLE_RATE_HZ, format=format)
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        import numpy as np
        from audio_assets.speech.decode import AudioStream

        with AudioStream(Path(sys.argv[1]), split_channels=True) as stream:
            np.save(sys.argv[2], np.concatenate(list(stream.blocks()), axis=-1))
        """
    )
    command = [sys.executable, "-c", script, str(tmp_path / "many"), str(tmp_path / "heard.npy")]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    np.testing.assert_allclose(np.load(tmp_path / "heard.npy"), opening * gains[:, None], atol=1e-3)


@pytest.mark.parametrize("split", [False, True])
def test_the_trial_of_a_file_treats_its_channels_as_the_run_does(tmp_path, opening, monkeypatch, split):
    encode(tmp_path / "call.wav", np.stack([opening, opening]))
    tried = []

    class Watched(AudioStream):
        def blocks(self):
            for block in super().blocks():
                tried.append(block.ndim)
                yield block

    monkeypatch.setattr(decode_module, "AudioStream", Watched)
    command, _ = trial_of(tmp_path / "call.wav", Limits(), split_channels=split)
    assert command[0] == decode_module.__name__
    decode_module._try(*command[1:])
    assert tried == [2 if split else 1]


def test_a_wrong_extension_does_not_matter(tmp_path, opening):
    encode(tmp_path / "a.flac", opening)
    (tmp_path / "a.flac").rename(tmp_path / "a.mp3")
    assert likeness(decode(tmp_path / "a.mp3").samples, opening) > 0.99


def test_what_ingestion_takes_in_can_be_decoded(tmp_path, opening):
    assert set(decode_module.FORMATS.split(",")) == set(probe.FORMATS)
    encode(tmp_path / "a.wav", opening, format="w64")
    assert probe.probe(tmp_path / "a.wav").container == "w64"
    assert likeness(decode(tmp_path / "a.wav").samples, opening) > 0.99


def test_a_recording_of_a_corpus_that_only_calls_itself_wav_is_heard(tmp_path, opening):
    head = f"NIST_1A\n   1024\nchannel_count -i 1\nsample_count -i {len(opening)}\nsample_rate -i 16000\n"
    head += "sample_n_bytes -i 2\nsample_byte_format -s2 01\nsample_sig_bits -i 16\nend_head\n"
    (tmp_path / "SA1.WAV").write_bytes(head.encode().ljust(1024) + (opening * 32767).astype("<i2").tobytes())
    assert probe.probe(tmp_path / "SA1.WAV").duration_s == pytest.approx(8.2)
    audio = decode(tmp_path / "SA1.WAV")
    np.testing.assert_allclose(audio.samples, opening, atol=1e-3)
    assert not audio.truncated


def video_without_sound(path: Path) -> None:
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        for _ in range(5):
            for packet in stream.encode(av.VideoFrame(64, 64, "yuv420p")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)


def wav_header(samples: int) -> bytes:
    size = 2 * samples
    return (
        b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
        + b"data" + struct.pack("<I", size)
    )  # fmt: skip


BAD: dict[str, Callable[[Path], object]] = {
    "zero.wav": lambda p: p.write_bytes(b""),
    "header-only.wav": lambda p: p.write_bytes(wav_header(0)),
    "header-without-its-samples.wav": lambda p: p.write_bytes(wav_header(16000)),
    "text.mp3": lambda p: p.write_text("This is not sound, it is a note about sound.\n" * 20),
    "random.flac": lambda p: p.write_bytes(np.random.default_rng(1).bytes(20_000)),
    "silent-movie.mp4": video_without_sound,
    "directory.wav": lambda p: p.mkdir(),
    "gone.wav": lambda p: None,
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_audio_is_refused_with_a_reason(tmp_path, name):
    BAD[name](tmp_path / name)
    with pytest.raises(InvalidAudio) as caught:
        decode(tmp_path / name)
    assert 10 < len(str(caught.value)) < 200 and "\n" not in str(caught.value)


@pytest.mark.parametrize("quarter", [1, 2, 3])
@pytest.mark.parametrize("name", CONTAINERS)
def test_a_file_cut_short_is_refused_or_gives_its_first_part(tmp_path, opening, name, quarter):
    encode(tmp_path / name, opening)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) * quarter // 4])
    try:
        audio = decode(tmp_path / name)
    except InvalidAudio:
        assert name in ("a.m4a", "a.mp4"), "only what keeps its index at the end has nothing to decode"
        return
    assert 0 < audio.duration_s < 8.2
    if name != "a.aac":
        assert audio.truncated, "the file says how long it should be, or marks its last page"


def test_a_start_that_never_ends_is_given_up(tmp_path, monkeypatch):
    """FFmpeg reads on over empty chunks, a second for each megabyte or more: half an hour for two gigabytes."""
    (tmp_path / "a.wav").write_bytes(b"RIFF\xff\xff\xff\xffWAVE" + bytes(2_000_000))
    with pytest.raises(InvalidAudio, match=r"longer than 0.1 s; raise max_decode_s"):
        decode(tmp_path / "a.wav", Limits(max_decode_s=0.1))
    monkeypatch.setattr(probe, "MOST_S", 0.1)
    with pytest.raises(FileFailed, match=r"longer than 0.1 s; convert"):
        probe.probe(tmp_path / "a.wav")


@pytest.mark.parametrize("name", ["a.ogg", "a.opus"])
@pytest.mark.parametrize("lost", [1, 100, 5000])
def test_an_ogg_file_without_its_last_bytes_is_truncated(tmp_path, opening, name, lost):
    encode(tmp_path / name, opening)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:-lost])
    assert decode(tmp_path / name).truncated
    (tmp_path / name).write_bytes(data + bytes(300))
    assert not decode(tmp_path / name).truncated, "what lies behind the last page is no sound"


@pytest.mark.parametrize("name", ["a.mp3", "a.flac", "a.m4a"])
def test_two_seconds_of_minutes_are_missed_where_the_samples_are_counted(tmp_path, two_cities, name):
    encode(tmp_path / name, np.tile(two_cities, 3), options={"movflags": "+faststart"} if name == "a.m4a" else None)
    data = (tmp_path / name).read_bytes()
    assert not decode(tmp_path / name).truncated
    (tmp_path / name).write_bytes(data[: int(0.985 * len(data))])
    audio = decode(tmp_path / name)
    assert audio.truncated
    assert audio.duration_s == pytest.approx(3 * len(two_cities) / SAMPLE_RATE_HZ - 2, abs=1)


def test_a_length_that_no_header_tells_is_capped_while_decoding(tmp_path, opening):
    encode(tmp_path / "a.aac", np.tile(opening, 3))
    with pytest.raises(InvalidAudio, match="over the limit of 10 s"):
        decode(tmp_path / "a.aac", Limits(max_duration_s=10))


def mp3_without_a_count(path: Path, quiet: Samples, loud: Samples) -> None:
    """An MP3 whose bit rate rises from 8 to 160 kb/s and whose first frame says nothing of the others."""
    plain = {"write_xing": "0", "id3v2_version": "0"}
    encode(path, quiet, options=plain, bit_rate=8000)
    first = path.read_bytes()
    encode(path, loud, options=plain, bit_rate=160_000)
    path.write_bytes(first + path.read_bytes())


def aac_without_a_count(path: Path, quiet: Samples, loud: Samples) -> None:
    encode(path, np.concatenate([quiet, loud]))


@pytest.mark.parametrize(("name", "write"), [("a.mp3", mp3_without_a_count), ("a.aac", aac_without_a_count)])
def test_a_length_that_is_guessed_from_the_bit_rate_of_silence_is_none(tmp_path, two_cities, name, write):
    quiet = np.zeros(20 * SAMPLE_RATE_HZ, np.float32)
    write(tmp_path / name, quiet, two_cities)
    with AudioStream(tmp_path / name, Limits(max_duration_s=80)) as stream:
        assert stream.header_duration_s is None
        assert sum(block.shape[-1] for block in stream.blocks()) / SAMPLE_RATE_HZ == pytest.approx(64.4, abs=0.3)
    assert not stream.truncated


@pytest.mark.parametrize("tags", [b"", b"ID3\4\0\0\0\0\1\0" + bytes(128)])
@pytest.mark.parametrize("rate", [8000, 16_000, 24_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
def test_an_mp3_that_counts_its_frames_says_its_length(tmp_path, opening, tags, rate, channels):
    encode(tmp_path / "a.mp3", np.stack([opening] * channels), rate=rate)
    (tmp_path / "a.mp3").write_bytes(tags + (tmp_path / "a.mp3").read_bytes())
    with AudioStream(tmp_path / "a.mp3") as stream:
        assert stream.header_duration_s == pytest.approx(8.2, abs=0.3)


def test_the_count_of_another_encoder_is_read_too(tmp_path, opening):
    encode(tmp_path / "a.mp3", opening, options={"write_xing": "0", "id3v2_version": "0"})
    data = bytearray((tmp_path / "a.mp3").read_bytes())
    frames = 2 * len(opening) // 576
    data[36 : 36 + 26] = b"VBRI" + struct.pack(">HHHIIHHHH", 1, 0, 0, len(data), frames, 0, 1, 2, 1)
    (tmp_path / "a.mp3").write_bytes(data)
    with AudioStream(tmp_path / "a.mp3") as stream:
        assert stream.header_duration_s == pytest.approx(16.4, abs=0.3)
        assert sum(block.shape[-1] for block in stream.blocks())
    assert stream.truncated


def test_tags_between_mp3_files_that_were_put_together_are_no_damage(tmp_path, opening):
    encode(tmp_path / "a.mp3", opening, rate=44_100)
    part = (tmp_path / "a.mp3").read_bytes()
    # A picture has bytes that look like the beginning of a frame.
    picture = b"APIC" + (300_000).to_bytes(4, "big") + bytes(2) + np.random.default_rng(1).bytes(300_000)
    size = bytes(len(picture) >> shift & 0x7F for shift in (21, 14, 7, 0))
    tag = b"ID3\x03" + bytes(2) + size + picture
    (tmp_path / "a.mp3").write_bytes(part + 3 * (tag + part))
    audio = decode(tmp_path / "a.mp3")
    assert audio.duration_s == pytest.approx(4 * 8.2, abs=0.3)
    assert not audio.truncated
    assert likeness(audio.samples[-len(opening) :], opening) > 0.9


def test_raw_aac_that_was_put_together_of_two_rates_is_heard_without_gaps(tmp_path, opening):
    for name, rate in (("a.aac", 16_000), ("b.aac", 44_100)):
        encode(tmp_path / name, opening, rate=rate)
    (tmp_path / "a.aac").write_bytes((tmp_path / "a.aac").read_bytes() + (tmp_path / "b.aac").read_bytes())
    audio = decode(tmp_path / "a.aac")
    assert audio.duration_s == pytest.approx(2 * 8.2, abs=0.3)
    assert not audio.truncated
    assert likeness(audio.samples[-len(opening) :], opening) > 0.9


@pytest.mark.parametrize("flags", ["", "+faststart", "+frag_keyframe+empty_moov"])
def test_an_mp4_behind_which_another_is_not_read_is_truncated(tmp_path, opening, flags):
    encode(tmp_path / "a.m4a", opening, options={"movflags": flags} if flags else None)
    part = (tmp_path / "a.m4a").read_bytes()
    assert not decode(tmp_path / "a.m4a").truncated
    (tmp_path / "a.m4a").write_bytes(part + bytes(1000))
    assert not decode(tmp_path / "a.m4a").truncated
    (tmp_path / "a.m4a").write_bytes(part + part)
    assert decode(tmp_path / "a.m4a").truncated


def test_too_many_bytes_and_too_much_time_are_refused(tmp_path, opening):
    encode(tmp_path / "a.mp3", opening)
    with pytest.raises(InvalidAudio, match="max_bytes"):
        decode(tmp_path / "a.mp3", Limits(max_bytes=1000))
    with pytest.raises(InvalidAudio, match="max_decode_s"):
        decode(tmp_path / "a.mp3", Limits(max_decode_s=0))
    encode(tmp_path / "a.wav", opening)
    with pytest.raises(InvalidAudio, match="max_decode_s"):
        decode(tmp_path / "a.wav", Limits(max_decode_s=0))


@pytest.mark.parametrize("name", ["a.wav", "a.mp3"])
def test_only_decoding_counts_against_its_time_not_what_waits_for_the_model(tmp_path, opening, monkeypatch, name):
    encode(tmp_path / name, np.tile(opening, 12))
    waited_s = 0.0
    monkeypatch.setattr("time.monotonic", lambda: waited_s)
    with AudioStream(tmp_path / name, Limits(max_decode_s=60)) as stream:
        for _ in stream.blocks():
            waited_s += 3600
    assert stream.duration_s == pytest.approx(12 * 8.2, abs=0.2)


def decoded_wav(path: Path, samples: Samples) -> Audio:
    import soundfile

    soundfile.write(path, samples, SAMPLE_RATE_HZ, subtype="FLOAT")
    return decode(path)


def test_samples_that_are_no_numbers_become_silence(tmp_path, opening):
    broken = opening.copy()
    broken[1000:2000] = np.nan
    broken[3000:3010] = np.inf
    audio = decoded_wav(tmp_path / "nan.wav", broken)
    assert np.isfinite(audio.samples).all()
    assert np.abs(audio.samples[1000:2000]).max() == 0
    assert audio.truncated, "what was there is lost, and somebody must be told"


@pytest.mark.parametrize("absurd", [1e10, 1e20, -3e38])
def test_one_absurd_sample_neither_drowns_the_rest_nor_overflows(tmp_path, opening, absurd):
    import soundfile

    broken = opening.copy()
    broken[5000] = absurd
    soundfile.write(tmp_path / "glitch.wav", broken, SAMPLE_RATE_HZ, subtype="FLOAT")
    with AudioStream(tmp_path / "glitch.wav") as stream:
        [samples] = stream.blocks()
    assert np.abs(samples).max() <= LOUDEST
    assert stream.loudness_dbfs == pytest.approx(-35, abs=3)
    assert not stream.clipped


def test_floats_a_little_over_full_scale_stay_what_they_are(tmp_path, opening):
    hot = opening / np.abs(opening).max() * 1.5
    np.testing.assert_array_equal(decoded_wav(tmp_path / "hot.wav", hot).samples, hot)


@pytest.mark.parametrize("channels", [1, 2])
def test_floats_on_the_scale_of_integers_are_refused(tmp_path, opening, channels):
    with pytest.raises(InvalidAudio, match="full scale; bring them to -1 to 1"):
        decoded_wav(tmp_path / "scale.wav", np.stack([opening * 32768] * channels, axis=-1))


def test_damage_that_a_codec_makes_far_too_loud_is_held_within_bounds_and_not_refused(tmp_path, opening, monkeypatch):
    encode(tmp_path / "a.mp3", opening)
    monkeypatch.setattr(decode_module, "LOUDEST", 0.001)
    audio = decode(tmp_path / "a.mp3")
    assert 0 < np.abs(audio.samples).max() <= np.float32(0.001)


def test_an_overdriven_recording_is_clipped_and_a_loud_one_is_not(tmp_path, opening):
    loud = opening / np.abs(opening).max() * 0.99
    assert decoded_wav(tmp_path / "hot.wav", np.clip(loud * 8, -1, 1)).clipped
    assert not decoded_wav(tmp_path / "loud.wav", loud).clipped


def test_blocks_add_up_to_the_whole_file(tmp_path, two_cities):
    encode(tmp_path / "a.mp3", np.tile(two_cities, 2), rate=44_100)
    with AudioStream(tmp_path / "a.mp3") as stream:
        blocks = list(stream.blocks())
    assert len(blocks) == 3
    assert sum(map(len, blocks)) / SAMPLE_RATE_HZ == pytest.approx(stream.duration_s)


@pytest.mark.parametrize("damaged", [1, 2000])
def test_a_damaged_place_takes_only_itself_with_it(tmp_path, two_cities, damaged):
    encode(tmp_path / "a.flac", two_cities)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    place = len(data) // 4
    data[place : place + damaged] = bytes(byte ^ 0x5A for byte in data[place : place + damaged])
    (tmp_path / "a.flac").write_bytes(data)
    audio = decode(tmp_path / "a.flac")
    assert audio.truncated
    assert audio.duration_s == pytest.approx(len(two_cities) / SAMPLE_RATE_HZ, abs=0.5)
    second = SAMPLE_RATE_HZ
    np.testing.assert_allclose(audio.samples[: 9 * second], two_cities[: 9 * second], atol=1e-4)
    assert likeness(audio.samples[12 * second :], two_cities[12 * second :]) > 0.99


def test_many_damaged_places_do_not_end_a_file_that_has_good_ones_between_them(tmp_path, two_cities, monkeypatch):
    encode(tmp_path / "a.aac", two_cities)
    data = bytearray((tmp_path / "a.aac").read_bytes())
    noise, position, number = np.random.default_rng(1), 0, 0
    while position < len(data):
        # The length of an ADTS frame stands in 13 bits of its header of 7 bytes.
        length = (data[position + 3] & 3) << 11 | data[position + 4] << 3 | data[position + 5] >> 5
        if number % 3 == 1 and position < len(data) // 2:
            data[position + 7 : position + length] = noise.bytes(length - 7)
        position, number = position + length, number + 1
    (tmp_path / "a.aac").write_bytes(data)
    monkeypatch.setattr(decode_module, "_MOST_BAD", 10)
    audio = decode(tmp_path / "a.aac")
    assert audio.truncated
    assert audio.duration_s > 0.5 * len(two_cities) / SAMPLE_RATE_HZ
    assert likeness(audio.samples[-10 * SAMPLE_RATE_HZ :], two_cities[-10 * SAMPLE_RATE_HZ :]) > 0.9


@pytest.mark.parametrize(("name", "how"), [("a.flac", {}), ("a.wav", {}), ("b.wav", {"codec": "pcm_f32le"})])
def test_the_fast_path_gives_the_same_samples_as_ffmpeg(tmp_path, opening, monkeypatch, name, how):
    encode(tmp_path / name, opening, **how)
    fast = decode(tmp_path / name)
    monkeypatch.setattr(AudioStream, "_plain_pcm", lambda self: None)
    slow = decode(tmp_path / name)
    np.testing.assert_allclose(fast.samples, slow.samples, atol=1e-4)


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("what", ["two in one", "its beginning stated"])
def test_a_flac_is_heard_beyond_the_end_that_its_header_states(tmp_path, opening, what, rate):
    encode(tmp_path / "a.flac", opening, rate=rate)
    data = (tmp_path / "a.flac").read_bytes()
    if what == "two in one":
        (tmp_path / "a.flac").write_bytes(data + data)
    else:
        # The count of samples is the lower 36 bits of these eight bytes.
        rest = int.from_bytes(data[18:26], "big") >> 36 << 36
        (tmp_path / "a.flac").write_bytes(data[:18] + (rest | 2 * rate).to_bytes(8, "big") + data[26:])
    audio = decode(tmp_path / "a.flac")
    assert audio.duration_s == pytest.approx(8.2 * (2 if what == "two in one" else 1), abs=0.01)
    assert likeness(audio.samples[-len(opening) :], opening) > 0.99
    assert not audio.truncated


def wav_of(samples: Samples, stated_s: float | None = None, *, form: int = 1) -> bytes:
    """A WAV of 16 bits, whose header may state another length than it has."""
    data = (samples * 32767).astype("<i2").tobytes()
    header = wav_header(len(samples) if stated_s is None else int(stated_s * SAMPLE_RATE_HZ))
    return header[:20] + struct.pack("<H", form) + header[22:] + data


def rf64_without_lengths(samples: Samples) -> bytes:
    """As FFmpeg writes it into a pipe."""
    plain = wav_of(samples)
    head, fmt, data = plain[:12], plain[12:36], plain[44:]
    return b"RF64" + b"\xff" * 4 + head[8:] + struct.pack("<4sI28x", b"ds64", 28) + fmt + b"data" + b"\xff" * 4 + data


@pytest.mark.parametrize(
    "write",
    [
        lambda samples: wav_of(samples, stated_s=3),
        lambda samples: wav_of(samples[:48_000]) + wav_of(samples[48_000:]),
        rf64_without_lengths,
    ],
    ids=["a writer that died", "two in one", "RF64 into a pipe"],
)
def test_a_wav_is_heard_beyond_the_end_that_its_header_states(tmp_path, opening, write):
    (tmp_path / "a.wav").write_bytes(write(opening))
    audio = decode(tmp_path / "a.wav")
    assert audio.duration_s == pytest.approx(8.2, abs=0.01)
    np.testing.assert_allclose(audio.samples[:48_000], opening[:48_000], atol=1e-3)
    assert likeness(audio.samples[-80_000:], opening[-80_000:]) > 0.99
    assert not audio.truncated


@pytest.mark.parametrize(
    "behind",
    [
        b"LIST" + struct.pack("<I", 100_000) + bytes(range(200)) * 500,
        b"LIST" + struct.pack("<I", 900_000) + bytes(range(200)) * 500,
        b"\x00LIST" + struct.pack("<I", 100_000) + bytes(range(200)) * 500,
        b"ID3\x03" + bytes(range(200)) * 500,
        bytes(100_000),
    ],
    ids=["chunk", "chunk that states too much", "padded chunk", "tag", "zeros"],
)
def test_what_is_put_behind_a_wav_is_not_heard(tmp_path, opening, behind):
    odd = behind.startswith(b"\x00L")
    plain = wav_of(opening)
    plain = plain[:40] + struct.pack("<I", len(plain) - 44 - odd) + plain[44 : len(plain) - odd]
    (tmp_path / "a.wav").write_bytes(plain + behind)
    audio = decode(tmp_path / "a.wav")
    assert audio.duration_s == pytest.approx(8.2, abs=0.001)
    assert not audio.truncated


def test_a_wav_behind_which_another_form_is_not_read_is_truncated(tmp_path, opening):
    (tmp_path / "a.wav").write_bytes(wav_of(opening) + wav_of(opening, form=7))
    audio = decode(tmp_path / "a.wav")
    assert audio.duration_s == pytest.approx(8.2, abs=0.001)
    assert audio.truncated


@pytest.mark.parametrize("length", [0, 0x7FFFF000, 0x7FFFFFFF - 36, 0x80000000, 0xFFFFFFFF - 44, 0xFFFFFFFF])
def test_a_wav_whose_writer_left_its_length_open_is_whole(tmp_path, opening, length):
    plain = wav_of(opening)
    (tmp_path / "a.wav").write_bytes(plain[:40] + struct.pack("<I", length) + plain[44:])
    audio = decode(tmp_path / "a.wav")
    assert audio.duration_s == pytest.approx(8.2, abs=0.001)
    assert not audio.truncated


def with_a_hole(path: Path, samples: Samples, *, begin_s: float = 0, hole_s: float = 0, **options: str) -> None:
    """``samples`` twice, the first from ``begin_s`` on, and between them a time for which there are no packets."""
    import av

    data = np.atleast_2d(samples)
    codec, rate, size = ("aac", SAMPLE_RATE_HZ, 1024) if path.suffix == ".m4a" else ("libopus", 48_000, 960)
    format = {".m4a": "mp4", ".opus": "ogg"}.get(path.suffix)
    with av.open(str(path), "w", format=format, options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = ["mono", "stereo"][len(data) - 1]
        resampler = av.AudioResampler(format=stream.codec_context.format, layout=stream.layout, rate=rate)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(data), format="fltp", layout=stream.layout.name)
        frame.sample_rate = SAMPLE_RATE_HZ
        fifo = av.AudioFifo()
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            piece.pts = None
            fifo.write(piece)
        pieces = fifo.read_many(size)
        for start_s in (begin_s, begin_s + hole_s + len(pieces) * size / rate):
            for number, piece in enumerate(pieces):
                piece.pts = round(start_s * rate) + number * size
                piece.time_base = Fraction(1, rate)
                container.mux(stream.encode(piece))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("name", ["a.webm", "a.m4a"])
def test_a_time_without_packets_is_silence_and_what_follows_keeps_its_time(tmp_path, opening, name, split):
    with_a_hole(tmp_path / name, np.stack([opening, opening]), hole_s=30)
    with AudioStream(tmp_path / name, split_channels=split) as stream:
        heard = np.concatenate(list(stream.blocks()), axis=-1)
    assert heard.shape[:-1] == ((2,) if split else ())
    assert stream.duration_s == pytest.approx(46.4, abs=0.2)
    assert not stream.truncated
    second = SAMPLE_RATE_HZ
    for channel in np.atleast_2d(heard):
        assert np.abs(channel[9 * second : 38 * second]).max() < 1e-6
        assert likeness(channel[: 8 * second], opening) > 0.9
        assert likeness(channel[38 * second :], opening) > 0.9


def test_silence_that_is_left_out_counts_against_the_limit_of_duration(tmp_path, opening):
    with_a_hole(tmp_path / "a.webm", opening, hole_s=30, live="1")
    with pytest.raises(InvalidAudio, match="over the limit of 20 s"):
        decode(tmp_path / "a.webm", Limits(max_duration_s=20))


@pytest.mark.parametrize(("hole_s", "expected_s"), [(30, 46.4), (5000, 16.4)])
def test_hours_of_silence_are_not_believed_of_a_file_that_states_no_length(tmp_path, opening, hole_s, expected_s):
    with_a_hole(tmp_path / "a.webm", opening, hole_s=hole_s, live="1")
    with AudioStream(tmp_path / "a.webm") as stream:
        assert stream.header_duration_s is None
        assert sum(block.shape[-1] for block in stream.blocks()) / SAMPLE_RATE_HZ == pytest.approx(expected_s, abs=0.2)


def test_a_time_beyond_the_stated_end_is_not_believed():
    def frame(at_s: float) -> SimpleNamespace:
        return SimpleNamespace(
            pts=round(at_s * 16_000), time_base=Fraction(1, 16_000), samples=16_000, sample_rate=16_000
        )

    clock = Clock(0.0, 60.0)
    found = [clock.missing_before(frame(at_s)) for at_s in (0.0, 40_000.0, 2.0, 1.0, 10.0, 11.04)]
    assert found == [0, 0, 0, 0, 6 * SAMPLE_RATE_HZ, 0]


def test_a_recording_that_begins_late_begins_with_silence(tmp_path, opening):
    with_a_hole(tmp_path / "a.webm", opening, begin_s=20)
    audio = decode(tmp_path / "a.webm")
    assert audio.duration_s == pytest.approx(36.4, abs=0.2)
    assert not audio.truncated
    assert np.abs(audio.samples[: 20 * SAMPLE_RATE_HZ]).max() == 0
    assert likeness(audio.samples[20 * SAMPLE_RATE_HZ : 28 * SAMPLE_RATE_HZ], opening) > 0.9


def test_a_piece_of_a_longer_stream_begins_at_once(tmp_path, opening):
    with_a_hole(tmp_path / "a.opus", opening, begin_s=4000)
    audio = decode(tmp_path / "a.opus", Limits(max_duration_s=60))
    assert audio.duration_s == pytest.approx(16.4, abs=0.2)
    assert not audio.truncated


def test_an_ogg_file_that_lost_pages_is_damaged(tmp_path, opening):
    with_a_hole(tmp_path / "a.opus", opening, hole_s=10)
    audio = decode(tmp_path / "a.opus")
    assert audio.duration_s == pytest.approx(26.4, abs=0.2)
    assert audio.truncated


@pytest.mark.parametrize("damage", [bytes(2000), b"\xa5" * 2000])
def test_what_damage_takes_from_a_matroska_file_is_not_taken_for_left_out_silence(tmp_path, opening, damage):
    encode(tmp_path / "a.webm", opening, options={"cluster_time_limit": "1000"})
    data = (tmp_path / "a.webm").read_bytes()
    middle = len(data) // 2
    (tmp_path / "a.webm").write_bytes(data[:middle] + damage + data[middle + len(damage) :])
    audio = decode(tmp_path / "a.webm")
    assert audio.duration_s == pytest.approx(8.2, abs=0.1)
    assert audio.truncated


def test_sound_that_begins_after_the_picture_keeps_its_time(tmp_path, opening):
    encode(tmp_path / "sound.m4a", opening)
    film(tmp_path / "film.mp4", tmp_path / "sound.m4a", 120, late_s=3)
    audio = decode(tmp_path / "film.mp4")
    assert audio.duration_s == pytest.approx(11.2, abs=0.2)
    assert not audio.truncated
    assert likeness(audio.samples[3 * SAMPLE_RATE_HZ :], opening) > 0.9


@pytest.mark.parametrize("late_s", [0, 3])
def test_a_film_whose_picture_goes_on_after_its_sound_is_whole(tmp_path, opening, late_s):
    encode(tmp_path / "sound.webm", opening)
    film(tmp_path / "film.mkv", tmp_path / "sound.webm", 250, late_s=late_s)
    audio = decode(tmp_path / "film.mkv")
    assert audio.duration_s == pytest.approx(8.2 + late_s, abs=0.2)
    assert not audio.truncated
    data = (tmp_path / "film.mkv").read_bytes()
    (tmp_path / "film.mkv").write_bytes(data[: len(data) // 2])
    assert decode(tmp_path / "film.mkv").truncated


def tracks(path: Path, *sources: Path, marked: int) -> None:
    """A film of nothing but audio tracks, one of them marked as default."""
    import av

    with av.open(str(path), "w") as made:
        opened = [av.open(str(source)) for source in sources]
        streams = [made.add_stream_from_template(source.streams.audio[0]) for source in opened]
        for source, stream in zip(opened, streams, strict=True):
            for packet in source.demux(audio=0):
                if packet.dts is not None:
                    packet.stream = stream
                    made.mux(packet)
            source.close()
    # The last bit of the flags in its header marks a track.
    first, *headers = path.read_bytes().split(b"tkhd")
    flags = [b"\x00\x00\x00" + (b"\x03" if number == marked else b"\x02") for number in range(len(sources))]
    parts = [flag + header[4:] for flag, header in zip(flags, headers, strict=True)]
    path.write_bytes(b"tkhd".join([first, *parts]))


@pytest.mark.parametrize("marked", [0, 1])
def test_of_several_tracks_the_default_one_is_heard(tmp_path, two_cities, marked):
    parts = two_cities[: 8 * SAMPLE_RATE_HZ], two_cities[8 * SAMPLE_RATE_HZ : 20 * SAMPLE_RATE_HZ]
    encode(tmp_path / "first.m4a", parts[0], rate=44_100)
    encode(tmp_path / "second.m4a", parts[1])
    tracks(tmp_path / "film.mp4", tmp_path / "first.m4a", tmp_path / "second.m4a", marked=marked)
    assert likeness(decode(tmp_path / "film.mp4").samples, parts[marked]) > 0.9
    assert probe.probe(tmp_path / "film.mp4").sample_rate_hz == (16_000 if marked else 44_100)


@pytest.mark.parametrize("marked", [0, 1, 2])
def test_a_default_track_without_speech_leaves_the_word_to_another(tmp_path, opening, marked):
    hum = 0.1 * np.sin(2 * np.pi * 50 * np.arange(8 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ).astype(np.float32)
    for name, samples in (("silence", np.zeros_like(hum)), ("hum", hum), ("speech", opening)):
        encode(tmp_path / f"{name}.m4a", samples)
    sources = [tmp_path / f"{name}.m4a" for name in ("silence", "hum", "speech")]
    tracks(tmp_path / "film.mp4", *sources, marked=marked)
    with AudioStream(tmp_path / "film.mp4") as stream:
        heard = np.concatenate(list(stream.blocks()))
    assert likeness(heard, opening) > 0.9
    with AudioStream(tmp_path / "film.mp4", track=0) as stream:
        default = np.concatenate(list(stream.blocks()))
    assert bool(default.any() and likeness(default, opening) > 0.9) == (marked == 2)


def test_of_tracks_without_speech_the_default_one_is_heard(tmp_path, opening):
    for name, samples in (("silence", np.zeros_like(opening)), ("noise", 0.01 * np.ones_like(opening))):
        encode(tmp_path / f"{name}.m4a", samples)
    tracks(tmp_path / "film.mp4", tmp_path / "noise.m4a", tmp_path / "silence.m4a", marked=1)
    assert not decode(tmp_path / "film.mp4").samples.any()
