"""When a model will be shut down, and whether that is soon."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from audio_assets.speech.capabilities import SUCCESSOR

WARN_DAYS = 120
"""Time enough to compare models, decide, and transcribe again what should be of one kind."""


@dataclass(frozen=True)
class Retirement:
    """The end of a model: ``day`` is None when none is known; ``source`` is who says so.

    ``state`` is ``ok``, ``soon`` (within `WARN_DAYS`) or ``over``.
    """

    model: str
    day: date | None
    source: str
    days_left: int | None
    state: str

    def line(self) -> str:
        """The facts and the next step, as one line."""
        if self.day is None:
            return f"{self.model}: no shutdown is announced ({self.source})"
        if self.state == "over":
            return (
                f"{self.model} was shut down on {self.day} ({self.source}); set WHISPER_MODEL to another model: "
                "`audio-assets plan` lists them"
            )
        text = f"{self.model} will be shut down on {self.day}, in {self.days_left} days ({self.source})"
        if self.state == "soon":
            text += f"; compare a successor: audio-assets compare-models {self.model} {SUCCESSOR} --sample 20"
        return text


def retirement(model: str, announced: date | None, listed: date | None, today: date) -> Retirement:
    """Judge a model: the endpoint's own announcement counts, else what the table of capabilities lists."""
    day = announced or listed
    source = "the endpoint says so" if announced else "by OpenAI's list of deprecations" if listed else "nobody says so"
    left = None if day is None else (day - today).days
    state = "ok" if left is None or left > WARN_DAYS else "over" if left < 0 else "soon"
    return Retirement(model, day, source, left, state)
