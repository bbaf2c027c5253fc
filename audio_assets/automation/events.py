"""The sensor that hears of new and deleted objects from the bucket's event notifications, seconds after the fact."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import dagster as dg

from audio_assets.automation.jobs import prefix_job
from audio_assets.automation.runs import MAX_RUN_REQUESTS, has_run, partitions_in_flight, readable_tick
from audio_assets.errors import AudioAssetsError
from audio_assets.ingest.event_inbox import EventInbox
from audio_assets.ingest.events import MalformedEvent, parse_event
from audio_assets.ingest.selection import Selection
from audio_assets.partitions import PARTITIONS_NAME, partition_key_for, prefix_of, prefix_partitions
from audio_assets.resources.event_queue import BATCH_SIZE, EventQueueResource
from audio_assets.resources.home import HomeResource
from audio_assets.resources.r2 import R2Resource
from audio_assets.settings import sensors_on
from audio_assets.storage.atomic import crash_point

_ANY_AUDIO = Selection()

INTERVAL_S = 5
"""How often Dagster's daemon looks after sensors."""

PULLING_S = 20.0
"""How long one tick goes on pulling while there are full batches; Dagster ends a tick after 60 s."""


@dataclass
class Pulled:
    """What one tick took off the queue. ``ignored`` messages are about objects that are no audio."""

    messages: int = 0
    new: int = 0
    ignored: int = 0
    malformed: int = 0

    def __str__(self) -> str:
        return (
            f"{self.messages} messages: {self.new} new events, {self.ignored} about other files, "
            f"{self.malformed} malformed"
        )


def pull_events(
    queue: EventQueueResource,
    inbox: EventInbox,
    bucket: str,
    depth: int,
    log: Callable[[str], None],
    selection: Selection = _ANY_AUDIO,
) -> Pulled:
    """Move what lies in the queue to the inbox: pull, store, and only then acknowledge, batch by batch.

    Events of objects that do not count by ``selection`` are ignored.

    Raises:
        SettingsError, EventQueueError: the queue refused, or did not answer. What was stored stays stored.
    """
    pulled = Pulled()
    account = queue.account()
    until = time.monotonic() + PULLING_S
    while time.monotonic() < until:
        batch = queue.pull()
        if not batch:
            break
        events: list[tuple[str, str]] = []
        malformed = []
        for message in batch:
            try:
                event = parse_event(message.body, account, bucket)
            except MalformedEvent as error:
                body = message.body
                malformed.append({"id": message.id, "reason": str(error), "attempts": message.attempts, "body": body})
                log(f"message {message.id} is set aside in {inbox.malformed_file}: {error}")
                continue
            if event.is_audio and selection.matches(event.key):
                events.append((event.id, prefix_of(event.key, depth)))
            else:
                pulled.ignored += 1
        crash_point("events:pulled")
        now = time.time()
        pulled.messages += len(batch)
        pulled.malformed += inbox.set_aside(malformed, now) if malformed else 0
        pulled.new += inbox.store(events, now) if events else 0
        crash_point("events:stored")
        queue.acknowledge([message.lease_id for message in batch])
        crash_point("events:acknowledged")
        if len(batch) < BATCH_SIZE:
            break
    return pulled


@dg.sensor(
    job=prefix_job,
    # Below the daemon's own rhythm: an evaluation that comes a moment early is not put off to the next.
    minimum_interval_seconds=INTERVAL_S - 2,
    default_status=dg.DefaultSensorStatus.RUNNING if sensors_on() else dg.DefaultSensorStatus.STOPPED,
    description="Hears of new and deleted objects from the bucket's event notifications: asks for one run per prefix "
    "in which objects were written or deleted. Needs R2_EVENTS_QUEUE_ID.",
)
@readable_tick
def r2_event_sensor(
    context: dg.SensorEvaluationContext, event_queue: EventQueueResource, r2: R2Resource, home: HomeResource
) -> dg.SensorResult | dg.SkipReason:
    """Event notifications of the bucket: asks for one run per prefix in which objects were written or deleted."""
    if not event_queue.configured():
        return dg.SkipReason("R2_EVENTS_QUEUE_ID is not set: there is no queue to pull events from.")
    inbox = EventInbox(home.paths().sensors)
    failed: AudioAssetsError | None = None
    try:
        pulled = pull_events(event_queue, inbox, r2.bucket_name(), home.depth(), context.log.warning, home.selection())
        if pulled.messages:
            context.log.info(str(pulled))
    except AudioAssetsError as error:
        # What is in the inbox does not wait for a queue that is down.
        failed = error
    now = time.time()
    inbox.done([wish.run_key for wish in inbox.asked() if has_run(context.instance, wish.run_key)], now)
    inbox.forget_old(now)
    wishes = inbox.asked()[:MAX_RUN_REQUESTS]
    # One run at a time for a prefix: what comes meanwhile is served by one run after it.
    busy = partitions_in_flight(context.instance) | {partition_key_for(wish.prefix) for wish in wishes}
    wishes += inbox.ask(MAX_RUN_REQUESTS - len(wishes), lambda prefix: partition_key_for(prefix) in busy)
    crash_point("events:asked")
    if not wishes:
        if failed is not None:
            raise failed
        waiting = inbox.waiting()
        return dg.SkipReason(f"{waiting} prefixes wait for the end of a run." if waiting else "No new events.")
    if failed is not None:
        context.log.error(str(failed))
    known = set(context.instance.get_dynamic_partitions(PARTITIONS_NAME))
    keys = {wish.run_key: partition_key_for(wish.prefix) for wish in wishes}
    new = sorted(set(keys.values()) - known)
    return dg.SensorResult(
        run_requests=[dg.RunRequest(run_key=run_key, partition_key=key) for run_key, key in keys.items()],
        dynamic_partitions_requests=[prefix_partitions.build_add_request(new)] if new else [],
    )
