"""``audio-assets``: every flag has its effect; mistakes get one line and the right exit code."""

import errno
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from audio_assets import cli, interrupts, schemas
from audio_assets.demo import demo_objects, encode, packaged_model, recording
from audio_assets.demo_server import WeedServer
from audio_assets.errors import BusyError
from audio_assets.resources.home import HomeResource
from audio_assets.runner import RunReport, partition_lock
from audio_assets.settings import Home
from audio_assets.storage.partition_files import PartitionStore
from audio_assets.terminal import closing_lines
from audio_assets_tests.conftest import PipelineRun, audio_assets, subprocess_environment

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def mirror(home: Home) -> Path:
    """A folder of recordings that a user has copied into the mirror."""
    for obj in demo_objects():
        if obj.key.endswith((".mp3", ".ogg")):
            path = home.audio / obj.key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(obj.body)
    return home.audio


@pytest.fixture
def local(mirror: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``audio-assets run --skip-ingestion --json …`` in this process; gives the JSON object, or the exit code."""
    monkeypatch.setenv("WHISPER_ENGINE", "local")
    monkeypatch.setenv("WHISPER_MODEL", packaged_model())

    def run(
        *arguments: str, expect: int = 0, command: tuple[str, ...] = ("run", "--skip-ingestion", "--json")
    ) -> dict[str, Any]:
        with pytest.raises(SystemExit) as stop:
            cli.main([*command, *arguments])
        out = capsys.readouterr()
        assert stop.value.code == expect, out.err
        return {"stderr": out.err, **(json.loads(out.out) if out.out else {})}

    return run


def rows(home: Home, table: str) -> list[dict[str, Any]]:
    return [r for path in sorted((home.tables / table).glob("*.parquet")) for r in pq.read_table(path).to_pylist()]


@pytest.mark.parametrize("size", ["0", "0GB", "0.2"])
@pytest.mark.parametrize("command", [("run", "--max-size"), ("run", "--max-disk"), ("plan", "--max-size")])
def test_a_size_of_no_byte_is_a_usage_error(
    command: tuple[str, ...], size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, size])
    assert stop.value.code == 2
    assert f"{size!r} leaves room for nothing" in capsys.readouterr().err


@pytest.mark.weights
class TestRunFlags:
    def test_skip_ingestion_takes_the_mirror_without_any_r2_setting(self, local: Run, home: Home) -> None:
        report = local()
        assert report["counts"] == {"ok": 4, "invalid": 1}
        assert {r["etag"] for r in rows(home, "raw_audio")} == {None}

    def test_prefix_keeps_to_the_keys_that_start_with_it(self, local: Run, home: Home) -> None:
        report = local("--prefix", "best", "--skip-summary")
        assert report["partitions"] == ["best-of-times"]
        assert {r["prefix"] for r in rows(home, "transcripts")} == {"best-of-times/"}

    def test_prefix_may_cut_through_a_folder(self, local: Run, home: Home) -> None:
        local("--prefix", "in-short/08", "--skip-summary")
        assert [r["id"] for r in rows(home, "raw_audio")] == ["in-short/08.mp3"]

    def test_prefix_may_be_repeated(self, local: Run) -> None:
        report = local("--prefix", "best", "--prefix", "in-short/", "--skip-summary")
        assert report["partitions"] == ["best-of-times", "in-short"]

    def test_prefix_without_audio_is_a_usage_error_that_lists_the_prefixes(self, local: Run) -> None:
        assert "'best-of-times/', 'in-short/'" in local("--prefix", "nowhere/", expect=2)["stderr"]

    @pytest.mark.parametrize("prefix", ["nowhere", "in-short/nothing", "in-short/08.mp3/"])
    def test_a_prefix_that_goes_deeper_than_any_file_is_one_too(self, local: Run, home: Home, prefix: str) -> None:
        (home.audio / "at-the-root.mp3").write_bytes(b"")
        assert f"--prefix {prefix!r}: no audio lies there" in local("--prefix", prefix, expect=2)["stderr"]
        assert rows(home, "raw_audio") == []

    def test_limit_takes_in_that_many_files_over_all_prefixes(self, local: Run, home: Home) -> None:
        report = local("--limit", "3", "--skip-summary")
        assert [r["id"] for r in rows(home, "raw_audio")] == [
            "best-of-times/03.mp3",
            "best-of-times/05.ogg",
            "in-short/08.mp3",
        ]
        assert report["counts"] == {"ok": 3}

    @pytest.mark.slow
    def test_limit_does_not_forget_what_is_there(self, local: Run, home: Home) -> None:
        local("--skip-summary")
        local("--limit", "1", "--skip-summary")
        assert len(rows(home, "transcripts")) == 5

    @pytest.mark.slow
    def test_no_cache_transcribes_again_and_the_cache_is_used_otherwise(self, local: Run) -> None:
        assert local()["transcribed"] == 4
        assert local()["transcribed"] == 0
        assert local("--no-cache")["transcribed"] == 4
        assert local()["transcribed"] == 0

    @pytest.mark.slow
    def test_retry_transcribes_again_what_carries_the_flag_and_nothing_else(self, local: Run, home: Home) -> None:
        local()
        store = PartitionStore(home.tables)
        table = store.read(schemas.TRANSCRIPTS, ["best-of-times"])
        chosen = table.to_pylist()[0]["id"]
        flags = [["uncovered_speech"] if id == chosen else [] for id in table.column("id").to_pylist()]
        where = table.schema.get_field_index("flags")
        store.write(
            schemas.TRANSCRIPTS,
            table.set_column(where, "flags", pa.array(flags, pa.list_(pa.string()))),
            "best-of-times",
        )

        done = local(command=("retry", "--flag", "uncovered_speech", "--json"))

        assert (done["partitions"], done["transcribed"]) == (["best-of-times"], 1)
        made = store.read(schemas.TRANSCRIPTS, ["best-of-times"]).to_pylist()
        assert [r["id"] for r in made if r["status"] == "ok" and not r["cached"]] == [chosen]

    def test_min_grade_leaves_worse_transcripts_out_of_the_export(self, local: Run, home: Home) -> None:
        local("--min-grade", "A", "--skip-summary")
        good = {r["id"] for r in rows(home, "transcript_quality") if r["grade"] == "A"}
        exported = {json.loads(line)["id"] for line in (home.exports / "corpus.jsonl").read_text().splitlines()}
        assert exported == good

    def test_skip_summary_leaves_out_summary_plots_and_report(self, local: Run, home: Home) -> None:
        report = local("--skip-summary")
        assert report["report"] is None
        assert not home.report.exists()
        assert rows(home, "prefix_summary") == rows(home, "token_frequency") == []
        assert (home.exports / "corpus.jsonl").exists()

    def test_output_format_writes_each_format_that_is_named(self, local: Run, home: Home) -> None:
        report = local("--output-format", "parquet", "--output-format", "sqlite", "--skip-summary")
        names = {Path(path).name for path in report["exports"]}
        assert names == {"corpus.parquet", "corpus.sqlite"}

    def test_an_export_that_a_run_did_not_write_is_named_as_older(self, local: Run, home: Home) -> None:
        both = local("--output-format", "json", "--output-format", "parquet", "--skip-summary", "--limit", "1")
        assert both["older_exports"] == []
        plain = local("--skip-summary", "--limit", "2")
        assert plain["exports"] == [str(home.exports / "corpus.jsonl")]
        assert plain["older_exports"] == [str(home.exports / "corpus.parquet")]

    @pytest.mark.slow
    def test_all_columns_exports_what_the_tables_hold(self, local: Run, home: Home) -> None:
        local("--all-columns")
        first = json.loads((home.exports / "corpus.jsonl").read_text(encoding="utf-8").splitlines()[0])
        assert {"id", "transcription", "tokens", "codec", "language", "segments", "spans"} <= first.keys()

    def test_batch_size_and_max_workers_reach_downloads_and_transcriptions(
        self, local: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: dict[str, tuple[Any, Any]] = {}

        def spy(module: str, function: str, place: int) -> None:
            original = getattr(importlib.import_module(module), function)

            def recorded(*arguments: Any) -> Any:
                seen[function] = (arguments[place].batch_size, arguments[place].max_workers)
                return original(*arguments)

            monkeypatch.setattr(f"{module}.{function}", recorded)

        spy("audio_assets.assets.raw_audio", "ingest_mirror", 4)
        spy("audio_assets.resources.stages", "transcribe_files", 3)
        local("--batch-size", "3", "--max-workers", "2", "--skip-summary")
        assert seen == {"ingest_mirror": (3, 2), "transcribe_files": (3, 2)}

    @pytest.mark.slow
    def test_verbose_shows_dagsters_log(self, local: Run) -> None:
        assert "RUN_SUCCESS" not in local("--limit", "0")["stderr"]
        assert "RUN_SUCCESS" in local("--limit", "0", "--verbose")["stderr"]

    @pytest.mark.slow
    def test_quiet_prints_nothing(self, mirror: Path, home: Home) -> None:
        done = audio_assets(
            "run", "--skip-ingestion", "--quiet", "--limit", "1", cwd=home.root, environment=_local_environment(home)
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_the_summary_line_counts_and_the_next_command_follows(self, mirror: Path, home: Home) -> None:
        done = audio_assets("run", "--skip-ingestion", cwd=home.root, environment=_local_environment(home))
        lines = done.stdout.splitlines()
        assert any(
            re.fullmatch(r"4 ok · 1 invalid · 0 cached · 0 failed · [\d m]+ s · \$0\.00", line) for line in lines
        )
        assert lines[-1].startswith("next ")
        assert "invalid: in-short/note.mp3" in done.stdout


def test_the_closing_lines_tell_an_older_export_from_one_that_was_written() -> None:
    lines = closing_lines(RunReport(exports=["/x/corpus.jsonl"], older_exports=["/x/corpus.parquet"]))
    assert "export   /x/corpus.jsonl" in lines
    assert "older    /x/corpus.parquet: not written by this run; --output-format refreshes it" in lines


@pytest.mark.weights
def test_a_file_that_fails_makes_the_exit_code_3(local: Run, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from audio_assets.errors import FileFailed
    from audio_assets.ingest.mirror import Mirror

    inspect = Mirror.inspect

    def broken(self: Mirror, key: str) -> Any:
        if key.endswith("08.mp3"):
            raise FileFailed("the disk could not read it")
        return inspect(self, key)

    monkeypatch.setattr(Mirror, "inspect", broken)
    report = local(expect=cli.EXIT_FILES_FAILED)
    assert (report["counts"]["failed"], report["counts"]["ok"]) == (1, 3)


class TestMistakes:
    @pytest.mark.parametrize(
        "arguments",
        [
            ["run", "--batch-size", "0"],
            ["run", "--output-format", "xml"],
            ["run", "--limit", "x"],
            ["walk"],
            ["run", "x"],
        ],
    )
    def test_wrong_usage_exits_2(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 2
        assert "Traceback" not in capsys.readouterr().err

    def test_a_missing_bucket_setting_is_named(self, home: Home) -> None:
        self._expect_settings_error(home, {}, "R2_BUCKET is not set")

    def test_wrong_credentials_name_the_settings(self, pipeline: PipelineRun, home: Home) -> None:
        wrong = {**r2_settings(pipeline), "R2_SECRET_ACCESS_KEY": "wrong"}
        self._expect_settings_error(home, wrong, "R2_SECRET_ACCESS_KEY")

    def test_a_bucket_that_is_not_there_is_named(self, pipeline: PipelineRun, home: Home) -> None:
        self._expect_settings_error(home, {**r2_settings(pipeline), "R2_BUCKET": "elsewhere"}, "R2_BUCKET 'elsewhere'")

    def test_an_endpoint_that_does_not_answer_is_named(self, pipeline: PipelineRun, home: Home) -> None:
        unreachable = {**r2_settings(pipeline), "R2_ENDPOINT_URL": "http://127.0.0.1:9"}
        self._expect_settings_error(home, unreachable, "R2_ENDPOINT_URL http://127.0.0.1:9")

    def test_a_home_is_for_one_bucket(self, pipeline: PipelineRun, weed: WeedServer) -> None:
        weed.client().create_bucket(Bucket="another")
        environment = {**pipeline.environment, "R2_BUCKET": "another"}
        done = audio_assets("run", cwd=pipeline.home.root.parent, environment=environment)
        assert done.returncode == 4
        assert "holds the corpus of the bucket 'audio-assets-demo'" in done.stderr

    def test_an_unknown_engine_is_named(self, home: Home) -> None:
        self._expect_settings_error(home, {"WHISPER_ENGINE": "cloud"}, "WHISPER_ENGINE")

    @pytest.mark.weights
    def test_a_missing_model_says_how_to_get_one(self, mirror: Path, home: Home) -> None:
        environment = {**_local_environment(home), "WHISPER_MODEL": str(home.root / "no-such-model")}
        done = audio_assets("run", "--skip-ingestion", cwd=home.root, environment=environment)
        assert done.returncode == 4, done.stderr
        assert "WHISPER_MODEL" in done.stderr
        assert len(_errors(done.stderr)) == 1

    def test_a_partition_held_by_another_run_exits_5(
        self, local: Run, home: Home, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with partition_lock(home, "best-of-times"):
            # The lock is one of this process, and would let it in again; another process is a user's case.
            done = audio_assets("run", "--skip-ingestion", cwd=home.root, environment=_local_environment(home))
        assert done.returncode == BusyError.exit_code
        assert "best-of-times" in done.stderr

    @pytest.mark.parametrize(("command", "directory"), [("export", "exports"), ("report", "report")])
    def test_a_directory_that_cannot_be_made_is_named(
        self, command: str, directory: str, home: Home, capsys: pytest.CaptureFixture[str]
    ) -> None:
        home.audio.mkdir(parents=True)
        (home.root / directory).write_text("a file is in its place")
        with pytest.raises(SystemExit) as stop:
            cli.main([command])
        assert stop.value.code == 1
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {home.root / directory}: ")
        assert "File exists" in line

    def test_a_file_in_the_place_of_a_directory_is_one_line(
        self, home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        home.root.mkdir()
        home.locks.touch()
        monkeypatch.setattr("audio_assets.doctor.diagnose", lambda: partition_lock(home, "calls").__enter__())
        with pytest.raises(SystemExit) as stop:
            cli.main(["doctor"])
        told = capsys.readouterr().err
        assert (stop.value.code, len(told.splitlines())) == (1, 1)
        assert told.startswith(f"error: {home.locks}: File exists; ")
        assert "Move away what lies in its place, then run again" in told

    def test_a_disk_that_refuses_is_one_line_wherever_it_does(
        self, home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def refuse(*_: Any) -> None:
            raise OSError(errno.EROFS, "Read-only file system", str(home.locks))

        monkeypatch.setattr("audio_assets.doctor.diagnose", refuse)
        with pytest.raises(SystemExit) as stop:
            cli.main(["doctor"])
        assert stop.value.code == 1
        assert capsys.readouterr().err.startswith(f"error: {home.locks}: Read-only file system; ")

    def _expect_settings_error(self, home: Home, settings: dict[str, str], named: str) -> None:
        home.root.mkdir(parents=True, exist_ok=True)
        done = audio_assets("run", cwd=home.root, environment=subprocess_environment(home.root, **settings))
        assert done.returncode == 4, done.stderr
        assert named in done.stderr
        assert "Traceback" not in done.stderr
        assert len(_errors(done.stderr)) == 1
        assert done.stdout == ""


@pytest.mark.weights
@pytest.mark.slow
def test_an_interrupted_run_exits_130_and_goes_on_next_time(home: Home) -> None:
    samples, rate = recording()
    for name, times in (("a-short", 1), ("b-long", 16)):
        path = home.audio / name / "a.wav"
        path.parent.mkdir(parents=True)
        path.write_bytes(encode(np.tile(samples[::3], times), rate // 3, "wav"))
    process = subprocess.Popen(
        [sys.executable, "-m", "audio_assets", "run", "--skip-ingestion", "--max-workers", "1"],
        env=_local_environment(home),
        cwd=home.root,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    # The long recording is probed; its transcription takes many times longer than the signal.
    assert any("raw_audio b-long: 1/1 files" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    stderr = process.communicate(timeout=30)[1]
    assert process.returncode == interrupts.EXIT_INTERRUPTED, stderr
    assert time.monotonic() - started < 10
    assert "Traceback" not in stderr
    shutil.rmtree(home.audio / "a-short")
    path.write_bytes(encode(samples[::3], rate // 3, "wav"))
    done = audio_assets("run", "--skip-ingestion", "--json", cwd=home.root, environment=_local_environment(home))
    assert json.loads(done.stdout)["counts"] == {"ok": 1, "gone": 1}


class Published:
    """A shared home whose only object names the current warehouse."""

    shown = "s3://bucket/home"

    def __init__(self, latest: dict[str, Any] | None) -> None:
        self._latest = latest

    def get(self, name: str) -> tuple[bytes, str] | None:
        return None if self._latest is None else (json.dumps(self._latest).encode(), "etag")


class TestFetch:
    @pytest.fixture
    def refused(self, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
        def fetch(*arguments: str, expect: int) -> str:
            with pytest.raises(SystemExit) as stop:
                cli.main(["fetch", *arguments])
            out = capsys.readouterr()
            assert (stop.value.code, out.out) == (expect, "")
            [line] = out.err.splitlines()
            return line

        return fetch

    def test_without_a_warehouse_there_is_nothing_to_name(self, refused: Callable[..., str], home: Home) -> None:
        line = refused(expect=4)
        assert f"{home.warehouse}: no warehouse is there; `audio-assets run` builds it" in line

    @pytest.mark.parametrize("path", [(), ("there.duckdb",)])
    def test_where_none_is_published_it_says_so(
        self, refused: Callable[..., str], tmp_path: Path, path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("there.duckdb").touch()
        monkeypatch.setattr(HomeResource, "objects", lambda self: Published(None))
        assert "s3://bucket/home: no warehouse is published there" in refused(*path, expect=4)

    @pytest.mark.parametrize("path", ["file/y.duckdb", "file/folder/y.duckdb", "/proc/x.duckdb"])
    def test_a_place_where_no_file_can_be_is_named(
        self, refused: Callable[..., str], tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("file").touch()
        latest = {"file": "warehouse/x.duckdb", "sha256": "0" * 64, "number": 1}
        monkeypatch.setattr(HomeResource, "objects", lambda self: Published(latest))
        assert path.removesuffix(".duckdb") in refused(path, expect=1)


class TestOtherCommands:
    def test_a_damaged_partition_is_left_out_named_and_mended(
        self, local: Run, home: Home, capsys: pytest.CaptureFixture[str]
    ) -> None:
        local("--skip-summary")
        damaged = home.tables / "transcripts" / "in-short.parquet"
        damaged.write_bytes(damaged.read_bytes()[:-9])
        report = local("--prefix", "best-of-times/", "--skip-summary", expect=3)
        assert str(damaged) in report["left_out"][0]
        exported = [json.loads(line)["id"] for line in (home.exports / "corpus.jsonl").read_text().splitlines()]
        assert exported
        assert all(id_.startswith("best-of-times/") for id_ in exported)

        def exit_code(*arguments: str) -> Any:
            with pytest.raises(SystemExit) as stop:
                cli.main(list(arguments))
            return stop.value.code

        assert exit_code("export") == 3
        assert f"warning: left out: {damaged}" in capsys.readouterr().err
        exit_code("verify", "--repair")
        assert "rows restored from the warehouse" in capsys.readouterr().out
        assert exit_code("export") == 0
        assert len((home.exports / "corpus.jsonl").read_text().splitlines()) > len(exported)

    @pytest.mark.slow
    @pytest.mark.weights
    def test_a_run_ends_with_an_error_when_the_warehouse_cannot_be_written(self, local: Run, home: Home) -> None:
        local("--skip-summary")
        home.warehouse.write_bytes(b"this was a database" * 1_000)
        report = local("--skip-summary", expect=1)
        assert "warehouse.duckdb" in report["warehouse_refused"]
        [error] = [line for line in report["stderr"].splitlines() if line.startswith("error:")]
        assert "every row is stored" in error
        assert "verify --repair" in error

    def test_export_writes_from_what_is_stored(self, pipeline: PipelineRun, tmp_path: Path) -> None:
        copy = tmp_path / "copy"
        shutil.copytree(pipeline.home.tables, copy / "tables")
        done = audio_assets(
            "export", "--output-format", "parquet", "--json", cwd=tmp_path, environment=subprocess_environment(copy)
        )
        [entry] = json.loads(done.stdout)["exports"]
        assert entry["row_count"] == 11
        assert pq.read_table(entry["path"]).num_rows == 11

    def test_plan_counts_what_is_cached_and_spends_nothing(self, pipeline: PipelineRun, home: Home) -> None:
        before = audio_assets(
            "plan",
            "--json",
            cwd=home.root.parent,
            environment={**pipeline.environment, "AUDIO_ASSETS_HOME": str(home.root)},
        )
        fresh = json.loads(before.stdout)
        assert (fresh["files"], fresh["to_download"], fresh["to_transcribe"], fresh["cached"]) == (12, 12, 12, 0)
        assert not home.audio.exists()
        done = json.loads(audio_assets("plan", "--json", cwd=home.root.parent, environment=pipeline.environment).stdout)
        assert (done["to_download"], done["to_transcribe"], done["cached"], done["cost_usd"]) == (0, 0, 11, 0.0)

    def test_doctor_finds_nothing_wrong_after_a_run(self, pipeline: PipelineRun) -> None:
        done = audio_assets("doctor", "--json", cwd=pipeline.home.root.parent, environment=pipeline.environment)
        findings = json.loads(done.stdout)["findings"]
        assert done.returncode == 0
        assert {f["subject"] for f in findings} >= {"bucket", "engine", "home", "dagster"}
        assert all(f["state"] == "ok" for f in findings if f["subject"] != "home"), findings

    def test_doctor_names_wrong_credentials(self, pipeline: PipelineRun) -> None:
        environment = {**pipeline.environment, "R2_ACCESS_KEY_ID": "nobody"}
        done = audio_assets("doctor", cwd=pipeline.home.root.parent, environment=environment)
        assert done.returncode == 4
        assert "WRONG" in done.stdout and "R2_ACCESS_KEY_ID" in done.stdout

    def test_verify_finds_nothing_after_a_run(self, pipeline: PipelineRun) -> None:
        done = audio_assets("verify", cwd=pipeline.home.root.parent, environment=pipeline.environment)
        assert (done.returncode, done.stdout) == (0, "everything agrees\n")

    @pytest.mark.parametrize(
        "command",
        [
            ["verify", "--repair"],
            ["export"],
            ["report"],
            ["search", "times"],
            ["subtitles"],
            ["audiofolder"],
            ["retry", "--flag", "clipped"],
        ],
        ids=lambda command: command[0],
    )
    @pytest.mark.parametrize("there", [False, True])
    def test_a_place_where_no_home_is_is_named_and_left_alone(
        self, command: list[str], home: Home, capsys: pytest.CaptureFixture[str], there: bool
    ) -> None:
        if there:
            home.root.mkdir()
            (home.root / "letter.txt").touch()
        with pytest.raises(SystemExit) as stop:
            cli.main(command)
        told = capsys.readouterr()
        assert (stop.value.code, told.out) == (4, "")
        assert f"{home.root}: no home is there; set AUDIO_ASSETS_HOME" in told.err
        assert list(home.root.parent.rglob("*")) == ([home.root, home.root / "letter.txt"] if there else [])

    @pytest.mark.parametrize("place", ["s3://", "file:///tmp/nowhere"])
    @pytest.mark.parametrize("command", [["run", "--skip-ingestion"], ["export"]])
    def test_an_address_that_is_no_bucket_is_a_setting_to_correct(
        self, command: list[str], place: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AUDIO_ASSETS_HOME", place)
        monkeypatch.setenv("AUDIO_ASSETS_SCRATCH", str(Path.cwd() / "scratch"))
        with pytest.raises(SystemExit) as stop:
            cli.main(command)
        told = capsys.readouterr().err
        assert stop.value.code == 4
        assert "write s3://bucket/folder" in told
        assert "SettingsError" not in told

    def test_a_mirror_without_audio_is_named(self, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stop:
            cli.main(["run", "--skip-ingestion", "--skip-summary"])
        assert stop.value.code == 0
        assert f"no audio lies in {home.audio}: put recordings there" in "".join(capsys.readouterr().err.split("\n"))

    def test_a_retry_says_how_much_it_does(self, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
        home.audio.mkdir(parents=True)
        with pytest.raises(SystemExit) as stop:
            cli.main(["retry", "--flag", "clipped"])
        assert stop.value.code == 0
        assert "0 recordings in 0 prefixes to transcribe again" in capsys.readouterr().err

    @pytest.mark.parametrize("command", [["export"], ["report"], ["search", "times"], ["subtitles"], ["audiofolder"]])
    def test_a_home_without_rows_is_no_mistake(
        self, command: list[str], home: Home, capsys: pytest.CaptureFixture[str]
    ) -> None:
        home.audio.mkdir(parents=True)
        with pytest.raises(SystemExit) as stop:
            cli.main(command)
        assert (stop.value.code, "error" in capsys.readouterr().err) == (0, False)

    def test_verify_names_what_does_not_agree_and_mends_what_is_free(
        self, pipeline: PipelineRun, tmp_path: Path
    ) -> None:
        copy = Home(tmp_path / "copy")
        shutil.copytree(pipeline.home.root, copy.root)
        environment = {**pipeline.environment, "AUDIO_ASSETS_HOME": str(copy.root)}
        copy.warehouse.unlink()
        (copy.exports / "corpus.jsonl").write_text("{}\n", encoding="utf-8")

        found = audio_assets("verify", cwd=tmp_path, environment=environment)
        assert found.returncode == cli.EXIT_FILES_FAILED
        assert "warehouse.duckdb" in found.stdout
        assert "corpus.jsonl" in found.stdout

        audio_assets("verify", "--repair", cwd=tmp_path, environment=environment)
        again = audio_assets("verify", "--json", cwd=tmp_path, environment=environment)
        assert (again.returncode, json.loads(again.stdout)) == (0, {"disagreements": []})

    @pytest.mark.parametrize(
        "command",
        [["doctor"], ["doctor", "--json"], ["doctor", "--fix"], ["export"], ["export", "--json"], ["verify", "--json"]],
    )
    def test_a_file_name_cannot_drive_the_terminal(
        self, command: list[str], home: Home, capsys: pytest.CaptureFixture[str]
    ) -> None:
        name = "caf\xe9\x9b31m\u202egnp"
        left = home.audio / f".{name}.wav.0123456789abcdef.tmp"
        foreign = home.tables / "transcripts" / f"{name}.parquet"
        for path in (left, foreign):
            path.parent.mkdir(parents=True)
            path.write_bytes(b"x")
            os.utime(path, (0, 0))
        with pytest.raises(SystemExit):
            cli.main(command)
        told = capsys.readouterr()
        assert not re.search("[\x9b\u202e]", told.out + told.err)
        assert re.search(r"\\(x|u00)9b31m\\u202egnp", told.out + told.err)
        if "--json" in command:
            assert repr(name)[1:-1] in repr(json.loads(told.out))

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_shell_completion_is_there(self, shell: str) -> None:
        result = CliRunner().invoke(
            cli.cli, prog_name="audio-assets", env={"_AUDIO_ASSETS_COMPLETE": f"{shell}_source"}
        )
        assert "_AUDIO_ASSETS_COMPLETE" in result.output


def r2_settings(pipeline: PipelineRun) -> dict[str, str]:
    return {k: v for k, v in pipeline.environment.items() if k.startswith("R2_")}


def _local_environment(home: Home) -> dict[str, str]:
    return subprocess_environment(home.root, WHISPER_MODEL=packaged_model())


def _errors(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("error:")]
