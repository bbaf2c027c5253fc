"""Which of several audio tracks of a file is heard: recorders of screens and meetings keep one for each source."""

from __future__ import annotations

from pathlib import Path

from audio_assets.errors import InvalidAudio
from audio_assets.speech import vad
from audio_assets.speech.decode import AudioStream, Limits
from audio_assets.speech.engine import SAMPLE_RATE_HZ, WindowPlan

ENOUGH_S = 1.0
"""So much speech, in seconds, makes a track the one that is heard: in music a moment of it is found, too."""

_PLAN = WindowPlan(max_s=10.0, cut_silence_s=2.0)


def with_speech(path: Path, limits: Limits, count: int) -> int:
    """The first of ``count`` tracks, in the order of `AudioStream`, with `ENOUGH_S` of speech; else that with most."""
    most_s, chosen = 0.0, 0
    for track in range(count):
        try:
            found_s = _speech_s(path, limits, track)
        except InvalidAudio:
            # Where it is the first, and the others are silent, whoever reads it meets the reason.
            continue
        if found_s > most_s:
            most_s, chosen = found_s, track
        if found_s >= ENOUGH_S:
            break
    return chosen


def _speech_s(path: Path, limits: Limits, track: int) -> float:
    """Seconds of speech, up to where it is enough."""
    windower = vad.Windower(_PLAN)
    with AudioStream(path, limits, track=track) as stream:
        for block in stream.blocks():
            for _ in windower.push(block):
                pass
            if windower.speech_samples >= ENOUGH_S * SAMPLE_RATE_HZ:
                break
        else:
            for _ in windower.finish():
                pass
    return windower.speech_samples / SAMPLE_RATE_HZ
