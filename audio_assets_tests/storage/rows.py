"""Rows as the pipeline writes them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa

from audio_assets import schemas
from audio_assets.storage.exports import FORMATS, export_corpus
from audio_assets.storage.partition_files import PartitionStore
from audio_assets.storage.warehouse import Warehouse

HOSTILE = [
    "it's",
    'say "hi"',
    "x'; DROP TABLE tokens; --",
    "../../etc/passwd",
    "..",
    ".",
    ".hidden",
    "",
    " ",
    "%",
    "%2F",
    "a/b/",
    "/a",
    "back\\slash",
    "new\nline",
    "tab\tand bell\x07",
    "🎙️ naïve ファイル",
    "e\u0301",
    "\u00e9",
    "[glob]*?",
    "all",
    "Calls",
    "calls",
    "z" * 1024,
    "z" * 1023 + "y",
    "🎧" * 256,
]
"""Partition keys and ids that have broken something somewhere."""


def transcripts(prefix: str, texts: dict[str, str | None], **more: Any) -> pa.Table:
    """One row per id; no text is a failed file."""
    return schemas.TRANSCRIPTS.from_rows(
        [
            {"id": id_, "prefix": prefix, "transcription": text, "status": "failed" if text is None else "ok"} | more
            for id_, text in texts.items()
        ]
    )


def tokens(prefix: str, words: dict[str, list[str]]) -> pa.Table:
    """One row per id."""
    return schemas.TOKENS.from_rows([{"id": id_, "prefix": prefix, "tokens": found} for id_, found in words.items()])


def temporary_files(root: Path) -> list[Path]:
    """Everything below ``root`` that a reader should never see."""
    return [path for path in root.rglob("*") if ".tmp" in path.name]


def write_everything(home: Path, text: str, count: int) -> None:
    """One run: ``count`` recordings that say ``text``, stored, loaded and exported."""
    store = PartitionStore(home / "tables")
    ids = [f"a/{n:05}" for n in range(count)]
    store.write(schemas.TRANSCRIPTS, transcripts("a/", dict.fromkeys(ids, text)), "a")
    store.write(schemas.TOKENS, tokens("a/", {i: [text] for i in ids}), "a")
    assert Warehouse(home / "warehouse.duckdb", store).refresh().deferred is None
    export_corpus(store, home / "exports", FORMATS)


if __name__ == "__main__":
    write_everything(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
