"""The README, .env.example and the code say the same, and every command in the README runs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from audio_assets import schemas
from audio_assets.cli import cli
from audio_assets.dagster_home import DAGSTER_YAML
from audio_assets.settings import Settings
from audio_assets.storage.partition_files import PartitionStore
from audio_assets.storage.warehouse import Warehouse
from audio_assets_tests.conftest import PipelineRun

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
VARIABLES = [name.upper() for name in Settings.model_fields]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]
PROJECT_COMMANDS = [
    c for c in COMMANDS if c.startswith(("audio-assets", "dagster", "export")) and c != "audio-assets demo"
]


def test_the_first_two_commands_are_make_demo_and_make_test() -> None:
    assert COMMANDS[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_every_make_command_is_a_target(command: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{command.split()[1]}:", makefile, re.MULTILINE)


def test_the_commands_for_ci_begin_with_a_dagster_home_that_the_others_see() -> None:
    [first, *_] = next(block for block in blocks("sh") if "dagster asset materialize" in block).splitlines()
    assert first.startswith("export DAGSTER_HOME=")


def test_every_command_is_one_that_a_test_runs() -> None:
    rest = set(COMMANDS) - set(PROJECT_COMMANDS)
    # `make demo` and `make test` are what CI runs; `make dev` and the demo have tests of their own.
    assert rest == {"make demo", "make test", "make dev", "audio-assets demo"}


@pytest.fixture(scope="module")
def used_home(pipeline: PipelineRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the demonstration's home, for commands that change it."""
    home = tmp_path_factory.mktemp("readme") / "home"
    shutil.copytree(pipeline.home.root, home)
    # The warehouse knows partition files by their identity, and copies have others: let it take them in.
    store = PartitionStore(home / "tables")
    Warehouse(home / "warehouse.duckdb", store).refresh()
    return home


@pytest.mark.weights
@pytest.mark.parametrize(
    "command",
    # Each flag of `run` has a test of its own; running all of the README's lines takes minutes.
    [pytest.param(c, marks=pytest.mark.slow if c.startswith("audio-assets run -") else ()) for c in PROJECT_COMMANDS],
)
def test_every_command_of_the_readme_runs(command: str, pipeline: PipelineRun, used_home: Path) -> None:
    # The README's prefixes are a reader's; the bucket of this test has others.
    command = command.replace("calls/", "best-of-times/").replace("lectures/2024", "in-short/0")
    environment = {
        **pipeline.environment,
        "AUDIO_ASSETS_HOME": str(used_home),
        "DAGSTER_HOME": str(used_home / "dagster"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    if command.startswith("export"):
        # What is exported hides how the command behind it ended.
        command += ' && test -f "$DAGSTER_HOME/dagster.yaml"'
    done = subprocess.run(command, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.weights
def test_the_python_example_runs(pipeline: PipelineRun) -> None:
    [example] = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", example.replace("data/warehouse.duckdb", str(pipeline.home.warehouse))],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "status" in done.stdout
    assert "10 rows" in done.stdout


def test_every_option_of_run_is_in_the_readme_and_no_other() -> None:
    section = README.split("| flag of `run` | effect |")[1].split("```")[0]
    documented = set(re.findall(r"^\| `(--[a-z-]+)", section, re.MULTILINE))
    real = {o for p in cli.commands["run"].params if isinstance(p, click.Option) for o in p.opts if o.startswith("--")}
    assert documented == real


def test_every_option_that_the_readme_names_exists() -> None:
    real = {o for c in cli.commands.values() for p in c.params for o in p.opts} | {"--help"}
    others = {"--select", "--partition", "--rm", "--env-file"}
    assert set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", README)) <= real | others


def test_every_command_and_option_explains_itself() -> None:
    for name, command in cli.commands.items():
        assert command.help, name
        for param in command.params:
            if isinstance(param, click.Option):
                assert param.help, f"{name} {param.opts}"
            else:
                assert re.search(rf"\b{param.make_metavar(click.Context(command))}\b", command.help), (
                    f"{name} {param.name}"
                )
        assert name in README


def test_every_setting_is_documented_and_every_documented_one_is_read() -> None:
    documented = re.findall(r"^\| `([A-Z][A-Z0-9_]+)` \|", README, re.MULTILINE)
    assert documented == VARIABLES
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    # A line that sets something, be it to nothing, would go before what is exported: Dagster reads `.env` like that.
    assert re.findall(r"^#([A-Z][A-Z0-9_]+)=", example, re.MULTILINE) == VARIABLES
    assert re.findall(r"^[A-Z].*", example, re.MULTILINE) == []


def test_the_workflow_materializes_what_the_readme_does() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    selected = [re.findall(r"--select '?([a-z0-9_,]+)", text) for text in (workflow, "\n".join(COMMANDS))]
    assert sorted(selected[0]) == sorted(selected[1])


def test_every_table_is_documented_with_its_columns() -> None:
    for table in schemas.TABLES.values():
        line = next(line for line in README.splitlines() if line.startswith(f"| `{table.name}` |"))
        assert line.split("|")[3].strip().split(", ") == table.column_names


def test_every_status_and_file_type_is_documented() -> None:
    from audio_assets.ingest.listing import AUDIO_EXTENSIONS

    assert all(f"`{status}`" in README for status in schemas.STATUSES)
    assert all(re.search(rf"{re.escape(extension)}\b", README) for extension in AUDIO_EXTENSIONS)


def test_pictures_and_files_that_the_readme_names_are_there() -> None:
    for path in re.findall(r"\]\((\.github/[^)]+)\)", README):
        assert (ROOT / path).is_file(), path


def test_the_packaged_dagster_yaml_is_the_projects() -> None:
    assert (ROOT / "dagster.yaml").read_text(encoding="utf-8") == DAGSTER_YAML


def test_ci_runs_the_readmes_test_command() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
