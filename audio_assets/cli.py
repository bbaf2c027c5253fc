"""The command line. Data goes to stdout, progress and messages to stderr.

Exit codes: 0 all fine, 1 an unexpected failure, 2 usage, 3 finished with failed files, 4 configuration or credentials,
5 busy (another run holds the partition), 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click

from audio_assets import interrupts
from audio_assets.errors import AudioAssetsError, SettingsError, StorageError, machine_trouble

EXIT_FILES_FAILED = 3
FORMATS = ["json", "parquet", "sqlite", "duckdb"]

_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
_formats = click.option(
    "--output-format",
    "output_formats",
    type=click.Choice(FORMATS),
    multiple=True,
    default=["json"],
    show_default=True,
    help="Format of the export; give it more than once for more than one.",
)
_all_columns = click.option(
    "--all-columns", is_flag=True, help="Export every column instead of id, transcription and tokens."
)
_min_grade = click.option(
    "--min-grade",
    type=click.Choice(["A", "B", "C", "D", "F"]),
    help="Export only transcripts of this grade or better. Default: all, also those without a grade.",
)


class _Size(click.ParamType):  # type: ignore[type-arg]
    """A number of bytes: 500MB, 1.5GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from audio_assets.settings import byte_count

        try:
            size = byte_count(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if size == 0:
            self.fail(f"{value!r} leaves room for nothing; give more, or leave the option out", param, ctx)
        return size


_include = click.option(
    "--include",
    multiple=True,
    metavar="GLOB",
    help="Only objects whose whole key matches; * crosses /. Repeatable. Default: AUDIO_ASSETS_INCLUDE.",
)
_exclude = click.option(
    "--exclude",
    multiple=True,
    metavar="GLOB",
    help="Leave out objects whose key matches. Repeatable. Default: AUDIO_ASSETS_EXCLUDE.",
)
_max_size = click.option(
    "--max-size",
    type=_Size(),
    metavar="SIZE",
    help="Do not fetch larger objects, such as 500MB; they are invalid. Default: AUDIO_ASSETS_MAX_BYTES.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="audio-assets", prog_name="audio-assets")
def cli() -> None:
    """Turn a bucket of speech recordings into transcripts, tokens, statistics and exports.

    Settings come from the environment and from .env; see .env.example. Shell completion:
    eval "$(_AUDIO_ASSETS_COMPLETE=bash_source audio-assets)", or zsh_source, or fish_source.
    """


@cli.command()
@click.option(
    "--prefix",
    "prefixes",
    multiple=True,
    metavar="P",
    help="Only keys that start with P, as in S3; give it more than once for more than one. Default: the whole bucket.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Files that are downloaded, and windows of speech that are transcribed, at a time. "
    "Default: AUDIO_ASSETS_DOWNLOADS, and 8 or on a GPU 16.",
)
@click.option(
    "--max-workers",
    type=click.IntRange(min=1),
    help="Downloads and transcriptions at once. Default: what suits the engine and the machine.",
)
@_formats
@click.option("--no-cache", is_flag=True, help="Transcribe again what is in the cache; new results are still stored.")
@_include
@_exclude
@_max_size
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="Take in only the first N files, in key order.")
@click.option(
    "--max-cost",
    type=click.FloatRange(min=0),
    metavar="USD",
    help="Spend at most so much on an API. What does not fit is left for the next run, as deferred; exit code 3.",
)
@click.option(
    "--max-disk",
    type=_Size(),
    metavar="SIZE",
    help="Bytes that the mirror may hold, such as 50GB: files are dropped from it, least recently used first, and "
    "fetched again when they are needed. Default: AUDIO_ASSETS_MAX_DISK.",
)
@click.option("--skip-summary", is_flag=True, help="Leave out the summary tables, the plots and the report.")
@click.option(
    "--skip-ingestion", is_flag=True, help="Take the audio that lies in AUDIO_ASSETS_HOME/audio; R2 is not asked."
)
@click.option(
    "--forget-gone",
    is_flag=True,
    help="Remove all that is kept of objects which vanished from the bucket: rows, cache, mirror copies, exports.",
)
@_all_columns
@_min_grade
@click.option("--verbose", is_flag=True, help="Show Dagster's log too.")
@click.option("--quiet", is_flag=True, help="Show nothing but errors.")
@_json
def run(
    prefixes: tuple[str, ...],
    batch_size: int | None,
    max_workers: int | None,
    output_formats: tuple[str, ...],
    no_cache: bool,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    max_size: int | None,
    limit: int | None,
    max_cost: float | None,
    max_disk: int | None,
    skip_summary: bool,
    skip_ingestion: bool,
    forget_gone: bool,
    all_columns: bool,
    min_grade: str | None,
    verbose: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Bring transcripts, tokens, summary, report and exports up to date with the bucket.

    Safe to interrupt and to repeat: nothing that was transcribed is transcribed, or paid for, again.
    """
    from audio_assets.runner import RunOptions

    if forget_gone and skip_summary:
        raise click.UsageError("--forget-gone rebuilds the summary and the report; leave out --skip-summary")
    if forget_gone and limit is not None:
        raise click.UsageError("--forget-gone has to look at every object, and what came back; leave out --limit")
    options = RunOptions(
        prefixes=prefixes,
        batch_size=batch_size,
        max_workers=max_workers,
        output_formats=output_formats,
        all_columns=all_columns,
        use_cache=not no_cache,
        include=include or None,
        exclude=exclude or None,
        max_object_bytes=max_size,
        max_disk=max_disk,
        limit=limit,
        max_cost_usd=max_cost,
        skip_summary=skip_summary,
        skip_ingestion=skip_ingestion,
        forget_gone=forget_gone,
        min_grade=min_grade,
        verbose=verbose,
    )
    return _run(options, quiet, as_json)


@cli.command()
@click.option("--flag", required=True, metavar="FLAG", help="Which: one of the flags of transcripts.")
@click.option("--prefix", "prefixes", multiple=True, metavar="P", help="Only keys that start with P.")
@click.option("--max-cost", type=click.FloatRange(min=0), metavar="USD", help="Spend at most so much on an API.")
@click.option("--quiet", is_flag=True, help="Show nothing but errors.")
@_json
def retry(flag: str, prefixes: tuple[str, ...], max_cost: float | None, quiet: bool, as_json: bool) -> int:
    """Transcribe again the recordings whose transcripts carry a flag, such as uncovered_speech.

    The cache is not trusted for them; with the same engine, model and options the local engine gives the same text.
    """
    from audio_assets.retry import flagged
    from audio_assets.runner import RunOptions
    from audio_assets.speech.judge import FLAGS

    if flag not in FLAGS:
        raise click.UsageError(f"no flag {flag!r}; there are: {', '.join(FLAGS)}")
    return _run(RunOptions(prefixes=(), fresh=flagged(flag, prefixes), max_cost_usd=max_cost), quiet, as_json)


def _run(options: Any, quiet: bool, as_json: bool) -> int:
    """Run the pipeline, show what it did, and return the exit code."""
    from audio_assets import terminal
    from audio_assets.runner import run_pipeline

    console = terminal.stderr_console(quiet)
    report = run_pipeline(
        options,
        terminal.TerminalProgress(console),
        lambda line: console.print(terminal.printable(line), markup=False),
    )
    if as_json:
        click.echo(terminal.json_text(report.as_dict()))
    elif not quiet:
        click.echo("\n".join(terminal.closing_lines(report)))
    if report.warehouse_refused is not None:
        raise StorageError(f"every row is stored, but the warehouse is behind: {report.warehouse_refused}")
    return EXIT_FILES_FAILED if report.unfinished or report.left_out else 0


@cli.command()
@click.option("--keep-server", is_flag=True, hidden=True, help="For tests: wait with the server running.")
def demo(keep_server: bool) -> int:
    """Run the whole pipeline on recorded speech, against a local S3 server: no key, no cloud."""
    from audio_assets.demo import run_demo

    return run_demo(click.echo, hold=keep_server)


@cli.command()
@click.option("--prefix", "prefixes", multiple=True, metavar="P", help="Only keys that start with P.")
@_include
@_exclude
@_max_size
@click.option("--sensors", is_flag=True, help="Show instead what each way of noticing objects costs a month.")
@click.option(
    "--keys", type=click.IntRange(min=0), metavar="N", help="With --sensors: for N objects, without listing the bucket."
)
@click.option(
    "--changes",
    type=click.IntRange(min=0),
    metavar="N",
    help="With --sensors: uploads and deletions a month. Default: the uploads of the last 30 days.",
)
@_json
def plan(
    prefixes: tuple[str, ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    max_size: int | None,
    sensors: bool,
    keys: int | None,
    changes: int | None,
    as_json: bool,
) -> int:
    """Show what a run would do: files, hours, silence, duplicates, cached, cost by engine and model. Spends nothing."""
    if sensors:
        if prefixes or include or exclude or max_size is not None:
            raise click.UsageError(
                "--sensors is about the whole bucket; leave out --prefix, --include, --exclude and --max-size"
            )
        from audio_assets.sensor_costs import bucket_costs

        costs = bucket_costs(keys, changes)
        click.echo(json.dumps(costs.as_dict()) if as_json else "\n".join(costs.lines()))
        return 0
    if keys is not None or changes is not None:
        raise click.UsageError("--keys and --changes go with --sensors")
    from audio_assets.plan import make_plan

    made = make_plan(prefixes, include or None, exclude or None, max_size)
    click.echo(json.dumps(made.as_dict()) if as_json else "\n".join(made.lines()))
    return 0


@cli.command("compare-models")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option(
    "--sample", type=click.IntRange(min=1), default=20, show_default=True, help="Recordings to transcribe with both."
)
@click.option("--max-cost", type=click.FloatRange(min=0), metavar="USD", help="Spend at most so much on the two.")
@_json
def compare_models(first: str, second: str, sample: int, max_cost: float | None, as_json: bool) -> int:
    """Transcribe a sample with the models A and B: how much they differ, what B cannot do, what each costs.

    A model is a name of the API, or local:MODEL. What is transcribed goes to the cache: after a switch to B it is
    not paid again.
    """
    from audio_assets import terminal
    from audio_assets.compare import compare

    made = compare(first, second, sample, max_cost)
    click.echo(terminal.json_text(made.as_dict()) if as_json else "\n".join(made.lines()))
    return EXIT_FILES_FAILED if made.unfinished else 0


@cli.command()
@_formats
@_all_columns
@_min_grade
@click.option("--include-partial", is_flag=True, help="Export transcripts that are known to be incomplete too.")
@_json
def export(
    output_formats: tuple[str, ...], all_columns: bool, min_grade: str | None, include_partial: bool, as_json: bool
) -> int:
    """Write exports from what is stored; nothing is downloaded or transcribed."""
    from audio_assets import settings, terminal
    from audio_assets.storage.exports import export_corpus
    from audio_assets.storage.verify import existing_home

    home = settings.home()
    left_out: list[str] = []
    files = export_corpus(
        existing_home(home),
        home.exports,
        list(dict.fromkeys(output_formats)),
        all_columns=all_columns,
        include_partial=include_partial,
        min_grade=min_grade,
        on_unreadable=lambda bad: left_out.append(bad.reason),
    )
    for reason in left_out:
        terminal.say_warning(f"left out: {reason}")
    if as_json:
        entries = [
            {"format": f.format, "path": str(f.path), "row_count": f.row_count, "sha256": f.sha256} for f in files
        ]
        click.echo(terminal.json_text({"exports": entries, "left_out": left_out}))
    else:
        for file in files:
            click.echo(f"{file.path}  {file.row_count} rows, {file.size_bytes / 1e3:.1f} kB")
    return EXIT_FILES_FAILED if left_out else 0


@cli.command()
@click.option(
    "--format",
    "formats",
    type=click.Choice(["srt", "vtt"]),
    multiple=True,
    default=["srt", "vtt"],
    show_default=True,
    help="SubRip or WebVTT; give it more than once for both.",
)
@click.option("--prefix", "prefixes", multiple=True, metavar="P", help="Only keys that start with P.")
@_json
def subtitles(formats: tuple[str, ...], prefixes: tuple[str, ...], as_json: bool) -> int:
    """Write subtitles for each transcript that has times, under exports/srt and exports/vtt.

    Each folder is replaced as a whole: with --prefix, only the subtitles of those keys are in it afterwards.
    """
    from audio_assets import settings, terminal
    from audio_assets.derived import write_subtitles
    from audio_assets.storage.verify import existing_home

    home = settings.home()
    existing_home(home)
    made = write_subtitles(home, formats, prefixes)
    if as_json:
        click.echo(terminal.json_text({"subtitles": [w.as_dict() for w in made]}))
    else:
        click.echo("\n".join(line for written in made for line in terminal.written_lines(written)))
    return 0


@cli.command()
@click.option("--prefix", "prefixes", multiple=True, metavar="P", help="Only keys that start with P.")
@click.option("--include-flagged", is_flag=True, help="Take transcripts and segments that carry a flag too.")
@_json
def audiofolder(prefixes: tuple[str, ...], include_flagged: bool, as_json: bool) -> int:
    """Write a folder that trains a model: 16 kHz FLAC segments and metadata.jsonl, as Hugging Face's datasets reads it.

    It lies under exports/audiofolder: datasets.load_dataset("audiofolder", data_dir=...). It is replaced as a whole:
    with --prefix, only the clips of those keys are in it afterwards.
    """
    from audio_assets import settings, terminal
    from audio_assets.derived import write_audiofolder
    from audio_assets.resources.home import HomeResource
    from audio_assets.resources.r2 import R2Resource
    from audio_assets.resources.stages import supply_of
    from audio_assets.storage.verify import existing_home

    home = settings.home()
    existing_home(home)
    with supply_of(HomeResource(), R2Resource()) as supply:
        written = write_audiofolder(home, prefixes, include_flagged=include_flagged, bring=supply.bring)
    if as_json:
        click.echo(terminal.json_text(written.as_dict()))
    else:
        click.echo("\n".join(terminal.written_lines(written)))
    return 0


@cli.command()
@click.option(
    "--link-hours",
    type=click.FloatRange(min=0, max=168),
    metavar="H",
    help="Let the players read from the bucket for H hours, by presigned links; 0: from the mirror. "
    "Default: AUDIO_ASSETS_REPORT_LINK_HOURS.",
)
@_json
def report(link_hours: float | None, as_json: bool) -> int:
    """Write the report from what is stored, and print where it is."""
    from audio_assets import settings, terminal
    from audio_assets.resources.home import HomeResource
    from audio_assets.resources.r2 import R2Resource
    from audio_assets.resources.report import write_report
    from audio_assets.storage.verify import existing_home
    from audio_assets.storage.warehouse import Warehouse

    home = settings.home()
    hours = settings.load().audio_assets_report_link_hours if link_hours is None else link_hours
    with Warehouse(home.warehouse, existing_home(home)).connect() as connection:
        path = write_report(connection, HomeResource(), R2Resource(), hours)
    dropped = 0 if hours else len(HomeResource().mirror().dropped())
    if dropped:
        terminal.say_warning(
            f"{dropped} recordings were dropped from the mirror and have no player; --link-hours 24 plays them from "
            "the bucket"
        )
    click.echo(json.dumps({"report": str(path), "link_hours": hours}) if as_json else str(path))
    return 0


@cli.command()
@click.argument("words", metavar="WORDS", nargs=-1, required=True)
@click.option("--prefix", "prefixes", multiple=True, metavar="P", help="Only keys that start with P.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Passages at most.")
@_json
def search(words: tuple[str, ...], prefixes: tuple[str, ...], limit: int, as_json: bool) -> int:
    """Find the passages that hold WORDS, with file, time and text.

    Passages that hold them side by side as typed come first, then those that hold them near each other. Words within
    double quotes ('"best of" times') must stand side by side.
    """
    from audio_assets import settings, terminal
    from audio_assets.derived import check_prefixes
    from audio_assets.search import search as find
    from audio_assets.storage.verify import existing_home
    from audio_assets.storage.warehouse import Warehouse

    home = settings.home()
    store = existing_home(home)
    check_prefixes(home, prefixes)
    with Warehouse(home.warehouse, store).connect() as connection:
        found = find(connection, " ".join(words), prefixes=prefixes, limit=limit)
    if as_json:
        click.echo(terminal.json_text({"passages": [p.as_dict() for p in found]}))
        return 0
    for passage in found:
        click.echo(terminal.passage_line(passage), color=False if os.environ.get("NO_COLOR") else None)
    if not found:
        click.echo("no passage holds these words", err=True)
    return 0


@cli.command()
@click.argument("path", metavar="PATH", required=False, type=click.Path(dir_okay=False))
@_json
def fetch(path: str | None, as_json: bool) -> int:
    """Download the published warehouse to PATH, where AUDIO_ASSETS_HOME is a bucket. Default: this machine's copy."""
    from pathlib import Path

    from audio_assets import settings
    from audio_assets.resources.home import HomeResource
    from audio_assets.storage import published

    objects = HomeResource().objects()
    target = settings.home().warehouse if path is None else Path(path).absolute()
    if objects is None and path is not None:
        raise click.UsageError("AUDIO_ASSETS_HOME is a directory; the warehouse lies in it")
    if objects is None and not target.is_file():
        raise SettingsError(
            f"{target}: no warehouse is there; `audio-assets run` builds it, or set AUDIO_ASSETS_HOME to the home that "
            "has it"
        )
    if objects is not None and not published.is_published(objects):
        raise SettingsError(
            f"AUDIO_ASSETS_HOME {objects.shown}: no warehouse is published there; `audio-assets run` publishes it, or "
            "correct AUDIO_ASSETS_HOME, then fetch again"
        )
    fetched = objects is not None and published.fetch(objects, target)
    click.echo(json.dumps({"warehouse": str(target), "fetched": fetched}) if as_json else str(target))
    return 0


@cli.command()
@click.option("--repair", is_flag=True, help="Mend what can be mended without the network and without paying.")
@_json
def verify(repair: bool, as_json: bool) -> int:
    """Compare mirror, cache, partition files, warehouse and exports, and name what does not agree, with its fix."""
    from audio_assets import terminal
    from audio_assets.resources.home import HomeResource
    from audio_assets.storage import verify as storage
    from audio_assets.storage.warehouse import Warehouse

    resource = HomeResource()
    home = resource.paths()
    store = storage.existing_home(home)
    found = storage.verify(
        home,
        store,
        Warehouse(home.warehouse, store),
        mirror=resource.mirror(),
        cache=resource.cache(),
        repair=repair,
    )
    if as_json:
        click.echo(terminal.json_text({"disagreements": [asdict(d) for d in found]}))
    else:
        for disagreement in found:
            click.echo(terminal.printable(disagreement.line))
        if dropped := len(resource.mirror().dropped()):
            click.echo(
                f"{dropped} files were dropped from the mirror to keep within its limit, and are fetched when needed"
            )
        mended = sum(d.repaired for d in found)
        click.echo(f"{len(found)} disagreements, {mended} mended" if found else "everything agrees")
    return EXIT_FILES_FAILED if any(not d.repaired for d in found) else 0


@cli.command()
@click.option("--fix", "mend", is_flag=True, help="End what killed runs left: started runs, slots, temporary files.")
@_json
def doctor(mend: bool, as_json: bool) -> int:
    """Check settings, reachability, engine, disk and leftovers, and say how to mend what is wrong."""
    from audio_assets import terminal
    from audio_assets.doctor import diagnose, fix

    mended = fix() if mend else []
    findings = diagnose()
    if as_json:
        click.echo(json.dumps({"findings": [f.as_dict() for f in findings], "mended": mended}))
    else:
        for line in mended:
            click.echo(f"mended {terminal.printable(line)}")
        for finding in findings:
            click.echo(terminal.printable(finding.line()))
    return 4 if any(f.state == "wrong" for f in findings) else 0


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``audio-assets``: runs a command and exits with its code; no traceback for a user's mistake."""
    sys.exit(_guarded(lambda: cli.main(args=arguments, prog_name="audio-assets", standalone_mode=False)))


def _guarded(command: Callable[[], Any]) -> int:
    try:
        with interrupts.heeded():
            code = command()
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except AudioAssetsError as error:
        return _said(error)
    except (KeyboardInterrupt, click.Abort):
        return interrupts.conclude()
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); stay silent at exit too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        trouble = machine_trouble(error)
        if trouble is None:
            raise
        return _said(trouble)


def _said(error: AudioAssetsError) -> int:
    """Show an error on one line; its exit code."""
    from audio_assets.terminal import say_error

    say_error(str(error))
    return error.exit_code
