"""Every input of the corpus, whole and mutilated, goes through its target. ``make fuzz`` looks for further ones."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from audio_assets_tests.faults.campaign import tried
from audio_assets_tests.fuzz import __main__ as driver
from audio_assets_tests.fuzz.targets import TARGETS

MUTATIONS = {"key-codec": 100, "event": 60, "page": 400, "decoder": 4}
"""Of each input."""


def mutilated(body: bytes, chance: random.Random) -> bytes:
    """``body`` cut, with bytes changed, or with a part of it twice."""
    at, to = sorted(chance.randrange(len(body) + 1) for _ in range(2))
    return chance.choice(
        [body[:at], body[:at] + chance.randbytes(chance.randrange(1, 9)) + body[at + 1 :], body[:to] + body[at:]]
    )


def test_the_driver_and_the_corpus_know_every_target() -> None:
    assert set(driver.NAMES) == set(TARGETS) == {path.name for path in driver.CORPUS.iterdir()}


@pytest.mark.parametrize("name", driver.NAMES)
def test_what_strangers_wrote_is_survived(name: str, request: pytest.FixtureRequest) -> None:
    chance, count = random.Random(9), 0
    inputs: list[Path] = sorted((driver.CORPUS / name).iterdir())
    assert inputs
    for path in inputs:
        body = path.read_bytes()
        TARGETS[name](body)
        for _ in range(MUTATIONS[name]):
            TARGETS[name](mutilated(body, chance))
        count += 1 + MUTATIONS[name]
    tried(request, count)
