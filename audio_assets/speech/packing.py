"""Whisper on short windows without paying for thirty seconds: the silence tail splice.

Whisper was trained on 30 s of sound, silence included, and its encoder costs more than proportionally for each second.
Here each window is encoded at its own length. Alone, that makes the decoder repeat itself: it never meets the silence
after which it learned to stop. So a few of the encoder's states of pure silence, computed once, are put behind the
states of the speech. They are sampled evenly from the positions between the end of the speech and the end of the 30 s:
the decoder sees that the silence lasts to the end, at a fraction of the states (measured: 32 spread states stop it as
well as 500 consecutive ones, which cost a third more time in the decoder).

Windows of similar length are decoded together. A window whose text looks wrong is decoded again on the full 30 s, with
rising temperature, as Whisper's authors do it. What the decoder leaves out at the end of a long window is found by
timing its words, and decoded as a window of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from audio_assets.speech import judge
from audio_assets.speech.engine import SAMPLE_RATE_HZ, Clip, ClipResult, Samples, Segment, Timings, Word
from audio_assets.speech.languages import TOKENS_BESIDE_ENGLISH

TAIL_STATES = 32
"""Encoder states of silence behind the longest window of a batch: as few as stop the decoder as well as 400 do."""


@dataclass(frozen=True)
class Silence:
    """Digital silence that is encoded behind the sound of a window, in seconds.

    At least ``trailing_s``, so that the last states of the window are silence already, and as much as makes the window
    ``shortest_s`` long: behind a single word, little silence does not stop the decoder, which says it three times.
    """

    trailing_s: float = 2.0
    shortest_s: float = 9.0

    def behind(self, duration_s: float) -> float:
        """Silence behind a window of this length.

        >>> Silence(0.5, 5.0).behind(0.8), Silence(0.5, 5.0).behind(10.0)
        (4.2, 0.5)
        """
        return max(self.trailing_s, self.shortest_s - duration_s)


SILENCE = Silence()
"""What Whisper base needs; for others nobody has measured less. Of 75 windows of up to 20 s it repeats 3 so, and 21
with 0.5 s and at 5 s; of 141 telephone prompts of up to 4 s 4 and 55. It costs hardly more, as fewer texts run away."""

SILENCE_OF = {"tiny.en": Silence(0.5, 5.0)}
"""Models that were measured to need less. Tiny.en repeats its last words behind 0.25 s where a window was cut inside
running speech. Errors in the 87 words of telephone prompts of less than a second: 18 at 5 s, 21 at 4 s, 32 at 3 s,
115 at 2 s, 225 with 0.5 s of silence alone."""

SECOND_LOOK_S = 4.5
"""Silence that is encoded beyond that behind a suspicious window, before the full 30 s are paid for: it cures most
dropped speech at a fifth of the price."""

BRIEF_SPEECH_S = 1.0
"""A word or two score low whatever is done: with less speech than this a second look is the last."""

FULL_S = 30
_FRAMES_PER_S = 100
_FULL_FRAMES = FULL_S * _FRAMES_PER_S
_FULL_STATES = _FULL_FRAMES // 2

MOST_TOKENS = 224
"""Whisper's own cap of tokens for 30 s."""

POSITIONS = 448
"""Whisper's decoder has room for so many tokens, those that it is given included; CTranslate2 refuses to go on."""

RUNAWAY_TOKENS = 12
RUNAWAY_TOKENS_PER_S = 6.5
"""More tokens than this for the length of a window are no speech: fast talkers of English stay below 5 a second. The
rate is that of English; other languages need more tokens for the same, see `TOKENS_BESIDE_ENGLISH`."""

RETRY_LOGPROB = -1.0
RETRY_COMPRESSION = 2.2
"""Just inside Whisper's own limits for falling back (-1.0 and 2.4)."""

RETRY_SPEECH_S = 2.0
RETRY_TOKENS_PER_S = 1.3
"""At least this much speech with fewer tokens than this a second: speech was dropped. Slow readers stay above 2; tokens
and not words, because not every language puts spaces between its words."""

COVERED_MIN_S = 12.0
DROPPED_S = 2.0
"""In a window at least so long, speech that goes on for so long behind the last word was dropped: Whisper takes a pause
for the end. The last word lay at most 0.9 s before the end of speech in 113 of 114 windows, and 3.4 s in the one that
had lost a sentence. Finding the words takes a seventh of the time of the window, and shorter windows lose nothing that
the rate of tokens does not show."""

REST_PAD_S = 0.2
"""Sound before the speech that was left out; the pause in front of it is at least as long."""

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
BEST_OF = 5
"""Whisper's fallback: the temperatures that are tried in turn, and the samples drawn at each."""

_LANGUAGE_SURE = 0.5


@dataclass(frozen=True)
class PackingOptions:
    """What shapes the decoding."""

    language: str | None = None
    beam_size: int = 5
    initial_prompt: str | None = None
    hotwords: str | None = None
    word_timestamps: bool = False
    language_per_window: bool = False


@dataclass(frozen=True)
class Decoded:
    """One decoding of one window. ``capped`` if it ended because it may hold no more tokens, in midst of its text."""

    tokens: tuple[int, ...]
    text: str
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    language: str = "en"
    capped: bool = False


class PackedWhisper:
    """Decodes batches of windows with one loaded model. Safe to call from several threads.

    ``whisper`` is a `faster_whisper.WhisperModel`; its weights, tokenizer and features are used, not its scheduling.
    """

    def __init__(self, whisper: Any, options: PackingOptions, silence: Silence = SILENCE):
        from faster_whisper.transcribe import get_suppressed_tokens

        self._whisper = whisper
        self._model = whisper.model
        self._options = options
        self._behind = silence.behind
        self._tokenizers: dict[str, Any] = {}
        self._tokenizers_lock = threading.Lock()
        tokenizer = self._tokenizer("en")
        self._suppressed = get_suppressed_tokens(tokenizer, [-1])
        self.timings = Timings()
        # Log-mel 0 is what faster-whisper pads short audio with; its states are the silence the decoder is used to.
        mels = int(whisper.model.n_mels)
        self._silence = self._encode(np.zeros((mels, _FULL_FRAMES), np.float32))

    def decode(self, clips: Sequence[Clip]) -> list[ClipResult]:
        """One result per clip, in order."""
        results = self._decode(clips)
        return [self._with_rest(clip, result) for clip, result in zip(clips, results, strict=True)]

    def _decode(self, clips: Sequence[Clip]) -> list[ClipResult]:
        with self.timings.stage("features"):
            features = [self._features(c.samples, self._behind(c.duration_s)) for c in clips]
        with self.timings.stage("encode"):
            states = [self._encode(f) for f in features]
        packed = self._pack(states)
        languages = self._languages(clips, packed)
        with self.timings.stage("generate"):
            decoded = self._generate(packed, clips, [found[0] for found in languages])
        retried = 0
        results = []
        for i, clip in enumerate(clips):
            best = decoded[i]
            if suspicious(best, clip) or judge.says_again(best.text):
                retried += 1
                with self.timings.stage("retry"):
                    best = self._retry(best, clip, features[i], languages[i][0])
            results.append(self._result(best, clip, states[i], features[i].shape[1], languages[i]))
        self.timings.count(len(clips), retried)
        return results

    # -- encoder

    def _features(self, samples: Samples, silence_s: float) -> Samples:
        """Log-mel features, shape (mels, frames), of the samples and some silence; an even number of frames."""
        silent = round(silence_s * SAMPLE_RATE_HZ)
        padded = np.zeros(len(samples) + silent, np.float32)
        padded[: len(samples)] = samples
        mel: Samples = self._whisper.feature_extractor(padded, padding=0)[:, :_FULL_FRAMES]
        return np.pad(mel, ((0, 0), (0, mel.shape[1] % 2)))

    def _encode(self, features: Samples) -> Samples:
        """Encoder states, shape (frames / 2, width). One window at a time: on a CPU a batch is no faster, and pads."""
        view = _view(features[None])
        states: Samples = np.array(self._model.encode(view, to_cpu=True), dtype=np.float32)[0]
        return states

    def _pack(self, states: Sequence[Samples]) -> Samples:
        """States of equal length, shape (windows, states, width): each window's own, then silence to the end."""
        longest = min(max(len(s) for s in states) + TAIL_STATES, _FULL_STATES)
        packed = np.empty((len(states), longest, states[0].shape[1]), np.float32)
        for row, own in zip(packed, states, strict=True):
            n = len(own)
            row[:n] = own
            row[n:] = self._silence[tail_positions(n, longest)]
        return packed

    # -- languages

    def _languages(self, clips: Sequence[Clip], packed: Samples) -> list[tuple[str, float | None, bool]]:
        """Code, probability, and whether another language was heard than the one asked for, per clip."""
        asked = self._options.language
        if not self._model.is_multilingual:
            return [("en", None, False)] * len(clips)
        open_ = [i for i, c in enumerate(clips) if self._options.language_per_window or c.language.get() is None]
        heard: dict[int, tuple[str, float]] = {}
        if open_:
            with self.timings.stage("language"):
                found = self._model.detect_language(_view(packed[open_]))
            heard = {i: (f[0][0][2:-2], float(f[0][1])) for i, f in zip(open_, found, strict=True)}
        # A recording's language is settled by the window of it that has the most speech in this batch.
        for i in sorted(heard, key=lambda i: -clips[i].speech_s):
            clips[i].language.settle(*heard[i])
        languages: list[tuple[str, float | None, bool]] = []
        for i, clip in enumerate(clips):
            if self._options.language_per_window:
                code, probability = heard[i]
            else:
                code, probability = clip.language.get() or heard[i]
            if asked is None:
                languages.append((code, probability, False))
            else:
                languages.append((asked, None, code != asked and probability >= _LANGUAGE_SURE))
        return languages

    # -- decoder

    def _tokenizer(self, language: str) -> Any:
        from faster_whisper.tokenizer import Tokenizer

        with self._tokenizers_lock:
            if language not in self._tokenizers:
                multilingual = self._model.is_multilingual
                self._tokenizers[language] = Tokenizer(
                    self._whisper.hf_tokenizer,
                    multilingual,
                    task="transcribe",
                    language=language if multilingual else "en",
                )
            return self._tokenizers[language]

    def _prompt(self, language: str) -> list[int]:
        """What the decoder is given: hotwords and initial prompt, then the marks that open every text.

        The text before takes at most what `MOST_TOKENS` leave free. The hotwords come first and whole, as every one of
        them counts; of the initial prompt the end stays, which Whisper sees best.
        """
        tokenizer = self._tokenizer(language)
        start = [*tokenizer.sot_sequence, tokenizer.no_timestamps]
        hotwords, prompt = (
            tokenizer.encode(" " + text.strip()) if text else []
            for text in (self._options.hotwords, self._options.initial_prompt)
        )
        if not hotwords and not prompt:
            return start
        room = POSITIONS - MOST_TOKENS - len(start) - 1
        hotwords = hotwords[:room]
        prompt = prompt[max(0, len(prompt) - (room - len(hotwords))) :]
        return [tokenizer.sot_prev, *hotwords, *prompt, *start]

    def _generate(self, packed: Samples, clips: Sequence[Clip], languages: Sequence[str]) -> list[Decoded]:
        prompts = [self._prompt(language) for language in languages]
        cap = max(most_tokens(c.duration_s, language) for c, language in zip(clips, languages, strict=True))
        cap = min(cap, POSITIONS - len(prompts[0]))
        results = self._model.generate(
            _view(packed), prompts, beam_size=self._options.beam_size, **self._common(prompts[0], cap)
        )
        return [self._decoded(r, 0, language, cap) for r, language in zip(results, languages, strict=True)]

    def _common(self, prompt: Sequence[int], cap: int) -> dict[str, Any]:
        return {
            "max_length": max_length(cap, len(prompt)),
            "suppress_tokens": self._suppressed,
            "return_scores": True,
            "return_no_speech_prob": True,
        }

    def _decoded(self, result: Any, index: int, language: str, cap: int) -> Decoded:
        tokens = result.sequences_ids[index]
        text = self._tokenizer(language).decode(tokens)
        # CTranslate2 divides the sum of log probabilities by the length; Whisper counts the end token too.
        avg_logprob = float(result.scores[index]) * len(tokens) / (len(tokens) + 1)
        capped = len(tokens) >= cap
        while capped and text.endswith("\ufffd"):
            # A letter may take several tokens, and the cap has cut it.
            tokens = tokens[:-1]
            text = self._tokenizer(language).decode(tokens)
        return Decoded(
            tuple(tokens),
            text,
            avg_logprob,
            float(result.no_speech_prob),
            judge.compression_ratio(text.strip()),
            language,
            capped,
        )

    def _retry(self, first: Decoded, clip: Clip, features: Samples, language: str) -> Decoded:
        """The window with more silence, then on its full 30 s, hotter each time, until the text looks right.

        When it never does, the likeliest decoding that does not run away, or at least was not cut off by its cap.
        """
        longer = self._features(clip.samples, self._behind(clip.duration_s) + SECOND_LOOK_S)
        [second] = self._generate(self._pack([self._encode(longer)]), [clip], [language])
        if not suspicious(second, clip) and not judge.says_again(second.text):
            return second
        if not any(suspicious(d, clip) or judge.echoes(d.text) for d in (first, second)) and (
            judge.words_of(first.text) == judge.words_of(second.text)
        ):
            # Nothing but a phrase said again, as often with more silence: a person said it again.
            return first
        if clip.speech_s < BRIEF_SPEECH_S and not (runs_away(first, clip) or runs_away(second, clip)):
            return max(first, second, key=lambda d: (not judge.says_again(d.text), d.avg_logprob))
        if fills_decoder(first, clip) and fills_decoder(second, clip):
            # A text of many tokens that goes on: no other decoding can hold more of it, `_with_rest` gets the rest.
            return max(first, second, key=lambda d: d.avg_logprob)
        full = np.zeros((features.shape[0], _FULL_FRAMES), np.float32)
        full[:, : features.shape[1]] = features
        states = _view(self._encode(full)[None])
        prompt = self._prompt(language)
        cap = min(max(MOST_TOKENS, most_tokens(clip.duration_s, language)), POSITIONS - len(prompt))
        seen = [first, second]
        for temperature in TEMPERATURES:
            how: dict[str, Any] = {"beam_size": self._options.beam_size}
            if temperature > 0:
                how = {
                    "beam_size": 1,
                    "num_hypotheses": BEST_OF,
                    "sampling_topk": 0,
                    "sampling_temperature": temperature,
                }
            [result] = self._model.generate(states, [prompt], **how, **self._common(prompt, cap))
            decoded = self._decoded(result, 0, language, cap)
            # A phrase that is heard twice in the full window too was said twice; and so was a text that repeats itself.
            if not suspicious(decoded, clip) or (temperature == 0 and confirmed(decoded, seen, clip)):
                return decoded
            seen.append(decoded)
        sound = [d for d in seen if not runs_away(d, clip)] or [d for d in seen if not d.capped] or seen
        return max(sound, key=lambda d: d.avg_logprob)

    # -- results

    def _result(
        self, decoded: Decoded, clip: Clip, states: Samples, frames: int, language: tuple[str, float | None, bool]
    ) -> ClipResult:
        code, probability, mismatch = language
        flags = ("language_mismatch",) if mismatch else ()
        text = decoded.text.strip()
        if not text:
            return ClipResult((), code, probability, 0.0, flags)
        start_s = clip.speech[0][0] if clip.speech else 0.0
        end_s = clip.speech[-1][1] if clip.speech else clip.duration_s
        segment = Segment(start_s, end_s, text, decoded.avg_logprob, decoded.no_speech_prob, decoded.compression_ratio)
        if self._options.word_timestamps or clip.duration_s >= COVERED_MIN_S or decoded.capped:
            with self.timings.stage("words"):
                words = self._words(decoded, clip, states, frames, code)
            if words and end_s - words[-1].end_s >= DROPPED_S:
                segment = replace(segment, end_s=words[-1].end_s)
            if self._options.word_timestamps:
                segment = with_words(segment, words)
        return ClipResult((segment,), code, probability, 0.0, flags)

    def _with_rest(self, clip: Clip, result: ClipResult) -> ClipResult:
        """The result with the speech behind its last word, should the decoder have stopped before the end."""
        rest = self._rest(clip, result)
        if rest is None:
            return result
        with self.timings.stage("rest"):
            [more] = self.decode([rest])
        offset_s = rest.start_s - clip.start_s
        return replace(result, segments=(*result.segments, *(s.shifted(offset_s) for s in more.segments)))

    def _rest(self, clip: Clip, result: ClipResult) -> Clip | None:
        """The part of a long window that holds speech behind the last word, or None."""
        if clip.duration_s < COVERED_MIN_S or not result.segments or not clip.speech:
            return None
        last_s = result.segments[-1].end_s
        if clip.speech[-1][1] - last_s < DROPPED_S:
            return None
        # From the pause before the speech that has no words; the last word may run into it.
        left = [(max(a, last_s), b) for a, b in clip.speech if b > last_s]
        first = round(max(last_s, left[0][0] - REST_PAD_S) * SAMPLE_RATE_HZ)
        offset_s = first / SAMPLE_RATE_HZ
        return replace(
            clip,
            samples=clip.samples[first:],
            start_s=clip.start_s + offset_s,
            speech=tuple((a - offset_s, b - offset_s) for a, b in left),
        )

    def _words(self, decoded: Decoded, clip: Clip, states: Samples, frames: int, language: str) -> tuple[Word, ...]:
        """Words timed by the decoder's attention to the speech itself, without the tail."""
        tokenizer = self._tokenizer(language)
        tokens = [t for t in decoded.tokens if t < tokenizer.eot]
        found = self._whisper.find_alignment(tokenizer, [tokens], _view(states[None]), frames)[0]
        last_s = clip.duration_s
        words: list[Word] = []
        for w in found:
            start_s, end_s = min(float(w["start"]), last_s), min(float(w["end"]), last_s)
            if words and not judge.words_of(w["word"]):
                # Punctuation has no time of its own.
                words[-1] = replace(words[-1], word=words[-1].word + w["word"])
            else:
                words.append(Word(start_s, end_s, w["word"], float(w["probability"])))
        return tuple(words)


def with_words(segment: Segment, words: tuple[Word, ...]) -> Segment:
    """The segment with its words, and as long as they are.

    The decoder gives all sound before the second word to the first one; it begins where speech does. Where words still
    reach beyond the speech that was heard, the segment was too short for them.
    """
    if not words:
        return replace(segment, words=words)
    first = words[0]
    if first.start_s < segment.start_s < first.end_s:
        words = (replace(first, start_s=segment.start_s), *words[1:])
    start_s = min(segment.start_s, words[0].start_s)
    return replace(segment, start_s=start_s, end_s=max(segment.end_s, words[-1].end_s), words=words)


def tail_positions(own: int, longest: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Positions of silence behind ``own`` states, as many as fill up to ``longest``: spread over what is left of 30 s.

    >>> tail_positions(1400, 1405).tolist()
    [1400, 1425, 1450, 1474, 1499]
    """
    if own >= longest:
        return np.empty(0, np.int64)
    return np.rint(np.linspace(own, _FULL_STATES - 1, longest - own)).astype(np.int64)


def most_tokens(duration_s: float, language: str = "en") -> int:
    """Tokens beyond which the text of a window this long has run away; the decoder may have room for fewer.

    >>> most_tokens(10.0), most_tokens(10.0, "hi")
    (78, 344)
    """
    return int(_runaway(duration_s, language)) + 1


def max_length(tokens: int, prompt: int) -> int:
    """CTranslate2's ``max_length`` that lets ``tokens`` come out behind a prompt of ``prompt`` tokens.

    CTranslate2 stops at half of ``max_length``, and at ``max_length`` less all of the prompt but its last token.
    """
    return max(2 * tokens, prompt - 1 + tokens)


def _runaway(duration_s: float, language: str) -> float:
    return RUNAWAY_TOKENS + RUNAWAY_TOKENS_PER_S * TOKENS_BESIDE_ENGLISH.get(language, 1.0) * duration_s


def _too_long(decoded: Decoded, clip: Clip) -> bool:
    return len(decoded.tokens) >= _runaway(clip.duration_s, decoded.language)


def _circles(decoded: Decoded) -> bool:
    return decoded.compression_ratio > RETRY_COMPRESSION or judge.repeats(decoded.text)


def runs_away(decoded: Decoded, clip: Clip) -> bool:
    """Whether a decoding goes on beyond what the window or the decoder can hold, or in circles."""
    return decoded.capped or _too_long(decoded, clip) or _circles(decoded)


def fills_decoder(decoded: Decoded, clip: Clip) -> bool:
    """Whether a text may well be what was said, and is only longer than what the decoder can hold."""
    return decoded.capped and not _too_long(decoded, clip) and not _circles(decoded)


def confirmed(decoded: Decoded, others: Sequence[Decoded], clip: Clip) -> bool:
    """Whether a text that repeats itself was heard word for word in a window of another length, and can be spoken."""
    words = judge.words_of(decoded.text)
    return (
        decoded.avg_logprob >= RETRY_LOGPROB
        and not decoded.capped
        and not _too_long(decoded, clip)
        and not _drops_speech(decoded, clip)
        and any(judge.words_of(other.text) == words for other in others)
    )


def suspicious(decoded: Decoded, clip: Clip) -> bool:
    """Whether a decoding is worth the price of a full window."""
    if runs_away(decoded, clip) or decoded.avg_logprob < RETRY_LOGPROB:
        return True
    return _drops_speech(decoded, clip)


def _drops_speech(decoded: Decoded, clip: Clip) -> bool:
    return clip.speech_s >= RETRY_SPEECH_S and len(decoded.tokens) < RETRY_TOKENS_PER_S * clip.speech_s


def _view(array: Samples) -> Any:
    import ctranslate2

    return ctranslate2.StorageView.from_array(np.ascontiguousarray(array))
