"""What a run's configuration may not say: where secrets go.

Dagster lets whoever starts a run overwrite each field of a resource, and its open-source UI has no login. An address
given there would be sent the key that the environment holds, and a key given there would be stored with the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dagster import InitResourceContext
from pydantic import BaseModel

from audio_assets.errors import SettingsError


def refuse_in_run_config(context: InitResourceContext, variables: Mapping[str, str], resource: type[BaseModel]) -> None:
    """Make sure that the run's configuration leaves some fields of its resources as they are.

    Args:
        context: of the resource that is being made.
        variables: name of a field -> the variable that has it instead.
        resource: its class.

    Raises:
        SettingsError: it changes one of them. Nothing has been sent by then.
    """
    run = context.run
    configured = run.run_config.get("resources") if run is not None else None
    own = [name for name, made in (context.all_resource_defs or {}).items() if made is context.resource_def]
    if isinstance(configured, Mapping) and own:
        # A resource inside another one has no name of its own, and is looked for everywhere.
        configured = {name: config for name, config in configured.items() if name in own}
    # The launchpad fills in what each field is anyway, and whoever presses its button changes nothing.
    unchanged = [{name: field.default for name, field in resource.model_fields.items()}, _given_in_code(context)]
    for field, value in _fields(configured):
        if field in variables and not any(field in known and known[field] == value for known in unchanged):
            raise SettingsError(
                f"{field} is not for a run's configuration, where anybody who can start a run could send secrets "
                f"or recordings elsewhere; set {variables[field]} in the environment of the code location"
            )


def _given_in_code(context: InitResourceContext) -> Mapping[str, object]:
    """The fields that the definitions set."""
    field = context.resource_def.config_field if context.resource_def is not None else None
    given = field.default_value if field is not None and field.default_provided else None
    return given if isinstance(given, Mapping) else {}


def _fields(config: object) -> Iterator[tuple[str, object]]:
    """All fields in a part of a run's configuration with their values, of resources inside resources too."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            yield str(name), value
            yield from _fields(value)
