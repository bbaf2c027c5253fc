"""Forgetting objects that vanished from the bucket: their rows, cache entries, mirror copies and exports.

Everything is kept until it is asked for: a row whose object vanished is ``gone``, with its last transcript. The order
of the steps makes a killed run harmless: copies and cache entries go first, while the rows still say what to forget;
what is made of the rows is rebuilt last, and a file says until then that it has to be. The same command, run again,
finishes the work.

What stays: the transcription ledger, which is the book of what was paid (names and prices, no text), and Dagster's own
history of earlier runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from audio_assets import derived, schemas
from audio_assets.errors import StorageError
from audio_assets.partitions import PARTITIONS_NAME
from audio_assets.resources.home import HomeResource
from audio_assets.storage import exports
from audio_assets.storage.atomic import crash_point
from audio_assets.storage.partition_files import PartitionStore
from audio_assets.storage.warehouse import Warehouse

if TYPE_CHECKING:
    import dagster as dg

_PURGED = (
    schemas.RAW_AUDIO,
    schemas.TRANSCRIPTS,
    schemas.TOKENS,
    schemas.TRANSCRIPT_QUALITY,
    schemas.PREFIX_SUMMARY,
    schemas.TOKEN_FREQUENCY,
    schemas.PREFIX_STATISTICS,
    schemas.PREFIX_DRIFT,
)
"""Tables of a partition that go with its last row."""

_ROWS_BY_ID = (schemas.RAW_AUDIO, schemas.TRANSCRIPTS, schemas.TOKENS, schemas.TRANSCRIPT_QUALITY)


@dataclass(frozen=True)
class Forgotten:
    """What was removed of one object. ``kept_for`` names another object with the same bytes, which keeps the cache."""

    id: str
    partition: str
    mirror_copy: bool
    cache_entries: int
    kept_for: str | None

    @property
    def line(self) -> str:
        """One line for a terminal."""
        cache = f"cache kept for {self.kept_for}" if self.kept_for else f"{self.cache_entries} cache entries"
        return f"forgotten: {self.id} ({'mirror copy' if self.mirror_copy else 'no mirror copy'}, {cache})"


@dataclass
class Forgetting:
    """The vanished objects of some partitions, as they are forgotten. ``retired`` partitions had no other rows."""

    store: PartitionStore
    home: HomeResource
    vanished: dict[str, list[str]] = field(default_factory=dict)
    forgotten: list[Forgotten] = field(default_factory=list)
    retired: list[str] = field(default_factory=list)

    @staticmethod
    def of(
        store: PartitionStore, home: HomeResource, chosen: Sequence[tuple[str, Callable[[str], bool]]]
    ) -> Forgetting:
        """What there is to forget in the ``chosen`` partitions, each with a test of which keys are meant.

        Raises:
            StorageError: a table cannot be read.
        """
        vanished = {}
        for partition, wants in chosen:
            rows = store.read(schemas.RAW_AUDIO, [partition], ["id", "status"])
            gone = rows.filter(pc.equal(rows.column("status"), "gone")).column("id").to_pylist()
            if wanted := [key for key in gone if wants(key)]:
                vanished[partition] = wanted
        return Forgetting(store, home, vanished)

    @property
    def unfinished(self) -> bool:
        """Whether something was removed, by this process or one that was killed, and `finish` did not follow."""
        return self._mark.exists()

    @property
    def _mark(self) -> Path:
        return self.home.paths().root / "forgetting"

    def purge(self, partition: str, instance: dg.DagsterInstance) -> bool:
        """Remove copies, cache entries and the rows of `raw_audio`; whether the partition still has rows.

        Without rows it is retired: its tables go, and Dagster no longer has it. With rows, what is made of `raw_audio`
        is to be materialized anew.

        Raises:
            StorageError: the disk or the bucket refused; run it again.
        """
        import dagster as dg

        vanished = set(self.vanished[partition])
        contents = self._contents(partition, vanished)
        owners = self._owners()
        mirror, cache = self.home.mirror(), self.home.cache()
        try:
            self._mark.touch()
            for key in sorted(vanished):
                hashes = contents.get(key, set())
                shared = [owners[sha] for sha in sorted(hashes) if sha in owners]
                entries = sum(cache.drop(sha) for sha in hashes if sha not in owners)
                copied = mirror.remove(key)
                self.forgotten.append(Forgotten(key, partition, copied, entries, shared[0] if shared else None))
        except OSError as error:
            raise StorageError(
                f"{error.filename}: cannot be removed ({error.strerror}); correct its permissions, then run "
                "`audio-assets run --forget-gone` again"
            ) from error
        crash_point("forget:copies-removed")
        rows = self.store.read(schemas.RAW_AUDIO, [partition])
        left = rows.filter(pc.invert(pc.is_in(rows.column("id"), value_set=pa.array(sorted(vanished)))))
        if left.num_rows:
            self.store.write(schemas.RAW_AUDIO, left, partition)
            metadata = {"forgotten": len(vanished), "dagster/partition_row_count": left.num_rows}
            crash_point("forget:rows-removed")
            instance.report_runless_asset_event(
                dg.AssetMaterialization(schemas.RAW_AUDIO.name, partition=partition, metadata=metadata)
            )
            return True
        instance.delete_dynamic_partition(PARTITIONS_NAME, partition)
        # `raw_audio` last: while it is there, the next run comes here again.
        for table in reversed(_PURGED):
            self.store.delete(table, partition)
        self.retired.append(partition)
        return False

    def finish(self, warehouse: Warehouse) -> None:
        """Rebuild the warehouse and every export that is there, and make sure that nothing is left.

        Raises:
            StorageError: something of a forgotten object is still there; the message names it.
            BusyError: another process is loading the warehouse.
        """
        directory = self.home.paths().exports
        for entry in exports.read_manifest(directory).get("files", []):
            if entry.get("record") == self._record(entry):
                continue
            exports.export_corpus(
                self.store,
                directory,
                [entry["format"]],
                all_columns=list(entry["columns"]) != list(exports.DEFAULT_COLUMNS),
                prefixes=entry.get("prefixes"),
                include_partial=bool(entry.get("include_partial")),
                min_grade=entry.get("min_grade"),
            )
        derived.forget(self.home.paths(), [item.id for item in self.forgotten])
        # Rows that are deleted stay in a database's free pages: only a new file holds nothing of them.
        warehouse.rebuild()
        self._prove(warehouse)
        self._mark.unlink()

    def _record(self, entry: Mapping[str, object]) -> str:
        prefixes = entry.get("prefixes")
        columns = entry.get("columns")
        return exports.record_digest(
            self.store,
            prefixes if isinstance(prefixes, list) else None,
            all_columns=columns != list(exports.DEFAULT_COLUMNS),
            graded=bool(entry.get("min_grade")),
        )

    def _contents(self, partition: str, ids: set[str]) -> dict[str, set[str]]:
        """SHA-256 of everything that these objects ever held, as far as it is on record."""
        found: defaultdict[str, set[str]] = defaultdict(set)
        for table in (schemas.RAW_AUDIO, schemas.TRANSCRIPTS, schemas.TRANSCRIPTION_LEDGER):
            for row in self.store.read(table, [partition], ["id", "sha256"]).to_pylist():
                if row["id"] in ids and row["sha256"]:
                    found[row["id"]].add(row["sha256"])
        return found

    def _owners(self) -> dict[str, str]:
        """An object for each content that somebody else still has, by SHA-256."""
        ids = {key for keys in self.vanished.values() for key in keys}
        owners: dict[str, str] = {}
        for table in (schemas.RAW_AUDIO, schemas.TRANSCRIPTS):
            rows = self.store.read(table, columns=["id", "sha256"])
            for key, sha in zip(rows.column("id").to_pylist(), rows.column("sha256").to_pylist(), strict=True):
                if sha and key not in ids:
                    owners.setdefault(sha, key)
        return owners

    def _prove(self, warehouse: Warehouse) -> None:
        ids = [item.id for item in self.forgotten]
        mirror = self.home.mirror()
        for key in ids:
            if mirror.path_for(key).exists():
                raise StorageError(f"{mirror.path_for(key)}: still there; run `audio-assets run --forget-gone` again")
        with warehouse.connect(refresh=False) as connection:
            for table in _ROWS_BY_ID:
                query = f"SELECT id FROM {table.name} WHERE id IN (SELECT unnest(?))"  # noqa: S608 - name of schemas.py
                left = connection.execute(query, [ids]).fetchall()
                if left:
                    raise StorageError(
                        f"{warehouse.path}: table {table.name} still has {left[0][0]!r}; run `audio-assets run "
                        "--forget-gone` again"
                    )
