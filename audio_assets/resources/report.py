"""The report of a home: the warehouse's figures, with players that reach the mirror or, when asked, the bucket."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from audio_assets.errors import StorageError, machine_trouble
from audio_assets.resources.home import HomeResource
from audio_assets.resources.r2 import R2Resource
from audio_assets.speech import judge
from audio_assets.summary.report import render_report

if TYPE_CHECKING:
    import duckdb

MAX_LINK_HOURS = 168
"""A presigned link works for a week at most: the limit of the signature."""


def write_report(
    connection: duckdb.DuckDBPyConnection, home: HomeResource, r2: R2Resource, link_hours: float = 0.0
) -> Path:
    """Write the report and return where it lies.

    Args:
        connection: the warehouse.
        home: where the report and the mirror are.
        r2: the bucket; asked for nothing unless ``link_hours`` is over 0, and then for signatures only.
        link_hours: how long the players read from the bucket, by presigned links; 0 for the mirror beside the report.

    Raises:
        SettingsError: ``link_hours`` is over 0 and a setting of the bucket is missing.
        ValueError: ``link_hours`` is not between 0 and `MAX_LINK_HOURS`.
        StorageError: the report could not be written; an earlier one is untouched.
    """
    if not 0 <= link_hours <= MAX_LINK_HOURS:
        raise ValueError(f"link_hours {link_hours:g} is not between 0 and {MAX_LINK_HOURS}")
    try:
        return _write(connection, home, r2, link_hours)
    except OSError as error:
        raise machine_trouble(error) or StorageError(
            f"{error.filename or home.paths().report}: the report cannot be written ({error.strerror or error}); an "
            "earlier one is untouched. Move away what is there, then run `audio-assets report`"
        ) from error


def _write(connection: duckdb.DuckDBPyConnection, home: HomeResource, r2: R2Resource, link_hours: float) -> Path:
    mirror, output = home.mirror(), home.paths().report
    if not link_hours:

        def beside(key: str) -> str | None:
            path = mirror.path_for(key)
            return quote(Path(os.path.relpath(path, output.parent)).as_posix()) if path.is_file() else None

        return render_report(connection, output, audio_link=beside, flag_meanings=judge.FLAGS)

    # What was copied into the mirror by hand, and what is gone, is not in the bucket.
    there = {
        str(row[0])
        for row in connection.execute("SELECT id FROM raw_audio WHERE etag IS NOT NULL AND status <> 'gone'").fetchall()
    }
    now = datetime.datetime.now(datetime.timezone.utc)
    link = r2.presigner(link_hours * 3600)
    return render_report(
        connection,
        output,
        audio_link=lambda key: link(key) if key in there else None,
        audio_origin=r2.endpoint(),
        links_end=now + datetime.timedelta(hours=link_hours),
        flag_meanings=judge.FLAGS,
        now=now,
    )
