from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from audio_assets.errors import FileFailed, InvalidAudio
from audio_assets.ingest.listing import AUDIO_EXTENSIONS
from audio_assets.ingest.probe import probe
from audio_assets_tests.ingest.audio import write_silent_video, write_tone

# extension -> container and codec as FFmpeg names them, sample rate
EXPECTED = {
    ".wav": ("wav", "pcm_s16le", 16_000),
    ".flac": ("flac", "flac", 16_000),
    ".mp3": ("mp3", "mp3", 16_000),
    ".m4a": ("mov,mp4,m4a,3gp,3g2,mj2", "aac", 16_000),
    ".mp4": ("mov,mp4,m4a,3gp,3g2,mj2", "aac", 16_000),
    ".aac": ("aac", "aac", 16_000),
    ".ogg": ("ogg", "opus", 48_000),
    ".opus": ("ogg", "opus", 48_000),
    ".webm": ("matroska,webm", "opus", 48_000),
}


def test_every_extension_that_is_taken_in_is_tried() -> None:
    assert set(EXPECTED) == set(AUDIO_EXTENSIONS)


@pytest.mark.parametrize("extension", AUDIO_EXTENSIONS)
def test_header_of_each_format(extension: str, tmp_path: Path) -> None:
    found = probe(write_tone(tmp_path / f"tone{extension}", seconds=1.5, channels=2))
    assert (found.container, found.codec, found.sample_rate_hz) == EXPECTED[extension]
    assert found.channels == 2
    # Encoders pad to whole frames; raw AAC has no length in its header, so FFmpeg estimates one.
    assert found.duration_s == pytest.approx(1.5, abs=0.2)


def test_vorbis_in_ogg(tmp_path: Path) -> None:
    import numpy as np
    import soundfile

    path = tmp_path / "a.ogg"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000, format="OGG", subtype="VORBIS")
    assert probe(path).codec == "vorbis"


def test_an_excerpt_that_begins_before_its_time_is_audio(tmp_path: Path) -> None:
    """As FFmpeg cuts it with -ss from WebM to Ogg without coding it anew; it cannot read its own first page."""
    import av

    with (
        av.open(str(write_tone(tmp_path / "a.webm", seconds=3))) as source,
        av.open(str(tmp_path / "a.opus"), "w") as cut,
    ):
        track = cut.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                packet.pts = packet.dts = packet.dts - round(1.5 / packet.time_base)
                packet.stream = track
                cut.mux(packet)
    assert probe(tmp_path / "a.opus").codec == "opus"


@pytest.mark.parametrize("seconds", [0.1, 0.3])
def test_a_very_short_recording_is_audio(seconds: float, tmp_path: Path) -> None:
    for extension in AUDIO_EXTENSIONS:
        assert probe(write_tone(tmp_path / f"tone{extension}", seconds=seconds)).channels == 1


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    path = write_tone(tmp_path / "a.wav").rename(tmp_path / "a.mp3")
    assert probe(path).container == "wav"


@pytest.mark.parametrize("extension", AUDIO_EXTENSIONS)
def test_zero_bytes(extension: str, tmp_path: Path) -> None:
    path = tmp_path / f"empty{extension}"
    path.touch()
    with pytest.raises(InvalidAudio, match="zero bytes"):
        probe(path)


@pytest.mark.parametrize("extension", AUDIO_EXTENSIONS)
@pytest.mark.parametrize("content", [b"Hello, this is plain text.\n" * 100, b"x", bytes(5000), b"\xff\xfb" * 2000])
def test_what_is_not_audio(extension: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"a{extension}"
    path.write_bytes(content)
    with pytest.raises(InvalidAudio):
        probe(path)


@pytest.mark.parametrize("extension", AUDIO_EXTENSIONS)
@pytest.mark.parametrize("length", [1, 4, 20, 40])
def test_a_header_cut_short(extension: str, length: int, tmp_path: Path) -> None:
    path = write_tone(tmp_path / f"a{extension}")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InvalidAudio):
        probe(path)


def test_a_whole_header_with_nothing_after_it(tmp_path: Path) -> None:
    path = write_tone(tmp_path / "a.wav")
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"data") + 8])
    with pytest.raises(InvalidAudio, match="a wav header, but nothing decodes"):
        probe(path)


def test_rf64_that_was_written_into_a_pipe_states_no_length_and_is_audio(tmp_path: Path) -> None:
    path = write_tone(tmp_path / "a.wav")
    plain = path.read_bytes()
    at = plain.index(b"fmt ")
    head, data = plain[at : at + 24], plain[plain.index(b"data") + 8 :]
    lengths = b"ds64" + (28).to_bytes(4, "little") + bytes(28)
    path.write_bytes(b"RF64" + b"\xff" * 4 + b"WAVE" + lengths + head + b"data" + b"\xff" * 4 + data)
    assert probe(path).codec == "pcm_s16le"


def test_m4a_without_its_index(tmp_path: Path) -> None:
    path = write_tone(tmp_path / "a.m4a")
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"moov")])
    with pytest.raises(InvalidAudio, match=r"an MP4 without its index \(moov\), .*; upload it again"):
        probe(path)


@pytest.mark.parametrize(
    ("format", "codec", "name"),
    [
        ("aiff", "pcm_s16be", "AIFF"),
        ("au", "pcm_s16be", "AU"),
        ("caf", "pcm_s16be", "CAF"),
        ("flv", "libmp3lame", "Flash Video"),
        ("avi", "libmp3lame", "AVI"),
        ("mpegts", "aac", "MPEG-TS"),
        ("ac3", "ac3", "AC-3"),
    ],
)
def test_a_format_that_is_not_taken_in_is_named(format: str, codec: str, name: str, tmp_path: Path) -> None:
    path = write_tone(tmp_path / "a.wav", codec=codec, format=format)
    with pytest.raises(InvalidAudio, match=f"it is {name}, which is not taken in; convert it to WAV or FLAC"):
        probe(path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<!DOCTYPE html><html>", "a web page"),
        (b'\xef\xbb\xbf\n<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page or XML"),
        (b'{"error": "expired"}', "JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "a pointer of Git LFS"),
        (b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ", "what macOS keeps beside a file"),
        (b"PK\x03\x04", "a ZIP archive"),
        (b"#!AMR\n", "AMR"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "Windows Media"),
    ],
)
def test_what_only_wears_the_name_of_audio_is_named(content: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / "a.mp3").write_bytes(content + bytes(range(256)))
    with pytest.raises(InvalidAudio, match=f"it is {what}[^;]*; [a-z ]+"):
        probe(tmp_path / "a.mp3")


def test_what_nobody_knows_says_what_to_try(tmp_path: Path) -> None:
    (tmp_path / "a.mp3").write_bytes(bytes(5000))
    with pytest.raises(InvalidAudio, match="; if it plays elsewhere, convert it"):
        probe(tmp_path / "a.mp3")


def test_a_video_without_sound(tmp_path: Path) -> None:
    with pytest.raises(InvalidAudio, match="no audio stream"):
        probe(write_silent_video(tmp_path / "a.mp4"))


@pytest.mark.parametrize(
    "script",
    [
        "ffconcat version 1.0\nfile '{victim}'\n",
        "ffconcat version 1.0\nfile 'victim.wav'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{victim}\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nvictim.wav\n#EXT-X-ENDLIST\n",
        "v=0\nc=IN IP4 127.0.0.1\nm=audio 4 RTP/AVP 0\n",
    ],
)
@pytest.mark.parametrize("name", ["x.mp3", "x.wav", "x.m4a"])
def test_a_script_named_like_audio_opens_no_other_file(script: str, name: str, tmp_path: Path) -> None:
    victim = write_tone(tmp_path / "victim.wav")
    path = tmp_path / name
    path.write_text(script.format(victim=victim))
    # An access time long past moves on the first read, also by code that Python does not see.
    os.utime(victim, ns=(0, victim.stat().st_mtime_ns))
    with pytest.raises(InvalidAudio):
        probe(path)
    assert victim.stat().st_atime_ns == 0
    victim.read_bytes()
    if victim.stat().st_atime_ns == 0:
        pytest.skip("this file system records no access times, so the test proves only that the script is refused")


def test_a_missing_file_is_not_called_invalid(tmp_path: Path) -> None:
    with pytest.raises(FileFailed, match="not in the mirror"):
        probe(tmp_path / "a.wav")


def test_damaged_files_print_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_tone(tmp_path / "a.mp3")
    content = bytearray(path.read_bytes())
    content[200:400] = b"\xaa" * 200
    path.write_bytes(content)
    with contextlib.suppress(InvalidAudio):
        probe(path)
    assert capfd.readouterr() == ("", "")
