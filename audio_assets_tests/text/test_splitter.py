"""Stretch by stretch is the same as text by text: what is kept of a stretch never changes what spaCy would say."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audio_assets.text import splitter as module
from audio_assets.text.normalize import normalize_word
from audio_assets.text.splitter import Splitter, pipeline_for

SCRIPTS = {
    "en": "abI'’sSnt :)(-8D.,!?\u00a0 $%@/0123\n\t",
    "de": "äöüßaBc-z.B. „“,\n",
    "fr": "l'aéœqu’nd-là .!?«»\u202f",
    "es": ["EE.", " ", "UU.", "EE. UU.", "(", ")", "año", "\n", "¿", "?"],
    "ru": ["в", " ", "т.ч.", "н.в.", ".", "и др.", "мир", "\n", "-"],
    "el": "ΑΒΓαβγςώ .,;·",
    "ar": "ابتثجحخدذرزسش\u064b\u0651 ،؟\u200f.",
    "he": "אבגדהוז\u05b7 .,'\"",
    "hi": "अआकखगि\u094dा ।",
    "zh": "我爱北京天安门 。，！abc𠀀",
    "ja": "あいうカタナｶﾞ私学 。、",
    "ko": "안녕하세요 .\u1100\u1161",
    "th": "สวัสดีครับ ก\u0e33",
    "xx": "👍🏽👩\u200d🚀🇩🇪❤\ufe0f a.:)",
}


def spacys_own(nlp: object, text: str) -> tuple[list[tuple[str, int]], int]:
    """spaCy's tokens of the whole text and its sentencizer's sentences, of what holds a letter or a digit."""
    doc = nlp(text)
    kept = [t for t in doc if any(c.isalnum() for c in normalize_word(t.text))]
    return [(normalize_word(t.text), t.idx) for t in kept], len({t.sent.start for t in kept})


@pytest.mark.parametrize("code", SCRIPTS)
def test_stretches_are_cut_as_spacy_cuts_whole_texts(code: str):
    language = module.language_for(code)
    splitter = Splitter(language)
    nlp, _ = pipeline_for(language)
    nlp.add_pipe("sentencizer")
    letters = st.lists(st.sampled_from(SCRIPTS[code]), max_size=40).map("".join)

    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(letters, max_size=4))
    def check(texts: list[str]) -> None:
        words = splitter.split(texts)
        at = 0
        for text, count, sentences in zip(texts, words.counts, words.sentences, strict=True):
            rows = range(at, at + count)
            at += count
            found = [(words.tokens[words.word[i]].as_py(), int(words.start_char[i])) for i in rows]
            expected, expected_sentences = spacys_own(nlp, text)
            assert [f for f in found if any(c.isalnum() for c in f[0])] == expected
            if len(found) == len(expected):
                assert sentences == expected_sentences
        assert at == len(words.word)

    check()


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch):
    splitter = Splitter("en")
    before = splitter.split(["one two three"])
    monkeypatch.setattr(module, "_KEPT_PIECES", 2)

    after = splitter.split(["three four"])

    assert [after.tokens[i].as_py() for i in after.word] == ["three", "four"]
    assert len(after.tokens) == 2
    assert [before.tokens[i].as_py() for i in before.word] == ["one", "two", "three"]


def test_a_rule_of_several_words_holds_beside_texts_without_one():
    words = Splitter("es").split(["en EE. UU. hay", "uno dos", "EE. UU."])

    assert [words.tokens[i].as_py() for i in words.word] == ["en", "ee. uu.", "hay", "uno", "dos", "ee. uu."]
    assert words.counts.tolist() == [3, 2, 1]
