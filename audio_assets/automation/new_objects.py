"""The sensor that lists the bucket: new, overwritten and vanished objects."""

import time
from collections.abc import Callable

import dagster as dg

from audio_assets import schemas
from audio_assets.automation.jobs import prefix_job
from audio_assets.automation.runs import MAX_RUN_REQUESTS, has_run, partitions_in_flight, readable_tick
from audio_assets.ingest.bucket_scan import add, folders_apart, object_digest
from audio_assets.ingest.listing_state import ListingState, PrefixState, compare
from audio_assets.ingest.selection import Selection
from audio_assets.partitions import PARTITIONS_NAME, partition_key_for, prefix_for, prefix_partitions
from audio_assets.resources.duckdb_io import PartitionedDuckDBIOManager
from audio_assets.resources.home import HomeResource
from audio_assets.resources.r2 import R2Resource
from audio_assets.settings import listing_interval_s, sensors_on
from audio_assets.storage.atomic import crash_point
from audio_assets.storage.partition_files import PartitionStore

WORKING_S = 40.0
"""How long one tick reads tables and lists: Dagster ends a tick after 60 s. The next one goes on where it ended."""

_READ_AT_ONCE = 500


def read_stored(
    store: PartitionStore,
    state: ListingState,
    states: dict[str, PrefixState],
    until: float,
    log: Callable[[str], None],
    selection: Selection,
) -> list[str]:
    """Bring ``states`` in step with the rows of `raw_audio`; returns the prefixes that are left for the next tick.

    Only partition files that were written since they were last read are read. Rows that are ``gone``, files that never
    came from the bucket, and objects that no longer count are not what a listing can show.
    """
    files = {}
    for file in store.partitions(schemas.RAW_AUDIO):
        try:
            files[prefix_for(file.partition or "")] = file
        except ValueError:
            log(f"{file.uri}: its partition is not one of a prefix; it is left out")
    emptied = [s for s in states.values() if s.identity is not None and s.prefix not in files]
    for known in emptied:
        known.identity, known.stored, known.row_count = None, 0, 0
    state.save(emptied)
    # What was read of the same file for another selection is not what it says now.
    identities = {p: f"{f.identity} {selection.token}".rstrip() for p, f in files.items()}
    stale = sorted(p for p in files if p not in states or states[p].identity != identities[p])
    done = 0
    for start in range(0, len(stale), _READ_AT_ONCE):
        if start and time.monotonic() > until:
            break
        chunk = stale[start : start + _READ_AT_ONCE]
        rows = store.read(
            schemas.RAW_AUDIO,
            [partition_key_for(prefix) for prefix in chunk],
            ["prefix", "id", "etag", "size_bytes", "status"],
            # Asked for once all the same: its run says what is wrong with it.
            on_unreadable=lambda bad: log(f"left out: {bad.reason}"),
        )
        digests: dict[str, int] = {}
        counts: dict[str, int] = dict.fromkeys(chunk, 0)
        columns = (rows.column(name).to_pylist() for name in ("prefix", "id", "etag", "size_bytes", "status"))
        for prefix, key, etag, size, status in zip(*columns, strict=True):
            counts[prefix] = counts.get(prefix, 0) + 1
            if status != "gone" and etag is not None and selection.wants(key):
                add(digests, prefix, object_digest(key, etag, size))
        for prefix in chunk:
            known = states.setdefault(prefix, PrefixState(prefix))
            known.identity = identities[prefix]
            known.stored, known.row_count = digests.get(prefix, 0), counts[prefix]
        state.save(states[prefix] for prefix in chunk)
        done += len(chunk)
    return stale[done:]


@dg.sensor(
    job=prefix_job,
    minimum_interval_seconds=listing_interval_s(),
    default_status=dg.DefaultSensorStatus.RUNNING if sensors_on() else dg.DefaultSensorStatus.STOPPED,
    description="Lists the bucket: asks for one run per prefix with new, overwritten or vanished objects, registers "
    "new prefixes and retires those without objects and rows.",
)
@readable_tick
def new_r2_objects_sensor(
    context: dg.SensorEvaluationContext,
    r2: R2Resource,
    home: HomeResource,
    warehouse: dg.ResourceParam[PartitionedDuckDBIOManager],
) -> dg.SensorResult | dg.SkipReason:
    """New, overwritten and vanished objects: registers new prefixes, asks for one run per changed prefix, retires.

    A prefix that vanished stays a partition as long as it has rows, ``gone`` ones included; it is retired when they
    were forgotten, or when it never had any.
    """
    until = time.monotonic() + WORKING_S
    client, bucket, selection = r2.get_client(), r2.bucket_name(), home.selection()
    home.claim(bucket)
    state = ListingState(home.paths().sensors)
    states = state.load()
    left = read_stored(warehouse.store(), state, states, until, context.log.warning, selection)
    if left:
        return dg.SkipReason(f"Reading the tables: {len(left)} partitions are left for the next ticks.")
    about = " ".join([bucket, str(home.depth()), selection.token]).rstrip()
    scan = state.load_scan(about, home.depth())
    resumed = scan.pages > 0
    scan.go_on(client, bucket, home.depth(), until, selection)
    if not scan.complete:
        state.save_scan(scan, about)
        return dg.SkipReason(f"Listing the bucket: {scan.keys} objects so far.")
    crash_point("objects:listed")
    known = set(context.instance.get_dynamic_partitions(PARTITIONS_NAME))
    busy = partitions_in_flight(context.instance)
    changes = compare(
        scan.digests,
        states,
        registered=_prefixes(known),
        is_busy=lambda prefix: partition_key_for(prefix) in busy,
        has_run=lambda run_key: has_run(context.instance, run_key),
        limit=MAX_RUN_REQUESTS,
        now=time.time(),
    )
    state.save(changes.changed, changes.forgotten)
    if resumed or scan.tells_folders_apart != folders_apart(scan.keys, len(scan.digests)):
        state.save_scan(scan, about)
    crash_point("objects:asked")
    asked = [*changes.again, *changes.new]
    new = sorted({partition_key_for(s.prefix) for s in asked} - known)
    retired = [partition_key_for(prefix) for prefix in changes.retired]
    if not asked and not retired:
        waits = f" {changes.waiting} prefixes wait for the end of a run." if changes.waiting else ""
        return dg.SkipReason(f"Nothing new in the bucket.{waits}")
    context.log.info(
        f"{len(asked)} prefixes changed, {changes.waiting} more wait; {len(new)} are new, {len(retired)} retired"
    )
    return dg.SensorResult(
        run_requests=[dg.RunRequest(run_key=s.run_key, partition_key=partition_key_for(s.prefix)) for s in asked],
        dynamic_partitions_requests=[
            *([prefix_partitions.build_add_request(new)] if new else []),
            *([prefix_partitions.build_delete_request(retired)] if retired else []),
        ],
    )


def _prefixes(partition_keys: set[str]) -> list[str]:
    """The prefixes of those partition keys that are ours; a user may have added others by hand."""
    prefixes = []
    for key in partition_keys:
        try:
            prefixes.append(prefix_for(key))
        except ValueError:
            continue
    return prefixes
