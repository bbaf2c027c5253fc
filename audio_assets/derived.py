"""What is made of the corpus file by file: subtitles, and a folder of labelled audio that trains a model.

Subtitles follow the mirror's encoding of keys, so that no key can lead out of the folder or meet another's file.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audio_assets import schemas, settings
from audio_assets.errors import FileError, InvalidAudio, NoSuchPrefixError, StorageError
from audio_assets.ingest.intake import IntakeOptions
from audio_assets.ingest.mirror import Mirror
from audio_assets.speech.compress import encode_flac
from audio_assets.speech.decode import AudioStream
from audio_assets.speech.engine import SAMPLE_RATE_HZ
from audio_assets.storage.atomic import replacing_directory, settle_directory, write_bytes
from audio_assets.storage.objects import Objects
from audio_assets.storage.partition_files import PartitionStore
from audio_assets.text import subtitles

AUDIOFOLDER = "audiofolder"
METADATA = "metadata.jsonl"
"""The file in which Hugging Face's ``audiofolder`` looks for the labels."""

_PUBLISHED_LABELS = f"exports/{AUDIOFOLDER}/{METADATA}"

MIN_SEGMENT_S = 0.1
MAX_SEGMENT_S = 30.0
"""What Whisper hears at once, and the longest clip that its training recipes take."""

_COLUMNS = ["id", "prefix", "sha256", "transcription", "language", "segments", "flags", "status"]


@dataclass
class Written:
    """What was written: the directory, files and segments in it, seconds of audio, and what was left out and why."""

    directory: Path
    files: int = 0
    segments: int = 0
    seconds: float = 0.0
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        """The same as a JSON-ready object."""
        return {
            "directory": str(self.directory),
            "files": self.files,
            "segments": self.segments,
            "seconds": round(self.seconds, 3),
            "left_out": [{"id": id, "reason": reason} for id, reason in self.left_out],
        }


def write_subtitles(home: settings.Home, formats: Sequence[str], prefixes: Sequence[str] = ()) -> list[Written]:
    """Write ``exports/srt`` and ``exports/vtt``, a file for each transcript that has times, in place of earlier ones.

    Args:
        home: where tables and exports are.
        formats: some of `subtitles.FORMATS`.
        prefixes: only keys that start with one of these; all when empty.

    Raises:
        NoSuchPrefixError: no transcript lies under one of ``prefixes``; earlier subtitles are untouched.
        BusyError: another process writes them.
        StorageError: a partition file is damaged, or the disk refused; earlier subtitles are untouched.
    """
    check_prefixes(home, prefixes)
    made = []
    spelled_out = Mirror(home.audio).spelled_out
    for name in dict.fromkeys(formats):
        target = home.exports / name
        written = Written(target)
        try:
            with replacing_directory(target) as fresh:
                for row in _rows(home, prefixes):
                    shown = subtitles.cues(row["segments"] or [])
                    if not shown:
                        if row["transcription"]:
                            written.left_out.append((row["id"], "its engine gave no times"))
                        continue
                    path = subtitle_path(fresh, row["id"], name, spelled_out)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(subtitles.WRITERS[name](shown), encoding="utf-8", newline="\n")
                    written.files += 1
                    written.segments += len(shown)
        except OSError as error:
            raise _refused(target, error) from error
        made.append(written)
    return made


def subtitle_path(directory: Path, key: str, format: str, spelled_out: frozenset[str] = frozenset()) -> Path:
    """Where the subtitles of ``key`` lie: the recording's whole name and the format's ending behind it.

    ``spelled_out`` are the names that the mirror spells out.
    """
    return _subtitles_of(directory, format, spelled_out).path_for(f"{key}.{format}")


def _subtitles_of(directory: Path, format: str, spelled_out: frozenset[str]) -> Mirror:
    return Mirror(directory, frozenset(name if name.endswith("/") else f"{name}.{format}" for name in spelled_out))


def write_audiofolder(
    home: settings.Home,
    prefixes: Sequence[str] = (),
    *,
    include_flagged: bool = False,
    bring: Callable[[str, str | None], AbstractContextManager[None]] = lambda key, sha256: nullcontext(),
) -> Written:
    """Write ``exports/audiofolder``: a 16 kHz mono FLAC for each segment, and ``metadata.jsonl`` with its text.

    ``datasets.load_dataset("audiofolder", data_dir=…)`` reads it as it is.

    Args:
        home: where mirror, tables and exports are.
        prefixes: only keys that start with one of these; all when empty.
        include_flagged: also transcripts and segments that carry a flag, which teach a model what is wrong in them.
        bring: entered while the recording of a key and a SHA-256 is read; has it in the mirror, or raises a
            `FileError`. Another version of it would be cut at the wrong places.

    Raises:
        NoSuchPrefixError: no transcript lies under one of ``prefixes``; an earlier folder is untouched.
        BusyError: another process writes it.
        StorageError: a partition file is damaged, or the disk refused; an earlier folder is untouched.
    """
    check_prefixes(home, prefixes)
    target = home.exports / AUDIOFOLDER
    written = Written(target)
    mirror = Mirror(home.audio)
    try:
        with replacing_directory(target) as fresh, (fresh / METADATA).open("w", encoding="utf-8") as labels:
            for row in _rows(home, prefixes):
                if row["flags"] and not include_flagged:
                    written.left_out.append((row["id"], "flagged: " + ", ".join(row["flags"])))
                    continue
                wanted = [s for s in row["segments"] or [] if _trains(s, include_flagged)]
                if not wanted:
                    if row["transcription"]:
                        written.left_out.append((row["id"], "no segment with times and text"))
                    continue
                try:
                    with bring(row["id"], row["sha256"]):
                        for n, (segment, samples) in enumerate(_cut(mirror.path_for(row["id"]), wanted), 1):
                            clip = fresh / clip_name(row["id"], n)
                            clip.parent.mkdir(parents=True, exist_ok=True)
                            clip.write_bytes(encode_flac(samples))
                            seconds = len(samples) / SAMPLE_RATE_HZ
                            labels.write(_line(_label(row, segment, clip.relative_to(fresh), seconds)))
                            written.segments += 1
                            written.seconds += seconds
                except FileError as error:
                    written.left_out.append((row["id"], str(error)))
                    continue
                written.files += 1
    except OSError as error:
        raise _refused(target, error) from error
    return written


def clip_name(key: str, number: int) -> Path:
    """Where the segment ``number`` of a recording lies in the folder.

    Not the key: ``datasets`` takes ``test`` and ``dev`` in a path for splits, and ``*``, ``[`` and ``::`` for patterns
    and archives. ``metadata.jsonl`` has the key.
    """
    name = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return Path("data", name[:2], f"{name}-{number:05d}.flac")


def forget(home: settings.Home, keys: Collection[str]) -> None:
    """Remove what was made of these objects, and folders that become empty.

    Raises:
        BusyError: another process is writing subtitles or clips, of what is forgotten too perhaps.
        OSError: the disk refuses.
        StorageError: the labels are damaged.
    """
    for name in (*subtitles.FORMATS, AUDIOFOLDER):
        # One that was killed has left a folder beside its own, with whatever it had written.
        settle_directory(home.exports / name)
    for path in list(_files_of(home, keys)):
        path.unlink(missing_ok=True)
        for folder in path.parents:
            if folder.parent == home.exports or any(folder.iterdir()):
                break
            folder.rmdir()
    # The labels last: as long as they name an object, it is known that something of it was there.
    labels = list(_labels(home))
    kept = [line for line, key in labels if key not in keys]
    if len(kept) < len(labels):
        write_bytes(_labels_path(home), "".join(kept).encode())


def left_of(home: settings.Home, keys: Collection[str]) -> Path | None:
    """A file that has something of one of these objects; None when there is none.

    Raises:
        StorageError: the labels are damaged.
    """
    if any(key in keys for _, key in _labels(home)):
        return _labels_path(home)
    return next(_files_of(home, keys), None)


def keys_of(home: settings.Home) -> set[str]:
    """The objects of which there are subtitles, or labelled clips.

    Raises:
        StorageError: the labels are damaged.
    """
    found = {key for _, key in _labels(home)}
    for name in subtitles.FORMATS:
        mirror = _subtitles_of(home.exports / name, name, Mirror(home.audio).spelled_out)
        for path in mirror.root.rglob(f"*.{name}"):
            # A file of another name is nobody's subtitles.
            with suppress(ValueError):
                found.add(mirror.key_for(path).removesuffix(f".{name}"))
    return found


def forget_published(home: settings.Home, objects: Objects, keys: Collection[str]) -> None:
    """Remove what any machine has published of what was made of these objects.

    Raises:
        StorageError: the bucket refuses, or the labels there are damaged.
    """
    objects.delete(*_published(home, objects, keys))
    while (found := objects.get(_PUBLISHED_LABELS)) is not None:
        lines = _split(found[0])
        kept = [line for line, key in _read_labels(lines, f"{objects.shown}/{_PUBLISHED_LABELS}") if key not in keys]
        if len(kept) == len(lines) or objects.put(_PUBLISHED_LABELS, "".join(kept).encode(), replaces=found[1]):
            break


def published_of(home: settings.Home, objects: Objects, keys: Collection[str]) -> str | None:
    """A published object that has something of one of these objects; None when there is none.

    Raises:
        StorageError: the bucket refuses, or the labels there are damaged.
    """
    found = objects.get(_PUBLISHED_LABELS)
    if found is not None:
        labels = _read_labels(_split(found[0]), f"{objects.shown}/{_PUBLISHED_LABELS}")
        if any(key in keys for _, key in labels):
            return _PUBLISHED_LABELS
    return next(iter(_published(home, objects, keys)), None)


def _published(home: settings.Home, objects: Objects, keys: Collection[str]) -> list[str]:
    """The names of published subtitles and clips of these objects, however the publisher spelled them."""
    spellings = (Mirror(home.audio).spelled_out, frozenset[str]())
    names = {
        subtitle_path(home.exports / format, key, format, spelled_out).relative_to(home.root).as_posix()
        for key in keys
        for format in subtitles.FORMATS
        for spelled_out in spellings
    }
    clips = {clip_name(key, 1).name.partition("-")[0] for key in keys}
    folder = f"exports/{AUDIOFOLDER}/data/"
    return [
        name
        for name in objects.names("exports")
        if name in names or (name.startswith(folder) and name.rpartition("/")[2].partition("-")[0] in clips)
    ]


def _files_of(home: settings.Home, keys: Collection[str]) -> Iterator[Path]:
    """The subtitles and clips of these objects."""
    spelled_out = Mirror(home.audio).spelled_out
    for key in keys:
        for name in subtitles.FORMATS:
            path = subtitle_path(home.exports / name, key, name, spelled_out)
            if path.is_file():
                yield path
        first = home.exports / AUDIOFOLDER / clip_name(key, 1)
        yield from first.parent.glob(f"{first.name.partition('-')[0]}-*.flac")


def _labels_path(home: settings.Home) -> Path:
    return home.exports / AUDIOFOLDER / METADATA


def _labels(home: settings.Home) -> Iterator[tuple[str, str]]:
    """Each line of the labels, and the object that it is about."""
    path = _labels_path(home)
    if not path.is_file():
        return
    # A text may hold U+2028, U+2029 and U+0085, which end a line for `splitlines` and not in JSON Lines.
    with path.open(encoding="utf-8", newline="\n") as lines:
        yield from _read_labels(lines, str(path))


def _split(body: bytes) -> list[str]:
    return [line + "\n" for line in body.decode("utf-8", "replace").split("\n") if line]


def _read_labels(lines: Iterable[str], shown: str) -> Iterator[tuple[str, str]]:
    try:
        for line in lines:
            yield line, json.loads(line)["id"]
    except (ValueError, TypeError, KeyError):
        raise StorageError(
            f"{shown}: damaged; write it anew with `audio-assets audiofolder`, or delete the folder, then try again"
        ) from None


def check_prefixes(home: settings.Home, prefixes: Sequence[str]) -> None:
    """Refuse a prefix that no transcript has: what is made for it would hold nothing, and take the place of what is
    there.

    Raises:
        NoSuchPrefixError: there is none, whatever its status.
        StorageError: a partition file is damaged.
    """
    if not prefixes:
        return
    unused = {prefix: IntakeOptions(key_prefixes=(prefix,)).wants for prefix in prefixes}
    store = PartitionStore(home.record)
    there: set[str] = set()
    for file in store.partitions(schemas.TRANSCRIPTS):
        if file.partition is None:
            continue
        rows = store.read(schemas.TRANSCRIPTS, [file.partition], ["id", "prefix"])
        keys = rows.column("id").to_pylist()
        unused = {prefix: wants for prefix, wants in unused.items() if not any(map(wants, keys))}
        if not unused:
            return
        there.update(rows.column("prefix").to_pylist())
    shown = ", ".join(map(repr, sorted(there)[:8])) or "none"
    raise NoSuchPrefixError(
        f"--prefix {min(unused)!r}: no transcript lies there, and nothing was changed. Prefixes with transcripts: "
        f"{shown}"
    )


def _rows(home: settings.Home, prefixes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The finished transcripts, one partition at a time."""
    store = PartitionStore(home.record)
    wants = IntakeOptions(key_prefixes=tuple(prefixes)).wants
    for file in store.partitions(schemas.TRANSCRIPTS):
        if file.partition is None:
            continue
        for row in store.read(schemas.TRANSCRIPTS, [file.partition], _COLUMNS).to_pylist():
            if row["status"] == "ok" and wants(row["id"]):
                yield row


def _trains(segment: dict[str, Any], include_flagged: bool) -> bool:
    start, end = segment["start_s"], segment["end_s"]
    if not (segment["text"] or "").strip() or start is None or end is None or not math.isfinite(end - start):
        return False
    return MIN_SEGMENT_S <= end - start <= MAX_SEGMENT_S and (include_flagged or not segment["flags"])


def _cut(path: Path, segments: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Any]]:
    """Each segment with its samples, as the file is decoded: hours of audio are never in memory at once.

    Raises:
        InvalidAudio: the recording is not there, or cannot be decoded.
    """
    import numpy as np

    if not path.is_file():
        raise InvalidAudio("not in the mirror; run `audio-assets run` to fetch it")
    waiting = sorted(segments, key=lambda s: s["end_s"])
    held, first = np.empty(0, np.float32), 0
    with AudioStream(path) as stream:
        for block in stream.blocks():
            held = np.concatenate((held, block))
            while waiting and round(waiting[0]["end_s"] * SAMPLE_RATE_HZ) <= first + len(held):
                yield waiting[0], _slice(held, first, waiting.pop(0))
            keep = min((round(s["start_s"] * SAMPLE_RATE_HZ) for s in waiting), default=first + len(held))
            drop = min(max(0, keep - first), len(held))
            held, first = held[drop:], first + drop
    for segment in waiting:
        # An engine's last time may lie a little behind the end.
        samples = _slice(held, first, segment)
        if len(samples) >= MIN_SEGMENT_S * SAMPLE_RATE_HZ:
            yield segment, samples


def _slice(held: Any, first: int, segment: dict[str, Any]) -> Any:
    begin, end = (round(segment[name] * SAMPLE_RATE_HZ) - first for name in ("start_s", "end_s"))
    return held[max(0, begin) : max(0, end)]


def _label(row: dict[str, Any], segment: dict[str, Any], clip: Path, seconds: float) -> dict[str, object]:
    return {
        "file_name": clip.as_posix(),
        "transcription": segment["text"].strip(),
        "language": row["language"],
        "id": row["id"],
        "prefix": row["prefix"],
        "start_s": round(segment["start_s"], 3),
        "end_s": round(segment["end_s"], 3),
        "duration_s": round(seconds, 3),
        "avg_logprob": segment["avg_logprob"],
    }


def _line(label: dict[str, object]) -> str:
    return json.dumps(label, ensure_ascii=False) + "\n"


def _refused(target: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{target} cannot be written ({error.strerror or error}); what was there before is untouched. Free some space "
        "or correct the permissions, then try again"
    )
