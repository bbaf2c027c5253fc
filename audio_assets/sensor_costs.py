"""What each way of noticing objects costs a month, from the number of keys. The runs that follow cost the same."""

from __future__ import annotations

import datetime
from dataclasses import asdict, dataclass
from typing import Any

from audio_assets import settings
from audio_assets.automation import events
from audio_assets.ingest.bucket_scan import KEYS_PER_PAGE, BucketCount, count_objects, requests_of_a_scan
from audio_assets.resources.home import HomeResource
from audio_assets.resources.r2 import R2Resource

DAYS = 30

# https://developers.cloudflare.com/r2/pricing/ (Standard storage): a ListObjects request is one Class A operation.
CLASS_A_USD_PER_MILLION = 4.50
CLASS_A_FREE = 1_000_000
# https://developers.cloudflare.com/queues/pricing/: an operation for each message written, read or deleted.
QUEUE_USD_PER_MILLION = 0.40
QUEUE_FREE = 1_000_000
QUEUE_OPERATIONS_PER_MESSAGE = 3

CHANGED_SHARE = 1 / 12
"""Share of the keys that is taken to be written or deleted in a month where nothing better is known."""


@dataclass(frozen=True)
class SensorCost:
    """One way of noticing objects. ``free`` operations of the ``operations`` a month are in Cloudflare's free tier."""

    name: str
    when: str
    kind: str
    operations: int
    free: int
    cost_usd: float


@dataclass(frozen=True)
class SensorCosts:
    """Every way, for ``keys`` objects in ``prefixes`` prefixes and ``changes`` uploads and deletions a month."""

    keys: int
    prefixes: int
    requests_per_listing: int
    changes: int
    changes_are: str
    ways: list[SensorCost]

    def as_dict(self) -> dict[str, Any]:
        """The costs as one JSON-ready object."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The costs as text."""
        head = (
            f"{self.keys} objects, {self.requests_per_listing} requests for a listing; "
            f"{self.changes} uploads and deletions a month ({self.changes_are})"
        )
        rows = [
            f"{way.name:<22} {way.when:<14} {way.operations:>12} {way.kind:<18} ${way.cost_usd:.2f} a month"
            for way in self.ways
        ]
        return [head, *rows, f"the free tier is counted for each as if the account did nothing else; {DAYS} days"]


def sensor_costs(count: BucketCount, changes: int | None = None, changes_are: str = "as given") -> SensorCosts:
    """What it costs to notice objects in a bucket of this size, as often as the settings say.

    Raises:
        SettingsError: a variable of the environment is set to something it cannot be.
    """
    interval_s = settings.load().audio_assets_listing_interval_s
    pages = requests_of_a_scan(count.keys, count.prefixes)
    if changes is None:
        changes, changes_are = round(count.keys * CHANGED_SHARE), "assumed: a twelfth of the objects"
    ticks = DAYS * 86_400 // interval_s
    # Every night one listing, with a page for each prefix at the least, after a request that looks whether the bucket
    # can be read. The runs that follow are for prefixes that changed, as with the sensors.
    nightly = DAYS * (2 + -(-count.keys // KEYS_PER_PAGE) + count.prefixes)
    return SensorCosts(
        count.keys,
        count.prefixes,
        pages,
        changes,
        changes_are,
        [
            _class_a("new_r2_objects_sensor", f"every {interval_s} s", ticks * pages),
            _cost(
                "r2_event_sensor",
                f"every {events.INTERVAL_S} s",
                "queue operations",
                changes * QUEUE_OPERATIONS_PER_MESSAGE,
                QUEUE_FREE,
                QUEUE_USD_PER_MILLION,
            ),
            _class_a("nightly schedules", "every night", nightly),
        ],
    )


def bucket_costs(keys: int | None = None, changes: int | None = None) -> SensorCosts:
    """The costs for ``keys`` objects, or for the bucket as it is, which takes one listing.

    Raises:
        SettingsError: the bucket is not configured.
    """
    if keys is not None:
        return sensor_costs(BucketCount(keys, 0, 0), changes)
    r2, home = R2Resource(), HomeResource()
    since = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=DAYS)
    count = count_objects(r2.get_client(), r2.bucket_name(), home.depth(), since, home.selection())
    if changes is None:
        return sensor_costs(count, count.recent, f"uploads of the last {DAYS} days")
    return sensor_costs(count, changes)


def _class_a(name: str, when: str, operations: int) -> SensorCost:
    return _cost(name, when, "Class A operations", operations, CLASS_A_FREE, CLASS_A_USD_PER_MILLION)


def _cost(name: str, when: str, kind: str, operations: int, free: int, usd_per_million: float) -> SensorCost:
    cost = max(0, operations - free) / 1e6 * usd_per_million
    return SensorCost(name, when, kind, operations, min(operations, free), round(cost, 2))
