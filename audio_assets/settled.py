"""Prefixes for which a run has nothing to do, so that a run over thousands of them costs what has changed.

After a run of a prefix that found everything in the cache and left nothing unfinished, a note says what its tables
were made with, and which files they are. A prefix is settled as long as all of that stays as it is: the partition
files, the settings, the model, this package and the libraries it stands on, and the objects as they are listed now.
Whatever cannot be told means that it is not settled, and the run does all of it.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from audio_assets import schemas, settings
from audio_assets.errors import AudioAssetsError
from audio_assets.ingest.intake import IntakeOptions, survey
from audio_assets.ingest.workers import Workers
from audio_assets.partitions import prefix_for
from audio_assets.resources.home import HomeResource
from audio_assets.resources.r2 import R2Resource
from audio_assets.resources.whisper import WhisperResource
from audio_assets.speech.ledger import journal_directory
from audio_assets.storage import atomic
from audio_assets.storage.partition_files import PartitionStore

_LISTED_AT_ONCE = 4
_AHEAD = 16
"""Prefixes that are looked at while an earlier one is being run."""
_LARGE_BYTES = 4 << 20
"""A table of objects that is larger is compared while no other such table is."""
_LASTS_S = 30 * 24 * 3600.0
"""Checks that go by the date are made anew at least so often."""
_LOOK_AGAIN_S = 60.0
"""How old a look may be when the prefix's turn comes: the run of an earlier one may have taken hours."""


_COMPARED = ["id", "etag", "size_bytes", "last_modified", "sha256", "probe", "status", "error"]


@dataclass(frozen=True)
class Unchanged:
    """A settled prefix, and when that was found; ``passed_over`` counts its objects that are not fetched, by kind."""

    passed_over: Counter[str]
    at_s: float = field(default_factory=time.monotonic)


class Settled:
    """The notes of one home, and what they say now.

    Args:
        home: where tables and notes lie; the notes of a home in a bucket are this machine's own.
        r2: the bucket.
        made_by: tells which run has made the transcripts of a partition last; a note of another is void.
        tables: names of the tables that are to be up to date.
        options: which objects a run would take in.
    """

    def __init__(
        self,
        home: HomeResource,
        r2: R2Resource,
        made_by: Callable[[str], str | None],
        tables: Sequence[str],
        options: IntakeOptions,
    ) -> None:
        self._home, self._r2, self._made_by = home, r2, made_by
        self._tables = [schemas.TABLES[name] for name in tables]
        self._options = options
        self._paths = home.paths()
        self._store = PartitionStore(self._paths.record)
        # Now: what is installed or set while this process runs is not what it works with.
        self._made_with = _made_with(options)
        self._large = threading.Lock()

    @contextmanager
    def among(self, partitions: Sequence[str]) -> Iterator[Callable[[str], Unchanged | None]]:
        """Tells of each of ``partitions`` whether it is settled; to be asked in their order.

        A few are looked at ahead of who asks.
        """
        with suppress(OSError):
            atomic.remove_stale_temps(self._paths.settled)
        if not any(map(self._noted, partitions)):
            yield lambda partition: None
            return
        client = self._r2.get_client()
        known: dict[str, Unchanged | None] = {}
        # A permit for each that is looked at or waits for its turn.
        permits = threading.Semaphore(_AHEAD)

        def in_turn() -> Iterator[str]:
            for partition in partitions:
                permits.acquire()
                yield partition

        def look(partition: str, _: object) -> tuple[str, Unchanged | None]:
            return partition, self._look(partition, client)

        try:
            with Workers(look, _LISTED_AT_ONCE) as workers:
                looks = workers.each(in_turn(), _AHEAD)

                def settled(partition: str) -> Unchanged | None:
                    while partition not in known:
                        known.update([next(looks)])
                    found = known.pop(partition)
                    permits.release()
                    if found is not None and time.monotonic() - found.at_s > _LOOK_AGAIN_S:
                        found = self._look(partition, client)
                    noted = self._noted(partition)
                    # Whoever has wiped Dagster's history of it wants it anew.
                    return found if noted is not None and self._made_by(partition) == noted["run"] else None

                yield settled
        finally:
            # Whoever waits for a turn finds that it is over.
            permits.release(len(partitions))

    def note(self, partition: str, run_id: str, written: Mapping[str, str]) -> None:
        """This run of the prefix found everything in the cache: note what its tables were made with.

        No note is written where the next run has something to do, where another run has written one of the tables
        meanwhile, or where the disk refuses.

        Args:
            partition: its key.
            run_id: the run.
            written: the `PartitionFile.identity` of each table as this run has left it.
        """
        self.forget(partition)
        rows = self._store.read(schemas.TRANSCRIPTS, [partition], ["status"]).column("status").to_pylist()
        if not set(rows).isdisjoint(schemas.UNFINISHED):
            return
        if self._files(partition) != written or self._made_with is None or _made_with(self._options) != self._made_with:
            return
        noted = {"made_with": self._made_with, "run": run_id, "at": time.time(), "files": dict(written)}
        with suppress(OSError):
            atomic.write_bytes(self._path(partition), json.dumps(noted).encode())

    def forget(self, partition: str) -> None:
        """Remove the note of a partition."""
        with suppress(OSError):
            self._path(partition).unlink(missing_ok=True)

    def _noted(self, partition: str) -> dict[str, Any] | None:
        """The note of a partition, unless something has changed of what its tables are made with."""
        try:
            noted: dict[str, Any] = json.loads(self._path(partition).read_bytes())
            sound = isinstance(noted["files"], dict) and isinstance(noted["run"], str)
            current = noted["made_with"] == self._made_with and 0 <= time.time() - noted["at"] < _LASTS_S
            return noted if sound and current else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _look(self, partition: str, client: Any) -> Unchanged | None:
        noted, prefix = self._noted(partition), prefix_for(partition)
        if noted is None:
            return None
        try:
            if any(file is None or noted["files"].get(name) != file for name, file in self._files(partition).items()):
                return None
            # Requests that a killed run has paid for, or journals that the next run clears away.
            if any(journal_directory(self._paths.ledger, prefix).glob("*.jsonl")):
                return None
            size = self._store.find(schemas.RAW_AUDIO, partition)
            # Hundreds of thousands of objects take hundreds of megabytes to compare.
            with self._large if size is not None and size.size_bytes > _LARGE_BYTES else nullcontext():
                return self._compare(partition, prefix, client)
        except (AudioAssetsError, OSError):
            # The run itself meets it, and says so.
            return None

    def _compare(self, partition: str, prefix: str, client: Any) -> Unchanged | None:
        """Compare the listing with the rows, and with the files in the mirror."""
        stored = self._store.read(schemas.RAW_AUDIO, [partition], _COMPARED)
        found = survey(
            client, self._r2.bucket_name(), prefix, self._home.depth(), self._home.mirror(), stored, self._options
        )
        ids, statuses, errors = (stored.column(name).to_pylist() for name in ("id", "status", "error"))
        gone = {id for id, status in zip(ids, statuses, strict=True) if status == "gone"}
        if not found.vanished <= gone or found.replaced:
            return None
        said = {id: row for id, *row in zip(ids, stored.column("etag").to_pylist(), errors, strict=True)}
        for each in found.todo:
            # What is not fetched is asked about each time; its row says why.
            refusal = self._options.selection.refusal(each)
            if refusal is None or said.get(each.key) != [each.etag, refusal[1]]:
                return None
        return Unchanged(found.passed_over)

    def _files(self, partition: str) -> dict[str, str | None]:
        """Which file each table of the partition is."""
        found = {table.name: self._store.find(table, partition) for table in self._tables}
        return {name: None if file is None else file.identity for name, file in found.items()}

    def _path(self, partition: str) -> Path:
        # A partition key can be longer than a file name may be.
        name = hashlib.sha256(partition.encode("utf-8", "surrogatepass")).hexdigest()
        return self._paths.settled / f"{name}.json"


def _made_with(options: IntakeOptions) -> str | None:
    """Everything but the objects that tables are made of, as one SHA-256; None where it cannot be read."""
    found = settings.load()
    # A key or a secret changes no row.
    told = {name: None if isinstance(value, SecretStr) else value for name, value in found.model_dump().items()}
    told.pop("r2_access_key_id")
    model = found.audio_assets_entity_model
    try:
        parts = {
            "settings": told,
            "whisper": WhisperResource().identity(),
            "bpe_file": _stamp(found.audio_assets_bpe_file),
            "entity_model": _stamp(model and f"{model}/meta.json"),
            "most_bytes": options.selection.max_object_bytes,
            "code": _code(),
            "libraries": _libraries(),
        }
    except OSError:
        return None
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _stamp(path: str | None) -> list[int] | None:
    try:
        status = Path(path).expanduser().stat() if path else None
    except (OSError, RuntimeError):
        # No such file, or no such user.
        return None
    return None if status is None else [status.st_size, status.st_mtime_ns]


def _code() -> str:
    """SHA-256 of this package: an upgrade makes every table anew."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def _libraries() -> list[str]:
    """Names and versions of what is installed, as the folders say that pip leaves."""
    return sorted({path.name for folder in sys.path for path in Path(folder).glob("*.dist-info")})
