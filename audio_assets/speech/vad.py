"""Where speech is: Silero VAD over a stream, and windows cut at silence.

The network (bundled with faster-whisper) gives one probability per 32 ms. Its state is carried from block to block, so
a stream gives the same probabilities as the whole file at once, with flat memory. Offsets count samples from the start
of the file, so times cannot drift.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from audio_assets.speech.engine import SAMPLE_RATE_HZ, Samples, WindowPlan
from audio_assets.speech.silero import CONTEXT, FRAME, STATE, session

SPEECH_ON = 0.5
SPEECH_OFF = 0.35
"""Speech begins at the upper threshold and ends below the lower one: Silero's own defaults."""

MIN_SPEECH_S = 0.1
"""Shorter bursts are clicks, not speech."""

LEAD_S = 0.5
"""Silence that Silero is taken to have heard before a file: from a standing start it misses speech in the first half
second. Of 537 telephone prompts of 0.6 s and more, nine had no speech without it, three have none with it."""

PAUSE_S = 0.1
"""A dip below the lower threshold of this length is a place where an overlong window may be cut."""

SILENT = 2.0**-15
"""Digital silence: no sample is further from zero than one step of 16 bits."""

FORGET_S = 10.0
"""Digital silence after which the network starts anew. Its state drifts away in such silence, which it was not trained
on: of the 209 frames of a speech of 11 s it then hears 206 after 10 s of it, 167 after 30 s, 145 after two minutes,
where whole words are missing. Less silence, as between sentences, changes nothing."""


@dataclass(frozen=True)
class Window:
    """Speech to transcribe: samples ``start`` to ``end`` of the file, and the spans of speech inside (in samples)."""

    start: int
    end: int
    samples: Samples
    speech: tuple[tuple[int, int], ...]

    @property
    def start_s(self) -> float:
        """Start in seconds from the beginning of the file."""
        return self.start / SAMPLE_RATE_HZ

    @property
    def duration_s(self) -> float:
        """Length in seconds, padding included."""
        return (self.end - self.start) / SAMPLE_RATE_HZ


@cache
def _after_silence() -> tuple[Samples, Samples]:
    """Silero's state once it has heard `LEAD_S` of silence."""
    still = np.zeros((1, 1, STATE), np.float32)
    silence = np.zeros((_frames(LEAD_S), CONTEXT + FRAME), np.float32)
    _, h, c = session().run(None, {"input": silence, "h": still, "c": still})
    return np.asarray(h, np.float32), np.asarray(c, np.float32)


class SpeechProbability:
    """Silero VAD with its state kept between calls, up to a long digital silence."""

    def __init__(self) -> None:
        self._h, self._c = _after_silence()
        self._context = np.zeros(CONTEXT, np.float32)
        self._silent = 0

    def __call__(self, samples: Samples) -> Samples:
        """Probabilities of speech, one per frame; ``samples`` is a whole number of frames."""
        frames = samples.reshape(-1, FRAME)
        if not len(frames):
            return np.empty(0, np.float32)
        before = np.empty((len(frames), CONTEXT), np.float32)
        before[0] = self._context
        before[1:] = frames[:-1, -CONTEXT:]
        self._context = frames[-1, -CONTEXT:].copy()
        batch = np.concatenate([before, frames], axis=1)
        first, *others = np.split(batch, self._awakenings(frames))
        found = [self._run(first)]
        for part in others:
            self._h, self._c = _after_silence()
            found.append(self._run(part))
        return np.concatenate(found)

    def _run(self, batch: Samples) -> Samples:
        if not len(batch):
            return np.empty(0, np.float32)
        output, self._h, self._c = session().run(None, {"input": batch, "h": self._h, "c": self._c})
        return np.asarray(output, np.float32).reshape(-1)

    def _awakenings(self, frames: Samples) -> list[int]:
        """The frames with which sound begins again after a long digital silence."""
        loud = np.flatnonzero((frames.max(axis=1) > SILENT) | (frames.min(axis=1) < -SILENT))
        if not len(loud):
            self._silent += len(frames)
            return []
        silent = np.diff(loud, prepend=-1 - self._silent) - 1
        self._silent = len(frames) - 1 - int(loud[-1])
        found: list[int] = loud[silent >= _frames(FORGET_S)].tolist()
        return found


class Windower:
    """Turns a stream of samples into windows of speech.

    Feed blocks with `push`, then call `finish`; each gives the windows that are complete. Holds at most about one
    window of samples.
    """

    def __init__(self, plan: WindowPlan):
        self._plan = plan
        self._probability = SpeechProbability()
        self._pad = _frames(plan.pad_s)
        self._cut_silence = max(1, _frames(plan.cut_silence_s))
        self._max = max(2 * self._pad + 2, _frames(plan.max_s))
        self._samples = np.empty(0, np.float32)
        self._origin = 0
        self._pushed = 0
        self._rest = np.empty(0, np.float32)
        self._frame = 0
        self._first_free = 0
        self._speaking = False
        self._quiet = 0
        self._start: int | None = None
        self._spans: list[list[int]] = []
        self._scores: list[float] = []
        self._scores_from = 0
        self.speech_samples = 0

    def push(self, block: Samples) -> Iterator[Window]:
        """Take the next samples, shape (n,); gives the windows that ended within them."""
        self._pushed += len(block)
        self._samples = np.concatenate([self._samples, block])
        data = np.concatenate([self._rest, block]) if len(self._rest) else block
        whole = len(data) // FRAME * FRAME
        self._rest = data[whole:].copy()
        yield from self._advance(self._probability(np.ascontiguousarray(data[:whole])))
        self._trim()

    def finish(self) -> Iterator[Window]:
        """The stream has ended; gives the last windows."""
        if len(self._rest):
            padded = np.zeros(FRAME, np.float32)
            padded[: len(self._rest)] = self._rest
            self._rest = np.empty(0, np.float32)
            yield from self._advance(self._probability(padded))
        if self._start is not None:
            if self._speaking:
                self._spans[-1][1] = self._frame
            yield from self._close(self._frame)

    def _advance(self, probabilities: Samples) -> Iterator[Window]:
        for p in probabilities.tolist():
            i = self._frame
            self._frame += 1
            if self._start is None:
                if p < SPEECH_ON:
                    continue
                self._start = max(self._first_free, i - self._pad)
                self._spans, self._scores, self._scores_from = [[i, i + 1]], [], i
                self._speaking, self._quiet = True, 0
            self._scores.append(p)
            if self._speaking:
                if p < SPEECH_OFF:
                    if not self._quiet:
                        self._spans[-1][1] = i
                    self._quiet += 1
                    if self._quiet >= _frames(PAUSE_S):
                        self._speaking = False
                else:
                    self._quiet = 0
                    self._spans[-1][1] = i + 1
            elif p >= SPEECH_ON:
                self._spans.append([i, i + 1])
                self._speaking, self._quiet = True, 0
            else:
                self._quiet += 1
                if self._quiet >= self._cut_silence:
                    yield from self._close(self._frame)
                    continue
            if self._frame - self._start + self._pad >= self._max:
                yield from self._split()

    def _close(self, now: int) -> Iterator[Window]:
        """End the window behind its last span, padded; `now` is the first frame that was not looked at."""
        assert self._start is not None  # noqa: S101 - an invariant, not input
        end = min(self._spans[-1][1] + self._pad, now)
        window = self._window(self._start, end, self._spans)
        self._start, self._spans = None, []
        self._first_free = end
        if window is not None:
            yield window

    def _split(self) -> Iterator[Window]:
        """The window is full: end it at the longest pause of its second half, else where speech is least likely."""
        assert self._start is not None  # noqa: S101 - an invariant, not input
        start, now, spans = self._start, self._frame, self._spans
        half = start + self._max // 2
        gaps = [(b[0] - a[1], a[1], b[0]) for a, b in itertools.pairwise(spans) if b[0] > half]
        if not self._speaking and now > half:
            gaps.append((now - spans[-1][1], spans[-1][1], now))
        if gaps:
            _, left, right = max(gaps)
            cut = max((left + right) // 2, start + 1)
        else:
            low = max(half, self._scores_from, now - _frames(5.0))
            tail = self._scores[low - self._scores_from :]
            cut = low + int(np.argmin(tail)) if tail else now
            cut = max(cut, start + 1)
        before = [[a, min(b, cut)] for a, b in spans if a < cut]
        after = [[max(a, cut), b] for a, b in spans if b > cut]
        window = self._window(start, cut, before)
        self._first_free = cut
        if after:
            self._start, self._spans = max(cut, after[0][0] - self._pad), after
        else:
            self._start, self._spans, self._speaking = None, [], False
        if window is not None:
            yield window

    def _window(self, start: int, end: int, spans: list[list[int]]) -> Window | None:
        speech = sum(b - a for a, b in spans)
        if speech * FRAME < MIN_SPEECH_S * SAMPLE_RATE_HZ:
            return None
        first, last = start * FRAME, min(end * FRAME, self._pushed)
        self.speech_samples += min(speech * FRAME, last - first)
        samples = self._samples[first - self._origin : last - self._origin].copy()
        return Window(first, last, samples, tuple((a * FRAME, min(b * FRAME, self._pushed)) for a, b in spans))

    def _trim(self) -> None:
        """Forget samples that no later window can reach."""
        keep = self._start if self._start is not None else max(self._first_free, self._frame - self._pad)
        drop = keep * FRAME - self._origin
        if drop > 0:
            self._samples = self._samples[drop:].copy()
            self._origin += drop


def windows(blocks: Iterable[Samples], plan: WindowPlan) -> Iterator[Window]:
    """The windows of a stream of mono blocks."""
    windower = Windower(plan)
    for block in blocks:
        yield from windower.push(block)
    yield from windower.finish()


def _frames(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE_HZ / FRAME)
