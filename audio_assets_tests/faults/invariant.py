"""What must hold after every recovery, whatever the fault was."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from audio_assets.settings import Home

_UNFINISHED = re.compile(r"^\..+\.tmp(\..+)?$|.*\.part$")
_HEX = re.compile(r"[0-9a-f]{8,}")
_FILE_TABLES = ("raw_audio", "transcripts", "tokens")


def rows_of(home: Home, table: str) -> list[dict[str, object]]:
    """All rows of the record of ``table``."""
    return [row for path in sorted((home.tables / table).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def unfinished_files(home: Home) -> list[Path]:
    """Files that a writer began and nobody finished."""
    return [path for path in home.root.rglob("*") if path.is_file() and _UNFINISHED.match(path.name)]


def assert_one_row_each(home: Home, keys: set[str]) -> None:
    """Every object is one row of every table of files, and nothing else is."""
    for table in _FILE_TABLES:
        counted = Counter(str(row["id"]) for row in rows_of(home, table))
        assert counted == Counter(keys), table


def committed(home: Home) -> int:
    """Transcriptions that are stored for good."""
    return len(list(home.cache.glob("*/*/*.json")))


def files_of(home: Home) -> Counter[str]:
    """Every file of the home but Dagster's own, the journals, of which each run that paid has one, and the notes of
    prefixes with nothing to do, which a run that paid for something does not write.

    What is random in a name is left out.
    """
    found: Counter[str] = Counter()
    for path in home.root.rglob("*"):
        relative = path.relative_to(home.root)
        if path.is_file() and relative.parts[0] not in ("dagster", "ledger", "settled"):
            found[_HEX.sub("#", str(relative))] += 1
    return found
