"""Transcribing again what carries a flag."""

from __future__ import annotations

from collections.abc import Sequence

from audio_assets import schemas, settings
from audio_assets.derived import check_prefixes
from audio_assets.partitions import prefix_for
from audio_assets.storage.verify import existing_home


def flagged(flag: str, prefixes: Sequence[str] = ()) -> dict[str, list[str]]:
    """The recordings whose transcripts carry ``flag``, by partition; those that are gone cannot be heard again.

    Args:
        flag: one of `speech.judge.FLAGS`.
        prefixes: only keys that start with one of these; all, if there are none.

    Raises:
        NoSuchPrefixError: no transcript lies under one of ``prefixes``.
        SettingsError: no home is there.
        StorageError: a table cannot be read.
    """
    home = settings.home()
    store = existing_home(home)
    check_prefixes(home, prefixes)
    found: dict[str, list[str]] = {}
    for file in store.partitions(schemas.TRANSCRIPTS):
        if file.partition is None:
            continue
        prefix = prefix_for(file.partition)
        if prefixes and not any(prefix.startswith(p) or p.startswith(prefix) for p in prefixes):
            continue
        rows = store.read(schemas.TRANSCRIPTS, [file.partition], ["id", "flags", "status"]).to_pylist()
        wanted = tuple(prefixes) or ("",)
        ids = [
            row["id"]
            for row in rows
            if flag in (row["flags"] or []) and row["status"] != "gone" and row["id"].startswith(wanted)
        ]
        if ids:
            found[file.partition] = ids
    return found
