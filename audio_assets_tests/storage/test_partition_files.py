import math
import os
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audio_assets import schemas
from audio_assets.errors import SchemaError, SettingsError, StorageError
from audio_assets.storage.objects import Objects
from audio_assets.storage.partition_files import PartitionStore, Unreadable, file_name_for, partition_of
from audio_assets.storage.places import place_for

from .rows import HOSTILE, transcripts

TRANSCRIPTS, TOKENS = schemas.TRANSCRIPTS, schemas.TOKENS


def test_rows_come_back_as_they_were(store: PartitionStore) -> None:
    rows = [
        {
            "id": "a/1.wav",
            "prefix": "a/",
            "transcription": 'Zeile 1\nZeile 2 "quoted" it\'s 100% 🎙️ e\u0301 \u2028 \\ \t',
            "language_probability": 0.1 + 0.2,
            "duration_s": math.inf,
            "segments": [
                {"start_s": 0.0, "text": "x", "words": [{"word": "x", "probability": None}]},
                {"start_s": 1.0, "text": "", "words": []},
                {"start_s": 2.0, "text": None, "words": None},
                None,
            ],
            "flags": [],
            "cached": False,
            "status": "ok",
        },
        {"id": "a/2.wav", "prefix": "a/", "segments": None, "flags": None, "status": "failed", "error": ""},
        {"id": "a/3.wav", "prefix": "a/", "segments": [], "flags": ["repetition", None], "status": "gone"},
    ]
    data = TRANSCRIPTS.from_rows(rows)
    store.write(TRANSCRIPTS, data, "a")
    assert store.read(TRANSCRIPTS, ["a"]).equals(data)


def test_maps_and_times_come_back_as_they_were(store: PartitionStore) -> None:
    data = schemas.RAW_AUDIO.from_rows(
        [
            {
                "id": "a/1.wav",
                "prefix": "a/",
                "status": "ok",
                "size_bytes": 2**62,
                "last_modified": datetime(2026, 11, 23, 21, 42, 0, 123456, tzinfo=timezone.utc),
                "metadata": [("speaker", "Ä"), ("empty", None)],
            },
            {"id": "a/2.wav", "prefix": "a/", "status": "invalid", "metadata": []},
        ]
    )
    store.write(schemas.RAW_AUDIO, data, "a")
    assert store.read(schemas.RAW_AUDIO).equals(data)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), unique=True))
def test_every_text_without_nul_comes_back(texts: list[str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        store = PartitionStore(directory)
        store.write(TRANSCRIPTS, transcripts("a/", {text: text for text in texts}), "a")
        data = store.read(TRANSCRIPTS, ["a"], ["id", "transcription"])
        assert data.to_pylist() == [{"id": t, "transcription": t} for t in sorted(texts)]


@pytest.mark.parametrize("field", ["id", "transcription", "segments", "flags"])
def test_nul_is_refused_by_name_before_anything_is_replaced(store: PartitionStore, field: str) -> None:
    store.write(TRANSCRIPTS, transcripts("a/", {"x": "old"}), "a")
    bad = {"segments": [{"text": "nul\0"}], "flags": ["nul\0"]}.get(field, "nul\0")
    row = {"id": "a/1", "prefix": "a/", "status": "ok", field: bad}
    with pytest.raises(SchemaError, match=rf"column {field} .*NUL"):
        store.write(TRANSCRIPTS, TRANSCRIPTS.from_rows([row]), "a")
    assert store.read(TRANSCRIPTS, ["a"]).column("transcription").to_pylist() == ["old"]


def test_columns_are_matched_by_name(store: PartitionStore) -> None:
    data = transcripts("a/", {"x": "text"})
    store.write(TRANSCRIPTS, data.select(data.column_names[::-1]), "a")
    assert store.read(TRANSCRIPTS, ["a"]).equals(data)


def test_a_missing_unknown_or_mistyped_column_replaces_nothing(store: PartitionStore) -> None:
    data = transcripts("a/", {"x": "old"})
    store.write(TRANSCRIPTS, data, "a")
    wrong = [
        data.drop_columns(["transcription"]),
        data.append_column("extra", pa.array([1])),
        data.set_column(0, "id", pa.array([1])),
        data.set_column(0, "id", pa.array([None], pa.string())),
    ]
    for bad in wrong:
        with pytest.raises(SchemaError):
            store.write(TRANSCRIPTS, bad, "a")
    assert store.read(TRANSCRIPTS, ["a"]).equals(data)


def test_an_empty_result_is_a_partition_of_no_rows(store: PartitionStore) -> None:
    store.write(TRANSCRIPTS, transcripts("a/", {"x": "old"}), "a")
    written = store.write(TRANSCRIPTS, TRANSCRIPTS.empty(), "a")
    assert written.row_count == 0
    assert store.find(TRANSCRIPTS, "a") is not None
    assert [f.partition for f in store.partitions(TRANSCRIPTS)] == ["a"]
    assert [store.find(TRANSCRIPTS, "a")] == store.partitions(TRANSCRIPTS) == [written]
    assert store.read(TRANSCRIPTS, ["a"]).num_rows == 0


def test_a_partition_that_was_never_written_has_no_rows(store: PartitionStore) -> None:
    assert store.find(TRANSCRIPTS, "a") is None
    assert store.read(TRANSCRIPTS, ["a"]).equals(TRANSCRIPTS.empty())
    assert store.read(TRANSCRIPTS).equals(TRANSCRIPTS.empty())


def test_only_the_partitions_and_columns_asked_for_are_read(store: PartitionStore) -> None:
    for key in "abc":
        store.write(TRANSCRIPTS, transcripts(f"{key}/", {f"{key}/1": key}), key)
    # Were it read, this would fail.
    Path(store.partitions(TRANSCRIPTS)[1].uri).write_bytes(b"damaged")
    data = store.read(TRANSCRIPTS, ["c", "a"], ["transcription", "id"])
    assert data.column_names == ["transcription", "id"]
    assert data.column("id").to_pylist() == ["c/1", "a/1"]
    with pytest.raises(SchemaError, match="no column 'nothing'"):
        store.read(TRANSCRIPTS, ["a"], ["nothing"])


def test_rows_are_kept_in_the_order_of_their_key(store: PartitionStore) -> None:
    ids = ["b", "a", "é", "Z", "🎙", "\uffff"]
    store.write(TRANSCRIPTS, transcripts("a/", {i: i for i in ids}), "a")
    assert store.read(TRANSCRIPTS).column("id").to_pylist() == sorted(ids, key=str.encode)
    rows = [
        {"prefix": "a/", "token": t, "count": 1, "document_count": 1, "is_stop": False} for t in ("the", "a", "speech")
    ]
    store.write(schemas.TOKEN_FREQUENCY, schemas.TOKEN_FREQUENCY.from_rows(rows), "a")
    assert store.read(schemas.TOKEN_FREQUENCY).column("token").to_pylist() == ["a", "speech", "the"]


def test_hostile_keys_are_files_of_their_own_inside_the_root(store: PartitionStore, tmp_path: Path) -> None:
    for key in HOSTILE:
        store.write(TRANSCRIPTS, transcripts(key, {key: key}), key)
    assert {f.partition for f in store.partitions(TRANSCRIPTS)} == set(HOSTILE)
    for key in HOSTILE:
        assert store.read(TRANSCRIPTS, [key]).column("id").to_pylist() == [key]
    assert {path.parent for path in tmp_path.rglob("*") if path.is_file()} == {tmp_path / "tables" / "transcripts"}
    for key in HOSTILE[::2]:
        assert store.delete(TRANSCRIPTS, key)
    assert {f.partition for f in store.partitions(TRANSCRIPTS)} == set(HOSTILE[1::2])


@given(st.text(max_size=80))
def test_a_file_name_is_safe_and_names_its_partition(key: str) -> None:
    name = file_name_for(key)
    assert name.isascii() and len(name) <= 255 and "/" not in name and not name.startswith(".")
    assert partition_of(name) in (key, None)


@given(st.lists(st.text(max_size=300), min_size=2, max_size=2, unique=True))
def test_two_partitions_never_share_a_file_even_where_case_is_ignored(keys: list[str]) -> None:
    assert file_name_for(keys[0]).lower() != file_name_for(keys[1]).lower()


def test_a_partitioned_table_wants_a_partition_and_another_none(store: PartitionStore) -> None:
    with pytest.raises(ValueError, match="kept by partition"):
        store.write(TRANSCRIPTS, TRANSCRIPTS.empty(), None)
    with pytest.raises(ValueError, match="no partitions"):
        store.write(schemas.R2_PREFIXES, schemas.R2_PREFIXES.empty(), "a")
    with pytest.raises(ValueError, match="no partitions"):
        store.read(schemas.R2_PREFIXES, ["a"])


def test_an_unpartitioned_table_is_replaced_as_a_whole(store: PartitionStore) -> None:
    for count in (2, 1):
        rows = [{"prefix": f"{n}/", "partition": f"{n}", "object_count": n, "size_bytes": 0} for n in range(count)]
        store.write(schemas.R2_PREFIXES, schemas.R2_PREFIXES.from_rows(rows), None)
    assert store.read(schemas.R2_PREFIXES).column("prefix").to_pylist() == ["0/"]


def test_an_identity_changes_with_every_write_and_only_then(store: PartitionStore) -> None:
    data = transcripts("a/", {"x": "same"})
    identities = []
    for _ in range(50):
        written = store.write(TRANSCRIPTS, data, "a")
        assert store.partitions(TRANSCRIPTS) == [written]
        identities.append(written.identity)
    assert len(set(identities)) == 50
    assert store.partitions(TRANSCRIPTS)[0].identity == identities[-1]


def older(table: schemas.Table, *without: str) -> schemas.Table:
    return replace(table, columns=tuple(c for c in table.columns if c.name not in without))


def test_a_nullable_column_that_an_old_file_lacks_reads_as_null(store: PartitionStore) -> None:
    old = older(TRANSCRIPTS, "flags", "error")
    data = transcripts("a/", {"x": "text"})
    store.write(old, data.select(old.column_names), "old")
    store.write(TRANSCRIPTS, data, "new")
    read = store.read(TRANSCRIPTS, ["old", "new"])
    assert read.schema.equals(TRANSCRIPTS.schema)
    assert read.column("flags").to_pylist() == [None, None]
    assert read.column("transcription").to_pylist() == ["text", "text"]
    assert store.read(TRANSCRIPTS, ["old"], ["flags", "id"]).to_pylist() == [{"flags": None, "id": "x"}]
    assert store.dataset(TRANSCRIPTS).to_table().num_rows == 2


def test_a_struct_field_that_an_old_file_lacks_reads_as_null(store: PartitionStore) -> None:
    spans = next(c for c in TOKENS.columns if c.name == "spans")
    fewer = pa.list_(pa.struct([("token", pa.string()), ("start_char", pa.int64())]))
    old = replace(TOKENS, columns=tuple(replace(c, type=fewer) if c is spans else c for c in TOKENS.columns))
    values = [[{"token": "a", "start_char": 0}, None], None, [], [{"token": "b", "start_char": 1}]]
    rows = [{"id": str(n), "prefix": "a/", "tokens": [], "spans": v} for n, v in enumerate(values)]
    store.write(old, old.from_rows(rows), "a")
    read = store.read(TOKENS).column("spans").to_pylist()
    names = [f.name for f in schemas.SPAN]
    assert read == [v and [s and {**dict.fromkeys(names), **s} for s in v] for v in values]


def test_a_column_that_the_schema_no_longer_has_is_left_out(store: PartitionStore) -> None:
    new = older(TRANSCRIPTS, "elapsed_s")
    store.write(TRANSCRIPTS, transcripts("a/", {"x": "text"}), "a")
    assert store.read(new, ["a"]).schema.equals(new.schema)


def test_a_required_column_that_an_old_file_lacks_is_an_error_that_names_it(store: PartitionStore) -> None:
    old = older(TRANSCRIPTS, "status")
    store.write(old, transcripts("a/", {"x": "text"}).select(old.column_names), "a")
    with pytest.raises(StorageError, match="lacks column status"):
        store.read(TRANSCRIPTS, ["a"])


def spoil(path: Path, how: str) -> None:
    body = bytearray(path.read_bytes())
    if how == "cut short":
        path.write_bytes(body[: len(body) // 2])
    elif how == "zero bytes":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("no Parquet at all")
    elif how == "one bit flipped":
        body[len(body) // 8] ^= 1
        path.write_bytes(body)
    elif how == "foreign Parquet":
        pq.write_table(pa.table({"id": ["x"]}), path)
    elif how == "another partition's":
        path.write_bytes(path.with_name("b.parquet").read_bytes())
    else:
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize(
    "how",
    ["cut short", "zero bytes", "text", "one bit flipped", "foreign Parquet", "another partition's", "a directory"],
)
def test_a_file_that_is_no_partition_is_named_and_the_others_are_read(store: PartitionStore, how: str) -> None:
    for key in "abc":
        store.write(TRANSCRIPTS, transcripts(f"{key}/", {f"{key}/{n}": "some words" for n in range(50)}), key)
    path = Path(store.partitions(TRANSCRIPTS)[0].uri)
    spoil(path, how)
    with pytest.raises(StorageError, match=r"a\.parquet.*; .*(repair|again|delete|elsewhere)"):
        store.read(TRANSCRIPTS, ["a"])
    skipped: list[Unreadable] = []
    data = store.read(TRANSCRIPTS, on_unreadable=skipped.append)
    assert [bad.uri for bad in skipped] == [str(path)]
    assert set(data.column("prefix").to_pylist()) == {"b/", "c/"}


@pytest.mark.parametrize("name", ["transcription", "segments", "start_s", "flags", "error"])
def test_a_damaged_name_of_a_column_is_no_column_that_is_missing(store: PartitionStore, name: str) -> None:
    """The end of a Parquet file has no checksum, and a column that an older file lacks reads as null."""
    store.write(TRANSCRIPTS, transcripts("a/", {"a/1": "said"}), "a")
    (path,) = store.partitions(TRANSCRIPTS)
    file = Path(path.uri)
    data = bytearray(file.read_bytes())
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    data[data.index(name.encode(), footer)] ^= 1
    file.write_bytes(data)
    with pytest.raises(StorageError, match=r"not a readable Parquet file .*audio-assets verify --repair"):
        store.read(TRANSCRIPTS, ["a"])


def test_a_damaged_name_of_a_partition_is_named_and_the_others_are_read(store: PartitionStore) -> None:
    long = "\u9577" * 60
    store.write(TRANSCRIPTS, transcripts(long, {"1": "said"}), long)
    store.write(TRANSCRIPTS, transcripts("a/", {"a/1": "said"}), "a")
    (path,) = (p for p in store.partitions(TRANSCRIPTS) if p.partition == long)
    file = Path(path.uri)
    data = bytearray(file.read_bytes())
    at = data.rindex(long.encode())
    data[at] = 0xFF
    file.write_bytes(data)
    scan = store.scan(TRANSCRIPTS)
    assert [f.partition for f in scan.files] == ["a"]
    assert [bad.uri for bad in scan.unreadable] == [str(file)]


def test_a_file_with_a_name_that_is_no_partitions_is_named(store: PartitionStore) -> None:
    store.write(TRANSCRIPTS, transcripts("a/", {"x": "text"}), "a")
    stray = Path(store.root, "transcripts", "Copy of a.parquet")
    stray.write_bytes(Path(store.partitions(TRANSCRIPTS)[0].uri).read_bytes())
    (stray.parent / "notes.txt").write_text("not ours, not looked at")
    scan = store.scan(TRANSCRIPTS)
    assert [f.partition for f in scan.files] == ["a"]
    assert [bad.uri for bad in scan.unreadable] == [str(stray)]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_may_not_be_written_says_so(store: PartitionStore, tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir(mode=0o500)
    with pytest.raises(StorageError, match=r"cannot be written: Permission denied"):
        store.write(TRANSCRIPTS, TRANSCRIPTS.empty(), "a")


def test_a_large_partition_has_row_groups_that_several_readers_can_share(store: PartitionStore) -> None:
    written = store.write(TRANSCRIPTS, transcripts("a/", {f"{n:06}": "text" for n in range(40_000)}), "a")
    metadata = pq.ParquetFile(written.uri).metadata
    assert metadata.num_row_groups == 3
    assert metadata.row_group(0).column(0).compression == "ZSTD"
    assert written.row_count == store.partitions(TRANSCRIPTS)[0].row_count == 40_000


def test_opening_a_store_creates_nothing(tmp_path: Path) -> None:
    store = PartitionStore(tmp_path / "tables")
    assert store.partitions(TRANSCRIPTS) == []
    assert not store.delete(TRANSCRIPTS, "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("root", ["ftp://host/tables", "s3:///tables", "s3://bucket/tables?secret=1"])
def test_a_root_that_is_no_place_for_tables_is_refused(root: str) -> None:
    with pytest.raises(SettingsError):
        place_for(root)


def test_a_file_url_is_a_directory(tmp_path: Path) -> None:
    assert PartitionStore(f"file://{tmp_path}/with%20space").root == f"{tmp_path}/with space"


def test_credentials_in_a_url_are_never_shown() -> None:
    store = PartitionStore("s3://key:s3cret%2F@bucket/tables?endpoint_override=127.0.0.1:1&scheme=http")
    assert store.root == "s3://bucket/tables"
    assert "s3cret" not in repr(store) + repr(vars(store)) + repr(vars(store._place))


def test_importing_the_stages_imports_no_bucket_client() -> None:
    code = "import sys, audio_assets.storage.exports; print('boto3' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


@pytest.mark.parametrize(
    "root",
    [
        "s3://AKIA:se/canary@bucket/folder",
        "s3://AKIA:se?canary@bucket/folder",
        "s3://AKIA:se#canary@bucket/folder",
        "s3://AK/IA:canary@bucket/folder",
        "s3://:canary@/folder",
        "s3://AKIA:se[canary@bucket/folder",
        "s3://bucket:canary/folder",
        "s3://bucket/folder?canary=1",
        "s3://bucket/folder?endpoint_override=https://me:canary@127.0.0.1",
        "r2://AKIA:se/canary@bucket/folder",
    ],
)
def test_an_address_with_a_secret_that_cannot_be_read_is_refused_and_not_repeated(root: str) -> None:
    for ask in (place_for, Objects):
        with pytest.raises(SettingsError) as told:
            ask(root)
        assert "canary" not in str(told.value)
        assert "AKIA" not in str(told.value)
        assert "\n" not in str(told.value)
