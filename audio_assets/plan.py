"""What a run would do, and what it would cost. Lists the bucket and reads tables, cache and mirror; spends nothing."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from audio_assets import schemas, settings
from audio_assets.crashes import CrashMarks
from audio_assets.errors import NoSuchPrefixError
from audio_assets.ingest.intake import IntakeOptions, refused_by_earlier_probe
from audio_assets.ingest.listing import RemoteObject, is_audio, objects_of, spellings_of
from audio_assets.ingest.selection import Selection, passed_over
from audio_assets.ingest.sweep import Sweep
from audio_assets.resources.home import HomeResource
from audio_assets.resources.progress import format_duration
from audio_assets.resources.r2 import R2Resource
from audio_assets.resources.whisper import WhisperResource
from audio_assets.speech.estimate import Candidate, Estimate
from audio_assets.storage.partition_files import PartitionStore

Rows = Mapping[str, dict[str, Any]]
"""Rows of `raw_audio`, by key."""

TYPICAL_BYTES_PER_S = 16_000.0
"""128 kbit/s, for files of a kind of which none has been measured yet."""


@dataclass(frozen=True)
class Plan:
    """What a run would do. Lengths of files that were never downloaded are estimated from their sizes.

    ``models`` has what each engine and model would cost, the chosen one first.
    """

    files: int
    size_bytes: int
    to_download: int
    duplicates: int
    cached: int
    to_transcribe: int
    minutes_to_transcribe: float
    minutes_are_estimated: bool
    hours: float
    silence_hours: float
    silence_measured_in: int
    engine: str
    model: str
    cost_usd: float | None
    models: list[dict[str, Any]]
    passed_over: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """The plan as one JSON-ready object."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The plan as text."""
        about = "about " if self.minutes_are_estimated else ""
        cost = "unknown: set OPENAI_PRICE_USD_PER_MINUTE" if self.cost_usd is None else f"about ${self.cost_usd:.2f}"
        if self.cost_usd == 0:
            cost = "$0.00"
        silence = "not measured: no recording is here yet"
        if self.silence_measured_in:
            silence = (
                f"about {format_duration(self.silence_hours * 3600)} of it is not sent "
                f"(measured in {self.silence_measured_in} files)"
            )
        lines = [
            f"files          {self.files} ({self.size_bytes / 1e6:.1f} MB), {self.to_download} to download",
            f"duplicates     {self.duplicates} (the same bytes under another key: transcribed once)",
            f"cached         {self.cached}",
            f"to transcribe  {self.to_transcribe}, {about}{format_duration(self.hours * 3600)} of audio",
            f"silence        {silence}",
            f"engine         {self.engine}, {self.model}",
            f"cost           {cost}",
        ]
        if self.passed_over:
            lines.insert(1, f"passed over    {', '.join(passed_over(Counter(self.passed_over)))}")
        for other in self.models[1:]:
            price = "price unknown" if other["cost_usd"] is None else f"about ${other['cost_usd']:.2f}"
            until = f", shut down on {other['retires']}" if other["retires"] else ""
            lines.append(f"  instead      {other['model']}: {price}, {other['cached']} cached{until}")
        return lines


def make_plan(
    prefixes: Sequence[str] = (),
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    max_object_bytes: int | None = None,
) -> Plan:
    """Plan a run over the keys that start with one of ``prefixes`` (all, if there are none).

    Which of their objects count is what the other arguments say, and by default the environment.

    Raises:
        NoSuchPrefixError: nothing lies, or lay, under one of ``prefixes``.
        SettingsError: the bucket or the engine is not configured, or the home holds another bucket's corpus.
    """
    r2, home = R2Resource(), HomeResource()
    r2.check()
    home.refuse_other(r2.bucket_name())
    whisper = WhisperResource()
    whisper.create_engine()
    selection = home.selection(
        None if include is None else list(include), None if exclude is None else list(exclude), max_object_bytes
    )
    rows = {r["id"]: r for r in PartitionStore(home.paths().record).read(schemas.RAW_AUDIO).to_pylist()}
    listed, tally, empty = _listed(r2, home.depth(), prefixes, selection, rows)
    for prefix in empty:
        # Of what vanished since a run finds that it is gone.
        if not any(map(IntakeOptions(key_prefixes=(prefix,)).wants, rows)):
            raise NoSuchPrefixError(f"--prefix {prefix!r}: no audio lies there; correct it, or leave it out")
    bytes_per_s = _bytes_per_s(rows.values())
    mirror = home.mirror()
    longest_s, most_bytes = settings.load().audio_assets_max_duration_s, selection.max_object_bytes

    candidates: list[Candidate] = []
    contents: set[str] = set()
    to_download = duplicates = 0
    estimated = False
    for found in listed.values():
        known = _known(rows, found)
        to_download += known is None
        # Until it is downloaded, an object's ETag and size are the best sign of the same bytes.
        content = known["sha256"] if known else f"{found.etag} {found.size_bytes}"
        if content in contents:
            duplicates += 1
            continue
        contents.add(content)
        if known and known["status"] != "ok" and not refused_by_earlier_probe(known):
            continue
        too_large = most_bytes is not None and found.size_bytes > most_bytes
        if known and known["duration_s"] is not None:
            path, seconds = mirror.path_for(found.key), known["duration_s"]
            over = too_large or seconds > longest_s
            candidates.append(Candidate(found.key, content, seconds, known["sha256"], path, over))
        else:
            estimated = True
            seconds = found.size_bytes / bytes_per_s[_extension(found.key)]
            sha256 = known["sha256"] if known else None
            candidates.append(Candidate(found.key, content, seconds, sha256, over_limit=too_large))
    with CrashMarks(home.paths().crash_marks) as marks:
        estimates, chosen = whisper.estimates(candidates, home.cache(), marks)
    return Plan(
        files=len(listed),
        size_bytes=sum(found.size_bytes for found in listed.values()),
        to_download=to_download,
        duplicates=duplicates,
        cached=chosen.cached,
        to_transcribe=chosen.to_transcribe,
        minutes_to_transcribe=round(chosen.hours * 60, 3),
        minutes_are_estimated=estimated,
        hours=round(chosen.hours, 4),
        silence_hours=round(chosen.silence_hours, 4),
        silence_measured_in=chosen.silence_files,
        engine=chosen.engine,
        model=chosen.model,
        cost_usd=None if chosen.cost_usd is None else round(chosen.cost_usd, 4),
        models=[_model(e) for e in estimates],
        passed_over={kind: n for kind, n in tally.items() if n},
    )


def _listed(
    r2: R2Resource, depth: int, prefixes: Sequence[str], selection: Selection, rows: Rows
) -> tuple[dict[str, RemoteObject], Counter[str], list[str]]:
    """The objects whose bytes are taken in, by key, what else was counted, and the prefixes under which nothing counts.

    As in a run, what is there already was fetched, whatever the limit is now.
    """
    listed: dict[str, RemoteObject] = {}
    tally: Counter[str] = Counter()
    seen: set[str] = set()
    empty: list[str] = []

    def counts(key: str) -> bool:
        # Prefixes may overlap: each key is counted once.
        if key in seen:
            return False
        seen.add(key)
        return selection.count(key, tally)

    client, bucket = r2.get_client(), r2.bucket_name()
    for prefix in prefixes or [""]:
        found_any = False
        asked = IntakeOptions(key_prefixes=(prefix,), selection=selection).wants
        for spelling in spellings_of(unicodedata.normalize("NFC", prefix)):
            for _, page in Sweep.below(spelling, depth).pages(client, bucket):
                found_any = found_any or any(is_audio(key) and asked(key) for key in page.keys)
                found = list(objects_of(page, counts))
                fresh = [each for each in found if _known(rows, each) is None]
                selection.count_refused([each.size_bytes for each in fresh], tally)
                refused = {each.key for each in fresh if selection.refusal(each) is not None}
                listed.update((each.key, each) for each in found if each.key not in refused)
        if not found_any and prefix:
            empty.append(prefix)
    return listed, tally, empty


def _known(rows: Rows, found: RemoteObject) -> dict[str, Any] | None:
    """The row of an object that was fetched and is still the same."""
    row = rows.get(found.key)
    return row if row is not None and row["etag"] == found.etag and row["sha256"] is not None else None


def _model(found: Estimate) -> dict[str, Any]:
    return {
        "engine": found.engine,
        "model": found.model,
        "cached": found.cached,
        "to_transcribe": found.to_transcribe,
        "price_usd_per_minute": found.price_usd_per_minute,
        "cost_usd": None if found.cost_usd is None else round(found.cost_usd, 4),
        "retires": found.retires,
    }


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
