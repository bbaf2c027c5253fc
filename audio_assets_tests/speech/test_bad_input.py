"""Every bad file in one batch: each gets its status and reason, the good ones beside it their text."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from audio_assets.errors import InvalidAudio
from audio_assets.speech.cache import TranscriptCache
from audio_assets.speech.decode import AudioStream, Limits, decode
from audio_assets.speech.engine import SAMPLE_RATE_HZ, Samples
from audio_assets.speech.transcribe import FileTranscript, TranscribeOptions, transcribe_files
from audio_assets_tests.speech.conftest import as_file, encode, film
from audio_assets_tests.speech.test_decode import BAD, CONTAINERS, likeness
from audio_assets_tests.speech.test_transcribe import Parrot


@pytest.fixture(scope="module")
def silence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 h of silence in 7 MB."""
    import soundfile

    path = tmp_path_factory.mktemp("silence") / "silence.flac"
    with soundfile.SoundFile(path, "w", SAMPLE_RATE_HZ, 1, format="FLAC") as file:
        minute = np.zeros(SAMPLE_RATE_HZ * 60, np.int16)
        for _ in range(600):
            file.write(minute)
    assert path.stat().st_size < 10_000_000
    return path


def test_no_bad_file_stops_the_batch(tmp_path: Path, cache: TranscriptCache, opening: Samples, silence: Path) -> None:
    import soundfile

    wrong = [name for name in BAD if name not in ("directory.wav", "gone.wav")]
    for name in wrong:
        BAD[name](tmp_path / name)
    (tmp_path / "concat.mp3").write_text("ffconcat version 1.0\nfile good-0.wav\n")
    (tmp_path / "hls.mp3").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:8,\ngood-0.wav\n#EXT-X-ENDLIST\n")
    wrong += ["concat.mp3", "hls.mp3"]
    cut = []
    for name in CONTAINERS:
        encode(tmp_path / name, opening)
        data = (tmp_path / name).read_bytes()
        for quarter in (1, 2, 3):
            cut.append(f"cut-{quarter}-{name}")
            (tmp_path / cut[-1]).write_bytes(data[: len(data) * quarter // 4])
    (tmp_path / "a.flac").rename(tmp_path / "misnamed.mp3")
    broken = opening.copy()
    broken[1000:2000] = np.nan
    soundfile.write(tmp_path / "nan.wav", broken, SAMPLE_RATE_HZ, subtype="FLOAT")
    soundfile.write(tmp_path / "all-nan.wav", np.full_like(opening, np.nan), SAMPLE_RATE_HZ, subtype="FLOAT")
    soundfile.write(tmp_path / "dc.wav", np.full(5 * SAMPLE_RATE_HZ, 0.4), SAMPLE_RATE_HZ)
    soundfile.write(tmp_path / "ten-ms.wav", opening[SAMPLE_RATE_HZ : SAMPLE_RATE_HZ + 160], SAMPLE_RATE_HZ)
    for n in range(3):
        encode(tmp_path / f"good-{n}.wav", opening[: len(opening) - 1000 * n])
    empty, good = (
        ["all-nan.wav", "dc.wav", "ten-ms.wav"],
        ["misnamed.mp3", "nan.wav", *(f"good-{n}.wav" for n in range(3))],
    )
    files = [as_file(tmp_path / name) for name in (*wrong, *cut, *empty, *good)] + [as_file(silence, "silence.flac")]
    engine = Parrot()
    options = TranscribeOptions(limits=Limits(max_duration_s=3600))
    found = {r.id: r for r in transcribe_files(files, engine, cache, options)}
    assert found.keys() == {f.id for f in files}

    def told(result: FileTranscript) -> bool:
        reason = result.error or ""
        return result.status == "invalid" and result.transcription is None and len(reason) > 10 and "\n" not in reason

    assert [name for name in (*wrong, "silence.flac") if not told(found[name])] == []
    assert "36000 s is over the limit of 3600 s" in str(found["silence.flac"].error)
    assert {found[name].status for name in empty} == {"empty"}
    assert {found[name].status for name in good} == {"ok"}
    for name in cut:
        result = found[name]
        if result.status == "invalid":
            assert name.endswith((".m4a", ".mp4")) and told(result), "only what keeps its index at the end is lost"
            continue
        assert 0 < (result.duration_s or 0) < 8.2
        if not name.endswith(".aac"):
            assert "truncated" in result.flags, name
    heard = {c.id for c in engine.heard}
    assert not heard & {*wrong, *empty, "silence.flac"}


@pytest.mark.parametrize(
    "script",
    [
        "ffconcat version 1.0\nfile '{victim}'\n",
        "ffconcat version 1.0\nfile victim.wav\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:8,\nfile://{victim}\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:8,\nhttp://127.0.0.1:{port}/victim.wav\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile 'http://127.0.0.1:{port}/victim.wav'\n",
    ],
    ids=["concat-absolute", "concat-relative", "hls-file", "hls-http", "concat-http"],
)
@pytest.mark.parametrize("name", ["playlist.mp3", "playlist.wav"])
def test_a_script_is_refused_and_neither_file_nor_address_in_it_is_touched(
    tmp_path: Path, opening: Samples, script: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim.wav"
    encode(victim, opening)
    monkeypatch.chdir(tmp_path)
    # An access time long past moves on the first read, also by code that Python does not see.
    os.utime(victim, ns=(0, victim.stat().st_mtime_ns))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        (tmp_path / name).write_text(script.format(victim=victim, port=server.getsockname()[1]))
        with pytest.raises(InvalidAudio):
            decode(tmp_path / name)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert victim.stat().st_atime_ns == 0


def test_ten_hours_are_refused_before_they_are_decoded(silence: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AudioStream, "_take", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(AudioStream, "_account", lambda *_: pytest.fail("decoded"))
    with pytest.raises(InvalidAudio, match="36000 s is over the limit of 3600 s"):
        decode(silence, Limits(max_duration_s=3600))


@pytest.mark.parametrize("length_in_header", [True, False])
def test_ten_hours_are_refused_at_the_cap_with_flat_memory(
    tmp_path: Path, silence: Path, length_in_header: bool
) -> None:
    path = silence
    if not length_in_header:
        data = bytearray(silence.read_bytes())
        # The last 36 bits of these 8 bytes of STREAMINFO count the samples; 0 is unknown.
        [fields] = struct.unpack(">Q", data[18:26])
        data[18:26] = struct.pack(">Q", fields >> 36 << 36)
        path = tmp_path / "open-end.flac"
        path.write_bytes(data)
    script = textwrap.dedent(
        """
        import resource, sys
        from pathlib import Path
        from audio_assets.errors import InvalidAudio
        from audio_assets.speech.decode import AudioStream, Limits

        def peak_mb(path, limits):
            try:
                with AudioStream(Path(path), limits) as stream:
                    print(sum(block.shape[-1] for block in stream.blocks()))
            except InvalidAudio as error:
                print(error)
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

        before = peak_mb(sys.argv[1], Limits(max_duration_s=60))
        print(peak_mb(sys.argv[1], Limits(max_duration_s=3600)) - before)
        """
    )
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    first, second, growth_mb = done.stdout.splitlines()
    assert "over the limit of 60 s" in first and "over the limit of 3600 s" in second
    assert float(growth_mb) < 30


def test_a_video_with_sound_gives_its_sound(tmp_path: Path, opening: Samples) -> None:
    encode(tmp_path / "sound.m4a", opening)
    film(tmp_path / "film.mp4", tmp_path / "sound.m4a", 82)
    audio = decode(tmp_path / "film.mp4")
    assert likeness(audio.samples, opening) > 0.9
    assert not audio.truncated
