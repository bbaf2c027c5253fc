"""Resources that can be sent to another process: their configuration is, not what Dagster keeps beside it."""

from __future__ import annotations

from typing import Any


class Travelling:
    """A resource that is pickled as its configuration. To be named before Dagster's base class."""

    def __reduce__(self) -> tuple[Any, ...]:
        fields = type(self).model_fields  # type: ignore[attr-defined]
        return _anew, (type(self), {name: getattr(self, name) for name in fields})


def _anew(kind: Any, configuration: dict[str, Any]) -> Any:
    return kind(**configuration)
