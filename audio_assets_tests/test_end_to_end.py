"""One run of the whole pipeline: a real S3 server, recorded speech, real Whisper weights."""

import json
import re
import sqlite3

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audio_assets import schemas
from audio_assets.demo import compare_with_book, demo_objects
from audio_assets_tests.conftest import PipelineRun, audio_assets

pytestmark = pytest.mark.weights

TABLES = {"raw_audio", "transcripts", "tokens", "transcript_quality", "prefix_summary", "token_frequency"}
SILENCE, NOTE = "best-of-times/silence.flac", "in-short/note.mp3"


def table(pipeline: PipelineRun, sql: str) -> list[dict[str, object]]:
    with duckdb.connect(str(pipeline.home.warehouse), read_only=True) as connection:
        return connection.sql(sql).to_arrow_table().to_pylist()


def test_the_warehouse_lists_every_table(pipeline: PipelineRun) -> None:
    assert {str(r["name"]) for r in table(pipeline, "SHOW TABLES")} >= TABLES


def test_every_object_is_one_row_of_every_table_of_files(pipeline: PipelineRun) -> None:
    keys = sorted(o.key for o in demo_objects())
    for name in ("raw_audio", "transcripts", "tokens", "transcript_quality"):
        assert [r["id"] for r in table(pipeline, f"SELECT id FROM {name} ORDER BY id")] == keys


def test_speech_is_recognised_with_under_a_fifth_of_the_words_wrong(pipeline: PipelineRun) -> None:
    heard = table(pipeline, "SELECT id, transcription FROM transcripts WHERE status = 'ok' ORDER BY id")
    comparison = compare_with_book([(str(r["id"]), str(r["transcription"])) for r in heard])
    assert comparison.words > 100
    assert comparison.word_error_rate < 0.20


def test_good_speech_gets_a_good_grade_and_what_has_no_words_gets_none(pipeline: PipelineRun) -> None:
    rows = table(pipeline, "FROM transcript_quality")
    spoken = [r for r in rows if r["words"]]
    assert len(spoken) == 10
    assert {r["grade"] for r in spoken} <= {"A", "B"}, [(r["id"], r["reason"]) for r in spoken]
    assert all(r["coverage_share"] > 0.9 and -60 < r["loudness_dbfs"] < 0 for r in spoken)
    assert {r["grade"] for r in rows if not r["words"]} == {None}
    assert all(r["reason"] for r in rows)


def test_silence_is_empty_and_nothing_is_invented(pipeline: PipelineRun) -> None:
    [row] = table(pipeline, f"SELECT status, transcription FROM transcripts WHERE id = '{SILENCE}'")
    assert row == {"status": "empty", "transcription": ""}


def test_a_text_file_named_mp3_is_invalid_with_a_reason(pipeline: PipelineRun) -> None:
    for name in ("raw_audio", "transcripts"):
        [row] = table(pipeline, f"SELECT status, error FROM {name} WHERE id = '{NOTE}'")
        assert row["status"] == "invalid"
        assert row["error"]


def test_object_metadata_is_kept(pipeline: PipelineRun) -> None:
    [row] = table(pipeline, "SELECT metadata['book'] AS book, content_type FROM raw_audio WHERE id LIKE '%/01.wav'")
    assert row == {"book": "A Tale of Two Cities", "content_type": "audio/wav"}


def test_the_mirror_keeps_the_tree_and_the_bytes(pipeline: PipelineRun) -> None:
    for obj in demo_objects():
        assert (pipeline.home.audio / obj.key).read_bytes() == obj.body


def test_every_word_is_a_token_and_stop_words_are_not_content(pipeline: PipelineRun) -> None:
    [row] = table(pipeline, "SELECT tokens, content_tokens FROM tokens WHERE id LIKE '%/01.wav'")
    tokens, content = row["tokens"], row["content_tokens"]
    assert isinstance(tokens, list) and isinstance(content, list)
    assert tokens[:6] == ["it", "was", "the", "best", "of", "times"]
    assert "best" in content and "the" not in content


def test_segments_lie_inside_the_recording_and_in_order(pipeline: PipelineRun) -> None:
    rows = table(pipeline, "SELECT duration_s, segments FROM transcripts WHERE status = 'ok'")
    assert len(rows) == 10
    for row in rows:
        times = [t for s in row["segments"] for t in (s["start_s"], s["end_s"])]  # type: ignore[attr-defined]
        assert times
        assert times == sorted(times)
        assert times[0] >= 0
        assert times[-1] <= row["duration_s"] + 0.1  # type: ignore[operator]


def test_the_prefix_summary_adds_up(pipeline: PipelineRun) -> None:
    [whole] = table(
        pipeline,
        "SELECT sum(files)::INT AS files, sum(files_ok)::INT AS ok, sum(files_empty)::INT AS empty,"
        " sum(files_invalid)::INT AS invalid, sum(words)::INT AS words FROM prefix_summary",
    )
    [counted] = table(pipeline, "SELECT sum(count)::INT AS n FROM token_frequency")
    assert whole == {"files": 12, "ok": 10, "empty": 1, "invalid": 1, "words": counted["n"]}


def test_json_lines_hold_exactly_id_transcription_and_tokens(pipeline: PipelineRun) -> None:
    lines = (pipeline.home.exports / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 11
    assert all(list(row) == ["id", "transcription", "tokens"] for row in rows)
    assert "best" in next(r for r in rows if r["id"].endswith("/01.wav"))["tokens"]


def test_the_other_exports_hold_the_same_rows(pipeline: PipelineRun) -> None:
    lines = (pipeline.home.exports / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    expected = sorted((json.loads(line) for line in lines), key=lambda r: r["id"])
    parquet = pq.read_table(pipeline.home.exports / "corpus.parquet").sort_by("id").to_pylist()
    with duckdb.connect(str(pipeline.home.exports / "corpus.duckdb"), read_only=True) as connection:
        duck: pa.Table = connection.sql("SELECT * FROM corpus ORDER BY id").to_arrow_table()
    with sqlite3.connect(pipeline.home.exports / "corpus.sqlite") as database:
        lite = database.execute("SELECT id, transcription, tokens FROM corpus ORDER BY id").fetchall()
    database.close()
    assert parquet == expected
    assert duck.to_pylist() == expected
    assert [{"id": i, "transcription": t, "tokens": json.loads(k)} for i, t, k in lite] == expected


def test_sqlite_finds_a_token_through_an_index(pipeline: PipelineRun) -> None:
    database = sqlite3.connect(pipeline.home.exports / "corpus.sqlite")
    try:
        plan = " ".join(
            str(row) for row in database.execute("EXPLAIN QUERY PLAN SELECT id FROM tokens WHERE token = 'best'")
        )
        found = database.execute("SELECT DISTINCT id FROM tokens WHERE token = 'best'").fetchall()
    finally:
        database.close()
    assert "USING" in plan and "INDEX" in plan
    assert ("best-of-times/01.wav",) in found


def test_the_report_is_one_file_that_names_every_recording(pipeline: PipelineRun) -> None:
    page = pipeline.home.report.read_text(encoding="utf-8")
    assert sorted(p.name for p in pipeline.home.report.parent.iterdir()) == ["index.html"]
    for obj in demo_objects():
        assert obj.key in page


def test_json_output_is_one_object_that_counts_everything(pipeline: PipelineRun) -> None:
    assert len(pipeline.stdout.splitlines()) == 1
    assert pipeline.report["counts"] == {"ok": 10, "empty": 1, "invalid": 1}
    assert pipeline.report["transcribed"] == 11
    assert pipeline.report["partitions"] == ["best-of-times", "in-short"]
    assert set(pipeline.report["counts"]) <= set(schemas.STATUSES)


def test_progress_off_a_terminal_is_plain_lines(pipeline: PipelineRun) -> None:
    assert "\x1b" not in pipeline.stderr
    assert "best-of-times" in pipeline.stderr


def test_every_asset_shows_its_rows_and_a_preview(pipeline: PipelineRun) -> None:
    import dagster as dg

    from audio_assets.definitions import ASSETS

    with dg.DagsterInstance.from_config(str(pipeline.home.dagster)) as instance:
        for asset in ASSETS:
            if asset.key.to_user_string() == "transcription_plan":
                continue  # no part of a run
            event = instance.get_latest_materialization_event(asset.key)
            assert event is not None and event.asset_materialization is not None
            metadata = event.asset_materialization.metadata
            assert metadata.keys() & {"dagster/row_count", "dagster/partition_row_count"}, asset.key
            assert "|" in str(metadata["preview"].value) or metadata["dagster/partition_row_count"].value == 0, (
                asset.key
            )


UNITS = (
    r"dagster/(partition_)?row_count|(\w+_)?(words|files|rows|objects|prefixes|markers|spans|requests|attempts)(_\w+)?"
    r"|audio_objects|heaps_(k|beta)|(\w+_)?(s|kb|mb|bytes|usd|usd_ever|minutes|hours|share|nats|per_minute)"
)


def test_every_number_in_the_ui_has_its_unit(pipeline: PipelineRun) -> None:
    import dagster as dg

    from audio_assets.definitions import ASSETS

    bare: list[str] = []
    with dg.DagsterInstance.from_config(str(pipeline.home.dagster)) as instance:
        for asset in ASSETS:
            event = instance.get_latest_materialization_event(asset.key)
            if event is None or event.asset_materialization is None:
                continue
            numbers = [k for k, v in event.asset_materialization.metadata.items() if type(v.value) in (int, float)]
            assert numbers, asset.key
            bare += [f"{asset.key.to_user_string()}: {name}" for name in numbers if not re.fullmatch(UNITS, name)]
    assert bare == []


def test_secrets_appear_in_no_log_and_no_file(pipeline: PipelineRun) -> None:
    secret = pipeline.environment["R2_SECRET_ACCESS_KEY"].encode()
    assert secret.decode() not in pipeline.stdout + pipeline.stderr
    for path in pipeline.home.root.rglob("*"):
        if path.is_file():
            assert secret not in path.read_bytes(), path


def test_a_second_run_transcribes_nothing(pipeline: PipelineRun) -> None:
    done = audio_assets("run", "--json", cwd=pipeline.home.root.parent, environment=pipeline.environment)
    report = json.loads(done.stdout)
    assert (done.returncode, report["transcribed"], report["cached"]) == (0, 0, 11)
    assert report["counts"] == pipeline.report["counts"]


def test_a_run_that_finds_nothing_new_visits_no_prefix(pipeline: PipelineRun) -> None:
    """The run before has found everything in the cache."""
    written = {path: path.stat().st_mtime_ns for path in (pipeline.home.tables / "transcripts").iterdir()}
    done = audio_assets("run", "--json", cwd=pipeline.home.root.parent, environment=pipeline.environment)
    report = json.loads(done.stdout)
    assert (done.returncode, report["unchanged"], report["cached"]) == (0, len(report["partitions"]), 11)
    assert {key: report[key] for key in ("partitions", "counts")} == {
        key: pipeline.report[key] for key in ("partitions", "counts")
    }
    assert done.stderr.count("nothing new") == len(written) == report["unchanged"]
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_nothing_that_a_run_leaves_is_a_pickle(pipeline: PipelineRun) -> None:
    files = [path for path in pipeline.home.root.rglob("*") if path.is_file()]
    assert len(files) > 30
    assert [path for path in files if re.match(rb"\x80[\x02-\x05][\x95\x8cc(}\]]", path.read_bytes()[:3])] == []
