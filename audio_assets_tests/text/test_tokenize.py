"""Transcripts become words that can be counted, and found again in the text and in the recording."""

import unicodedata
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audio_assets import schemas
from audio_assets.errors import SettingsError
from audio_assets.text.tokenize import TokenizeOptions, language_for, normalize_word, tokenize


def transcripts(*rows: dict[str, object]) -> pa.Table:
    defaults = {"prefix": "p/", "status": "ok", "language": "en"}
    return schemas.TRANSCRIPTS.from_rows([{**defaults, "id": f"p/{i}.wav", **row} for i, row in enumerate(rows)])


def words(text: str, language: str | None = "en", **options: object) -> dict[str, list[object]]:
    row = tokenize(transcripts({"transcription": text, "language": language}), TokenizeOptions(**options)).to_pylist()[
        0
    ]
    return {**row, "lemmas": [span["lemma"] for span in row["spans"]]}


def segment(start_s: float, end_s: float, text: str, words: list[tuple[float, float, str]] | None = None) -> dict:
    timed = [{"start_s": a, "end_s": b, "word": w, "probability": 0.9} for a, b, w in words or []]
    return {"start_s": start_s, "end_s": end_s, "text": text, "words": timed or None}


def test_words_are_lower_case_in_order_and_without_punctuation():
    row = words("This is the spoken content.")

    assert row["tokens"] == ["this", "is", "the", "spoken", "content"]
    assert row["content_tokens"] == ["spoken", "content"]


def test_contractions_and_possessives_stay_whole():
    row = words("Don't go: we'll see O'Brien's dogs' bowls, I cannot.")

    assert row["tokens"] == ["don't", "go", "we'll", "see", "o'brien's", "dogs", "bowls", "i", "cannot"]
    assert "don't" not in row["content_tokens"]
    assert "we'll" not in row["content_tokens"]


def test_a_typographic_apostrophe_is_the_same_word():
    assert words("It’s the city’s don’t")["tokens"] == words("It's the city's don't")["tokens"]


def test_the_lemma_of_a_possessive_is_its_noun():
    assert words("The city's cities were spoken of")["lemmas"] == ["the", "city", "city", "be", "speak", "of"]


def test_german_nouns_are_looked_up_with_their_capital():
    assert words("Die Häuser", "de")["lemmas"] == ["der", "haus"]


def test_french_elision_is_two_words():
    assert words("L'homme n'est qu'un roseau.", "fr")["tokens"] == ["l'", "homme", "n'", "est", "qu'", "un", "roseau"]


def test_numbers_addresses_and_symbols_survive():
    row = words("Mr. Smith paid $5.50 at https://example.org/a?b=1 👍")

    assert row["tokens"] == ["mr.", "smith", "paid", "$", "5.50", "at", "https://example.org/a?b=1", "👍"]


def test_compatibility_forms_become_ordinary_letters():
    assert words("Ｈｅｌｌｏ ﬁne")["tokens"] == ["hello", "fine"]


def test_invisible_characters_are_no_part_of_a_word():
    assert words("hel\u00adlo \ufeffworld \u200b")["tokens"] == ["hello", "world"]


def test_chinese_and_latin_words_in_one_text():
    row = words("我爱 hello，北京。", "zh")

    assert row["tokens"] == ["我", "爱", "hello", "北", "京"]
    assert row["language"] == "zh"


@pytest.mark.parametrize(("code", "expected"), [("en-GB", "en"), ("no", "nb"), ("jw", "xx"), ("klingon", "xx")])
def test_the_language_whose_rules_apply(code: str, expected: str):
    assert language_for(code) == expected


def test_a_text_without_a_language_is_split_by_rules_for_any():
    row = words("Ein Satz. Another one!", None)

    assert (row["language"], row["tokens"]) == ("xx", ["ein", "satz", "another", "one"])
    assert row["lemmas"] == [None] * 4


def test_sentences_are_those_that_hold_a_word():
    assert words("One. Two? ... Three!")["sentence_count"] == 3


def test_own_stop_words_count_in_any_case():
    assert words("Hello Margaret", extra_stop_words=frozenset({"MARGARET"}))["content_tokens"] == ["hello"]


def test_every_transcript_has_its_row_in_order_and_those_without_text_have_empty_lists():
    given_rows = transcripts(
        {"transcription": "Guten Tag", "language": "de"},
        {"transcription": None, "status": "failed", "language": None},
        {"transcription": "", "status": "empty"},
        {"transcription": "still here", "status": "gone"},
    )

    table = tokenize(given_rows)

    assert table.schema == schemas.TOKENS.schema
    assert table.column("id").to_pylist() == given_rows.column("id").to_pylist()
    assert table.column("tokens").to_pylist() == [["guten", "tag"], [], [], ["still", "here"]]
    assert table.column("spans").to_pylist()[1:3] == [[], []]
    assert table.column("transcription").to_pylist() == ["Guten Tag", None, "", "still here"]


def test_no_transcripts_are_no_rows():
    assert tokenize(schemas.TRANSCRIPTS.empty()) == schemas.TOKENS.empty()


def test_a_text_of_more_than_a_million_characters():
    assert len(words("word " * 210_000)["tokens"]) == 210_000


def test_times_are_those_of_the_engines_words():
    row = tokenize(
        transcripts(
            {
                "transcription": "Hello big world.",
                "segments": [segment(0, 9, " Hello big world.", [(1, 2, " Hello"), (4, 5, " big"), (6, 8, " world.")])],
            }
        )
    ).to_pylist()[0]

    times = [(span["start_s"], span["end_s"]) for span in row["spans"]]
    assert times[:2] == [(1, 2), (4, 5)]
    # "world" is five of the six characters of "world.".
    assert times[2] == (6, pytest.approx(6 + 2 * 5 / 6))


def test_times_without_words_are_shares_of_the_segment():
    row = tokenize(
        transcripts(
            {"transcription": "abcd efghi. Next", "segments": [segment(10, 20, " abcd efghi"), segment(30, 34, "Next")]}
        )
    ).to_pylist()[0]

    times = [(span["start_s"], span["end_s"]) for span in row["spans"]]
    assert times == [(10, 14), (15, 20), (30, 34)]


def test_text_that_no_segment_holds_has_no_time():
    row = tokenize(
        transcripts({"transcription": "Hello world", "segments": [segment(0, 1, "Hello"), segment(1, 2, "elsewhere")]})
    ).to_pylist()[0]

    assert [span["start_s"] for span in row["spans"]] == [0, None]


def test_the_same_word_twice_has_two_times():
    row = tokenize(
        transcripts({"transcription": "no no", "segments": [segment(0, 1, "no"), segment(5, 6, "no")]})
    ).to_pylist()[0]

    assert [span["start_s"] for span in row["spans"]] == [0, 5]


SCRIPTS = {
    "Latin": ("en", "ABCabcéßﬁ'’-.,!? $%0123456789"),
    "Cyrillic": ("ru", "АБВгдеёйщ .,!?«»-"),
    "Greek": ("el", "ΑΒΓαβγςώ .,;·"),
    "Arabic": ("ar", "ابتثجحخدذرزسش\u064b\u0651 ،؟\u200f"),
    "Hebrew": ("he", "אבגדהוז\u05b7 .,'\""),
    "Devanagari": ("hi", "अआकखगि\u094dा ।"),
    "Han": ("zh", "我爱北京天安门 。，！abc𠀀"),
    "Kana": ("ja", "あいうカタナｶﾞ私学 。、"),
    "Hangul": ("ko", "안녕하세요 .\u1100\u1161"),
    "Thai": ("th", "สวัสดีครับ ก\u0e33"),
    "emoji": (None, "👍🏽👩\u200d🚀🇩🇪❤\ufe0f a."),
    "anything": ("xx", None),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_offsets_point_at_the_tokens_text(script: str):
    language, alphabet = SCRIPTS[script]
    letters = st.characters(codec="utf-8") if alphabet is None else st.sampled_from(alphabet)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.text(letters, max_size=40), min_size=1, max_size=4))
    def check(texts: list[str]) -> None:
        table = tokenize(transcripts(*({"transcription": text, "language": language} for text in texts)))
        for text, row in zip(texts, table.to_pylist(), strict=True):
            end = 0
            for span in row["spans"]:
                assert end <= span["start_char"] < span["end_char"] <= len(text)
                end = span["end_char"]
                assert normalize_word(text[span["start_char"] : end]) == span["token"]
                assert not all(unicodedata.category(c)[0] in "PZC" for c in span["token"])
            assert row["tokens"] == [span["token"] for span in row["spans"]]
            assert row["content_tokens"] == [span["token"] for span in row["spans"] if not span["is_stop"]]
            # No letter is lost: what lies between the tokens holds none, not even in its normalized form.
            kept = {i for span in row["spans"] for i in range(span["start_char"], span["end_char"])}
            between = normalize_word("\n".join(c for i, c in enumerate(text) if i not in kept))
            assert not [c for c in between if unicodedata.category(c)[0] in "LN"]

    check()


def sources(**row: object) -> list[str | None]:
    [made] = tokenize(transcripts(row)).to_pylist()
    return [span["time_source"] for span in made["spans"]]


def test_each_time_says_where_it_comes_from():
    piece = segment(0, 4, "Hello big world", [(1, 2, " Hello"), (2, 3, " big")])

    assert sources(transcription="Hello big world now", segments=[piece]) == ["words", "words", "segment", None]


def test_words_that_are_not_the_segments_text_are_looked_up_one_by_one():
    piece = segment(0, 9, "Hello, big world.", [(1, 2, "Hello"), (4, 5, "big"), (6, 8, "world")])
    [row] = tokenize(transcripts({"transcription": "Hello, big world.", "segments": [piece]})).to_pylist()

    assert [(s["start_s"], s["end_s"], s["time_source"]) for s in row["spans"]] == [
        (1, 2, "words"),
        (4, 5, "words"),
        (6, 8, "words"),
    ]


def test_words_of_scripts_of_several_bytes_keep_their_times():
    piece = segment(0, 9, "Мама мыла раму", [(1, 2, " Мама"), (3, 4, " мыла"), (5, 6, " раму")])
    row = {"transcription": "Мама мыла раму", "language": "ru", "segments": [piece]}
    [made] = tokenize(transcripts({"transcription": None}, row).slice(1)).to_pylist()

    assert [(s["start_s"], s["end_s"]) for s in made["spans"]] == [(1, 2), (3, 4), (5, 6)]


def test_a_segment_without_times_gives_none():
    pieces = [segment(None, None, "Hello"), segment(2, 4, "world")]
    [row] = tokenize(transcripts({"transcription": "Hello world", "segments": pieces})).to_pylist()

    assert [(s["start_s"], s["time_source"]) for s in row["spans"]] == [(None, None), (2, "segment")]


@pytest.mark.parametrize(
    ("normalizer", "text", "expected"),
    [
        ("casefold", "Straße", ["strasse"]),
        ("strip_accents", "café Ёлка", ["cafe", "елка"]),
        ("ascii_digits", "٣ १२", ["3", "12"]),
        ("mask_digits", "in 1859", ["in", "0000"]),
        ("squeeze_repeats", "soooo good", ["soo", "good"]),
    ],
)
def test_normalizers_on_request(normalizer: str, text: str, expected: list[str]):
    row = words(text, None, normalizers=(normalizer,))

    assert row["tokens"] == expected
    assert [text[s["start_char"] : s["end_char"]] for s in row["spans"]] == text.split()


def test_stop_words_stay_stop_words_under_a_normalizer():
    assert words("où à l'eau", "fr", normalizers=("strip_accents",))["content_tokens"] == ["eau"]


def test_an_unknown_normalizer_is_refused_with_those_that_there_are():
    with pytest.raises(SettingsError, match="'shout' is not known; use some of casefold"):
        words("a", normalizers=("shout",))


def bpe_file(directory: Path) -> Path:
    """A BPE tokenizer, trained here on a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(["low lower lowest"] * 20, trainers.BpeTrainer(initial_alphabet=alphabet))
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory / "tokenizer.json"


def test_bpe_tokens_are_counted_with_the_file_that_was_given(tmp_path: Path):
    from tokenizers import Tokenizer

    file = bpe_file(tmp_path)
    given_rows = transcripts({"transcription": "lower, lowest 👍"}, {"transcription": None}, {"transcription": ""})

    made = tokenize(given_rows, TokenizeOptions(bpe_file=str(file)))

    expected = len(Tokenizer.from_file(str(file)).encode("lower, lowest 👍").ids)
    assert made.column("bpe_count").to_pylist() == [expected, None, 0]
    assert tokenize(given_rows).column("bpe_count").to_pylist() == [None, None, None]


@pytest.mark.parametrize("content", [None, "not json", "{}"])
def test_a_bpe_file_that_is_none_is_named(tmp_path: Path, content: str | None):
    file = tmp_path / "wrong.json"
    if content is not None:
        file.write_text(content)

    with pytest.raises(SettingsError, match=r"wrong\.json: .*give the path of a tokenizer\.json"):
        tokenize(transcripts(), TokenizeOptions(bpe_file=str(file)))
