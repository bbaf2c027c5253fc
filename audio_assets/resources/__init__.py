"""How the outside world is reached, as Dagster resources."""
