"""The speech recogniser, as a Dagster resource."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import date
from typing import Any

from dagster import ConfigurableResource, InitResourceContext
from pydantic import Field

from audio_assets import settings
from audio_assets.crashes import CrashMarks
from audio_assets.errors import SettingsError
from audio_assets.resources.run_config import refuse_in_run_config
from audio_assets.resources.travelling import Travelling
from audio_assets.speech import capabilities, local, openai_api
from audio_assets.speech.cache import TranscriptCache
from audio_assets.speech.capabilities import CAPABILITIES
from audio_assets.speech.engine import Engine
from audio_assets.speech.estimate import Candidate, Estimate, estimate, measure_silence, pending
from audio_assets.speech.ledger import Account
from audio_assets.speech.local import LocalEngine, LocalOptions, model_or_packaged, weights_identity
from audio_assets.speech.openai_api import CachedPieces, OpenAIEngine, OpenAIOptions
from audio_assets.speech.retirement import Retirement, retirement
from audio_assets.speech.transcribe import PIPELINE_VERSION, fingerprint

_engines: dict[tuple[Any, ...], Engine] = {}
_engines_lock = threading.Lock()


class WhisperResource(Travelling, ConfigurableResource):  # type: ignore[type-arg]
    """Chooses and configures the engine. Whatever is not set comes from the environment when a run starts.

    For example:

        whisper = WhisperResource(engine="local", model="small", beam_size=1)
    """

    engine: str | None = Field(
        default=None,
        description="`local` or `openai`; by default WHISPER_ENGINE, else `openai` when OPENAI_API_KEY is set, "
        "else `local`.",
    )
    model: str | None = Field(
        default=None,
        description="Model name, or for the local engine a directory of CTranslate2 weights; by default WHISPER_MODEL, "
        "else whisper-1 (openai), or the packaged tiny.en if installed, else tiny.en by name (local).",
    )
    language: str | None = Field(
        default=None, description="ISO 639-1 code or English name; by default detected per recording."
    )
    initial_prompt: str | None = Field(default=None, description="Text that shows the model names and style to expect.")
    hotwords: str | None = Field(default=None, description="Words to listen for (local engine).")
    split_channels: bool = Field(
        default=False,
        description="Transcribe each channel of a recording by itself: for calls with one speaker to each.",
    )
    language_per_window: bool = Field(
        default=False, description="Detect the language of every window, not once per recording (local engine)."
    )
    word_timestamps: bool = Field(default=False, description="Time every word, where the model can.")
    beam_size: int = Field(default=5, ge=1, description="Hypotheses kept while decoding (local engine).")
    compute_type: str = Field(
        default="default", description="Arithmetic of the local engine; by default int8 on a CPU, float16 on a GPU."
    )
    device: str = Field(default="auto", description="`cpu`, `cuda`, or `auto` (local engine).")
    workers: int | None = Field(
        default=None, ge=1, description="Transcriptions at once; by default the cores (local) or 8 requests (openai)."
    )
    batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Windows that are decoded in one call of the model, unless a run asks for another number; by "
        "default 8, or 16 on a GPU. With 1 they are decoded one by one, whatever a run asks for (local engine).",
    )
    threads: int = Field(default=1, ge=1, description="Threads of one transcription (local engine).")
    base_url: str | None = Field(
        default=None, description="OpenAI-compatible endpoint; by default OPENAI_BASE_URL, else OpenAI's own."
    )
    api_key: str | None = Field(
        default=None, repr=False, description="Key for the endpoint; by default OPENAI_API_KEY."
    )
    keywords: list[str] = Field(default=[], description="Words to listen for (openai engine, gpt-transcribe).")
    audio_format: str | None = Field(
        default=None,
        description="How audio is sent: `near-lossless` (FLAC of rounded samples; the default), `flac` or `opus` "
        "(openai engine).",
    )
    price_usd_per_minute: float | None = Field(
        default=None,
        ge=0,
        description="What the endpoint charges; by default OPENAI_PRICE_USD_PER_MINUTE, else OpenAI's price.",
    )
    requests_per_minute: float | None = Field(
        default=None, gt=0, description="Most requests a minute; by default OPENAI_REQUESTS_PER_MINUTE, else no limit."
    )
    audio_s_per_minute: float | None = Field(
        default=None,
        gt=0,
        description="Most seconds of audio sent a minute; by default OPENAI_AUDIO_S_PER_MINUTE, else no limit.",
    )
    longest_wait_s: float = Field(
        default=120.0, ge=0, description="A server that asks to wait longer puts files off to the next run (openai)."
    )
    deadline_s: float = Field(
        default=120.0, gt=0, description="Seconds a request may take beyond the length of its audio (openai engine)."
    )

    def setup_for_execution(self, context: InitResourceContext) -> None:
        """Refuse a run that would send the key and the recordings elsewhere.

        Raises:
            SettingsError: the run's configuration says where the endpoint is, or has a key.
        """
        refuse_in_run_config(context, {"base_url": "OPENAI_BASE_URL", "api_key": "OPENAI_API_KEY"}, type(self))

    def engine_name(self) -> str:
        """``local`` or ``openai``: what `create_engine` will make."""
        found = settings.load()
        name = self.engine or found.whisper_engine
        if name is None:
            name = "openai" if self._api_key(found) else "local"
        if name not in ("local", "openai"):
            told = "engine" if self.engine else "WHISPER_ENGINE"
            raise SettingsError(f"{told} {name!r} is unknown; use local or openai")
        return name

    def code_version(self) -> str | None:
        """The version of the code that makes the text, as the cache has it, for Dagster; None with a wrong setting.

        Each engine has its own: nothing that was paid for is out of date for what changed in the local one.
        """
        try:
            name = self.engine_name()
        except SettingsError:
            return None
        version = openai_api.ENGINE_VERSION if name == "openai" else local.ENGINE_VERSION
        return f"{name} {version}, pipeline {PIPELINE_VERSION}"

    def create_engine(self) -> Engine:
        """The engine, loaded once per process and kept for the next partition.

        Raises:
            SettingsError: the model is missing, or there is no key.
        """
        options = self._openai_options() if self.engine_name() == "openai" else self._local_options()
        with _engines_lock:
            key = (type(options), options)
            if key not in _engines:
                _engines[key] = OpenAIEngine(options) if isinstance(options, OpenAIOptions) else LocalEngine(options)
            return _engines[key]

    def identity(self) -> dict[str, Any]:
        """What transcripts depend on, without the key, and without loading a model."""
        if self.engine_name() == "openai":
            return {**asdict(self._openai_options()), "api_key": None}
        options = self._local_options()
        directory = settings.expanded(options.model, "WHISPER_MODEL")
        weights = weights_identity(directory) if (directory / "model.bin").is_file() else None
        return {**asdict(options), "weights": weights}

    def billed_engine(self, account: Account, cache: TranscriptCache) -> Engine:
        """The engine of `create_engine`, spending from ``account`` where it costs money.

        Raises:
            SettingsError: as `create_engine`, or the account has a cap and the price is unknown.
        """
        return self.bill(self.create_engine(), account, cache)

    def bill(self, engine: Engine, account: Account, cache: TranscriptCache) -> Engine:
        """``engine``, spending from ``account`` where it costs money.

        Raises:
            SettingsError: the account has a cap and the price is unknown.
        """
        if isinstance(engine, OpenAIEngine):
            return engine.billed_to(account, CachedPieces(cache, fingerprint(engine)))
        return engine

    def _local_options(self) -> LocalOptions:
        return LocalOptions(
            model=model_or_packaged(self.model or settings.load().whisper_model or None),
            language=self.language,
            beam_size=self.beam_size,
            compute_type=self.compute_type,
            device=self.device,
            workers=self.workers,
            threads=self.threads,
            batch_size=self.batch_size,
            initial_prompt=self.initial_prompt,
            hotwords=self.hotwords,
            word_timestamps=self.word_timestamps,
            language_per_window=self.language_per_window,
            split_channels=self.split_channels,
        )

    def _openai_options(self) -> OpenAIOptions:
        found = settings.load()
        return OpenAIOptions(
            model=self.model or found.whisper_model or capabilities.DEFAULT,
            api_key=self._api_key(found),
            base_url=self.base_url or found.openai_base_url,
            language=self.language,
            prompt=self.initial_prompt,
            keywords=tuple(self.keywords),
            word_timestamps=self.word_timestamps,
            audio_format=self.audio_format,
            price_usd_per_minute=_first(self.price_usd_per_minute, found.openai_price_usd_per_minute),
            workers=self.workers or 8,
            requests_per_minute=self.requests_per_minute or found.openai_requests_per_minute,
            audio_s_per_minute=self.audio_s_per_minute or found.openai_audio_s_per_minute,
            longest_wait_s=self.longest_wait_s,
            deadline_s=self.deadline_s,
            split_channels=self.split_channels,
        )

    def estimates(
        self, candidates: Sequence[Candidate], cache: TranscriptCache, marks: CrashMarks
    ) -> tuple[list[Estimate], Estimate]:
        """What each engine and model would do about ``candidates``, and that of the engine of `create_engine`.

        Silence is measured once, with the windows of the chosen engine.
        """
        engine = self.create_engine()
        silence = measure_silence(pending(candidates, engine, cache) or candidates, engine, marks)
        chosen = estimate(candidates, engine, cache, silence)
        found = [chosen]
        for model in CAPABILITIES:
            if (engine.name, engine.model) != ("openai", model):
                found.append(estimate(candidates, self.openai_engine(model), cache, silence))
        return found, chosen

    def retirement(self, today: date) -> Retirement:
        """When the model of `create_engine` will be shut down; asks the endpoint."""
        engine = self.create_engine()
        if not isinstance(engine, OpenAIEngine):
            return retirement(engine.model, None, None, today)
        return retirement(engine.model, engine.announced_shutdown(), engine.capabilities.retires, today)

    def openai_engine(self, model: str) -> OpenAIEngine:
        """An engine for another model of the endpoint, not kept; without a key it can plan, not transcribe.

        Raises:
            SettingsError: a setting of the endpoint is wrong.
        """
        options = self._openai_options()
        return OpenAIEngine(replace(options, model=model, api_key=options.api_key or "none"))

    def _api_key(self, found: settings.Settings) -> str | None:
        if self.api_key:
            return self.api_key
        return found.openai_api_key.get_secret_value() if found.openai_api_key else None


def _first(*values: float | None) -> float | None:
    """The first that is set; 0 is a value."""
    return next((v for v in values if v is not None), None)
