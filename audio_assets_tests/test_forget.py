"""`run --forget-gone`: what vanished from the bucket goes everywhere, and nothing else does."""

import hashlib
import json
import signal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from audio_assets import cli
from audio_assets.demo import demo_objects, packaged_model
from audio_assets.demo_server import WeedServer
from audio_assets.settings import Home
from audio_assets_tests.conftest import audio_assets, r2_environment, subprocess_environment

pytestmark = pytest.mark.weights
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
    return found | ({"report"} if home.report.exists() and key in home.report.read_text(encoding="utf-8") else set())


def cached(home: Home) -> set[str]:
    return {path.parent.name for path in home.cache.rglob("*.json")}


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


@pytest.mark.slow
@pytest.mark.parametrize("point", ["forget:copies-removed", "forget:rows-removed", "export:half-written"])
def test_forgetting_that_is_killed_is_finished_by_the_next_run(home: Home, tmp_path: Path, point: str) -> None:
    for key in ("calls/gone.mp3", "calls/stays.mp3"):
        path = home.audio / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(BODIES["08.mp3" if "gone" in key else "03.mp3"])
    environment = subprocess_environment(home.root, WHISPER_MODEL=packaged_model())
    arguments = ["run", "--skip-ingestion", "--json"]
    assert audio_assets(*arguments, *FORMATS, cwd=tmp_path, environment=environment).returncode == 0
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


def test_forgetting_cannot_leave_the_report_as_it_was(home: Home, tmp_path: Path) -> None:
    done = audio_assets(
        "run", "--forget-gone", "--skip-summary", cwd=tmp_path, environment=subprocess_environment(home.root)
    )
    assert done.returncode == 2
    assert "leave out --skip-summary" in done.stderr
    assert not list(tmp_path.iterdir())
