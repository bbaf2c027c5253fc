"""The software-defined assets: what exists."""
