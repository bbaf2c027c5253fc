"""Entities, sentiment and personal data: each only when asked for, each pointing into the text."""

import importlib.util
from pathlib import Path

import pyarrow as pa
import pytest
import spacy

from audio_assets import schemas
from audio_assets.errors import SettingsError
from audio_assets.text.enrich import EnrichOptions, enrich
from audio_assets.text.tokenize import tokenize


def tokens(*texts: str | None, language: str = "en") -> pa.Table:
    return tokenize(
        schemas.TRANSCRIPTS.from_rows(
            [
                {
                    "id": f"{i}.wav",
                    "prefix": "",
                    "status": "ok",
                    "transcription": text,
                    "language": language,
                    "segments": [{"start_s": 10.0, "end_s": 10.0 + len(text), "text": text}] if text else [],
                }
                for i, text in enumerate(texts)
            ]
        )
    )


def one(text: str | None, *kinds: str, language: str = "en", **options: object) -> dict:
    table, _ = enrich(tokens(text, language=language), EnrichOptions(frozenset(kinds), **options))
    assert table.schema == schemas.TOKENS.schema
    [row] = table.to_pylist()
    return row


@pytest.mark.parametrize(
    ("text", "label", "found"),
    [
        ("It costs $5.50 today.", "MONEY", "$5.50"),
        ("It costs 1,200 euros.", "MONEY", "1,200 euros"),
        ("about twenty-five dollars then", "MONEY", "twenty-five dollars"),
        ("on 2024-07-01 we met", "DATE", "2024-07-01"),
        ("on July 4th, 1776 they", "DATE", "July 4th, 1776"),
        ("the 3rd of March was", "DATE", "the 3rd of March"),
        ("call +44 20 7946 0958 now", "PHONE", "+44 20 7946 0958"),
        ("write to a.b+c@example.org, please", "EMAIL", "a.b+c@example.org"),
        ("john dot smith at example dot com is it", "EMAIL", "john dot smith at example dot com"),
        ("see https://example.org/a?b=1.", "URL", "https://example.org/a?b=1"),
        ("go to example dot com today", "URL", "example dot com"),
    ],
)
def test_rules_find_entities_and_point_at_them(text: str, label: str, found: str):
    [entity] = one(text, "entities")["entities"]

    assert (entity["label"], entity["text"]) == (label, found)
    assert text[entity["start_char"] : entity["end_char"]] == found


@pytest.mark.parametrize("text", ["In 1859 he had three dogs.", "one two three", "We may go.", "It is 3.14 or so"])
def test_what_is_no_entity_is_left_alone(text: str):
    row = one(text, "entities", "pii")

    assert (row["entities"], row["pii"], row["redacted"]) == ([], [], text)


@pytest.mark.parametrize(
    ("text", "language", "redacted"),
    [
        ("Call five five five oh one three four now", "en", "Call [PHONE] now"),
        ("it is double four, two, nine, one, three, eight", "en", "it is [PHONE]"),
        ("my pin is four two four two.", "en", "my pin is [NUMBER]."),
        ("card 4111 1111 1111 1111 ok", "en", "card [CARD] ok"),
        ("four one one one, one one one one, one one one one, one one one one", "en", "[CARD]"),
        ("meine Nummer ist null drei null vier fünf sechs sieben acht", "de", "meine Nummer ist [PHONE]"),
        ("IBAN DE89 3704 0044 0532 0130 00 bitte", "de", "IBAN [IBAN] bitte"),
        ("ssn 078-05-1120, ip 192.168.0.1", "en", "ssn [SSN], ip [IP]"),
        ("ann@example.org wrote", "en", "[EMAIL] wrote"),
        ("on 2024-07-01 and 4 July 2024", "en", "on 2024-07-01 and 4 July 2024"),
        ("we sold 12,000,000 of them", "en", "we sold 12,000,000 of them"),
    ],
)
def test_personal_data_is_redacted(text: str, language: str, redacted: str):
    assert one(text, "pii", language=language)["redacted"] == redacted


def test_the_time_to_mute_runs_from_the_first_word_to_the_last():
    text = "Call five five five oh one three four now"
    [hit] = one(text, "pii")["pii"]

    # The segment gives each character a second.
    assert (hit["label"], hit["start_s"], hit["end_s"]) == ("PHONE", 10 + text.index("five"), 10 + text.index(" now"))


def test_text_without_times_has_null_times_to_mute():
    table = tokens("my pin is four two four two")
    bare = tokenize(
        schemas.TRANSCRIPTS.from_rows(
            [{"id": "a", "prefix": "", "status": "ok", "transcription": "pin four two four two", "language": "en"}]
        )
    )
    made, _ = enrich(pa.concat_tables([table, bare]), EnrichOptions(frozenset({"pii"})))

    assert [row[0]["start_s"] is None for row in made.column("pii").to_pylist()] == [False, True]


def test_each_is_on_its_own_switch():
    text = "I love it, call 555 013 4477"

    assert [name for name, value in one(text, "entities").items() if name in ADDED and value is not None] == [
        "entities"
    ]
    assert [n for n, v in one(text, "pii").items() if n in ADDED and v is not None] == ["pii", "redacted"]
    table = tokens(text)
    assert enrich(table, EnrichOptions()) == (table, [])


ADDED = ("entities", "sentiment", "pii", "redacted")


def test_rows_without_text_stay_null():
    assert {one(None, "entities", "sentiment", "pii")[name] for name in ADDED} == {None}


@pytest.mark.skipif(importlib.util.find_spec("vaderSentiment") is None, reason="the extra `enrich` is not installed")
def test_sentiment_of_english_and_null_for_others():
    assert one("I love this, it is wonderful!", "sentiment")["sentiment"] > 0.5
    assert one("This is terrible and I hate it.", "sentiment")["sentiment"] < -0.5
    assert one("Das ist wunderbar", "sentiment", language="de")["sentiment"] is None


def test_a_missing_model_is_said_once_with_the_way_to_get_it():
    table = tokens("Ann went home.", "Bob too.", "And Carl.")
    made, notes = enrich(table, EnrichOptions(frozenset({"entities", "pii"}), entity_model="en_core_web_xx"))

    [note] = notes
    assert "'en_core_web_xx' is not installed" in note
    assert "python -m spacy download en_core_web_xx" in note
    assert made.num_rows == 3


def test_one_line_names_all_languages_that_have_no_model():
    rows = [
        {"id": code, "prefix": "", "status": "ok", "transcription": "Anna", "language": code} for code in ("el", "ar")
    ]
    _, notes = enrich(tokenize(schemas.TRANSCRIPTS.from_rows(rows)), EnrichOptions(frozenset({"entities"})))

    [note] = notes
    assert "in ar, el," in note
    assert "no spaCy model of these languages is installed" in note


def test_an_installed_spacy_model_names_people_who_are_redacted(tmp_path: Path):
    nlp = spacy.blank("en")
    nlp.add_pipe("entity_ruler").add_patterns(
        [{"label": "PERSON", "pattern": "Jerry Cruncher"}, {"label": "GPE", "pattern": "London"}]
    )
    nlp.to_disk(tmp_path / "model")

    row = one("Jerry Cruncher lives in London.", "entities", "pii", entity_model=str(tmp_path / "model"))

    assert [(e["label"], e["text"]) for e in row["entities"]] == [("PERSON", "Jerry Cruncher"), ("GPE", "London")]
    assert row["redacted"] == "[PERSON] lives in London."


def test_an_unknown_kind_is_refused_with_those_that_there_are():
    with pytest.raises(SettingsError, match="'mood' is not known; use some of entities, sentiment, pii"):
        enrich(tokens("a"), EnrichOptions(frozenset({"mood"})))


def test_the_asset_takes_its_switches_from_the_run_else_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    import dagster as dg

    from audio_assets.assets.tokens import TokensConfig
    from audio_assets.assets.tokens import tokens as asset
    from audio_assets.partitions import PARTITIONS_NAME
    from audio_assets.resources.duckdb_io import PartitionedDuckDBIOManager
    from audio_assets.resources.mapper import MapperResource

    monkeypatch.setenv("AUDIO_ASSETS_ENRICH", "pii, sentiment")
    monkeypatch.setenv("AUDIO_ASSETS_ENTITY_MODEL", "en_core_web_xx")
    monkeypatch.setenv("AUDIO_ASSETS_STOP_WORDS", "pin")
    assert TokensConfig().additions() == EnrichOptions(frozenset({"pii", "sentiment"}), "en_core_web_xx")
    assert TokensConfig(enrich=["entities"]).additions().kinds == {"entities"}
    transcripts = schemas.TRANSCRIPTS.from_rows(
        [{"id": "p/a", "prefix": "p/", "status": "ok", "transcription": "pin four two four two", "language": "en"}]
    )

    warehouse = PartitionedDuckDBIOManager(tables_root=str(tmp_path), database=str(tmp_path / "w.duckdb"))
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(PARTITIONS_NAME, ["p"])
        context = dg.build_asset_context(partition_key="p", instance=instance)
        made = asset(context, TokensConfig(enrich=["pii"]), transcripts, MapperResource(), warehouse)

    [row] = made.value.to_pylist()
    assert (row["redacted"], row["content_tokens"][:1]) == ("pin [NUMBER]", [])
    assert (made.metadata["drift_files_new"], made.metadata["drift_vocabulary_new_words"]) == (1, 3)
    assert "en_core_web_xx" in made.metadata["not_done"].text
