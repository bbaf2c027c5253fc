"""Settings from the environment and .env, and Dagster's home."""

import errno
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from audio_assets import doctor, settings
from audio_assets.assets.tokens import TokensConfig
from audio_assets.dagster_home import ensure_dagster_home, open_instance
from audio_assets.errors import SettingsError, StorageError
from audio_assets.partitions import PARTITIONS_NAME
from audio_assets.resources.home import HomeResource
from audio_assets.resources.whisper import WhisperResource
from audio_assets.runner import RunOptions, run_pipeline
from audio_assets.settings import Home
from audio_assets.storage import atomic


def test_a_file_named_dot_env_is_read_and_the_environment_goes_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("R2_BUCKET=from-file\nR2_ACCOUNT_ID=abc\nSOMETHING_ELSE=1\n", encoding="utf-8")
    monkeypatch.setenv("R2_BUCKET", "from-environment")
    found = settings.load()
    assert (found.r2_bucket, found.r2_account_id) == ("from-environment", "abc")


def test_the_example_file_sets_nothing_but_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUDIO_ASSETS_HOME")
    nothing = settings.load()
    example = Path(settings.__file__).parent.parent / ".env.example"
    defaults = re.sub("^#(?=[A-Z0-9_]+=)", "", example.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (tmp_path / ".env").write_text(defaults, encoding="utf-8")
    assert settings.load() == nothing


def test_a_value_of_the_wrong_kind_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIO_ASSETS_PREFIX_DEPTH", "two")
    with pytest.raises(SettingsError, match=r"^AUDIO_ASSETS_PREFIX_DEPTH: .*'two'"):
        settings.load()


def test_a_dot_env_that_is_not_utf_8_is_named_and_the_definitions_load(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes("R2_BUCKET=café\n".encode("latin-1"))
    with pytest.raises(SettingsError, match=rf"^{tmp_path}/\.env is not UTF-8: byte 14 is 0xe9; save it as UTF-8$"):
        settings.load()
    code = "import audio_assets.definitions"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("variable", ["AUDIO_ASSETS_HOME", "AUDIO_ASSETS_SCRATCH", "DAGSTER_HOME", "WHISPER_MODEL"])
def test_the_home_directory_of_a_user_that_there_is_not_is_named(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "~nobody9/x")
    if variable == "AUDIO_ASSETS_SCRATCH":
        monkeypatch.setenv("AUDIO_ASSETS_HOME", "s3://bucket/folder")
    with pytest.raises(SettingsError, match=rf"^{variable} '~nobody9/x': nobody knows where ~nobody9 is"):
        ensure_dagster_home(settings.home())
        WhisperResource(engine="local").create_engine()


WRONG_WORDS = [
    (
        "AUDIO_ASSETS_NORMALIZERS",
        "foo",
        "AUDIO_ASSETS_NORMALIZERS: normalizer 'foo' is not known; use some of casefold",
    ),
    ("AUDIO_ASSETS_ENRICH", "foo", "AUDIO_ASSETS_ENRICH: enrichment 'foo' is not known; use some of entities"),
    ("AUDIO_ASSETS_BPE_FILE", "/nonexistent", "AUDIO_ASSETS_BPE_FILE: /nonexistent: no such BPE tokenizer file; give"),
]


@pytest.mark.parametrize(("variable", "value", "message"), WRONG_WORDS)
def test_a_run_names_a_wrong_setting_of_words_before_it_does_anything(
    home: Home, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=f"^{message}"):
        run_pipeline(RunOptions(skip_ingestion=True))
    assert not home.root.exists()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        *WRONG_WORDS,
        ("AUDIO_ASSETS_MAX_DISK", "foo", "AUDIO_ASSETS_MAX_DISK 'foo' is not a size; write it like 50GB"),
        ("AUDIO_ASSETS_METRICS", "foo", "AUDIO_ASSETS_METRICS 'foo' is no address; write it like 127.0.0.1:9464"),
        ("AUDIO_ASSETS_MAPPER", "ray", "AUDIO_ASSETS_MAPPER is ray, and Ray is not installed; `pip install"),
        ("AUDIO_ASSETS_WEBHOOK_URL", "http://example.com/x", "AUDIO_ASSETS_WEBHOOK_URL is not https; plain http is"),
    ],
)
def test_the_doctor_names_a_wrong_setting_that_a_run_meets_late(
    home: Home, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv(variable, value)
    [finding] = [f for f in doctor.diagnose() if f.subject == "settings"]
    assert (finding.state, finding.text[: len(message)]) == ("wrong", message)
    assert "\n" not in finding.text


def test_a_wrong_field_of_a_run_config_is_named() -> None:
    with pytest.raises(SettingsError, match=r"^normalizers of the run config: normalizer 'foo' is not known"):
        TokensConfig(normalizers=["foo"]).check()


def test_secrets_are_not_in_the_settings_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2_SECRET_ACCESS_KEY", "canary-1")
    monkeypatch.setenv("OPENAI_API_KEY", "canary-2")
    assert "canary" not in repr(settings.load()) + str(settings.load())


def test_a_missing_setting_is_named_with_its_purpose() -> None:
    with pytest.raises(SettingsError, match="R2_BUCKET is not set: the bucket to read"):
        settings.require(None, "R2_BUCKET", "the bucket to read")


def test_the_home_is_absolute_whatever_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIO_ASSETS_HOME", "somewhere")
    assert settings.home().root == tmp_path / "somewhere"


def test_dagsters_state_lasts_in_the_home_with_telemetry_off(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    assert ensure_dagster_home(home) == home.dagster
    assert os.environ["DAGSTER_HOME"] == str(home.dagster)
    assert "telemetry:\n  enabled: false" in (home.dagster / "dagster.yaml").read_text(encoding="utf-8")


def test_a_dagster_home_of_the_users_own_is_used_and_its_configuration_kept(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "dagster.yaml").write_text("telemetry:\n  enabled: false\n", encoding="utf-8")
    monkeypatch.setenv("DAGSTER_HOME", str(theirs))
    assert ensure_dagster_home(home) == theirs
    assert (theirs / "dagster.yaml").read_text(encoding="utf-8") == "telemetry:\n  enabled: false\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("telemetry: [", "line 1"),
        ("telemetryy:\n  enabled: false\n", 'unexpected config entry "telemetryy"'),
        ("- telemetry\n", "to parse to dictionary"),
        ("telemetry:\n  enabled: caf\xe9\n", "can't decode byte 0xe9"),
    ],
)
def test_a_dagster_yaml_that_is_wrong_is_named(
    home: Home, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    home.dagster.mkdir(parents=True)
    (home.dagster / "dagster.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(SettingsError, match=f"^{home.dagster}/dagster.yaml: .*{reason}.*; correct it"):
        open_instance(home)
    [finding] = [f for f in doctor.diagnose() if f.subject == "dagster"]
    assert (finding.state, "dagster.yaml" in finding.text, "\n" in finding.text) == ("wrong", True, False)


def test_a_dagster_home_that_is_read_only_is_opened_without_its_lock(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    ensure_dagster_home(home)

    def refuse(number: int) -> None:
        def acquire(lock: FileLock, *_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number), lock.lock_file)

        monkeypatch.setattr(FileLock, "acquire", acquire)

    for number in (errno.EROFS, errno.EACCES):
        refuse(number)
        with open_instance(home) as instance:
            assert instance.root_directory == str(home.dagster)
    refuse(errno.ENOSPC)
    with pytest.raises(StorageError, match=r"\.opening\.lock: No space left on device"):
        open_instance(home)


@pytest.mark.parametrize("database", ["history/runs.db", "history/runs/index.db", "schedules/schedules.db"])
def test_a_damaged_database_of_dagsters_is_named_and_a_new_one_takes_its_place(
    home: Home, monkeypatch: pytest.MonkeyPatch, database: str
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    with open_instance(home) as instance:
        instance.add_dynamic_partitions(PARTITIONS_NAME, ["a"])
    damaged = home.dagster / database
    damaged.write_bytes(b"no database at all" * 300)
    [finding] = [f for f in doctor.diagnose() if f.subject == "dagster"]
    assert (finding.state, finding.text.partition(": ")[0]) == ("wrong", str(damaged))
    with pytest.raises(StorageError, match=f"^{damaged}: .* is damaged; move it away"):
        doctor.fix()
    damaged.unlink()
    [finding] = [f for f in doctor.diagnose() if f.subject == "dagster"]
    assert finding.state == "ok"


def test_a_home_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    with pytest.raises(SettingsError, match="set AUDIO_ASSETS_HOME to a directory of yours"):
        ensure_dagster_home(Home(Path("/proc/nowhere")))
    with pytest.raises(SettingsError, match="cannot be written"):
        HomeResource(root="/proc/nowhere").claim("bucket")


def test_a_home_keeps_to_the_bucket_that_claimed_it(home: Home) -> None:
    resource = HomeResource()
    resource.claim("first")
    resource.claim("first")
    with pytest.raises(SettingsError, match="holds the corpus of the bucket 'first', and R2_BUCKET is 'second'"):
        resource.claim("second")


def test_a_home_whose_first_run_was_killed_while_it_claimed_it_can_be_used(home: Home) -> None:
    home.root.mkdir(parents=True, exist_ok=True)
    home.bucket.write_bytes(b"")
    HomeResource().claim("first")
    assert home.bucket.read_text() == "first"


def test_of_two_first_runs_at_once_both_go_on_when_their_bucket_is_the_same(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = atomic.write_bytes

    def slowly(path: Path, data: bytes) -> None:
        time.sleep(0.3)
        written(path, data)

    monkeypatch.setattr(atomic, "write_bytes", slowly)
    with ThreadPoolExecutor(5) as pool:
        same = [pool.submit(HomeResource().claim, "first") for _ in range(4)]
        assert [each.exception() for each in same] == [None] * 4
        home.bucket.unlink()
        different = [pool.submit(HomeResource().claim, name) for name in ("first", "second")]
        assert sorted(type(each.exception()).__name__ for each in different) == ["NoneType", "SettingsError"]
