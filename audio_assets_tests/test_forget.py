"""`run --forget-gone`: what vanished from the bucket goes everywhere, and nothing else does."""

import hashlib
import json
import signal
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pyarrow.parquet as pq
import pytest

from audio_assets import cli, schemas
from audio_assets.demo import demo_objects, packaged_model
from audio_assets.demo_server import WeedServer
from audio_assets.derived import clip_name, write_audiofolder, write_subtitles
from audio_assets.errors import StorageError, SupersededError
from audio_assets.forget import Forgetting
from audio_assets.ingest.selection import Selection
from audio_assets.partitions import partition_key_for, prefix_of
from audio_assets.resources.duckdb_io import PartitionedDuckDBIOManager
from audio_assets.resources.home import HomeResource
from audio_assets.runner import _filters
from audio_assets.settings import Home
from audio_assets.storage import published
from audio_assets.storage.exports import export_corpus
from audio_assets.storage.objects import Objects, read_json
from audio_assets.storage.partition_files import PartitionStore
from audio_assets_tests.conftest import audio_assets, r2_environment, subprocess_environment
from audio_assets_tests.summary.conftest import transcript_row

BODIES = {o.key.rpartition("/")[2]: o.body for o in demo_objects()}
FORMATS = [a for name in ("json", "parquet", "sqlite", "duckdb") for a in ("--output-format", name)]


def ids(home: Home, table: str) -> dict[str, str]:
    """Status by id, of a table that has one."""
    rows = [r for path in (home.tables / table).glob("*.parquet") for r in pq.read_table(path).to_pylist()]
    return {r["id"]: r.get("status", "") for r in rows}


def everywhere(home: Home, key: str) -> set[str]:
    """Where anything of the object ``key`` is to be found."""
    found = {t for t in ("raw_audio", "transcripts", "tokens") if key in ids(home, t)}
    found |= {str(p.relative_to(home.root)) for p in home.audio.rglob("*") if p.name == Path(key).name}
    for state in (home.audio / ".state").rglob("*.json"):
        found |= {"mirror state"} if json.loads(state.read_text())["key"] == key else set()
    with duckdb.connect(str(home.warehouse), read_only=True) as warehouse:
        [(count,)] = warehouse.execute("SELECT count(*) FROM transcripts WHERE id = ?", [key]).fetchall()
        found |= {"warehouse"} if count else set()
    for path in home.exports.glob("corpus.*"):
        if path.suffix == ".parquet":
            there = key in pq.read_table(path).column("id").to_pylist()
        elif path.suffix == ".duckdb":
            with duckdb.connect(str(path), read_only=True) as export:
                [(count,)] = export.execute("SELECT count(*) FROM corpus WHERE id = ?", [key]).fetchall()
                there = bool(count)
        else:
            there = key.encode() in path.read_bytes()
        found |= {path.name} if there else set()
    for path in (p for folder in ("srt", "vtt", "audiofolder") for p in (home.exports / folder).rglob("*")):
        there = Path(key).name in path.name or clip_name(key, 1).name == path.name
        labelled = path.name == "metadata.jsonl" and key.encode() in path.read_bytes()
        found |= {str(path.relative_to(home.root))} if there or labelled else set()
    return found | ({"report"} if home.report.exists() and key in home.report.read_text(encoding="utf-8") else set())


def cached(home: Home) -> set[str]:
    return {path.parent.name for path in home.cache.rglob("*.json")}


@pytest.mark.weights
@pytest.mark.slow
def test_what_vanished_is_kept_as_gone_until_it_is_forgotten_and_then_it_is_nowhere(
    weed: WeedServer, home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = weed.client()
    client.create_bucket(Bucket="forgetting")
    objects = {
        "calls/alone.ogg": "05.ogg",
        "calls/double.mp3": "08.mp3",
        "calls/stays.mp3": "03.mp3",
        "lectures/twin.mp3": "08.mp3",
        "old/last.m4a": next(name for name in BODIES if name.endswith(".m4a")),
    }
    for key, name in objects.items():
        client.put_object(Bucket="forgetting", Key=key, Body=BODIES[name])
    settings = {**r2_environment(weed), "R2_BUCKET": "forgetting", "WHISPER_MODEL": packaged_model()}
    for variable, value in {**settings, "WHISPER_ENGINE": "local"}.items():
        monkeypatch.setenv(variable, value)

    def command(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stop:
            cli.main(list(arguments))
        out = capsys.readouterr()
        assert stop.value.code == 0, out.err + out.out
        return out.out

    def run(*arguments: str) -> dict[str, Any]:
        return json.loads(command("run", "--json", *arguments))  # type: ignore[no-any-return]

    run("--skip-summary", *FORMATS)
    hashes = {r["id"]: r["sha256"] for r in _rows(home, "raw_audio")}
    vanished = ["calls/alone.ogg", "calls/double.mp3", "old/last.m4a"]
    for key in vanished:
        client.delete_object(Bucket="forgetting", Key=key)

    report = run("--skip-summary")
    assert report["forgotten"] == []
    assert {key for key, status in ids(home, "transcripts").items() if status == "gone"} == set(vanished)
    assert all({"raw_audio", "transcripts", "warehouse", "corpus.sqlite"} <= everywhere(home, key) for key in vanished)

    report = run("--forget-gone")
    assert {key: everywhere(home, key) for key in vanished} == {key: set() for key in vanished}
    assert ids(home, "transcripts") == {"calls/stays.mp3": "ok", "lectures/twin.mp3": "ok"}
    assert cached(home) == {hashes["calls/stays.mp3"], hashes["lectures/twin.mp3"]}
    listed = {item["id"]: item for item in report["forgotten"]}
    assert sorted(listed) == vanished
    assert all(item["mirror_copy"] for item in listed.values())
    assert listed["calls/double.mp3"]["kept_for"] == "lectures/twin.mp3"
    assert listed["calls/alone.ogg"]["cache_entries"] == 1
    assert (report["retired"], report["transcribed"]) == (["old"], 0)
    assert len(list((home.tables / "transcripts").iterdir())) == 2
    assert not (home.settled / f"{hashlib.sha256(b'old').hexdigest()}.json").exists()
    assert command("verify") == "everything agrees\n"


def _rows(home: Home, table: str) -> list[dict[str, Any]]:
    return [r for path in (home.tables / table).glob("*.parquet") for r in pq.read_table(path).to_pylist()]


@pytest.mark.weights
@pytest.mark.slow
@pytest.mark.parametrize(
    "point",
    ["forget:copies-removed", "forget:rows-removed", "export:half-written", "forget:made-of-it-removed"],
)
def test_forgetting_that_is_killed_is_finished_by_the_next_run(home: Home, tmp_path: Path, point: str) -> None:
    for key in ("calls/gone.mp3", "calls/stays.mp3"):
        path = home.audio / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(BODIES["08.mp3" if "gone" in key else "03.mp3"])
    environment = subprocess_environment(home.root, WHISPER_MODEL=packaged_model())
    arguments = ["run", "--skip-ingestion", "--json"]
    assert audio_assets(*arguments, *FORMATS, cwd=tmp_path, environment=environment).returncode == 0
    write_subtitles(home, ["srt", "vtt"])
    write_audiofolder(home, include_flagged=True)
    assert len([where for where in everywhere(home, "calls/gone.mp3") if where.startswith("exports/")]) == 4
    (home.audio / "calls/gone.mp3").unlink()
    killed = audio_assets(
        *arguments, "--forget-gone", cwd=tmp_path, environment={**environment, "AUDIO_ASSETS_CRASH_AT": point}
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = audio_assets(*arguments, "--forget-gone", cwd=tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr
    assert everywhere(home, "calls/gone.mp3") == set()
    assert ids(home, "transcripts") == {"calls/stays.mp3": "ok"}
    assert len(cached(home)) == 1
    assert audio_assets("verify", cwd=tmp_path, environment=environment).returncode == 0


@pytest.mark.parametrize("flags", [["--skip-summary"], ["--limit", "5"]])
def test_forgetting_cannot_leave_out_the_report_or_a_part_of_the_bucket(
    home: Home, tmp_path: Path, flags: list[str]
) -> None:
    done = audio_assets("run", "--forget-gone", *flags, cwd=tmp_path, environment=subprocess_environment(home.root))
    assert done.returncode == 2
    assert f"leave out {flags[0]}" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.weights
@pytest.mark.slow
def test_what_a_run_did_not_look_at_is_not_forgotten(weed: WeedServer, home: Home, tmp_path: Path) -> None:
    client = weed.client()
    client.create_bucket(Bucket="returning")
    for key in ("calls/back.mp3", "calls/stays.mp3"):
        client.put_object(Bucket="returning", Key=key, Body=BODIES["03.mp3"])
    environment = subprocess_environment(
        home.root, **r2_environment(weed) | {"R2_BUCKET": "returning", "WHISPER_MODEL": packaged_model()}
    )

    def run(*flags: str) -> None:
        done = audio_assets("run", *flags, cwd=tmp_path, environment=environment)
        assert done.returncode == 0, done.stderr

    run()
    client.delete_object(Bucket="returning", Key="calls/back.mp3")
    run()
    assert ids(home, "raw_audio") == {"calls/back.mp3": "gone", "calls/stays.mp3": "ok"}
    client.put_object(Bucket="returning", Key="calls/back.mp3", Body=BODIES["03.mp3"])

    run("--forget-gone", "--exclude", "*/back.mp3")
    assert {"raw_audio", "transcripts", "audio/calls/back.mp3"} <= everywhere(home, "calls/back.mp3")
    run("--forget-gone")
    assert ids(home, "raw_audio") == {"calls/back.mp3": "ok", "calls/stays.mp3": "ok"}


def sha_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def put(home: Home, rows: dict[str, str], depth: int = 1) -> None:
    """A corpus of these objects, by status: rows, cache entries, mirror copies, subtitles and exports."""
    resource, store = HomeResource(), PartitionStore(home.record)
    partitions: dict[str, list[str]] = {}
    for key in rows:
        partitions.setdefault(prefix_of(key, depth), []).append(key)
        path = resource.mirror().path_for(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(key.encode())
        resource.cache().put(sha_of(key), "engine", {"text": key})
    for prefix, keys in partitions.items():
        made = {"prefix": prefix, "engine": "local", "model": "tiny.en"}
        heard = [transcript_row(key, [(0, 1, f"text of {key}")]) | made | {"sha256": sha_of(key)} for key in keys]
        raw: list[dict[str, object]] = [
            {"id": key, "prefix": prefix, "sha256": sha_of(key), "status": rows[key], "etag": "e"} for key in keys
        ]
        store.write(schemas.TRANSCRIPTS, schemas.TRANSCRIPTS.from_rows(heard), partition_key_for(prefix))
        store.write(schemas.RAW_AUDIO, schemas.RAW_AUDIO.from_rows(raw), partition_key_for(prefix))
    write_subtitles(home, ["srt"])
    export_corpus(store, home.exports, ["json", "sqlite"])


def begin(home: Home, *partitions: str) -> Forgetting:
    """Forget what is gone in ``partitions``, up to where the tables are made anew."""
    forgetting = Forgetting.of(
        PartitionStore(home.record), HomeResource(), [(partition, lambda key: True) for partition in partitions]
    )
    with dg.DagsterInstance.ephemeral() as instance:
        for partition in forgetting.vanished:
            forgetting.purge(partition, instance)
    return forgetting


def finish(forgetting: Forgetting) -> None:
    forgetting.finish(PartitionedDuckDBIOManager())


def test_a_run_that_finds_nothing_vanished_finishes_what_another_began(home: Home) -> None:
    put(home, {"old/a.wav": "gone", "new/b.wav": "ok"})
    begin(home, "old", "new")
    assert everywhere_made(home, "old/a.wav") == {"corpus.jsonl", "corpus.sqlite", "a.wav.srt"}

    again = begin(home, "new")
    assert again.unfinished
    finish(again)

    assert everywhere_made(home, "old/a.wav") == set()
    assert everywhere_made(home, "new/b.wav") == {"corpus.jsonl", "corpus.sqlite", "b.wav.srt", "b.wav"}
    assert cached(home) == {sha_of("new/b.wav")}
    assert not begin(home, "new").unfinished


def everywhere_made(home: Home, key: str) -> set[str]:
    """Files of a home that `put` made which hold something of the object ``key``."""
    files = [p for folder in (home.exports, home.audio) for p in folder.rglob("*") if p.is_file()]
    return {p.name for p in files if key.encode() in p.read_bytes()}


def test_what_came_back_before_the_work_was_finished_keeps_everything(home: Home) -> None:
    put(home, {"old/a.wav": "gone", "old/c.wav": "gone"})
    begin(home, "old")
    put(home, {"old/a.wav": "ok"})
    (home.exports / "srt/old/c.wav.srt").write_text("text of old/c.wav")

    finish(begin(home, "old"))

    assert everywhere_made(home, "old/a.wav") == {"corpus.jsonl", "corpus.sqlite", "a.wav.srt", "a.wav"}
    assert everywhere_made(home, "old/c.wav") == set()
    assert cached(home) == {sha_of("old/a.wav")}


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"rows": [{"id": "a"}], "complete": true}', b"\xff"])
def test_a_damaged_mark_is_no_error_and_what_has_no_row_is_found_all_the_same(home: Home, damage: bytes) -> None:
    put(home, {"old/a.wav": "gone", "new/b.wav": "ok"})
    begin(home, "old")
    (home.root / "forgetting").write_bytes(damage)

    finish(begin(home, "new"))

    assert everywhere_made(home, "old/a.wav") == set()
    assert "b.wav.srt" in everywhere_made(home, "new/b.wav")


def test_whatever_is_still_there_at_the_end_is_named(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    put(home, {"old/a.wav": "gone"})
    forgetting = begin(home, "old")
    copy = home.audio / "old/a.wav"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(b"back")
    with pytest.raises(StorageError, match=r"old/a\.wav: still there; remove it, then run .* again"):
        finish(forgetting)
    copy.unlink()

    HomeResource().cache().put(sha_of("old/a.wav"), "engine", {"text": "back"})
    (home.exports / "corpus.parquet").write_bytes(b"of another program")
    with pytest.raises(StorageError, match=r"corpus\.parquet: MANIFEST\.json does not say what is in it; delete it"):
        finish(forgetting)
    assert cached(home) == set(), "what the disk has brought back goes too"
    (home.exports / "corpus.parquet").unlink()

    monkeypatch.setattr("audio_assets.derived.forget", lambda home, keys: None)
    write = home.exports / "srt/old/a.wav.srt"
    write.parent.mkdir(parents=True, exist_ok=True)
    write.write_text("back")
    with pytest.raises(StorageError, match=r"a\.wav\.srt: still there; run .* again"):
        finish(forgetting)
    assert forgetting.unfinished


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_what_another_partition_has_keeps_all_but_the_rows_of_the_old_one(home: Home, before: int, after: int) -> None:
    key = "calls/2024/a.wav"
    old, new = (partition_key_for(prefix_of(key, depth)) for depth in (before, after))
    put(home, {key: "gone", "calls/2024/b.wav": "gone"}, before)
    put(home, {key: "ok"}, after)

    forgetting = begin(home, old, new)
    finish(forgetting)

    assert everywhere_made(home, key) == {"corpus.jsonl", "corpus.sqlite", "a.wav.srt", "a.wav"}
    assert everywhere_made(home, "calls/2024/b.wav") == set()
    assert cached(home) == {sha_of(key)}
    assert forgetting.retired == [old]
    assert [item.line for item in forgetting.forgotten] == [
        f"forgotten: {key} (its rows in {old}; another partition has it)",
        "forgotten: calls/2024/b.wav (mirror copy, 1 cache entries)",
    ]
    assert (home.exports / "corpus.jsonl").read_text().count(key) == 2, "id and text, of one row"


def test_what_is_gone_from_both_partitions_goes_from_everywhere(home: Home) -> None:
    for depth in (1, 2):
        put(home, {"calls/2024/a.wav": "gone"}, depth)

    finish(begin(home, "calls", "calls/2024"))

    assert everywhere_made(home, "calls/2024/a.wav") == set()
    assert cached(home) == set()


def test_only_what_the_run_looked_at_is_forgotten(home: Home) -> None:
    put(home, {"calls/a.wav": "gone", "calls/b.wav": "gone", "other/c.wav": "gone"})
    filters = _filters([("calls", ["calls/"]), ("other", [])], ["calls"], Selection(exclude=("*/b.wav",)))

    found = Forgetting.of(PartitionStore(home.record), HomeResource(), filters)

    assert found.vanished == {"calls": ["calls/a.wav"]}


def test_where_the_bucket_was_not_listed_nothing_that_came_from_it_is_forgotten(home: Home) -> None:
    rows: list[dict[str, object]] = [
        {"id": "calls/own.wav", "prefix": "calls/", "status": "gone"},
        {"id": "calls/fetched.wav", "prefix": "calls/", "status": "gone", "etag": "e"},
    ]
    store = PartitionStore(home.record)
    store.write(schemas.RAW_AUDIO, schemas.RAW_AUDIO.from_rows(rows), "calls")

    found = Forgetting.of(store, HomeResource(), [("calls", lambda key: True)], bucket_listed=False)

    assert found.vanished == {"calls": ["calls/own.wav"]}


def publish() -> str:
    """Bring the exports and the warehouse of this machine to the bucket, as `corpus_export` does."""
    resource = HomeResource()
    resource.publish(resource.paths().exports)
    PartitionedDuckDBIOManager().publish()
    return str(read_json(HomeResource().objects().get(published.LATEST))["file"])  # type: ignore[union-attr]


@pytest.mark.slow
def test_nothing_of_what_vanished_is_left_in_a_home_in_a_bucket(objects: Objects) -> None:
    home = HomeResource().paths()
    put(home, {"calls/a.wav": "ok", "calls/b.wav": "ok", "old/c.wav": "gone"})
    first = publish()
    put(home, {"calls/a.wav": "gone"})
    put(home, {"calls/b.wav": "ok", "other/d.wav": "ok"})
    objects.put("exports/corpus.parquet", b"of another machine: old/c.wav")
    objects.put("exports/vtt/old/c.wav.vtt", b"text of old/c.wav")
    objects.put("exports/vtt/calls/b.wav.vtt", b"text of calls/b.wav")
    objects.put(f"exports/audiofolder/{clip_name('old/c.wav', 3).as_posix()}", b"flac")
    objects.put(f"exports/audiofolder/{clip_name('calls/b.wav', 3).as_posix()}", b"flac")
    labels = [json.dumps({"id": key, "text": "a\u2028b"}, ensure_ascii=False) for key in ("old/c.wav", "calls/b.wav")]
    objects.put("exports/audiofolder/metadata.jsonl", "\n".join([*labels, ""]).encode())

    forgetting = begin(home, "old", "calls")
    second = publish()
    finish(forgetting)

    names = set(objects.names(""))
    assert not [name for name in names if b"old/c.wav" in (objects.get(name) or (b"",))[0]]
    assert not {"exports/corpus.parquet", "exports/srt/old/c.wav.srt", "exports/vtt/old/c.wav.vtt"} & names
    assert {"exports/corpus.sqlite", "exports/srt/calls/b.wav.srt", "exports/vtt/calls/b.wav.vtt"} <= names
    clips = {name for name in names if name.endswith(".flac")}
    assert clips == {f"exports/audiofolder/{clip_name('calls/b.wav', 3).as_posix()}"}
    assert (objects.get("exports/audiofolder/metadata.jsonl") or (b"",))[0].decode() == labels[1] + "\n"
    [current] = [name for name in names if name.endswith(".duckdb") and name.startswith("warehouse/")]
    assert current not in (first, second)
    assert "forgetting" not in names


@pytest.mark.slow
def test_another_machine_finishes_what_one_began(
    objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(HomeResource().paths(), {"old/c.wav": "gone", "calls/b.wav": "ok"})
    publish()
    begin(HomeResource().paths(), "old")

    monkeypatch.setenv("AUDIO_ASSETS_SCRATCH", str(tmp_path / "another"))
    home = HomeResource().paths()
    export_corpus(PartitionStore(home.record), home.exports, ["json"])
    again = begin(home, "calls")
    assert again.unfinished
    finish(again)

    assert not [name for name in objects.names("") if b"old/c.wav" in (objects.get(name) or (b"",))[0]]
    assert "exports/srt/calls/b.wav.srt" in set(objects.names(""))
    assert not again.unfinished


@pytest.mark.slow
def test_an_older_run_that_wakes_up_cannot_bring_forgotten_rows_back(objects: Objects) -> None:
    home = HomeResource().paths()
    put(home, {"calls/a.wav": "gone", "calls/b.wav": "ok"})
    store = PartitionStore(home.record)
    older = PartitionedDuckDBIOManager().fence("an older run", "calls")
    before = store.read(schemas.RAW_AUDIO, ["calls"])

    begin(home, "calls")

    with pytest.raises(SupersededError):
        store.write(schemas.RAW_AUDIO, before, "calls", older)
    assert store.read(schemas.RAW_AUDIO, ["calls"]).column("id").to_pylist() == ["calls/b.wav"]


@pytest.mark.slow
@pytest.mark.parametrize("left", ["exports/srt/old/c.wav.srt", "exports/corpus.parquet", "warehouse/earlier.duckdb"])
def test_whatever_is_still_in_the_bucket_at_the_end_is_named(
    objects: Objects, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    home = HomeResource().paths()
    put(home, {"old/c.wav": "gone", "calls/b.wav": "ok"})
    forgetting = begin(home, "old")
    objects.put(left, b"text of old/c.wav")
    delete = Objects.delete
    monkeypatch.setattr(Objects, "delete", lambda self, *names: delete(self, *(name for name in names if name != left)))

    with pytest.raises(StorageError, match=rf"{left}: still there; run .* again"):
        finish(forgetting)
    assert forgetting.unfinished


def test_what_another_run_has_found_again_meanwhile_is_not_forgotten(home: Home) -> None:
    put(home, {"calls/a.wav": "gone", "calls/b.wav": "gone"})
    store = PartitionStore(home.record)
    forgetting = Forgetting.of(store, HomeResource(), [("calls", lambda key: True)])
    put(home, {"calls/a.wav": "ok", "calls/b.wav": "gone"})

    with dg.DagsterInstance.ephemeral() as instance:
        forgetting.purge("calls", instance)

    assert [item.id for item in forgetting.forgotten] == ["calls/b.wav"]
    assert store.read(schemas.RAW_AUDIO).column("id").to_pylist() == ["calls/a.wav"]
    assert cached(home) == {sha_of("calls/a.wav")}
