"""The speech recogniser, as a Dagster resource."""

from __future__ import annotations

import threading
from typing import Any

from dagster import ConfigurableResource
from pydantic import Field

from audio_assets import settings
from audio_assets.errors import SettingsError
from audio_assets.speech.engine import Engine
from audio_assets.speech.local import LocalEngine, LocalOptions, packaged_model
from audio_assets.speech.openai_api import OpenAIEngine, OpenAIOptions

_engines: dict[tuple[Any, ...], Engine] = {}
_engines_lock = threading.Lock()


class WhisperResource(ConfigurableResource):  # type: ignore[type-arg]
    """Chooses and configures the engine. Whatever is not set comes from the environment when a run starts.

    Example:
        .. code-block:: python

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
    language: str | None = Field(default=None, description="ISO 639-1 code; by default detected per recording.")
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
    threads: int = Field(default=1, ge=1, description="Threads of one transcription (local engine).")
    base_url: str | None = Field(
        default=None, description="OpenAI-compatible endpoint; by default OPENAI_BASE_URL, else OpenAI's own."
    )
    api_key: str | None = Field(
        default=None, repr=False, description="Key for the endpoint; by default OPENAI_API_KEY."
    )
    deadline_s: float = Field(
        default=120.0, gt=0, description="Seconds a request may take beyond the length of its audio (openai engine)."
    )

    def engine_name(self) -> str:
        """``local`` or ``openai``: what `create_engine` will make."""
        found = settings.load()
        name = self.engine or found.whisper_engine
        if name is None:
            name = "openai" if self._api_key(found) else "local"
        if name not in ("local", "openai"):
            raise SettingsError(f"WHISPER_ENGINE {name!r} is unknown; use local or openai")
        return name

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

    def _local_options(self) -> LocalOptions:
        packaged = packaged_model()
        return LocalOptions(
            model=self.model or settings.load().whisper_model or (str(packaged) if packaged else "tiny.en"),
            language=self.language,
            beam_size=self.beam_size,
            compute_type=self.compute_type,
            device=self.device,
            workers=self.workers,
            threads=self.threads,
            initial_prompt=self.initial_prompt,
            hotwords=self.hotwords,
            word_timestamps=self.word_timestamps,
            language_per_window=self.language_per_window,
            split_channels=self.split_channels,
        )

    def _openai_options(self) -> OpenAIOptions:
        found = settings.load()
        return OpenAIOptions(
            model=self.model or found.whisper_model or "whisper-1",
            api_key=self._api_key(found),
            base_url=self.base_url or found.openai_base_url,
            language=self.language,
            prompt=self.initial_prompt,
            word_timestamps=self.word_timestamps,
            workers=self.workers or 8,
            deadline_s=self.deadline_s,
            split_channels=self.split_channels,
        )

    def _api_key(self, found: settings.Settings) -> str | None:
        if self.api_key:
            return self.api_key
        return found.openai_api_key.get_secret_value() if found.openai_api_key else None
