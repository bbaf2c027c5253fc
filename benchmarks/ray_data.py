"""A stage of ours through `ray.data`: what the Ray mapper is compared with.

`map_batches` with as many actors as the mapper has workers, which keep the stage as its workers do; a batch is what one
of its workers may hold at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any


class DataWorker:
    """What an actor of `ray.data` does: it keeps a stage and applies it to one batch after the other."""

    def __init__(self, pickled: bytes, travelled: dict[str, str]) -> None:
        from ray import cloudpickle

        os.environ.update(travelled)
        self._stage = cloudpickle.loads(pickled)

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        from ray import cloudpickle

        items = [cloudpickle.loads(item) for item in batch["item"]]
        for done in self._stage.apply(items, lambda news: None):
            yield {"result": [cloudpickle.dumps(done)]}


def through_ray_data(stage: Any, items: Iterable[Any], workers: int, batch: int) -> Iterator[Any]:
    """The results of a stage, as `ray.data` gives them."""
    import ray.data
    from ray import cloudpickle

    from audio_assets.resources.ray_mapper import connect, travelling_settings

    connect()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    rows = [{"item": cloudpickle.dumps(item)} for item in items]
    done = ray.data.from_items(rows, override_num_blocks=max(1, len(rows) // batch)).map_batches(
        DataWorker,
        batch_size=batch,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=float(os.environ.get("AUDIO_ASSETS_RAY_CPUS", "1")),
        fn_constructor_args=(cloudpickle.dumps(stage), travelling_settings()),
    )
    for row in done.iter_rows():
        yield cloudpickle.loads(row["result"])
