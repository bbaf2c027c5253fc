"""What a run's configuration may not say: where secrets go.

Dagster lets whoever starts a run overwrite each field of a resource, and its open-source UI has no login. An address
given there would be sent the key that the environment holds, and a key given there would be stored with the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dagster import InitResourceContext

from audio_assets.errors import SettingsError


def refuse_in_run_config(context: InitResourceContext, variables: Mapping[str, str]) -> None:
    """Make sure that the run's configuration leaves some fields of its resources alone.

    Args:
        context: of the resource that is being made.
        variables: name of a field -> the variable that has it instead.

    Raises:
        SettingsError: it sets one of them. Nothing has been sent by then.
    """
    run = context.run
    configured = run.run_config.get("resources") if run is not None else None
    own = [name for name, made in (context.all_resource_defs or {}).items() if made is context.resource_def]
    if isinstance(configured, Mapping) and own:
        # A resource inside another one has no name of its own, and is looked for everywhere.
        configured = {name: config for name, config in configured.items() if name in own}
    for field in _fields(configured):
        if field in variables:
            raise SettingsError(
                f"{field} is not for a run's configuration, where anybody who can start a run could send secrets "
                f"elsewhere; set {variables[field]} in the environment of the code location"
            )


def _fields(config: object) -> Iterator[str]:
    """Names of all fields in a part of a run's configuration, of resources inside resources too."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            yield str(name)
            yield from _fields(value)
