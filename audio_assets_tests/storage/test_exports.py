import hashlib
import json
import sqlite3
import struct
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audio_assets import schemas
from audio_assets.errors import StorageError
from audio_assets.storage import exports
from audio_assets.storage.exports import FORMATS, MANIFEST, export_corpus
from audio_assets.storage.partition_files import PartitionStore

from .rows import HOSTILE, temporary_files, tokens, transcripts

TRANSCRIPTS, TOKENS = schemas.TRANSCRIPTS, schemas.TOKENS

TEXTS = [
    "Plain words.",
    "Zeile eins\nZeile zwei\r\nTab\tEnde",
    "\"quoted\" and 'quoted' and \\ and %s and {}",
    "ünï¢ødé ファイル 🎙️ e\u0301 \u2028\u2029 \x7f",
    "",
    "null",
    "[1, 2]",
]


def read(directory: Path, format_: str) -> list[dict[str, Any]]:
    """The rows of an export, as a client of that format reads them."""
    path = directory / exports.FILE_NAMES[format_]
    if format_ == "json":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    if format_ == "parquet":
        return pq.read_table(path).to_pylist()
    if format_ == "duckdb":
        with duckdb.connect(str(path), read_only=True) as connection:
            return connection.sql("SELECT * FROM corpus").to_arrow_table().to_pylist()
    with sqlite3.connect(path) as connection:
        connection.row_factory = sqlite3.Row
        found = [dict(row) for row in connection.execute("SELECT * FROM corpus ORDER BY rowid")]
    connection.close()
    return [row | {"tokens": json.loads(row["tokens"])} for row in found]


@pytest.fixture
def corpus(store: PartitionStore) -> list[dict[str, Any]]:
    """Three prefixes with awkward texts, and what an export of them should hold."""
    expected = []
    for key in ("a", "b", "c"):
        texts = {f"{key}/{n:02}.wav": text for n, text in enumerate(TEXTS)}
        words = {id_: text.split() for id_, text in texts.items()}
        store.write(TRANSCRIPTS, transcripts(f"{key}/", texts | {f"{key}/failed": None}), key)
        store.write(TOKENS, tokens(f"{key}/", words | {f"{key}/failed": []}), key)
        expected += [{"id": id_, "transcription": text, "tokens": words[id_]} for id_, text in texts.items()]
    return expected


@pytest.mark.parametrize("format_", FORMATS)
def test_every_format_gives_back_exactly_what_was_stored(
    store: PartitionStore, tmp_path: Path, corpus: list[dict[str, Any]], format_: str
) -> None:
    (file,) = export_corpus(store, tmp_path / "exports", [format_])
    assert read(tmp_path / "exports", format_) == corpus
    assert file.row_count == len(corpus)


@pytest.mark.parametrize("format_", FORMATS)
def test_hostile_ids_come_back(store: PartitionStore, tmp_path: Path, format_: str) -> None:
    store.write(TRANSCRIPTS, transcripts("a/", {id_: id_ for id_ in HOSTILE}), "a")
    store.write(TOKENS, tokens("a/", {id_: [id_] for id_ in HOSTILE}), "a")
    export_corpus(store, tmp_path / "exports", [format_])
    expected = [{"id": i, "transcription": i, "tokens": [i]} for i in sorted(HOSTILE, key=str.encode)]
    assert read(tmp_path / "exports", format_) == expected


def test_only_files_with_a_finished_transcript_are_exported(store: PartitionStore, tmp_path: Path) -> None:
    statuses = ["ok", "empty", "partial", "invalid", "failed", "deferred", "gone"]
    rows = [{"id": s, "prefix": "a/", "status": s, "transcription": "text"} for s in statuses]
    rows.append({"id": "gone before it was heard", "prefix": "a/", "status": "gone", "transcription": None})
    store.write(TRANSCRIPTS, TRANSCRIPTS.from_rows(rows), "a")
    export_corpus(store, tmp_path, ["json"])
    assert {row["id"] for row in read(tmp_path, "json")} == {"ok", "empty", "gone"}
    export_corpus(store, tmp_path, ["json"], include_partial=True)
    assert {row["id"] for row in read(tmp_path, "json")} == {"ok", "empty", "gone", "partial"}


def test_a_transcript_without_tokens_has_an_empty_list(store: PartitionStore, tmp_path: Path) -> None:
    store.write(TRANSCRIPTS, transcripts("a/", {"1": "x", "2": "y", "3": "z"}), "a")
    store.write(TRANSCRIPTS, transcripts("b/", {"4": "no tokens at all"}), "b")
    store.write(TOKENS, tokens("a/", {"2": ["y"], "9": ["of no transcript"]}), "a")
    export_corpus(store, tmp_path, ["json"])
    assert [(r["id"], r["tokens"]) for r in read(tmp_path, "json")] == [("1", []), ("2", ["y"]), ("3", []), ("4", [])]


@pytest.mark.parametrize("step", [1, 2, 3, 7, 500])
def test_tables_are_joined_whatever_rows_they_share(
    store: PartitionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    monkeypatch.setattr(exports, "_BATCH_ROWS", 16)
    ids = [f"{n:04}" for n in range(1_000)]
    store.write(TRANSCRIPTS, transcripts("a/", {i: i for i in ids if int(i) % 3 or int(i) > 900}), "a")
    store.write(TOKENS, tokens("a/", {i: [i] for i in ids[::step]}), "a")
    export_corpus(store, tmp_path, ["parquet"])
    have = set(ids[::step])
    assert [(r["id"], r["tokens"]) for r in read(tmp_path, "parquet")] == [
        (i, [i] if i in have else []) for i in ids if int(i) % 3 or int(i) > 900
    ]


def test_a_repeated_id_is_exported_as_often_as_it_is_stored(store: PartitionStore, tmp_path: Path) -> None:
    twice = pa.concat_tables([transcripts("a/", {"1": "x", "2": "y"})] * 2)
    store.write(TRANSCRIPTS, twice, "a")
    store.write(TOKENS, tokens("a/", {"1": ["x"], "2": ["y"]}), "a")
    export_corpus(store, tmp_path, ["json"])
    assert [(r["id"], r["tokens"]) for r in read(tmp_path, "json")] == [("1", ["x"])] * 2 + [("2", ["y"])] * 2


def test_json_lines_are_plain_utf8_one_object_a_line(store: PartitionStore, tmp_path: Path) -> None:
    store.write(TRANSCRIPTS, transcripts("a/", {"a/1.wav": "Füße\n🎙️"}), "a")
    store.write(TOKENS, tokens("a/", {"a/1.wav": ["füße", "🎙️"]}), "a")
    export_corpus(store, tmp_path, ["json"])
    assert (tmp_path / "corpus.jsonl").read_bytes() == (
        '{"id": "a/1.wav", "transcription": "Füße\\n🎙️", "tokens": ["füße", "🎙️"]}\n'.encode()
    )


def test_sqlite_has_a_row_for_each_token_and_finds_it_by_index(
    store: PartitionStore, tmp_path: Path, corpus: list[dict[str, Any]]
) -> None:
    export_corpus(store, tmp_path, ["sqlite"])
    connection = sqlite3.connect(tmp_path / "corpus.sqlite")
    found = connection.execute("SELECT id, position, token FROM tokens ORDER BY rowid").fetchall()
    plan = str(connection.execute("EXPLAIN QUERY PLAN SELECT * FROM tokens WHERE token = 'x'").fetchall())
    plan += str(connection.execute("EXPLAIN QUERY PLAN SELECT * FROM corpus WHERE id = 'x'").fetchall())
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    assert found == [(row["id"], n, token) for row in corpus for n, token in enumerate(row["tokens"])]
    assert "tokens_token" in plan and "corpus_id" in plan


def test_all_columns_hold_everything_known_of_a_recording(store: PartitionStore, tmp_path: Path) -> None:
    when = datetime(2026, 11, 23, 21, 42, 0, 123456, tzinfo=timezone.utc)
    raw = {
        "id": "a/1",
        "prefix": "a/",
        "sha256": "00",
        "size_bytes": 7,
        "last_modified": when,
        "metadata": [("speaker", "Ä")],
        "duration_s": 2.0,
        "status": "gone",
        "error": "not in the bucket",
    }
    said = {
        "id": "a/1",
        "prefix": "a/",
        "sha256": "ff",
        "transcription": "Hallo",
        "duration_s": 1.5,
        "segments": [{"start_s": 0.0, "text": "Hallo", "words": [{"word": "Hallo", "start_s": 0.1}]}],
        "status": "ok",
    }
    store.write(schemas.RAW_AUDIO, schemas.RAW_AUDIO.from_rows([raw]), "a")
    store.write(TRANSCRIPTS, TRANSCRIPTS.from_rows([said]), "a")
    store.write(TOKENS, tokens("a/", {"a/1": ["hallo"]}), "a")
    export_corpus(store, tmp_path, FORMATS, all_columns=True)
    for format_ in FORMATS:
        (row,) = read(tmp_path, format_)
        assert {"id": "a/1", "transcription": "Hallo", "tokens": ["hallo"], "status": "ok"}.items() <= {
            k: v for k, v in row.items() if k in ("id", "transcription", "tokens", "status")
        }.items()
        assert (row["sha256"], row["audio_sha256"]) == ("ff", "00")
        assert (row["duration_s"], row["audio_duration_s"]) == (1.5, 2.0)
        assert (row["audio_status"], row["audio_error"], row["size_bytes"]) == ("gone", "not in the bucket", 7)
    row = read(tmp_path, "json")[0]
    assert datetime.fromisoformat(row["last_modified"]) == when
    assert row["metadata"] == {"speaker": "Ä"}
    assert row["segments"][0]["words"][0]["start_s"] == 0.1
    assert read(tmp_path, "duckdb")[0]["last_modified"] == when
    known = {c for t in (TRANSCRIPTS, schemas.RAW_AUDIO, TOKENS) for c in t.column_names}
    assert known <= set(row)


def test_all_columns_in_json_hold_no_value_that_json_does_not_have(store: PartitionStore, tmp_path: Path) -> None:
    rows = [{"id": "1", "prefix": "a/", "status": "ok", "transcription": "x", "duration_s": float("nan")}]
    store.write(TRANSCRIPTS, TRANSCRIPTS.from_rows(rows), "a")
    export_corpus(store, tmp_path, ["json"], all_columns=True)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    row = json.loads((tmp_path / "corpus.jsonl").read_text(), parse_constant=refuse)
    assert row["duration_s"] is None


def test_prefixes_choose_partitions(store: PartitionStore, tmp_path: Path, corpus: list[dict[str, Any]]) -> None:
    export_corpus(store, tmp_path, ["json"], prefixes=["c/", "a/"])
    assert read(tmp_path, "json") == [row for row in corpus if not row["id"].startswith("b/")]


def test_an_empty_corpus_gives_empty_files(store: PartitionStore, tmp_path: Path) -> None:
    files = export_corpus(store, tmp_path, FORMATS)
    assert [file.row_count for file in files] == [0, 0, 0, 0]
    assert [read(tmp_path, format_) for format_ in FORMATS] == [[], [], [], []]


def test_the_manifest_describes_every_file(store: PartitionStore, tmp_path: Path, corpus: list[dict[str, Any]]) -> None:
    files = export_corpus(store, tmp_path, FORMATS)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert {entry["name"] for entry in manifest["files"]} == {file.path.name for file in files}
    for entry in manifest["files"]:
        body = (tmp_path / entry["name"]).read_bytes()
        assert entry["sha256"] == hashlib.sha256(body).hexdigest()
        assert entry["size_bytes"] == len(body)
        assert entry["row_count"] == len(corpus)
        assert entry["columns"] == ["id", "transcription", "tokens"]


def test_the_manifest_keeps_what_was_exported_before(
    store: PartitionStore, tmp_path: Path, corpus: list[dict[str, Any]]
) -> None:
    export_corpus(store, tmp_path, ["json"])
    export_corpus(store, tmp_path, ["parquet"])
    assert [e["format"] for e in json.loads((tmp_path / MANIFEST).read_text())["files"]] == ["json", "parquet"]
    (tmp_path / "corpus.jsonl").unlink()
    export_corpus(store, tmp_path, ["parquet"])
    assert [e["format"] for e in json.loads((tmp_path / MANIFEST).read_text())["files"]] == ["parquet"]


def test_the_same_corpus_gives_the_same_bytes(
    store: PartitionStore, tmp_path: Path, corpus: list[dict[str, Any]]
) -> None:
    once = export_corpus(store, tmp_path / "1", ["json", "parquet", "sqlite"])
    again = export_corpus(store, tmp_path / "2", ["json", "parquet", "sqlite"])
    assert [file.sha256 for file in once] == [file.sha256 for file in again]


def test_a_damaged_partition_is_named_and_earlier_exports_stay(
    store: PartitionStore, tmp_path: Path, corpus: list[dict[str, Any]]
) -> None:
    exported = tmp_path / "exports"
    export_corpus(store, exported, FORMATS)
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    damaged = Path(store.partitions(TOKENS)[1].uri)
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with pytest.raises(StorageError, match=r"tokens/b\.parquet"):
        export_corpus(store, exported, FORMATS)
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before
    assert temporary_files(tmp_path) == []


@pytest.mark.parametrize("cut", [20, 100])
def test_the_rest_is_exported_without_a_damaged_partition_when_asked(
    store: PartitionStore, tmp_path: Path, corpus: list[dict[str, Any]], cut: int
) -> None:
    whole = export_corpus(store, tmp_path / "whole", ["json"])[0].row_count
    damaged = Path(store.partitions(TOKENS)[1].uri)
    content = damaged.read_bytes()
    # Once without its footer, once with bytes of a page changed, which shows only while rows are read.
    damaged.write_bytes(content[:-20] if cut == 20 else content[:100] + b"XXXX" + content[104:])
    (damaged.parents[1] / "transcripts" / "%zz.parquet").write_text("a name that is no partition's")
    seen: list[str] = []
    files = export_corpus(store, tmp_path / "rest", FORMATS, on_unreadable=lambda bad: seen.append(bad.reason))
    lost = len(store.read(TRANSCRIPTS, ["b"], ["id"]).column("id"))
    assert 0 < lost < whole
    assert {f.row_count for f in files} == {(tmp_path / "rest/corpus.jsonl").read_bytes().count(b"\n")}
    assert files[0].row_count < whole
    assert len(seen) == 2
    assert "%zz.parquet" in seen[0]
    assert "tokens/b.parquet" in seen[1]
    manifest = json.loads((tmp_path / "rest" / "MANIFEST.json").read_text())
    assert {tuple(entry["left_out"]) for entry in manifest["files"]} == {("b",)}


def test_an_unknown_format_is_refused(store: PartitionStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown export format 'csv'"):
        export_corpus(store, tmp_path, ["csv"])


def test_clients_of_duckdb_1_can_open_the_export(
    store: PartitionStore, tmp_path: Path, corpus: list[dict[str, Any]]
) -> None:
    export_corpus(store, tmp_path, ["duckdb"])
    # Bytes 8 to 20 of a DuckDB file: "DUCK" and the number of the format. 64 is that of 1.0 and 1.1.
    magic, version = struct.unpack("<4sQ", (tmp_path / "corpus.duckdb").read_bytes()[8:20])
    assert (magic, version) == (b"DUCK", 64)


def test_sqlite_needs_no_recent_client(store: PartitionStore, tmp_path: Path, corpus: list[dict[str, Any]]) -> None:
    export_corpus(store, tmp_path, ["sqlite"])
    header = (tmp_path / "corpus.sqlite").read_bytes()[:100]
    # Bytes 18 and 19: 1 means that any SQLite 3 may read and write; byte 44: schema format 4, of 2006.
    assert (header[18], header[19], header[47]) == (1, 1, 4)


def grades(store: PartitionStore, key: str, by_id: dict[str, str | None]) -> None:
    rows = [
        {"id": id_, "prefix": f"{key}/", "status": "ok", "words": 1, "grade": grade, "reason": "r"}
        for id_, grade in by_id.items()
    ]
    store.write(schemas.TRANSCRIPT_QUALITY, schemas.TRANSCRIPT_QUALITY.from_rows(rows), key)


def test_worse_and_ungraded_transcripts_are_left_out_only_when_asked(store: PartitionStore, tmp_path: Path) -> None:
    by_id = {f"a/{grade}": grade for grade in schemas.GRADES} | {"a/none": None}
    store.write(TRANSCRIPTS, transcripts("a/", dict.fromkeys(by_id, "text")), "a")
    store.write(TOKENS, tokens("a/", {id_: ["text"] for id_ in by_id}), "a")
    grades(store, "a", by_id)

    (all_rows,) = export_corpus(store, tmp_path, ["json"])
    assert all_rows.row_count == len(by_id)
    export_corpus(store, tmp_path, ["json"], min_grade="C")
    assert [row["id"] for row in read(tmp_path, "json")] == ["a/A", "a/B", "a/C"]


def test_a_graded_export_is_known_to_be_older_when_the_grades_change(store: PartitionStore, tmp_path: Path) -> None:
    store.write(TRANSCRIPTS, transcripts("a/", {"a/1": "text"}), "a")
    grades(store, "a", {"a/1": "A"})
    export_corpus(store, tmp_path, ["json"], min_grade="B")
    [entry] = json.loads((tmp_path / MANIFEST).read_text())["files"]
    assert (entry["min_grade"], entry["record"]) == ("B", exports.record_digest(store, graded=True))

    grades(store, "a", {"a/1": "F"})
    assert entry["record"] != exports.record_digest(store, graded=True)


def test_grades_that_are_missing_are_named_and_the_earlier_export_stays(store: PartitionStore, tmp_path: Path) -> None:
    store.write(TRANSCRIPTS, transcripts("a/", {"a/1": "text"}), "a")
    export_corpus(store, tmp_path, ["json"])

    with pytest.raises(StorageError, match=r"partition 'a': its transcripts have no grades; run .* --min-grade"):
        export_corpus(store, tmp_path, ["json"], min_grade="B")
    with pytest.raises(ValueError, match="unknown grade 'E'; use one of A, B, C, D, F"):
        export_corpus(store, tmp_path, ["json"], min_grade="E")
    assert read(tmp_path, "json")[0]["id"] == "a/1"
