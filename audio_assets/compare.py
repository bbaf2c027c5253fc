"""Two models on the same recordings, so that switching is a decision."""

from __future__ import annotations

import hashlib
import unicodedata
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import date, datetime, timezone
from functools import partial
from typing import Any

import numpy as np

from audio_assets import schemas, settings
from audio_assets.errors import SettingsError
from audio_assets.partitions import prefix_of
from audio_assets.resources.home import HomeResource
from audio_assets.resources.whisper import WhisperResource
from audio_assets.speech.capabilities import CAPABILITIES, COMPATIBLE
from audio_assets.speech.engine import Engine
from audio_assets.speech.ledger import Account
from audio_assets.speech.openai_api import OpenAIEngine
from audio_assets.speech.retirement import retirement
from audio_assets.speech.transcribe import AudioFile, FileTranscript, TranscribeOptions, transcribe_files
from audio_assets.storage.partition_files import PartitionStore

RUN = "compare-models"
"""How the ledger names what this spends."""

_DONE = ("ok", "empty")


@dataclass(frozen=True)
class Side:
    """One of the two models. Prices are per minute; ``cost_usd`` is what this comparison spent on it."""

    model: str
    engine: str
    words: int
    cached: int
    unfinished: int
    cost_usd: float
    uncertain_usd: float
    price_usd_per_minute: float | None
    retires: date | None
    abilities: dict[str, bool]


@dataclass(frozen=True)
class Pair:
    """One recording, heard by both."""

    id: str
    differing_words: int
    words_a: int
    words_b: int
    text_a: str
    text_b: str


@dataclass(frozen=True)
class Comparison:
    """What came of it. ``word_error_rate`` is mutual: differing words over the mean of both word counts."""

    a: Side
    b: Side
    pairs: list[Pair]
    word_error_rate: float | None
    lost: list[str] = field(default_factory=list)
    gained: list[str] = field(default_factory=list)

    @property
    def unfinished(self) -> int:
        """Recordings that one of the two did not finish."""
        return self.a.unfinished + self.b.unfinished

    def as_dict(self) -> dict[str, Any]:
        """The comparison as one JSON-ready object."""
        made = asdict(self)
        for side in ("a", "b"):
            made[side]["retires"] = made[side]["retires"].isoformat() if made[side]["retires"] else None
        return {**made, "unfinished": self.unfinished}

    def lines(self) -> list[str]:
        """The comparison as text."""
        today = datetime.now(timezone.utc).date()
        rate = "no recording was heard by both" if self.word_error_rate is None else f"{self.word_error_rate:.1%}"
        lines = [f"recordings       {len(self.pairs)} heard by both", f"they differ in   {rate} of the words"]
        for name, side in (("A", self.a), ("B", self.b)):
            price = "price unknown" if side.price_usd_per_minute is None else f"${side.price_usd_per_minute}/min"
            lines.append(
                f"{name}  {side.model} ({side.engine}): {side.words} words, {price}, spent ${side.cost_usd:.4f} now, "
                f"{side.cached} from the cache, {side.unfinished} unfinished"
            )
            lines.append(f"   {retirement(side.model, None, side.retires, today).line()}")
        lines.append(f"B cannot         {', '.join(self.lost) or 'nothing that A can'}")
        lines.append(f"B adds           {', '.join(self.gained) or 'nothing'}")
        worst = sorted(self.pairs, key=lambda p: -p.differing_words / max(1, p.words_a + p.words_b))[:3]
        for pair in worst:
            if pair.differing_words:
                lines += [f"differs most     {pair.id}", f"   A  {pair.text_a[:200]}", f"   B  {pair.text_b[:200]}"]
        lines.append(f"to switch        WHISPER_MODEL={self.b.model}, then audio-assets plan")
        return lines


def compare(first: str, second: str, sample: int, max_cost_usd: float | None = None) -> Comparison:
    """Transcribe up to ``sample`` recordings of the mirror with both models and compare the texts.

    The sample is chosen by content, so the same one comes again. Both spend from one cap.

    Raises:
        SettingsError: a model cannot be used, or there is no recording to compare on.
    """
    home, whisper = HomeResource(), WhisperResource()
    files = _sample(home, sample)
    engines = [_engine(whisper, first), _engine(whisper, second)]
    prefix = partial(prefix_of, depth=home.depth())
    spent_usd = 0.0
    sides: list[Side] = []
    texts: list[dict[str, str]] = []
    for engine in engines:
        left = None if max_cost_usd is None else max(0.0, max_cost_usd - spent_usd)
        account = Account(left, home.paths().ledger, prefix, RUN)
        results = _transcribe(whisper, engine, account, home, files)
        spent_usd += account.spent_usd
        texts.append({r.id: r.transcription or "" for r in results if r.status in _DONE})
        able = engine.capabilities if isinstance(engine, OpenAIEngine) else None
        sides.append(
            Side(
                model=engine.model,
                engine=engine.name,
                words=sum(len(words_of(t)) for t in texts[-1].values()),
                cached=sum(r.cached for r in results),
                unfinished=sum(r.status not in (*_DONE, "invalid") for r in results),
                cost_usd=account.cost_usd,
                uncertain_usd=account.uncertain_usd,
                price_usd_per_minute=able.price_usd_per_minute if able else 0.0,
                retires=able.retires if able else None,
                abilities=able.abilities() if able else dict(_LOCAL),
            )
        )
    pairs = [_pair(f.id, texts[0][f.id], texts[1][f.id]) for f in files if f.id in texts[0] and f.id in texts[1]]
    words = sum(p.words_a + p.words_b for p in pairs) / 2
    a, b = sides
    return Comparison(
        a=a,
        b=b,
        pairs=pairs,
        word_error_rate=sum(p.differing_words for p in pairs) / words if words else 0.0 if pairs else None,
        lost=[name for name, can in a.abilities.items() if can and not b.abilities[name]],
        gained=[name for name, can in b.abilities.items() if can and not a.abilities[name]],
    )


_LOCAL = {**COMPATIBLE.abilities(), "word times": True, "keywords": True}
"""What the local engine can do: it runs the same model, and takes hotwords."""


def _engine(whisper: WhisperResource, name: str) -> Engine:
    kind, _, model = name.partition(":")
    if kind in ("local", "openai") and model:
        return WhisperResource(engine=kind, model=model).create_engine()
    if name == "local":
        return WhisperResource(engine="local").create_engine()
    if name in CAPABILITIES or whisper.engine_name() == "openai":
        return WhisperResource(engine="openai", model=name).create_engine()
    return WhisperResource(engine="local", model=name).create_engine()


def _sample(home: HomeResource, size: int) -> list[AudioFile]:
    store, mirror = PartitionStore(home.paths().record), home.mirror()
    rows = store.read(schemas.RAW_AUDIO, columns=["id", "sha256", "status"]).to_pylist()
    unique = {r["sha256"]: r["id"] for r in reversed(rows) if r["status"] == "ok"}
    here = {sha: id for sha, id in unique.items() if mirror.path_for(id).is_file()}
    # A hash of the content's hash: every recording has the same chance, and the sample is the same each time.
    chosen = sorted(here, key=lambda sha: hashlib.sha256(sha.encode()).digest())[:size]
    if not chosen:
        raise SettingsError(
            f"AUDIO_ASSETS_HOME {settings.home().root} holds no recording to compare models on; run `audio-assets run` "
            "first, or set it to the home that has them"
        )
    return [AudioFile(here[sha], mirror.path_for(here[sha]), sha) for sha in chosen]


def _transcribe(
    whisper: WhisperResource, engine: Engine, account: Account, home: HomeResource, files: list[AudioFile]
) -> list[FileTranscript]:
    billed = whisper.bill(engine, account, home.cache())
    on_stop = billed.halt if isinstance(billed, OpenAIEngine) else lambda: None
    with closing(account):
        return list(transcribe_files(files, billed, home.cache(), TranscribeOptions(on_stop=on_stop)))


def _pair(id: str, text_a: str, text_b: str) -> Pair:
    a, b = words_of(text_a), words_of(text_b)
    return Pair(id, word_distance(a, b), len(a), len(b), text_a, text_b)


def words_of(text: str) -> list[str]:
    """The words of a text without case and punctuation: what a listener would call the same is the same.

    >>> words_of("It was -- the BEST of times.")
    ['it', 'was', 'the', 'best', 'of', 'times']
    """
    folded = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    kept = "".join(c if c.isalnum() or c == "'" or unicodedata.category(c).startswith("M") else " " for c in folded)
    return [w for w in (word.strip("'") for word in kept.split()) if w]


def word_distance(a: list[str], b: list[str]) -> int:
    """Words to insert, delete or replace to turn one list into the other (Levenshtein)."""
    numbers = {word: n for n, word in enumerate({*a, *b})}
    other = np.array([numbers[w] for w in b], dtype=np.int64)
    steps = np.arange(len(b) + 1)
    row = steps.copy()
    for word in a:
        best = np.minimum(row[1:] + 1, row[:-1] + (other != numbers[word]))
        candidate = np.concatenate([[row[0] + 1], best])
        # Insertions run along the row: the cheapest way to each place from any place before it.
        row = np.minimum.accumulate(candidate - steps) + steps
    return int(row[-1])
