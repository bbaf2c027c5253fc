"""Who does the work on the files of a partition.

A stage of the pipeline is handed over as a `Stage`: a description of what is to be done, which any process can carry
out. `MapperResource.map` applies it to files and gives results as they come; nothing else in the package knows where
that happens.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from dagster import ConfigurableResource
from pydantic import Field

from audio_assets import settings
from audio_assets.errors import SettingsError
from audio_assets.resources.metrics import metered

Item = TypeVar("Item")
Item_contra = TypeVar("Item_contra", contravariant=True)
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)
Tell = Callable[[Any], None]
"""Takes news of work in progress, in the caller's thread."""


class Stage(Protocol[Item_contra, Result]):
    """What is to be done to files. It and its items travel to other machines before `apply` is called there."""

    def apply(self, items: Iterable[Item_contra], tell: Tell) -> Generator[Result, None, None]:
        """One result per item, as they come. A file that fails is a result, too.

        ``items`` is a sequence where all of them are at hand; else the next may come only when results were taken.
        Closing the generator ends the work.

        Raises:
            SettingsError: every file would fail.
        """
        ...

    def name(self, item: Item_contra) -> Hashable:
        """What tells an item from all others."""
        ...

    def name_of(self, result: Result) -> Hashable:
        """The name of the item that a result belongs to."""
        ...

    def together(self, item: Item_contra) -> Hashable:
        """Items of which this is the same are done by one worker, in their order."""
        ...

    def lost(self, item: Item_contra, reason: str) -> Result:
        """The result of an item on which workers have died."""
        ...

    def figures(self) -> dict[str, float]:
        """What was counted so far by this copy of the stage; those of all copies are added."""
        ...

    def within(self, cores: float) -> Stage[Item_contra, Result]:
        """This stage for a worker that may use so many cores."""
        ...

    def runs_model(self) -> bool:
        """Whether a GPU would help."""
        ...

    def alike(self) -> str:
        """What must be the same wherever the stage is applied, such as a model's fingerprint. Loads what it needs."""
        ...


class Results(Protocol[Result_co]):
    """Results as they come. To be closed by whoever stops reading them."""

    def __iter__(self) -> Iterator[Result_co]: ...

    def close(self) -> None:
        """End the work; results that were not read are lost."""
        ...

    def figures(self) -> dict[str, float]:
        """The sum of what all copies of the stage counted so far."""
        ...


class MapperResource(ConfigurableResource):  # type: ignore[type-arg]
    """Applies stages to files: in this process, or by workers on a Ray cluster.

    For example:

        with closing(mapper.map(stage, files)) as results:
            for result in results:
                ...
    """

    kind: str | None = Field(
        default=None,
        description="`local`: threads and processes of this machine. `ray`: workers on the cluster of RAY_ADDRESS. "
        "By default AUDIO_ASSETS_MAPPER.",
    )

    def map(self, stage: Stage[Item, Result], items: Sequence[Item], tell: Tell = lambda news: None) -> Results[Result]:
        """Apply ``stage`` to ``items``: one result per item, as they come; ``tell`` takes what it says meanwhile.

        Raises:
            SettingsError: every file would fail.
        """
        kind = self.kind or settings.load().audio_assets_mapper
        if kind not in ("local", "ray"):
            raise SettingsError(f"AUDIO_ASSETS_MAPPER {kind!r} is unknown; use local or ray")
        results: Results[Result] = _Local(stage, items, tell)
        if kind == "ray" and items:
            from audio_assets.resources.ray_mapper import RayResults, connect

            results = RayResults(connect(), stage, items, tell)
        counted: Results[Result] = metered(results, stage, len(items))
        return counted


class _Local(Generic[Item, Result]):
    """The stage in this process, with the threads and processes that it starts itself."""

    def __init__(self, stage: Stage[Item, Result], items: Sequence[Item], tell: Tell):
        self._stage = stage
        self._results = stage.apply(items, tell)

    def __iter__(self) -> Iterator[Result]:
        return self._results

    def close(self) -> None:
        self._results.close()

    def figures(self) -> dict[str, float]:
        return self._stage.figures()
