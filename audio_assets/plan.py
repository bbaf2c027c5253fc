"""What a run would do, and what it would cost. Lists the bucket and reads tables and cache; spends nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from audio_assets import schemas
from audio_assets.ingest.listing import RemoteObject, list_objects
from audio_assets.resources.home import HomeResource
from audio_assets.resources.progress import format_duration
from audio_assets.resources.r2 import R2Resource
from audio_assets.resources.whisper import WhisperResource
from audio_assets.speech.openai_api import OpenAIEngine
from audio_assets.speech.transcribe import fingerprint
from audio_assets.storage.partition_files import PartitionStore

TYPICAL_BYTES_PER_S = 16_000.0
"""128 kbit/s, for files of a kind of which none has been measured yet."""


@dataclass(frozen=True)
class Plan:
    """What a run would do. Minutes of files that were never downloaded are estimated from their sizes."""

    files: int
    size_bytes: int
    to_download: int
    duplicates: int
    cached: int
    to_transcribe: int
    minutes_to_transcribe: float
    minutes_are_estimated: bool
    engine: str
    model: str
    cost_usd: float | None

    def as_dict(self) -> dict[str, Any]:
        """The plan as one JSON-ready object."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The plan as text."""
        about = "about " if self.minutes_are_estimated else ""
        cost = "unknown: the endpoint's price is not known" if self.cost_usd is None else f"{about}${self.cost_usd:.2f}"
        return [
            f"files          {self.files} ({self.size_bytes / 1e6:.1f} MB), {self.to_download} to download",
            f"duplicates     {self.duplicates} (the same bytes under another key: transcribed once)",
            f"cached         {self.cached}",
            f"to transcribe  {self.to_transcribe}, {about}{format_duration(self.minutes_to_transcribe * 60)} of audio",
            f"engine         {self.engine}, {self.model}",
            f"cost           {cost}",
        ]


def make_plan(prefixes: Sequence[str] = ()) -> Plan:
    """Plan a run over the keys that start with one of ``prefixes`` (all, if there are none).

    Raises:
        SettingsError: the bucket or the engine is not configured.
    """
    r2, home = R2Resource(), HomeResource()
    r2.check()
    engine = WhisperResource().create_engine()
    client, bucket = r2.get_client(), r2.bucket_name()
    listed: dict[str, RemoteObject] = {}
    for prefix in prefixes or [""]:
        listed.update((found.key, found) for found in list_objects(client, bucket, prefix))
    rows = {r["id"]: r for r in PartitionStore(home.paths().tables).read(schemas.RAW_AUDIO).to_pylist()}
    bytes_per_s = _bytes_per_s(rows.values())
    cache, key = home.cache(), fingerprint(engine)

    seen: set[tuple[Any, ...]] = set()
    to_download = duplicates = cached = to_transcribe = 0
    seconds, estimated = 0.0, False
    for found in listed.values():
        row = rows.get(found.key)
        known = row is not None and row["etag"] == found.etag and row["sha256"] is not None
        to_download += not known
        # Until it is downloaded, an object's ETag and size are the best sign of the same bytes.
        content = (row["sha256"],) if known and row else (found.etag, found.size_bytes)
        if content in seen:
            duplicates += 1
            continue
        seen.add(content)
        if known and row and row["status"] != "ok":
            continue
        if known and row and cache.get(row["sha256"], key) is not None:
            cached += 1
            continue
        to_transcribe += 1
        if known and row and row["duration_s"] is not None:
            seconds += row["duration_s"]
        else:
            estimated = True
            seconds += found.size_bytes / bytes_per_s[_extension(found.key)]
    price = engine.capabilities.price_usd_per_minute if isinstance(engine, OpenAIEngine) else 0.0
    return Plan(
        files=len(listed),
        size_bytes=sum(found.size_bytes for found in listed.values()),
        to_download=to_download,
        duplicates=duplicates,
        cached=cached,
        to_transcribe=to_transcribe,
        minutes_to_transcribe=round(seconds / 60, 3),
        minutes_are_estimated=estimated,
        engine=engine.name,
        model=engine.model,
        cost_usd=None if price is None else round(price * seconds / 60, 4),
    )


def _bytes_per_s(rows: Any) -> defaultdict[str, float]:
    """Measured bytes per second of audio by extension, from what was ingested already."""
    size: defaultdict[str, float] = defaultdict(float)
    length: defaultdict[str, float] = defaultdict(float)
    for row in rows:
        if row["duration_s"]:
            size[_extension(row["id"])] += row["size_bytes"] or 0
            length[_extension(row["id"])] += row["duration_s"]
    return defaultdict(lambda: TYPICAL_BYTES_PER_S, {e: size[e] / length[e] for e in size if size[e]})


def _extension(key: str) -> str:
    return key.rpartition(".")[2].lower()
