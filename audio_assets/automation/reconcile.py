"""Which prefixes the nightly schedule has to bring up to date: those that changed, and those with unfinished rows."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import dagster as dg

from audio_assets import schemas
from audio_assets.automation.new_objects import WORKING_S, read_stored
from audio_assets.automation.runs import partitions_given_up
from audio_assets.errors import AudioAssetsError
from audio_assets.ingest.listing_state import ListingState
from audio_assets.ingest.selection import Selection
from audio_assets.partitions import partition_key_for
from audio_assets.resources.duckdb_io import PartitionedDuckDBIOManager
from audio_assets.resources.home import HomeResource

LISTING_HOURS = 12
"""A listing that is older says too little of tonight."""

_RUN_DAYS = 30
"""How far back runs are looked at that failed and were not followed by another."""

_UNFINISHED = """
    SELECT prefix FROM latest_failures WHERE status IN ('partial', 'failed', 'deferred')
    UNION
    SELECT r.prefix FROM raw_audio r LEFT JOIN transcripts t USING (prefix, id)
    WHERE (r.status = 'ok' AND (t.id IS NULL OR t.sha256 IS DISTINCT FROM r.sha256))
        OR (t.id IS NOT NULL AND (r.status = 'gone') <> (t.status = 'gone'))
    UNION
    SELECT t.prefix FROM transcripts t LEFT JOIN tokens k USING (prefix, id)
    WHERE k.id IS NULL OR k.transcription IS DISTINCT FROM t.transcription
"""
"""Prefixes whose tables do not fit each other: a run died between two of them."""


@dataclass(frozen=True)
class Reconcile:
    """Partition keys to bring up to date; ``everything`` says why it is all of them, if it is."""

    partitions: list[str]
    everything: str | None = None


def to_reconcile(
    instance: dg.DagsterInstance,
    registered: list[str],
    home: HomeResource,
    warehouse: PartitionedDuckDBIOManager,
    log: Callable[[str], None],
) -> Reconcile:
    """Compare the last listing of the bucket, as `r2_prefixes` keeps it, with the tables.

    A prefix changed when the digest of its objects is not that of its rows, vanished objects included; it is unfinished
    when its tables do not fit each other, or when its latest run failed. Where that
    cannot be told, every partition is asked for: a run that finds nothing new costs a listing.
    """
    event = instance.get_latest_materialization_event(dg.AssetKey(schemas.R2_PREFIXES.name))
    if event is None or event.timestamp < time.time() - LISTING_HOURS * 3600:
        return Reconcile(registered, f"r2_prefixes was not materialized within {LISTING_HOURS} hours")
    try:
        listed = _listed(warehouse)
        if listed is None:
            return Reconcile(registered, "r2_prefixes was materialized without counting the bucket's objects")
        changed = _changed(listed, home, warehouse, log) | _unfinished(warehouse)
    except AudioAssetsError as error:
        return Reconcile(registered, str(error))
    since = datetime.now(timezone.utc) - timedelta(days=_RUN_DAYS)
    # What is made of the words says nothing of what it was made of.
    wanted = {partition_key_for(prefix) for prefix in changed} | partitions_given_up(instance, since)
    return Reconcile([partition for partition in registered if partition in wanted])


def _listed(warehouse: PartitionedDuckDBIOManager) -> dict[str, int] | None:
    """Digest by prefix, of the whole bucket; None when it was not computed."""
    table = warehouse.store().read(schemas.R2_PREFIXES, columns=["prefix", "digest"])
    digests = dict(zip(table.column("prefix").to_pylist(), table.column("digest").to_pylist(), strict=True))
    return None if None in digests.values() else {prefix: int(digest, 16) for prefix, digest in digests.items()}


def _changed(
    listed: dict[str, int],
    home: HomeResource,
    warehouse: PartitionedDuckDBIOManager,
    log: Callable[[str], None],
) -> set[str]:
    # A state of its own: the sensor may be at work on its.
    state = ListingState(home.paths().sensors, "nightly")
    states = state.load()
    selection: Selection = home.selection()
    unread = read_stored(warehouse.store(), state, states, time.monotonic() + WORKING_S, log, selection)
    stored = {prefix: known.stored for prefix, known in states.items()}
    differing = {prefix for prefix in listed.keys() | stored.keys() if listed.get(prefix, 0) != stored.get(prefix, 0)}
    return differing | set(unread)


def _unfinished(warehouse: PartitionedDuckDBIOManager) -> set[str]:
    with warehouse.warehouse().connect() as connection:
        return {prefix for (prefix,) in connection.execute(_UNFINISHED).fetchall()}
