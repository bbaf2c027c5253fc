import struct
import threading
import time
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from audio_assets import schemas
from audio_assets.storage import warehouse as module
from audio_assets.storage.partition_files import PartitionStore
from audio_assets.storage.warehouse import PARTITION_COLUMN, Refresh, Warehouse, WarehouseError

from .rows import HOSTILE, tokens, transcripts

TRANSCRIPTS, TOKENS = schemas.TRANSCRIPTS, schemas.TOKENS


@pytest.fixture(autouse=True)
def nothing_was_deferred() -> None:
    module._deferred_here.clear()


def rows(warehouse: Warehouse, query: str, *values: object) -> list[tuple[object, ...]]:
    with warehouse.connect() as connection:
        return connection.execute(query, list(values)).fetchall()


def test_every_table_and_view_is_there_from_the_start(warehouse: Warehouse) -> None:
    names = {name for (name,) in rows(warehouse, "SELECT table_name FROM information_schema.tables")}
    assert names >= {*schemas.TABLES, "token_occurrences", "latest_failures"}
    for name, table in schemas.TABLES.items():
        with warehouse.connect() as connection:
            read = connection.sql(f"SELECT * FROM {name}").to_arrow_table()
        expected = [*table.column_names, *([PARTITION_COLUMN] if table.partitioned else [])]
        assert read.column_names == expected
        assert read.num_rows == 0


def test_tables_are_real_and_hold_what_the_files_hold(store: PartitionStore, warehouse: Warehouse) -> None:
    data = TRANSCRIPTS.from_rows(
        [
            {
                "id": "a/1",
                "prefix": "a/",
                "transcription": 'Zeile\n"zwei" 🎙️',
                "segments": [{"start_s": 0.5, "words": [{"word": "Zeile"}, None]}, None],
                "flags": [],
                "status": "ok",
            },
            {"id": "a/2", "prefix": "a/", "status": "failed"},
        ]
    )
    store.write(TRANSCRIPTS, data, "a")
    warehouse.refresh()
    with duckdb.connect(str(warehouse.path), read_only=True) as connection:
        kind = connection.execute("SELECT table_type FROM information_schema.tables WHERE table_name = 'transcripts'")
        assert kind.fetchall() == [("BASE TABLE",)]
        read = connection.sql("SELECT * EXCLUDE (_partition) FROM transcripts ORDER BY id").to_arrow_table()
    assert read.cast(TRANSCRIPTS.schema).to_pylist() == data.to_pylist()


def test_times_and_maps_survive(store: PartitionStore, warehouse: Warehouse) -> None:
    data = schemas.RAW_AUDIO.from_rows(
        [
            {
                "id": "a/1",
                "prefix": "a/",
                "status": "ok",
                "last_modified": 1_700_000_000_123_456,
                "metadata": [("k", "v")],
            }
        ]
    )
    store.write(schemas.RAW_AUDIO, data, "a")
    assert rows(warehouse, "SELECT epoch_us(last_modified), metadata['k'] FROM raw_audio") == [
        (1_700_000_000_123_456, "v")
    ]


def test_only_files_that_are_not_held_are_loaded(store: PartitionStore, warehouse: Warehouse) -> None:
    for key in "ab":
        store.write(TRANSCRIPTS, transcripts(f"{key}/", {f"{key}/1": "old"}), key)
    assert warehouse.refresh() == Refresh(loaded=2)
    assert warehouse.refresh() == Refresh()
    store.write(TRANSCRIPTS, transcripts("b/", {"b/1": "new", "b/2": "new"}), "b")
    assert warehouse.refresh() == Refresh(loaded=1)
    assert rows(warehouse, "SELECT id, transcription FROM transcripts ORDER BY id") == [
        ("a/1", "old"),
        ("b/1", "new"),
        ("b/2", "new"),
    ]


def test_a_file_that_is_older_than_the_one_held_is_loaded_too(store: PartitionStore, warehouse: Warehouse) -> None:
    # As when tables/ is restored from a backup: identity counts, not time.
    store.write(TRANSCRIPTS, transcripts("a/", {"a/1": "backup"}), "a")
    path = Path(store.partitions(TRANSCRIPTS)[0].uri)
    backup = path.rename(path.with_suffix(".backup"))
    store.write(TRANSCRIPTS, transcripts("a/", {"a/1": "newer"}), "a")
    warehouse.refresh()
    backup.rename(path)
    assert warehouse.refresh() == Refresh(loaded=1)
    assert rows(warehouse, "SELECT transcription FROM transcripts") == [("backup",)]


def test_deleted_partitions_disappear(store: PartitionStore, warehouse: Warehouse) -> None:
    for key in "ab":
        store.write(TRANSCRIPTS, transcripts(f"{key}/", {f"{key}/1": "x"}), key)
        store.write(TOKENS, tokens(f"{key}/", {f"{key}/1": ["x"]}), key)
    warehouse.refresh()
    store.delete(TRANSCRIPTS, "a")
    store.delete(TOKENS, "a")
    assert warehouse.refresh() == Refresh(removed=2)
    assert rows(warehouse, "SELECT id FROM transcripts") == [("b/1",)]
    assert rows(warehouse, "SELECT id FROM token_occurrences") == [("b/1",)]


def test_an_unpartitioned_table_is_replaced_as_a_whole(store: PartitionStore, warehouse: Warehouse) -> None:
    for names in (["a", "b"], ["c"]):
        found = [{"prefix": f"{n}/", "partition": n, "object_count": 1, "size_bytes": 1} for n in names]
        store.write(schemas.R2_PREFIXES, schemas.R2_PREFIXES.from_rows(found), None)
        assert rows(warehouse, "SELECT partition FROM r2_prefixes ORDER BY 1") == [(n,) for n in names]


def test_hostile_keys_and_ids_touch_no_other_row(store: PartitionStore, warehouse: Warehouse) -> None:
    for key in HOSTILE:
        store.write(TOKENS, tokens(key, {key: ["old", key]}), key)
    warehouse.refresh()
    for key in HOSTILE[::2]:
        store.write(TOKENS, tokens(key, {key: ["new"]}), key)
    for key in HOSTILE[1::4]:
        store.delete(TOKENS, key)
    expected = {k: ["new"] if i % 2 == 0 else ["old", k] for i, k in enumerate(HOSTILE) if i % 4 != 1}
    found = rows(warehouse, "SELECT _partition, id, tokens FROM tokens")
    assert sorted(found) == sorted((k, k, words) for k, words in expected.items())
    for key in HOSTILE:
        there = [(expected[key],)] if key in expected else []
        assert rows(warehouse, "SELECT tokens FROM tokens WHERE id = ?", key) == there


def test_token_occurrences_has_a_row_for_each_word_with_its_position(
    store: PartitionStore, warehouse: Warehouse
) -> None:
    store.write(TOKENS, tokens("a/", {"a/1": ["to", "be", "or", "not", "to", "be"], "a/2": [], "a/3": ["be"]}), "a")
    assert rows(warehouse, "SELECT id, position FROM token_occurrences WHERE token = 'be' ORDER BY ALL") == [
        ("a/1", 1),
        ("a/1", 5),
        ("a/3", 0),
    ]
    store.write(TOKENS, tokens("a/", {"a/1": ["be"]}), "a")
    assert rows(warehouse, "SELECT id, prefix, position, token FROM token_occurrences") == [("a/1", "a/", 0, "be")]


def test_latest_failures_names_each_file_once_where_it_failed_first(
    store: PartitionStore, warehouse: Warehouse
) -> None:
    raw = [("bad", "invalid"), ("late", "failed"), ("fine", "ok"), ("silent", "ok"), ("old", "gone")]
    said = [("bad", "invalid"), ("late", "failed"), ("fine", "deferred"), ("silent", "empty"), ("old", "gone")]
    for table, statuses in ((schemas.RAW_AUDIO, raw), (TRANSCRIPTS, said)):
        found = [{"id": i, "prefix": "", "status": s, "error": f"{table.name} {s}"} for i, s in statuses]
        store.write(table, table.from_rows(found), "_root_")
    assert rows(warehouse, "SELECT id, stage, status, error FROM latest_failures ORDER BY id") == [
        ("bad", "raw_audio", "invalid", "raw_audio invalid"),
        ("fine", "transcripts", "deferred", "transcripts deferred"),
        ("late", "raw_audio", "failed", "raw_audio failed"),
    ]


def test_files_that_are_no_partitions_are_named_and_the_rest_is_loaded(
    store: PartitionStore, warehouse: Warehouse
) -> None:
    for key in "abc":
        store.write(TRANSCRIPTS, transcripts(f"{key}/", {f"{key}/1": "good"}), key)
    warehouse.refresh()
    damaged = Path(store.partitions(TRANSCRIPTS)[1].uri)
    damaged.write_bytes(damaged.read_bytes()[:-100])
    foreign = damaged.with_name("d.parquet")
    foreign.write_text("no Parquet")
    store.write(TRANSCRIPTS, transcripts("c/", {"c/1": "newer"}), "c")
    refresh = warehouse.refresh()
    assert refresh.loaded == 1
    assert sorted(path for path, _ in refresh.skipped) == [str(damaged), str(foreign)]
    assert all(str(path) in reason for path, reason in refresh.skipped)
    # What was loaded before the damage stays until there is something to put in its place.
    assert rows(warehouse, "SELECT id, transcription FROM transcripts ORDER BY id") == [
        ("a/1", "good"),
        ("b/1", "good"),
        ("c/1", "newer"),
    ]


def test_a_file_whose_values_do_not_fit_is_named_and_the_rest_of_its_batch_is_loaded(
    store: PartitionStore, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if written by a version with another rule: a null where the table has none.
    lax = replace(TRANSCRIPTS, columns=tuple(replace(c, nullable=True) for c in TRANSCRIPTS.columns))
    for key in "abc":
        store.write(TRANSCRIPTS, transcripts(f"{key}/", {f"{key}/1": "x"}), key)
    store.write(lax, lax.from_rows([{"id": "b/1", "prefix": "b/"}]), "b")
    refresh = warehouse.refresh()
    assert refresh.loaded == 2
    assert [Path(path).name for path, _ in refresh.skipped] == ["b.parquet"]
    assert rows(warehouse, "SELECT id FROM transcripts ORDER BY id") == [("a/1",), ("c/1",)]


def test_a_partition_too_large_for_a_batch_is_streamed(
    store: PartitionStore, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCH_BYTES", 2_000)
    monkeypatch.setattr(module, "_STREAM_ROWS", 100)
    words = {f"{n:05}": [f"w{n}", "x"] for n in range(1_000)}
    store.write(TOKENS, tokens("a/", words), "a")
    store.write(TOKENS, tokens("b/", {"b": ["y"]}), "b")
    assert warehouse.refresh(["tokens"]) == Refresh(loaded=2)
    assert rows(warehouse, "SELECT count(*), count(DISTINCT token) FROM token_occurrences") == [(2_001, 1_002)]


def test_a_large_partition_with_damage_inside_changes_nothing(
    store: PartitionStore, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCH_BYTES", 2_000)
    words = {f"{n:05}": [f"w{n}", "x"] for n in range(1_000)}
    store.write(TOKENS, tokens("a/", words), "a")
    warehouse.refresh()
    file = Path(store.write(TOKENS, tokens("a/", {i: ["new"] for i in words}), "a").uri)
    body = bytearray(file.read_bytes())
    body[len(body) // 3] ^= 1
    file.write_bytes(body)
    refresh = warehouse.refresh()
    assert (refresh.loaded, [path for path, _ in refresh.skipped]) == (0, [str(file)])
    assert rows(warehouse, "SELECT count(*) FROM tokens WHERE tokens[2] = 'x'") == [(1_000,)]


def test_a_reader_of_this_process_defers_a_load_and_the_next_one_catches_up(
    store: PartitionStore, warehouse: Warehouse
) -> None:
    warehouse.refresh()
    store.write(TRANSCRIPTS, transcripts("a/", {"a/1": "x"}), "a")
    with duckdb.connect(str(warehouse.path), read_only=True):
        start = time.monotonic()
        refresh = warehouse.refresh(["transcripts"])
        assert 0.2 < time.monotonic() - start < 5
        assert refresh.deferred and "open" in refresh.deferred
        assert not refresh.refused
        # Whoever stays is waited for once, not for each partition.
        start = time.monotonic()
        assert warehouse.refresh(["transcripts"]).deferred
        assert time.monotonic() - start < 0.2
    # The next writer of any table takes it in.
    assert warehouse.refresh(["tokens"]).loaded == 1


def test_what_is_read_is_never_stale_even_while_somebody_keeps_the_database_open(
    store: PartitionStore, warehouse: Warehouse
) -> None:
    warehouse.refresh()
    store.write(TRANSCRIPTS, transcripts("a/", {"a/1": "x"}), "a")
    with duckdb.connect(str(warehouse.path), read_only=True) as reader:
        assert rows(warehouse, "SELECT id FROM transcripts") == [("a/1",)]
        assert reader.execute("SELECT id FROM transcripts").fetchall() == []
    assert sorted(p.name for p in warehouse.path.parent.iterdir() if ".tmp" in p.name) == []


def test_a_connection_may_not_write(warehouse: Warehouse) -> None:
    with warehouse.connect() as connection, pytest.raises(duckdb.Error, match="read-only"):
        connection.execute("DELETE FROM transcripts")


def test_many_threads_may_refresh_at_once(store: PartitionStore, tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path / "warehouse.duckdb", store, lock_timeout_s=30)
    outcomes: list[Refresh] = []

    def write(key: str) -> None:
        for n in range(5):
            store.write(TRANSCRIPTS, transcripts(f"{key}/", {f"{key}/{n}": "x"}), key)
            outcomes.append(warehouse.refresh(["transcripts"]))

    threads = [threading.Thread(target=write, args=(key,)) for key in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [o.deferred for o in outcomes] == [None] * 20
    assert rows(warehouse, "SELECT id FROM transcripts ORDER BY 1") == [("a/4",), ("b/4",), ("c/4",), ("d/4",)]
    assert not list((tmp_path / ".warehouse.duckdb.requests").iterdir())


def test_a_database_that_is_damaged_defers_loads_and_can_be_rebuilt(
    store: PartitionStore, warehouse: Warehouse
) -> None:
    store.write(TRANSCRIPTS, transcripts("a/", {"a/1": "x"}), "a")
    warehouse.refresh()
    warehouse.path.write_bytes(b"this was a database" * 1_000)
    refresh = warehouse.refresh()
    assert refresh.deferred and "verify --repair" in refresh.deferred
    assert refresh.refused
    with pytest.raises(WarehouseError, match="verify --repair"):
        warehouse.held()
    assert rows(warehouse, "SELECT id FROM transcripts") == [("a/1",)]  # from the record
    warehouse.rebuild()
    assert warehouse.refresh() == Refresh()
    assert rows(warehouse, "SELECT id FROM transcripts") == [("a/1",)]


def test_a_deleted_database_comes_back(store: PartitionStore, warehouse: Warehouse) -> None:
    store.write(TRANSCRIPTS, transcripts("a/", {"a/1": "x"}), "a")
    warehouse.refresh()
    warehouse.path.unlink()
    assert rows(warehouse, "SELECT id FROM transcripts") == [("a/1",)]


def test_a_rebuild_leaves_readers_of_the_old_database_alone(store: PartitionStore, warehouse: Warehouse) -> None:
    store.write(TRANSCRIPTS, transcripts("a/", {"a/1": "x"}), "a")
    warehouse.refresh()
    store.write(TRANSCRIPTS, transcripts("b/", {"b/1": "x"}), "b")
    with duckdb.connect(str(warehouse.path), read_only=True) as reader:
        assert warehouse.rebuild().loaded == 2
        assert reader.execute("SELECT count(*) FROM transcripts").fetchall() == [(1,)]
    assert rows(warehouse, "SELECT count(*) FROM transcripts") == [(2,)]


def test_a_changed_schema_fills_its_table_anew(
    store: PartitionStore, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write(TRANSCRIPTS, transcripts("a/", {"a/1": "x"}), "a")
    store.write(TOKENS, tokens("a/", {"a/1": ["x"]}), "a")
    warehouse.refresh()
    wider = replace(TRANSCRIPTS, columns=(*TRANSCRIPTS.columns, schemas.Column("mood", pa.string(), "how it sounds")))
    monkeypatch.setitem(schemas.TABLES, "transcripts", wider)
    module._layout_version.cache_clear()
    try:
        assert warehouse.refresh() == Refresh(loaded=1)
        assert rows(warehouse, "SELECT id, mood FROM transcripts") == [("a/1", None)]
        assert rows(warehouse, "SELECT token FROM token_occurrences") == [("x",)]
    finally:
        module._layout_version.cache_clear()


def test_older_clients_can_open_the_file(store: PartitionStore, warehouse: Warehouse) -> None:
    store.write(TOKENS, tokens("a/", {"a/1": ["x"]}), "a")
    warehouse.refresh()
    # Bytes 8 to 20 of a DuckDB file: "DUCK" and the number of the format. 67 is that of 1.4; 2.0 writes 999 unasked.
    magic, version = struct.unpack("<4sQ", warehouse.path.read_bytes()[8:20])
    assert (magic, version) == (b"DUCK", 67)


def test_nothing_is_left_beside_the_database_when_nobody_uses_it(store: PartitionStore, warehouse: Warehouse) -> None:
    store.write(TOKENS, tokens("a/", {"a/1": ["x"]}), "a")
    warehouse.refresh()
    warehouse.rebuild()
    beside = {p.name for p in warehouse.path.parent.iterdir()} - {"tables"}
    assert beside <= {"warehouse.duckdb", "warehouse.duckdb.lock", ".warehouse.duckdb.requests"}


def test_what_stands_in_the_database_reaches_no_other_file(
    store: PartitionStore, warehouse: Warehouse, tmp_path: Path
) -> None:
    """Somebody may have put a view of theirs into it, and words of a transcript may be read as SQL one day."""
    secret = tmp_path / "secret.csv"
    secret.write_text("word\ncanary\n")
    warehouse.refresh()
    with duckdb.connect(str(warehouse.path)) as stranger:
        stranger.execute(f"CREATE VIEW trap AS SELECT * FROM read_csv('{secret}')")
        assert stranger.execute("FROM trap").fetchall() == [("canary",)]
    tries = (
        "FROM trap",
        f"FROM '{secret}'",
        f"COPY (SELECT 1) TO '{tmp_path / 'written'}'",
        f"ATTACH '{tmp_path / 'other.duckdb'}'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
    )
    with warehouse.connect() as reader:
        for sql in tries:
            with pytest.raises(duckdb.Error, match=r"disabled|Cannot|does not exist"):
                reader.execute(sql)
    with module._database(warehouse.path, time.monotonic() + 5) as writer:
        for sql in tries:
            with pytest.raises(duckdb.Error, match=r"disabled|Cannot|does not exist"):
                writer.execute(sql)
    assert not (tmp_path / "written").exists() and not (tmp_path / "other.duckdb").exists()
    store.write(TRANSCRIPTS, transcripts("a/", {"a/1": "x"}), "a")
    assert warehouse.refresh().loaded == 1
