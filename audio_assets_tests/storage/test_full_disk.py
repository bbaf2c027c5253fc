"""A disk without space: a clear error, and what was there before stays."""

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from audio_assets import schemas
from audio_assets.errors import StorageError
from audio_assets.storage import warehouse as module
from audio_assets.storage.exports import FORMATS, export_corpus
from audio_assets.storage.partition_files import PartitionStore
from audio_assets.storage.warehouse import Warehouse

from .rows import temporary_files, transcripts


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """3 MB and no more."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(mount)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    yield mount
    # DuckDB keeps its engine for the next load, but no file open.
    module._engines.clear()
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


def noise(megabytes: float) -> dict[str, str | None]:
    """Texts that no compression makes smaller."""
    source = random.Random(0)
    return {f"{n:04}": source.randbytes(5_000).hex() for n in range(int(megabytes * 200))}


def test_a_partition_that_does_not_fit_leaves_the_old_one(disk: Path) -> None:
    store = PartitionStore(disk / "tables")
    old = transcripts("a/", {"a/1": "old"})
    store.write(schemas.TRANSCRIPTS, old, "a")
    with pytest.raises(StorageError, match=r"a\.parquet: cannot be written: No space left.*untouched.*space"):
        store.write(schemas.TRANSCRIPTS, transcripts("a/", noise(5)), "a")
    assert store.read(schemas.TRANSCRIPTS).equals(old)
    assert temporary_files(disk) == []


def test_a_load_that_does_not_fit_is_put_off_and_the_record_is_safe(disk: Path, tmp_path: Path) -> None:
    store = PartitionStore(tmp_path / "tables")
    warehouse = Warehouse(disk / "warehouse.duckdb", store)
    store.write(schemas.TRANSCRIPTS, transcripts("a/", {"a/1": "old"}), "a")
    warehouse.refresh()
    store.write(schemas.TRANSCRIPTS, transcripts("b/", noise(8)), "b")
    refresh = warehouse.refresh()
    assert refresh.deferred is not None
    with warehouse.connect(refresh=False) as connection:
        assert connection.execute("SELECT id, transcription FROM transcripts").fetchall() == [("a/1", "old")]
    store.write(schemas.TRANSCRIPTS, transcripts("b/", {"b/1": "fits"}), "b")
    assert warehouse.refresh().loaded == 1


@pytest.mark.parametrize("format_", FORMATS)
def test_an_export_that_does_not_fit_leaves_the_old_one(disk: Path, tmp_path: Path, format_: str) -> None:
    store = PartitionStore(tmp_path / "tables")
    store.write(schemas.TRANSCRIPTS, transcripts("a/", {"a/1": "old"}), "a")
    (old,) = export_corpus(store, disk, [format_])
    before = old.path.read_bytes()
    store.write(schemas.TRANSCRIPTS, transcripts("a/", noise(8)), "a")
    with pytest.raises(StorageError, match=r"could not be written.*untouched"):
        export_corpus(store, disk, [format_])
    assert old.path.read_bytes() == before
    assert temporary_files(disk) == []
