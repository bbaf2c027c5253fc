"""What a container leaves out: the timestamps of its frames against the sound that was given."""

from __future__ import annotations

from typing import Any

from audio_assets.speech.engine import SAMPLE_RATE_HZ

HOLE_S = 0.05
START_HOLE_S = 0.2
"""A longer hole in the timestamps of a file is silence; at the start, where encoders put a little in front, this is."""

MOST_UNSTATED_S = 600.0
"""The longest hole that is believed of a file that states no length to compare it with, as browsers record them."""


class Clock:
    """Compares the timestamps of frames with the sound that was given: what a container leaves out is silence.

    Recorders leave out what nobody says, and what was lost; a film's sound may begin after its picture. Times up to
    ``end_s`` are believed, which keeps damaged ones from becoming hours of silence. Jumps back are not followed: they
    are those of files that were put together, or damage. Times that FFmpeg ``counted`` itself, frame by frame, are
    wrong from where the sample rate changes.
    """

    def __init__(self, begin_s: float, end_s: float | None, *, counted: bool = False):
        self._position_s = begin_s
        self._end_s = end_s
        self._counted_hz: int | None = 0 if counted else None
        self._first = True
        self._anew = False

    def set_by_next(self) -> None:
        """What lies before the next frame is no sound, whatever its time says."""
        self._anew = True

    def missing_before(self, frame: Any) -> int:
        """How many samples of silence belong before a frame, which is then taken as given."""
        missing_s = 0.0
        least_s = START_HOLE_S if self._first else HOLE_S
        if frame.pts is not None and frame.time_base is not None:
            at_s = float(frame.pts * frame.time_base)
            ahead_s = at_s - self._position_s
            if self._anew or self._miscounted(frame.sample_rate):
                self._position_s = at_s
            elif ahead_s > least_s and self._believes(at_s, ahead_s):
                missing_s = ahead_s
            elif self._first:
                # What an encoder puts in front is taken out again, but counted.
                self._position_s = at_s
        self._first = self._anew = False
        self._position_s += missing_s + frame.samples / max(frame.sample_rate, 1)
        return round(missing_s * SAMPLE_RATE_HZ)

    def _miscounted(self, rate_hz: int) -> bool:
        if self._counted_hz == 0:
            self._counted_hz = rate_hz
        return self._counted_hz not in (None, rate_hz)

    def _believes(self, at_s: float, ahead_s: float) -> bool:
        return ahead_s <= MOST_UNSTATED_S if self._end_s is None else at_s <= self._end_s
