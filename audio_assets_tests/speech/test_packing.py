"""The packing engine with real weights and real speech: lengths, tails, retries, words, and CTranslate2's trap."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import ctranslate2
import numpy as np
import pytest

from audio_assets.errors import SettingsError
from audio_assets.speech import packing, vad
from audio_assets.speech.engine import SAMPLE_RATE_HZ, Clip, ClipResult, Samples, Segment, WindowPlan, Word
from audio_assets.speech.judge import compression_ratio, says_again, uncovered_s, words_of
from audio_assets.speech.local import LocalEngine, LocalOptions, packaged_model
from audio_assets.speech.packing import Decoded, max_length, most_tokens, suspicious, tail_positions
from audio_assets.speech.transcribe import transcribe_files
from audio_assets_tests.speech.conftest import announcement, as_file

pytestmark = pytest.mark.weights


def text_of(result: object) -> str:
    assert isinstance(result, ClipResult)
    return " ".join(s.text for s in result.segments)


def engine_with(local_engine: LocalEngine, **options: object) -> LocalEngine:
    return LocalEngine(LocalOptions(**{**local_engine.options.__dict__, **options}))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def clips(two_cities: Samples) -> list[Clip]:
    """Four pieces of 4 to 8 s, cut at pauses."""
    spans = [(0.8, 8.2), (8.3, 16.6), (17.1, 21.1), (34.9, 42.3)]
    return [
        Clip(str(i), two_cities[int(a * SAMPLE_RATE_HZ) : int(b * SAMPLE_RATE_HZ)]) for i, (a, b) in enumerate(spans)
    ]


def test_a_batch_gives_each_clip_its_own_text_in_order(local_engine, clips):
    texts = [text_of(r).lower() for r in local_engine.transcribe(clips)]
    for text, words in zip(
        texts, ("best of times", "season of light", "spring of hope", "superlative degree"), strict=True
    ):
        assert words in text
    backwards = [text_of(r).lower() for r in local_engine.transcribe(clips[::-1])]
    for text, words in zip(
        backwards[::-1], ("best of times", "season of light", "spring of hope", "superlative degree"), strict=True
    ):
        assert words in text


def test_an_engine_leaves_numpy_one_thread(local_engine):
    from threadpoolctl import threadpool_info, threadpool_limits

    threadpool_limits(limits=2, user_api="blas")
    engine_with(local_engine)
    threads = [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
    assert threads
    assert set(threads) == {1}


def test_the_tail_of_silence_makes_whisper_stop(local_engine, two_cities):
    """Encoded alone, a piece cut out of running speech is often repeated until the cap; with the tail hardly ever.

    Which pieces these are differs with the last digits of the features, so from one processor to the next.
    """
    packed = local_engine._packed
    clips = [Clip("x", two_cities[s * SAMPLE_RATE_HZ : (s + 5) * SAMPLE_RATE_HZ]) for s in range(2, 38, 2)]
    states = [packed._encode(packed._features(c.samples, 0.5)) for c in clips]
    with_tail = packed._generate(packed._pack(states), clips, ["en"] * len(clips))
    bare = [packed._generate(s[None], [c], ["en"])[0] for s, c in zip(states, clips, strict=True)]
    stopped, ran = (sum(packing.runs_away(d, c) for d, c in zip(x, clips, strict=True)) for x in (with_tail, bare))
    assert ran >= 3
    assert stopped <= ran / 3


def test_the_encoder_never_sees_more_than_the_clip(local_engine, clips, monkeypatch):
    seen = []
    encode = local_engine._packed._encode
    monkeypatch.setattr(local_engine._packed, "_encode", lambda f: seen.append(f.shape[1]) or encode(f))
    list(local_engine.transcribe(clips))
    behind = packing.SILENCE_OF["tiny.en"].behind
    assert seen == [pytest.approx(100 * (c.duration_s + behind(c.duration_s)), abs=2) for c in clips]
    assert max(seen) < 1000


@pytest.mark.parametrize(("tokens", "prompt"), [(5, 2), (10, 2), (20, 2), (10, 30), (30, 40), (100, 224)])
def test_ctranslate2_gives_as_many_tokens_as_asked_for_behind_any_prompt(local_engine, tokens, prompt):
    """It stops at half of its `max_length`: a plain cap would cut text without a word."""
    packed = local_engine._packed
    tokenizer = packed._tokenizer("en")
    start = [*tokenizer.sot_sequence, tokenizer.no_timestamps]
    before = [tokenizer.sot_prev, *[11] * (prompt - 3)] if prompt > 2 else []
    [result] = packed._model.generate(
        packing._view(np.random.default_rng(0).standard_normal((1, 100, 384)).astype(np.float32)),
        [before + start],
        beam_size=1,
        max_length=max_length(tokens, len(before + start)),
        suppress_tokens=[tokenizer.eot],
    )
    assert len(result.sequences_ids[0]) == tokens


def test_the_cap_leaves_room_for_the_fastest_speech():
    assert most_tokens(1.0) >= 12 and most_tokens(10.0) >= 60
    assert most_tokens(30.0) <= packing.MOST_TOKENS


def test_a_tail_ends_where_thirty_seconds_end():
    for own, longest in ((100, 148), (400, 700), (1499, 1500)):
        positions = tail_positions(own, longest)
        assert len(positions) == longest - own
        assert positions[0] == own and positions[-1] in (1499, own)
        assert (np.diff(positions) >= 1).all()
    assert len(tail_positions(1500, 1500)) == 0


SPEECH = Clip("x", np.zeros(8 * SAMPLE_RATE_HZ, np.float32), speech=((0.2, 7.8),))
FINE = Decoded(tuple(range(20)), "It was the best of times, it was the worst of times, it was the age", -0.3, 0.0, 1.2)


@pytest.mark.parametrize(
    "decoded",
    [
        Decoded(tuple(range(80)), FINE.text, -0.3, 0.0, 1.2),
        Decoded(FINE.tokens, FINE.text, -1.1, 0.0, 1.2),
        Decoded(FINE.tokens, FINE.text, -0.3, 0.0, 2.3),
        Decoded(FINE.tokens, "and so on and so on and so on and so on", -0.3, 0.0, 1.2),
        Decoded((1, 2, 3), "But she said", -0.2, 0.0, 0.6),
        Decoded((), "", -0.2, 0.0, 0.0),
    ],
    ids=["too-many-tokens", "unlikely", "compressible", "repeated", "speech-dropped", "nothing"],
)
def test_what_looks_wrong_is_suspicious(decoded):
    assert not suspicious(FINE, SPEECH)
    assert suspicious(decoded, SPEECH)


HINDI = "नमस्ते मेरा नाम राहुल है और मैं दिल्ली में रहता हूँ आज मैं आपको बताने वाला हूँ कि भारत में चुनाव कैसे होते हैं"
MANY = tuple(range(110))
"""As many tokens as Whisper needs for 8 s of Hindi."""


@pytest.mark.parametrize(("language", "text"), [("hi", HINDI), ("ka", "გამარჯობა დღეს მე მოგიყვებით ისტორიის შესახებ")])
def test_a_script_that_takes_many_tokens_does_not_run_away(language, text):
    decoded = Decoded(MANY, text, -0.3, 0.0, compression_ratio(text), language)
    assert not suspicious(decoded, SPEECH)
    assert suspicious(replace(decoded, language="en"), SPEECH)
    assert suspicious(replace(decoded, compression_ratio=compression_ratio((text[:20] + " ") * 9)), SPEECH)
    assert most_tokens(SPEECH.duration_s, language) > len(MANY) > most_tokens(SPEECH.duration_s)


def test_a_text_that_was_cut_off_is_not_preferred_to_a_whole_one(local_engine, clips, monkeypatch):
    packed = local_engine._packed
    cut = Decoded(MANY, "cut off in", -0.3, 0.0, 1.2, capped=True)
    whole = replace(cut, text="cut off in no place", avg_logprob=-0.4, capped=False)
    monkeypatch.setattr(packed, "_generate", lambda *_: [cut])
    monkeypatch.setattr(packed, "_decoded", lambda *_: whole)
    [result] = local_engine.transcribe(clips[:1])
    assert text_of(result) == whole.text


def test_a_text_longer_than_the_decoder_costs_no_full_windows(local_engine, clips, monkeypatch):
    packed = local_engine._packed
    filled = Decoded(tuple(range(444)), HINDI, -0.3, 0.0, 1.2, "ka", capped=True)
    monkeypatch.setattr(packed, "_generate", lambda *_: [filled])
    monkeypatch.setattr(packed, "_decoded", lambda *_: pytest.fail("a full window"))
    assert packed._retry(filled, clips[0], packed._features(clips[0].samples, 0.5), "ka") is filled


def test_a_cap_cuts_no_letter_in_two(local_engine):
    packed = local_engine._packed
    tokens = packed._tokenizer("en").encode(" कि है")[:-1]
    found = SimpleNamespace(sequences_ids=[tokens], scores=[-0.3], no_speech_prob=0.0)
    assert "\ufffd" in packed._tokenizer("en").decode(tokens)
    decoded = packed._decoded(found, 0, "en", len(tokens))
    assert decoded.capped and decoded.text and "\ufffd" not in decoded.text


def test_a_suspicious_window_is_decoded_again_and_the_good_text_kept(local_engine, clips, monkeypatch):
    packed = local_engine._packed
    right = packed._generate

    def wrong_once(states, some, languages):
        monkeypatch.setattr(packed, "_generate", right)
        return [Decoded(FINE.tokens, "yes " * 40, -0.3, 0.0, 9.0) for _ in some]

    monkeypatch.setattr(packed, "_generate", wrong_once)
    before = packed.timings.retried
    [result] = local_engine.transcribe(clips[:1])
    assert packed.timings.retried == before + 1
    assert "best of times" in text_of(result).lower()


ECHO = Decoded(FINE.tokens, "And so my fellow Americans and so my fellow Americans", -0.3, 0.0, 1.2)


def test_a_phrase_that_is_heard_twice_in_a_row_is_listened_to_again(local_engine, clips, monkeypatch):
    assert not suspicious(ECHO, SPEECH)
    monkeypatch.setattr(local_engine._packed, "_generate", lambda *_: [ECHO])
    [result] = local_engine.transcribe(clips[:1])
    assert "best of times" in text_of(result).lower()


def test_a_phrase_that_was_said_twice_stays_and_costs_one_full_window(local_engine, clips, monkeypatch):
    packed = local_engine._packed
    looked = []
    monkeypatch.setattr(packed, "_generate", lambda *_: [ECHO])
    monkeypatch.setattr(packed, "_decoded", lambda *_: looked.append(1) or ECHO)
    [result] = local_engine.transcribe(clips[:1])
    assert text_of(result) == ECHO.text
    assert len(looked) == 1


def test_a_text_that_repeats_itself_in_every_look_was_said_so(local_engine, two_cities, monkeypatch):
    """Sampling would give another text each time; the opening of the book is read as it stands."""
    monkeypatch.setattr(packing, "TEMPERATURES", (0.0,))
    monkeypatch.setattr(packing, "RETRY_COMPRESSION", 1.3)
    samples = two_cities[int(0.8 * SAMPLE_RATE_HZ) : int(16.6 * SAMPLE_RATE_HZ)]
    clip = Clip("long", samples, speech=((0.4, 15.8),))
    confirmed = []
    real = packing.confirmed
    monkeypatch.setattr(packing, "confirmed", lambda *args: confirmed.append(real(*args)) or confirmed[-1])
    texts = {text_of(next(iter(local_engine.transcribe([clip])))) for _ in range(2)}
    assert confirmed == [True, True]
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("decoded", "sure"),
    [
        (Decoded(FINE.tokens, "so on and so on and so on and so on", -0.3, 0.0, 3.0), True),
        (Decoded(FINE.tokens, "so on and so on and so on", -0.3, 0.0, 3.0), False),
        (Decoded(FINE.tokens, "so on and so on and so on and so on", -1.2, 0.0, 3.0), False),
        (Decoded(tuple(range(80)), "so on and so on and so on and so on", -0.3, 0.0, 3.0), False),
        (Decoded((1, 2), "so on and so on and so on and so on", -0.3, 0.0, 3.0), False),
    ],
    ids=["heard-again", "heard-otherwise", "unlikely", "too-many-tokens", "speech-dropped"],
)
def test_a_repetition_is_confirmed_by_the_same_words_at_a_speakable_rate(decoded, sure):
    other = Decoded(FINE.tokens, "So on, and so on and so on, and so on.", -0.4, 0.0, 3.0)
    assert packing.confirmed(decoded, [FINE, other], SPEECH) is sure


DOUBLED = Decoded(FINE.tokens, "answered he, answered he.", -0.3, 0.0, 1.2)


def test_a_window_that_is_one_phrase_said_twice_is_decoded_with_more_silence(local_engine, clips, monkeypatch):
    packed = local_engine._packed
    said, full_windows = iter([DOUBLED, FINE]), []
    monkeypatch.setattr(packed, "_generate", lambda *_: [next(said)])
    monkeypatch.setattr(packed, "_decoded", lambda *_: full_windows.append(1) or FINE)
    [result] = local_engine.transcribe(clips[:1])
    assert text_of(result) == FINE.text
    assert not full_windows


@pytest.mark.parametrize("text", ["Zero, zero, zero.", "no no", "is in use, is in use, is in use"])
def test_a_phrase_said_any_number_of_times_is_reason_for_another_look(text):
    assert says_again(text)


@pytest.mark.parametrize("text", ["Zero.", "", "one two one two one", "to be or not to be"])
def test_a_text_that_is_more_than_one_phrase_is_none(text):
    assert not says_again(text)


def test_a_phrase_that_is_said_more_often_the_more_silence_follows_was_not_said_so(local_engine, clips, monkeypatch):
    packed = local_engine._packed
    said = iter([DOUBLED, Decoded(FINE.tokens, "answered he answered he answered he", -0.3, 0.0, 1.2)])
    monkeypatch.setattr(packed, "_generate", lambda *_: [next(said)])
    monkeypatch.setattr(packed, "_decoded", lambda *_: FINE)
    [result] = local_engine.transcribe(clips[:1])
    assert text_of(result) == FINE.text


def test_a_phrase_that_is_heard_twice_with_more_silence_too_was_said_twice(local_engine, clips, monkeypatch):
    packed = local_engine._packed
    looks, full_windows = [], []
    monkeypatch.setattr(packed, "_generate", lambda *_: looks.append(1) or [DOUBLED])
    monkeypatch.setattr(packed, "_decoded", lambda *_: full_windows.append(1) or FINE)
    [result] = local_engine.transcribe(clips[:1])
    assert text_of(result) == DOUBLED.text
    assert len(looks) == 2
    assert not full_windows


def test_the_last_resort_is_the_full_window(local_engine, clips, monkeypatch):
    packed = local_engine._packed
    encoded = []
    encode = packed._encode
    monkeypatch.setattr(packed, "_encode", lambda f: encoded.append(f.shape[1]) or encode(f))
    monkeypatch.setattr(packed, "_generate", lambda *_: [Decoded(FINE.tokens, "yes " * 40, -0.3, 0.0, 9.0)])
    [result] = local_engine.transcribe(clips[:1])
    assert encoded[-1] == 3000, "thirty seconds of features"
    assert "best of times" in text_of(result).lower()


def test_when_nothing_helps_hotter_decodings_are_tried_and_the_likeliest_is_kept(local_engine, clips, monkeypatch):
    packed = local_engine._packed
    heat = []

    class Recorder:
        def __getattr__(self, name):
            return getattr(model, name)

        def generate(self, *args, **how):
            heat.append(how.get("sampling_temperature", 0.0))
            return model.generate(*args, **how)

    model = packed._model
    monkeypatch.setattr(packed, "_model", Recorder())
    monkeypatch.setattr(packing, "RETRY_LOGPROB", 0.5)
    ctranslate2.set_random_seed(0)
    [result] = local_engine.transcribe(clips[2:3])
    assert heat[2:] == list(packing.TEMPERATURES)
    assert "spring of hope" in text_of(result).lower()


def test_one_window_that_fails_does_not_take_its_neighbours_along(local_engine, clips, monkeypatch):
    packed = local_engine._packed
    features = packed._features

    def breaks(samples, *more):
        if len(samples) == len(clips[1].samples):
            raise ValueError("broken window")
        return features(samples, *more)

    monkeypatch.setattr(packed, "_features", breaks)
    results = list(local_engine.transcribe(clips))
    assert [isinstance(r, ClipResult) for r in results] == [True, False, True, True]
    assert "broken window" in str(results[1])


def test_words_are_timed_where_they_are_spoken(local_engine, clips):
    engine = engine_with(local_engine, word_timestamps=True)
    [result] = engine.transcribe(clips[:1])
    words = result.segments[0].words
    assert [words_of(w.word)[0] for w in words] == words_of(text_of(result))
    assert all(a.start_s <= a.end_s <= b.end_s for a, b in pairwise(words))
    starts = {words_of(w.word)[0]: w.start_s for w in words}
    # Heard in the recording: "worst" 2.9 s, "wisdom" 5.1 s after the start of the clip.
    assert starts["wisdom"] - starts["worst"] == pytest.approx(2.3, abs=0.6)


def test_words_lie_in_their_segment_and_the_first_begins_with_the_speech(local_engine, cache, two_cities_path):
    engine = engine_with(local_engine, word_timestamps=True)
    [result] = transcribe_files([as_file(two_cities_path)], engine, cache)
    spoken = [start for start, _ in result.speech_spans]
    for segment in result.segments:
        assert segment.start_s == segment.words[0].start_s or segment.start_s in spoken
        assert all(segment.start_s <= w.start_s <= w.end_s <= segment.end_s for w in segment.words)
    assert sum(s.words[0].start_s in spoken for s in result.segments) >= len(result.segments) / 2


@pytest.mark.parametrize(
    ("words", "first_s", "segment_s"),
    [
        ([(2.98, 3.88), (3.88, 4.66)], 3.36, (3.36, 4.66)),
        ([(2.98, 3.2), (3.2, 4.0)], 2.98, (2.98, 4.35)),
        ([(3.5, 3.88), (3.88, 4.2)], 3.5, (3.36, 4.35)),
    ],
    ids=["padding-before", "word-before-the-speech", "inside"],
)
def test_a_segment_is_as_long_as_its_words(words, first_s, segment_s):
    timed = packing.with_words(Segment(3.36, 4.35, "But yes."), tuple(Word(a, b, " yes", 0.9) for a, b in words))
    assert (timed.start_s, timed.end_s) == segment_s
    assert timed.words[0].start_s == first_s
    assert packing.with_words(Segment(3.36, 4.35, "."), ()).words == ()


def test_hotwords_and_prompt_reach_the_model(local_engine, clips):
    engine = engine_with(local_engine, initial_prompt="A Tale of Two Cities", hotwords="Dickens")
    prompt = engine._packed._prompt("en")
    tokenizer = engine._packed._tokenizer("en")
    assert prompt[0] == tokenizer.sot_prev
    assert tokenizer.decode(prompt[1:-2]) == " Dickens A Tale of Two Cities"
    assert "best of times" in text_of(next(engine.transcribe(clips[:1]))).lower()


LONG_PROMPT = " ".join(f"Please remember number {i} of Doctor Manette, Lucie and Darnay." for i in range(40)) + " Amen."


def test_a_long_prompt_loses_its_beginning_and_no_hotword(local_engine):
    packed = engine_with(local_engine, initial_prompt=LONG_PROMPT, hotwords="Zanzibar, Kierkegaard")._packed
    given = packed._tokenizer("en").decode(packed._prompt("en")[1:-2])
    assert given.startswith(" Zanzibar, Kierkegaard")
    assert given.endswith("Darnay. Amen.")
    assert "number 0 " not in given


@pytest.mark.parametrize("options", [{"initial_prompt": LONG_PROMPT}, {"hotwords": LONG_PROMPT}])
def test_a_text_may_reach_its_cap_behind_the_longest_prompt(local_engine, options):
    """CTranslate2 raises "No position encodings" beyond Whisper's context, and the window would fail for good."""
    packed = engine_with(local_engine, **options)._packed
    prompt = packed._prompt("en")
    [result] = packed._model.generate(
        packing._view(np.random.default_rng(0).standard_normal((1, 100, 384)).astype(np.float32)),
        [prompt],
        beam_size=1,
        max_length=max_length(packing.MOST_TOKENS, len(prompt)),
        suppress_tokens=[packed._tokenizer("en").eot],
    )
    assert len(result.sequences_ids[0]) == packing.MOST_TOKENS
    assert len(prompt) + packing.MOST_TOKENS <= packing.POSITIONS


def test_what_shapes_the_text_shapes_the_fingerprint(local_engine):
    base = local_engine.fingerprint()
    assert engine_with(local_engine, workers=1, batch_size=2).fingerprint() == base
    for change in ({"beam_size": 1}, {"word_timestamps": True}, {"hotwords": "x"}, {"compute_type": "float32"}):
        assert engine_with(local_engine, **change).fingerprint() != base


def test_weights_that_nobody_measured_get_the_most_silence_and_results_of_their_own(local_engine, tmp_path, opening):
    """The same weights under another name: what is encoded behind a window shapes the text."""
    for file in Path(local_engine.options.model).iterdir():
        (tmp_path / file.name).symlink_to(file)
    other = engine_with(local_engine, model=str(tmp_path))
    seen = []
    encode = other._packed._encode
    other._packed._encode = lambda f: seen.append(f.shape[1]) or encode(f)
    [_] = other.transcribe([Clip("x", opening)])
    assert seen == [pytest.approx(100 * (len(opening) / SAMPLE_RATE_HZ + packing.SILENCE.trailing_s), abs=2)]
    assert other.fingerprint() != local_engine.fingerprint()


def test_the_packaged_model_is_called_by_its_name(local_engine):
    assert local_engine.model == "tiny.en"


@pytest.mark.parametrize("what", ["missing", "empty", "damaged"])
def test_a_missing_model_says_what_to_do(tmp_path, what):
    directory = tmp_path / "model"
    if what != "missing":
        directory.mkdir()
    if what == "damaged":
        for name in ("config.json", "tokenizer.json"):
            (directory / name).write_bytes(((packaged_model() or tmp_path) / name).read_bytes())
        (directory / "model.bin").write_bytes(b"not weights")
    with pytest.raises(SettingsError, match="WHISPER_MODEL") as caught:
        LocalEngine(LocalOptions(model=str(directory), device="cpu"))
    assert "\n" not in str(caught.value)


def test_an_english_model_refuses_another_language(local_engine):
    with pytest.raises(SettingsError, match="multilingual"):
        engine_with(local_engine, language="de")


@pytest.mark.parametrize("language", ["EN", "english", "en-US"])
def test_a_language_may_be_asked_for_by_any_of_its_names(local_engine, language):
    engine = engine_with(local_engine, language=language)
    assert engine.language == "en"
    assert engine.fingerprint() == engine_with(local_engine, language="en").fingerprint()


@pytest.mark.parametrize("language", ["xx", "", "Klingon"])
def test_a_language_that_nobody_knows_is_refused_before_a_model_is_loaded(language):
    with pytest.raises(SettingsError, match=f"language '{language}'.* de, .* zh") as caught:
        LocalEngine(LocalOptions(model="/no/such/model", language=language, device="cpu"))
    assert "\n" not in str(caught.value)


class TestDroppedSpeech:
    """Whisper may take a pause for the end and leave out the rest of a long window."""

    @pytest.fixture
    def long(self, two_cities: Samples) -> Clip:
        """16 s of speech without a second of silence in it."""
        samples = two_cities[int(0.8 * SAMPLE_RATE_HZ) : int(16.6 * SAMPLE_RATE_HZ)]
        [window] = vad.windows([samples], WindowPlan(max_s=25.0, cut_silence_s=3.0))
        spans = tuple((a / SAMPLE_RATE_HZ, b / SAMPLE_RATE_HZ) for a, b in window.speech)
        return Clip("long", samples, 100.0, speech=spans)

    def stopping_after(self, monkeypatch, engine: LocalEngine, words: int) -> list[int]:
        """Let the first decoding end after some words; returns the lengths of the batches that are decoded."""
        packed, seen = engine._packed, []
        generate = packed._generate

        def cut(states, clips, languages):
            found = generate(states, clips, languages)
            seen.append(len(clips))
            if len(seen) > 1:
                return found
            kept = [d.tokens[:words] for d in found]
            texts = [packed._tokenizer("en").decode(k) for k in kept]
            return [replace(d, tokens=k, text=t) for d, k, t in zip(found, kept, texts, strict=True)]

        monkeypatch.setattr(packed, "_generate", cut)
        # The recording repeats its phrases on purpose; here nothing must be decoded again for that.
        monkeypatch.setattr(packing, "suspicious", lambda decoded, clip: False)
        monkeypatch.setattr(packing.judge, "says_again", lambda text: False)
        return seen

    def test_what_was_left_out_is_decoded_on_its_own(self, local_engine, long, monkeypatch):
        [whole] = local_engine.transcribe([long])
        self.stopping_after(monkeypatch, local_engine, 22)
        [mended] = local_engine.transcribe([long])
        first, rest = mended.segments
        assert "wisdom" in first.text
        assert "season of light" in rest.text.lower()
        lost = set(words_of(text_of(whole))) - set(words_of(text_of(mended)))
        assert len(lost) <= 2, lost
        # True times: behind the first part, up to where speech ends, counted from the window's start.
        assert 0 < first.end_s < rest.start_s + 0.1
        assert rest.end_s == pytest.approx(long.speech[-1][1], abs=0.2)

    def test_a_window_whose_words_reach_its_end_is_decoded_once(self, local_engine, long, monkeypatch):
        seen = self.stopping_after(monkeypatch, local_engine, 1000)
        [result] = local_engine.transcribe([long])
        assert seen == [1]
        assert len(result.segments) == 1
        assert result.segments[0].words is None

    def test_speech_that_stays_without_words_is_shown_as_not_covered(self, local_engine, long, monkeypatch):
        self.stopping_after(monkeypatch, local_engine, 22)
        decode, calls = local_engine._packed._decode, []

        def silent(clips):
            calls.append(len(clips))
            return decode(clips) if len(calls) == 1 else [ClipResult(()) for _ in clips]

        monkeypatch.setattr(local_engine._packed, "_decode", silent)
        [result] = local_engine.transcribe([long])
        assert len(calls) == 2
        assert max(uncovered_s(result.segments, long.speech)) >= packing.DROPPED_S - 1.0


MANY_LENGTHS = """
import sys
import numpy as np
from pathlib import Path
from audio_assets.speech.local import LocalEngine, LocalOptions

def resident_mb():
    [line] = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS")]
    return int(line.split()[1]) / 1e3

packed = LocalEngine(LocalOptions(model=sys.argv[1], device="cpu", workers=1))._packed
lengths = [600 + 14 * n for n in range(80)]
seen = []
for frames in [max(lengths), *lengths]:
    packed._encode(np.zeros((80, frames), np.float32))
    seen.append(resident_mb())
print(seen[-1] - seen[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_windows_of_many_lengths_take_no_more_memory_than_the_longest():
    arguments = [sys.executable, "-c", MANY_LENGTHS, str(packaged_model())]
    grown_mb = float(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)
    # One kernel kept for each would be over 100 MB.
    assert grown_mb < 50


@pytest.mark.slow
def test_a_word_that_is_all_there_is_is_heard_and_said_once(local_engine, cache):
    """Telephone prompts of 0.6 to 1.2 s, at 8 kHz, that begin and end with their word."""
    words = {
        "digits/0": "zero",
        "digits/7": "seven",
        "letters/asterisk": "asterisk",
        "digits/day-6": "saturday",
        "phonetic/o_p": "oscar",
        "vm-message": "message",
        "vm-received": "received",
        "extension": "extension",
        "vm-from": "from",
        "digits/pound": "pound",
    }
    files = [as_file(announcement("en", name), name) for name in words]
    heard = {r.id: words_of(r.transcription or "") for r in transcribe_files(files, local_engine, cache)}
    assert sum(heard[name] == [word] for name, word in words.items()) >= len(words) - 1
    assert not any(len(set(text)) < len(text) for text in heard.values())
