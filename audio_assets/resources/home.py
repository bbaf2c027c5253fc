"""Where everything is kept, as a Dagster resource."""

import errno
import os
import re
from pathlib import Path

from dagster import ConfigurableResource, InitResourceContext
from filelock import FileLock, Timeout
from pydantic import Field

from audio_assets import settings
from audio_assets.errors import BusyError, SettingsError, machine_trouble
from audio_assets.ingest.disk_budget import DiskBudget, index_path
from audio_assets.ingest.mirror import Mirror
from audio_assets.ingest.selection import Selection
from audio_assets.resources.run_config import refuse_in_run_config
from audio_assets.resources.travelling import Travelling
from audio_assets.speech.cache import TranscriptCache
from audio_assets.speech.ledger import journal_directory
from audio_assets.speech.shared_cache import SharedTranscriptCache
from audio_assets.speech.shared_cap import BucketCap, SharedCap
from audio_assets.storage import atomic, published
from audio_assets.storage.objects import Objects

_shared: dict[str, Objects] = {}
_caches: dict[str, SharedTranscriptCache] = {}
"""One for each home in a bucket: a cache renews its claims for as long as the process lives."""


_CLAIMING_S = 30.0

_BUCKET_NAME = re.compile(r"[A-Za-z0-9._-]{1,255}")

_COPY = ".copy.jsonl"
"""Ending of a journal that another machine wrote: it is never brought back to the bucket."""

_PUSHED = ".pushed"
"""Ending of the note beside a journal of this machine: how many of its bytes are, or were, in the bucket."""


class HomeResource(Travelling, ConfigurableResource):  # type: ignore[type-arg]
    """The directories under ``AUDIO_ASSETS_HOME`` and how keys are grouped into partitions."""

    root: str | None = Field(
        default=None,
        description="Directory, or URL of a bucket's folder; by default AUDIO_ASSETS_HOME, else ./data.",
    )
    prefix_depth: int | None = Field(
        default=None,
        ge=0,
        description="Folders of a key that make its partition; by default AUDIO_ASSETS_PREFIX_DEPTH, else 1.",
    )

    max_disk: int | None = Field(
        default=None,
        ge=0,
        description="Bytes that the mirror may hold; by default AUDIO_ASSETS_MAX_DISK, else no limit.",
    )

    def setup_for_execution(self, context: InitResourceContext) -> None:
        """Refuse a run that would send what is stored elsewhere.

        Raises:
            SettingsError: the run's configuration says where that is.
        """
        refuse_in_run_config(context, {"root": "AUDIO_ASSETS_HOME"}, type(self))

    def paths(self) -> settings.Home:
        """The directories, absolute."""
        return settings.home_at(self.root) if self.root else settings.home()

    def objects(self) -> Objects | None:
        """What all machines share, where the home is in a bucket."""
        shared = self.paths().shared
        if shared is None:
            return None
        if shared not in _shared:
            _shared[shared] = Objects(shared)
        return _shared[shared]

    def depth(self) -> int:
        """Folders of a key that make its partition."""
        return settings.load().audio_assets_prefix_depth if self.prefix_depth is None else self.prefix_depth

    def selection(
        self,
        include: list[str] | None = None,
        exclude: list[str] | None = None,
        max_object_bytes: int | None = None,
    ) -> Selection:
        """Which objects count: as asked for, and by default as the environment says.

        Raises:
            SettingsError: a variable of the environment is set to something it cannot be.
        """
        found = settings.load()
        return Selection(
            tuple(settings.listed(found.audio_assets_include) if include is None else include),
            tuple(settings.listed(found.audio_assets_exclude) if exclude is None else exclude),
            found.audio_assets_max_bytes if max_object_bytes is None else max_object_bytes,
        )

    def refuse_other(self, bucket: str) -> None:
        """Refuse to work for ``bucket`` with the corpus of another one; nothing is written.

        Raises:
            SettingsError: the home holds another bucket's corpus, or cannot be read.
        """
        paths, objects = self.paths(), self.objects()
        if objects is not None:
            found = objects.get("bucket")
            holds = found[0].decode("utf-8", "replace") if found else None
        else:
            try:
                holds = _noted(paths.bucket)
            except OSError as error:
                raise SettingsError(
                    f"AUDIO_ASSETS_HOME {paths.root} cannot be read ({error.strerror}); set it to a directory of yours"
                ) from None
        if holds and holds != bucket:
            raise self._held(holds, bucket)

    def _held(self, holds: str, bucket: str) -> SettingsError:
        objects = self.objects()
        if not _BUCKET_NAME.fullmatch(holds):
            note = str(self.paths().bucket) if objects is None else f"{objects.shown}/bucket"
            return SettingsError(
                f"{note}: damaged, and AUDIO_ASSETS_HOME does not say whose corpus it holds; if it is that of "
                f"{bucket!r}, remove the file, then run again"
            )
        shown, kind = (self.paths().root, "directory") if objects is None else (objects.shown, "folder")
        return SettingsError(
            f"AUDIO_ASSETS_HOME {shown} holds the corpus of the bucket {holds!r}, and R2_BUCKET is {bucket!r}; set "
            f"AUDIO_ASSETS_HOME to another {kind}, one for each bucket"
        )

    def claim(self, bucket: str) -> None:
        """Note that this home holds ``bucket``'s corpus.

        Two buckets in one home would mark each other's objects as gone and end in each other's exports.

        Raises:
            SettingsError: the home holds another bucket's corpus, or cannot be written.
            BusyError: another process is about to note its bucket, and does not come to an end.
            StorageError: the disk is full or broken.
        """
        paths, objects = self.paths(), self.objects()
        if objects is not None:
            if objects.put("bucket", bucket.encode(), is_new=True) is None:
                found = objects.get("bucket")
                holds = found[0].decode("utf-8", "replace") if found else bucket
                if holds != bucket:
                    raise self._held(holds, bucket)
            paths.root.mkdir(parents=True, exist_ok=True)
            paths.bucket.write_text(bucket, encoding="utf-8")
            return
        try:
            holds = _noted(paths.bucket) or ""
            if not holds:
                paths.locks.mkdir(parents=True, exist_ok=True)
                with FileLock(paths.locks / "bucket.lock", timeout=_CLAIMING_S):
                    # Of two first runs one has noted its bucket meanwhile. An empty note is of one that was killed.
                    holds = _noted(paths.bucket) or bucket
                    atomic.write_bytes(paths.bucket, holds.encode())
            if holds != bucket:
                raise self._held(holds, bucket)
        except Timeout:
            raise BusyError(f"{paths.bucket} is being written by another process; run again when it is done") from None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE):
                # The directory is the right one.
                raise machine_trouble(error) or error from None
            raise SettingsError(
                f"AUDIO_ASSETS_HOME {paths.root} cannot be written ({error.strerror}); set it to a directory of yours"
            ) from None

    def mirror(self) -> Mirror:
        """The local copy of the bucket's tree."""
        return Mirror(self.paths().audio)

    def budget(self) -> DiskBudget | None:
        """What keeps the mirror within its limit; None when there is none, and never was.

        Raises:
            SettingsError: AUDIO_ASSETS_MAX_DISK is not a size.
        """
        limit = settings.max_disk_bytes() if self.max_disk is None else self.max_disk
        mirror = self.mirror()
        return None if limit is None and not index_path(mirror.root).exists() else DiskBudget(mirror, limit)

    def cache(self) -> TranscriptCache:
        """Stored transcription results."""
        objects = self.objects()
        if objects is None:
            return TranscriptCache(self.paths().cache)
        return _caches.setdefault(objects.shown, SharedTranscriptCache(objects))

    def cap(self, name: str, run: str) -> SharedCap:
        """The part of ``run`` in the account ``name`` that several runs have in common."""
        path, objects = self.paths().ledger / "caps" / f"{name}.json", self.objects()
        return SharedCap(path, run) if objects is None else BucketCap(objects, f"ledger/caps/{path.name}", run)

    def unsettle(self) -> None:
        """Have the next run visit every prefix: what several of them share has changed."""
        for note in self.paths().settled.glob("*.json"):
            note.unlink(missing_ok=True)

    def push_ledger(self, prefix: str) -> None:
        """Bring the journals of a prefix that this machine wrote to where all machines share them, each once."""
        objects, directory = self.objects(), journal_directory(self.paths().ledger, prefix)
        if objects is None:
            return
        own = [path for path in directory.glob("*.jsonl") if not path.name.endswith(_COPY)]
        new = {path: body for path in own if len(body := path.read_bytes()) != _pushed(path)}
        if not new:
            return
        folder = f"ledger/{directory.name}"
        there = {name: size for name, size, _ in objects.listed(folder)}
        for path, body in new.items():
            # Lines are only ever added: a longer one has all of this one's.
            if there.get(f"{folder}/{path.name}", -1) < len(body):
                objects.put(f"{folder}/{path.name}", body)
            atomic.write_bytes(path.with_suffix(_PUSHED), str(len(body)).encode())

    def pull_ledger(self, prefix: str) -> None:
        """Bring the journals of a prefix that other machines wrote to this one, as they are now."""
        objects, directory = self.objects(), journal_directory(self.paths().ledger, prefix)
        if objects is None:
            return
        for name, size, written_at in objects.listed(f"ledger/{directory.name}"):
            own = directory / name.rpartition("/")[2]
            copy = own.with_suffix(_COPY)
            if own.exists() or (copy.exists() and copy.stat().st_size >= size):
                continue
            found = objects.get(name)
            if found is not None:
                copy.parent.mkdir(parents=True, exist_ok=True)
                atomic.write_bytes(copy, found[0])
                # What is finished is told by its age.
                os.utime(copy, (written_at, written_at))

    def drop_journal(self, path: Path) -> None:
        """Remove a journal that is on record from where all machines share it."""
        objects = self.objects()
        if objects is not None:
            objects.delete(f"ledger/{path.parent.name}/{path.name.partition('.')[0]}.jsonl")
            path.with_suffix(_PUSHED).unlink(missing_ok=True)

    def publish(self, path: Path, number: int | None = None) -> str | None:
        """Bring a file or a directory of this machine's copies to where all share it; its URL, None when none is.

        Of those who publish with a ``number`` (`PartitionedDuckDBIOManager.fence`) the greatest one's files stand.

        Raises:
            SupersededError: somebody with a greater number has published there.
        """
        objects, root = self.objects(), self.paths().root
        if objects is None:
            return None
        folder = path.relative_to(root).as_posix()
        for file in sorted(p for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file()):
            if number is not None:
                # Before each: a machine can sleep at any time.
                published.claim(objects, folder, number)
            objects.upload(file, file.relative_to(root).as_posix())
        return f"{objects.shown}/{folder}"


def _pushed(journal: Path) -> int:
    """How much of a journal was brought to the bucket; -1 for nothing."""
    told = _noted(journal.with_suffix(_PUSHED)) or ""
    return int(told) if told.isdecimal() else -1


def _noted(path: Path) -> str | None:
    """What a small file says; None when there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
