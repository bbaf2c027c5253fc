"""A store and a warehouse of their own for each test."""

from pathlib import Path

import pytest

from audio_assets.storage.partition_files import PartitionStore
from audio_assets.storage.warehouse import Warehouse


@pytest.fixture
def store(tmp_path: Path) -> PartitionStore:
    return PartitionStore(tmp_path / "tables")


@pytest.fixture
def warehouse(tmp_path: Path, store: PartitionStore) -> Warehouse:
    return Warehouse(tmp_path / "warehouse.duckdb", store, lock_timeout_s=0.3)
