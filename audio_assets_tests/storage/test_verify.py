import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from audio_assets import schemas
from audio_assets.ingest.mirror import Mirror
from audio_assets.settings import Home
from audio_assets.speech.cache import TranscriptCache
from audio_assets.storage.exports import FORMATS, export_corpus
from audio_assets.storage.partition_files import PartitionStore
from audio_assets.storage.verify import Disagreement, verify
from audio_assets.storage.warehouse import Warehouse

from .rows import tokens, transcripts

TRANSCRIPTS, TOKENS, RAW_AUDIO = schemas.TRANSCRIPTS, schemas.TOKENS, schemas.RAW_AUDIO
FINGERPRINT = "f" * 64


@dataclass
class Everything:
    """A home in which everything agrees."""

    home: Home
    store: PartitionStore
    warehouse: Warehouse
    mirror: Mirror
    cache: TranscriptCache

    def verify(self, repair: bool = False) -> list[Disagreement]:
        return verify(self.home, self.store, self.warehouse, mirror=self.mirror, cache=self.cache, repair=repair)

    def file(self, table: schemas.Table, partition: str) -> Path:
        return next(Path(f.uri) for f in self.store.partitions(table) if f.partition == partition)

    def sha256(self, key: str) -> str:
        return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture
def all_(home: Home) -> Everything:
    store = PartitionStore(home.tables)
    made = Everything(
        home, store, Warehouse(home.warehouse, store, 0.3), Mirror(home.audio), TranscriptCache(home.cache)
    )
    for prefix in ("a/", "b/"):
        key = prefix[:-1]
        ids = [f"{prefix}{n}.wav" for n in range(2)]
        for id_ in ids:
            path = made.mirror.path_for(id_)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(id_.encode())
            result = {"transcription": id_, "status": "ok", "segments": [], "flags": []}
            made.cache.put(made.sha256(id_), FINGERPRINT, result)
        raw = [{"id": i, "prefix": prefix, "status": "ok", "sha256": made.sha256(i)} for i in ids]
        store.write(RAW_AUDIO, RAW_AUDIO.from_rows(raw), key)
        said = transcripts(prefix, {i: i for i in ids}, fingerprint=FINGERPRINT).to_pylist()
        rows = [row | {"sha256": made.sha256(row["id"])} for row in said]
        store.write(TRANSCRIPTS, TRANSCRIPTS.from_rows(rows), key)
        store.write(TOKENS, tokens(prefix, {i: [i] for i in ids}), key)
        graded = [{"id": i, "prefix": prefix, "status": "ok", "words": 1, "reason": "r"} for i in ids]
        store.write(schemas.TRANSCRIPT_QUALITY, schemas.TRANSCRIPT_QUALITY.from_rows(graded), key)
        for table in (schemas.PREFIX_SUMMARY, schemas.TOKEN_FREQUENCY):
            store.write(table, table.empty(), key)
    made.warehouse.refresh()
    export_corpus(store, home.exports, FORMATS)
    assert made.verify() == []
    return made


def test_nothing_at_all_agrees(home: Home) -> None:
    store = PartitionStore(home.tables)
    assert verify(home, store, Warehouse(home.warehouse, store)) == []


def cut_short(e: Everything) -> None:
    path = e.file(TRANSCRIPTS, "a")
    path.write_bytes(path.read_bytes()[:-9])


def lose_a_partition(e: Everything) -> None:
    e.store.delete(TOKENS, "a")
    e.warehouse.refresh()
    export_corpus(e.store, e.home.exports, FORMATS)


def lose_a_row(e: Everything) -> None:
    e.store.write(TRANSCRIPTS, e.store.read(TRANSCRIPTS, ["a"]).slice(1), "a")
    e.warehouse.refresh()
    export_corpus(e.store, e.home.exports, FORMATS)


def lose_audio(e: Everything) -> None:
    e.mirror.path_for("a/0.wav").unlink()


def change_audio(e: Everything) -> None:
    e.mirror.path_for("a/0.wav").write_bytes(b"other bytes")


def add_audio(e: Everything) -> None:
    e.mirror.path_for("a/new.wav").write_bytes(b"new")


def change_the_cache(e: Everything) -> None:
    result = {"transcription": "something else", "status": "ok", "segments": [], "flags": []}
    e.cache.put(e.sha256("a/0.wav"), FINGERPRINT, result)


def damage_the_cache(e: Everything) -> None:
    e.cache.path_for(e.sha256("a/0.wav"), FINGERPRINT).write_text("{}")


def write_without_loading(e: Everything) -> None:
    e.store.write(schemas.R2_PREFIXES, schemas.R2_PREFIXES.empty(), None)


def rewrite_without_loading(e: Everything) -> None:
    e.store.write(RAW_AUDIO, e.store.read(RAW_AUDIO, ["a"]), "a")


def delete_without_loading(e: Everything) -> None:
    e.store.delete(schemas.TOKEN_FREQUENCY, "a")
    e.store.delete(schemas.TOKEN_FREQUENCY, "b")
    for key in "ab":
        e.store.delete(schemas.PREFIX_SUMMARY, key)
        e.store.delete(schemas.TRANSCRIPT_QUALITY, key)
        e.store.delete(TOKENS, key)
        e.store.delete(TRANSCRIPTS, key)
        e.store.delete(RAW_AUDIO, key)
    e.mirror, e.cache = Mirror(e.home.root / "no audio"), TranscriptCache(e.home.root / "no cache")


def change_the_warehouse(e: Everything) -> None:
    with duckdb.connect(str(e.home.warehouse)) as connection:
        connection.execute("DELETE FROM transcripts WHERE id = 'a/0.wav'")


def damage_the_warehouse(e: Everything) -> None:
    e.home.warehouse.write_bytes(b"no database" * 1_000)


def remove_the_warehouse(e: Everything) -> None:
    e.home.warehouse.unlink()


def change_an_export(e: Everything) -> None:
    with (e.home.exports / "corpus.jsonl").open("a") as file:
        file.write("{}\n")


def lose_an_export(e: Everything) -> None:
    (e.home.exports / "corpus.sqlite").unlink()


def lose_the_manifest(e: Everything) -> None:
    (e.home.exports / "MANIFEST.json").unlink()


def leave_exports_behind(e: Everything) -> None:
    e.store.write(TOKENS, tokens("a/", {f"a/{n}.wav": ["new"] for n in range(2)}), "a")
    e.warehouse.refresh()


def be_killed(e: Everything) -> None:
    code = "import sys, pathlib; from audio_assets.storage import atomic; p = pathlib.Path(sys.argv[1])"
    code += "\nwith atomic.replacing(p) as temp: temp.write_bytes(b'half'); import os; os._exit(9)"
    for path in (e.home.tables / "tokens" / "a.parquet", e.home.exports / "corpus.jsonl"):
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        subprocess.run([sys.executable, "-c", code, str(path)], env=environment, check=False)


# What went wrong; what is said of it, where, each time in this order; whether it can be mended for free.
CASES: list[tuple[Callable[[Everything], None], list[str], bool]] = [
    (lose_a_partition, ["tokens, partition 'a': missing, although transcripts has it; materialize tokens"], False),
    (lose_a_row, ["transcripts, .*'a': its rows are not those of raw_audio: 1 and 2 rows, as for 'a/0.wav'"], False),
    (lose_audio, [r"audio/a/0\.wav: missing.*`audio-assets run` downloads it again"], False),
    (change_audio, [r"audio/a/0\.wav: its bytes are not those that raw_audio has"], False),
    (add_audio, [r"audio/a/new\.wav: raw_audio does not have 'a/new\.wav'; `audio-assets run` takes it in"], False),
    (change_the_cache, ["cache entry of 'a/0.wav': its text is not that of the transcripts table"], False),
    (damage_the_cache, ["cache entry of 'a/0.wav': no readable entry, so it would be transcribed again"], True),
    (write_without_loading, [r"warehouse\.duckdb, r2_prefixes: not loaded yet"], True),
    (rewrite_without_loading, [r"warehouse\.duckdb, raw_audio, partition 'a': older than its partition file"], True),
    (delete_without_loading, [r"warehouse\.duckdb, .*file 'a\.parquet': its partition file is gone"], True),
    (change_the_warehouse, [r"warehouse\.duckdb, transcripts, partition 'a': 1 rows instead of 2"], True),
    (damage_the_warehouse, [r"warehouse\.duckdb: cannot be opened.*verify --repair"], True),
    (remove_the_warehouse, [r"warehouse\.duckdb, raw_audio, partition 'a': not loaded yet"], True),
    (change_an_export, [r"corpus\.jsonl: its bytes are not those that MANIFEST.json describes"], True),
    (lose_an_export, [r"corpus\.sqlite: missing, although MANIFEST.json lists it"], True),
    (lose_the_manifest, [r"corpus\.(jsonl|parquet|sqlite|duckdb): not in MANIFEST.json"] * 4, True),
    (leave_exports_behind, [r"corpus\.(jsonl|parquet|sqlite|duckdb): older than the partition files"] * 4, True),
    (be_killed, ["left over from a write that was interrupted"] * 2, True),
]


@pytest.mark.parametrize(("damage", "said", "free"), CASES, ids=[case[0].__name__ for case in CASES])
def test_a_disagreement_is_named_with_its_fix_and_mended_where_that_is_free(
    all_: Everything, damage: Callable[[Everything], None], said: list[str], free: bool
) -> None:
    damage(all_)
    found = all_.verify()
    assert not any(d.repaired for d in found)
    lines = [d.line for d in found]
    for pattern in said:
        match = next((line for line in lines if re.search(pattern, line)), None)
        assert match, lines
        lines.remove(match)
    assert all("\n" not in d.line and d.fix for d in found)

    repaired = all_.verify(repair=True)
    assert [(d.what, d.where) for d in repaired] == [(d.what, d.where) for d in found]
    assert all(d.repaired == free for d in repaired), [d.line for d in repaired if d.repaired != free]
    left = all_.verify()
    assert left == [] if free else [d.line for d in left] == [d.line for d in found]


def damage_raw_audio(e: Everything) -> None:
    path = e.file(RAW_AUDIO, "a")
    path.write_bytes(path.read_bytes()[:100])


def test_a_directory_in_the_place_of_an_export_is_named(all_: Everything) -> None:
    export = all_.home.exports / "corpus.jsonl"
    export.unlink()
    export.mkdir()
    assert [d.line for d in all_.verify()] == [
        f"{export}: cannot be read (Is a directory); run `audio-assets export` to write it again"
    ]


def test_a_directory_in_the_place_of_the_warehouse_is_to_be_moved_away(all_: Everything) -> None:
    all_.home.warehouse.unlink()
    all_.home.warehouse.mkdir()
    for repair in (False, True):
        (found,) = all_.verify(repair)
        assert (found.where, found.repaired) == (str(all_.home.warehouse), False)
        assert found.what == "a directory lies in the place of the database"
        assert found.fix.startswith("move it away, then run `audio-assets verify --repair`")
    all_.home.warehouse.rmdir()
    all_.verify(repair=True)
    assert all_.verify() == []


def test_a_directory_in_the_place_of_a_partition_file_is_to_be_moved_and_not_to_be_repaired(all_: Everything) -> None:
    path = all_.file(TRANSCRIPTS, "a")
    path.unlink()
    path.mkdir()
    lines = [d.line for d in all_.verify(repair=True)]
    assert f"{path}: a directory where a file should be; move it elsewhere" in lines
    assert path.is_dir()


def test_a_cache_that_cannot_be_written_keeps_nothing_else_from_being_mended(all_: Everything) -> None:
    shutil.rmtree(all_.home.cache)
    all_.home.cache.touch()
    all_.home.warehouse.unlink()
    found = all_.verify(repair=True)
    assert {d.repaired for d in found if d.where.startswith("cache entry")} == {False}
    assert {d.repaired for d in found if d.where.startswith("warehouse")} == {True}


@pytest.mark.parametrize(("damage", "table"), [(cut_short, TRANSCRIPTS), (damage_raw_audio, RAW_AUDIO)])
def test_the_rows_of_a_damaged_partition_come_back_from_the_warehouse(
    all_: Everything, damage: Callable[[Everything], None], table: schemas.Table
) -> None:
    before = all_.store.read(table, ["a"])
    damage(all_)
    [found] = all_.verify()
    assert re.search(rf"{table.name}/a\.parquet: not a readable Parquet file.*verify --repair", found.line)
    first = all_.verify(repair=True)[0]
    assert re.search(r"mended: set aside as \S+, its 2 rows restored from the warehouse", first.line)
    assert all_.verify() == []
    assert all_.store.read(table, ["a"]).equals(before)
    [aside] = (all_.home.tables / table.name).glob("*.damaged")
    assert str(aside) in first.line


def test_a_damaged_partition_that_was_never_loaded_is_set_aside_with_its_bytes(all_: Everything) -> None:
    stray = all_.home.tables / "tokens" / "x.parquet"
    stray.write_text("not a table")
    [found] = all_.verify()
    assert "tokens/x.parquet: not a readable Parquet file" in found.line
    [mended] = all_.verify(repair=True)
    assert "the next run makes the partition again" in mended.line
    assert all_.verify() == []
    assert [p.read_text() for p in stray.parent.glob("*.damaged")] == ["not a table"]


def test_a_damaged_partition_without_a_readable_warehouse_is_set_aside(all_: Everything) -> None:
    cut_short(all_)
    all_.home.warehouse.write_bytes(b"no database")
    all_.verify(repair=True)
    # Its rows come from the cache with the next run, which `verify` names.
    assert [d.line for d in all_.verify()] == [
        "transcripts, partition 'a': missing, although raw_audio has it; materialize transcripts for it:"
        " `audio-assets run --prefix 'a/'`",
        "tokens, partition 'a': there, although transcripts does not have it; materialize transcripts for it",
    ]


def test_a_sound_parquet_file_of_somebody_else_is_left_where_it_is(all_: Everything) -> None:
    import pyarrow.parquet as pq

    theirs = all_.home.tables / "tokens" / "theirs.parquet"
    pq.write_table(pa.table({"x": [1]}), theirs)
    [found] = all_.verify(repair=True)
    assert not found.repaired
    assert "did not write; move it elsewhere" in found.line
    assert theirs.exists()


def test_one_disagreement_gives_one_line(all_: Everything) -> None:
    for damage in (lose_a_row, change_audio, damage_the_cache, change_an_export):
        damage(all_)
    assert len(all_.verify()) == 4


def test_a_cache_entry_that_was_restored_is_one_that_the_transcriber_takes(all_: Everything) -> None:
    from audio_assets.speech import transcribe

    id_ = "a/0.wav"
    rows = all_.store.read(TRANSCRIPTS, ["a"]).to_pylist()
    word = {"start_s": 0.1, "end_s": 0.5, "word": "hello", "probability": 0.9}
    segment = {
        "start_s": 0.0,
        "end_s": 1.0,
        "text": "hello",
        "avg_logprob": -0.1,
        "no_speech_prob": None,
        "compression_ratio": 1.0,
        "words": [word],
        "channel": 1,
        "language": "en",
        "flags": ["low_confidence"],
    }
    rows[0] |= {"segments": [segment], "engine": "local", "model": "tiny.en", "cost_usd": 0.5, "flags": ["clipped"]}
    all_.store.write(TRANSCRIPTS, TRANSCRIPTS.from_rows(rows), "a")
    damage_the_cache(all_)
    all_.verify(repair=True)
    entry = all_.cache.get(all_.sha256(id_), FINGERPRINT)
    assert entry is not None

    class Engine:
        name, model = "local", "tiny.en"

    file = transcribe.AudioFile(id_, all_.mirror.path_for(id_), all_.sha256(id_))
    result = transcribe._from_cache(entry, file, Engine(), FINGERPRINT)  # type: ignore[arg-type]
    assert result is not None
    row = TRANSCRIPTS.from_rows([result.row("a/")]).to_pylist()[0]
    assert {k: row[k] for k in ("transcription", "segments", "flags", "cost_usd")} == {
        "transcription": id_,
        "segments": [segment],
        "flags": ["clipped"],
        "cost_usd": 0.5,
    }


def test_a_reader_of_the_warehouse_is_no_disagreement_but_a_writer_is_waited_for(all_: Everything) -> None:
    with duckdb.connect(str(all_.home.warehouse), read_only=True):
        assert all_.verify() == []
        all_.store.write(schemas.R2_PREFIXES, schemas.R2_PREFIXES.empty(), None)
        (found,) = all_.verify(repair=True)
        assert found.what == "not loaded yet"
