"""``python -m audio_assets``: the command line."""

from audio_assets.cli import main

main()
