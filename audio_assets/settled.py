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
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

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

_LISTED_AT_ONCE = 8
_AHEAD = 16
"""Prefixes that are looked at while an earlier one is being run."""
_LOOK_AGAIN_S = 60.0
"""How old a look may be when the prefix's turn comes: the run of an earlier one may have taken hours."""


class Runs(Protocol):
    """A Dagster instance, as far as it is needed here."""

    def has_run(self, run_id: str) -> bool:
        """Whether it knows a run."""
        ...


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
        runs: the Dagster instance; a note is void in one that does not know its run.
        tables: names of the tables that are to be up to date.
        options: which objects a run would take in.
    """

    def __init__(
        self, home: HomeResource, r2: R2Resource, runs: Runs, tables: Sequence[str], options: IntakeOptions
    ) -> None:
        self._home, self._r2, self._runs = home, r2, runs
        self._tables = [schemas.TABLES[name] for name in tables]
        self._options = options
        self._paths = home.paths()
        self._store = PartitionStore(self._paths.record)

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

        def look(partition: str, _: object) -> tuple[str, Unchanged | None]:
            return partition, self._look(partition, client)

        with Workers(look, _LISTED_AT_ONCE) as workers:
            looks = workers.each(partitions, _AHEAD)

            def settled(partition: str) -> Unchanged | None:
                while partition not in known:
                    known.update([next(looks)])
                found = known.pop(partition)
                if found is not None and time.monotonic() - found.at_s > _LOOK_AGAIN_S:
                    found = self._look(partition, client)
                # Whoever has deleted Dagster's history wants it anew.
                noted = self._noted(partition)
                return found if noted is not None and self._runs.has_run(noted["run"]) else None

            yield settled

    def note(self, partition: str, run_id: str) -> None:
        """This run of the prefix found everything in the cache: note what it was made with.

        No note is written where the next run has something to do, or where the disk refuses.
        """
        self.forget(partition)
        rows = self._store.read(schemas.TRANSCRIPTS, [partition], ["status"]).column("status").to_pylist()
        if not set(rows).isdisjoint(schemas.UNFINISHED):
            return
        noted = {"made_with": self._made_with, "run": run_id, "files": self._files(partition)}
        with suppress(OSError):
            atomic.write_bytes(self._path(partition), json.dumps(noted).encode())

    def forget(self, partition: str) -> None:
        """There is something to do for the prefix."""
        with suppress(OSError):
            self._path(partition).unlink(missing_ok=True)

    @cached_property
    def _made_with(self) -> str:
        return _made_with(self._options)

    def _noted(self, partition: str) -> dict[str, Any] | None:
        """The note of a partition, unless something has changed of what its tables are made with."""
        try:
            noted: dict[str, Any] = json.loads(self._path(partition).read_bytes())
            sound = isinstance(noted["files"], dict) and isinstance(noted["run"], str)
            return noted if sound and noted["made_with"] == self._made_with else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _look(self, partition: str, client: Any) -> Unchanged | None:
        noted, prefix = self._noted(partition), prefix_for(partition)
        if noted is None:
            return None
        try:
            files = self._files(partition)
            if None in files.values() or any(noted["files"].get(name) != file for name, file in files.items()):
                return None
            # Requests that a killed run has paid for, or journals that the next run clears away.
            if any(journal_directory(self._paths.ledger, prefix).glob("*.jsonl")):
                return None
            stored = self._store.read(schemas.RAW_AUDIO, [partition])
            found = survey(
                client, self._r2.bucket_name(), prefix, self._home.depth(), self._home.mirror(), stored, self._options
            )
        except (AudioAssetsError, OSError):
            # The run itself meets it, and says so.
            return None
        ids, statuses, errors = (stored.column(name).to_pylist() for name in ("id", "status", "error"))
        gone = {id for id, status in zip(ids, statuses, strict=True) if status == "gone"}
        if not found.vanished <= gone or found.replaced:
            return None
        said = dict(zip(ids, errors, strict=True))
        for each in found.todo:
            # What is not fetched is asked about each time; its row says why.
            refusal = self._options.selection.refusal(each)
            if refusal is None or said.get(each.key) != refusal[1]:
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


def _made_with(options: IntakeOptions) -> str:
    """Everything but the objects that tables are made of, as one SHA-256."""
    found = settings.load()
    # A key or a secret changes no row.
    told = {name: None if isinstance(value, SecretStr) else value for name, value in found.model_dump().items()}
    parts = {
        "settings": told,
        "whisper": WhisperResource().identity(),
        "bpe_file": _stamp(found.audio_assets_bpe_file),
        "most_bytes": options.selection.max_object_bytes,
        "code": _code(),
        "libraries": _libraries(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _stamp(path: str | None) -> list[int] | None:
    try:
        status = Path(path).expanduser().stat() if path else None
    except OSError:
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
