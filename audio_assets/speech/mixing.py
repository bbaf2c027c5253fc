"""One channel of several, no louder than they are and not silent where they cancel out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from audio_assets.speech.engine import SAMPLE_RATE_HZ, Samples

CANCELLED = 0.1
"""Channels cancel out when their mean has this share of the energy that is left of independent channels: 10 dB less."""


def energy_of(data: Samples) -> Any:
    """The sum of squares, of each channel where there are several.

    Not by `numpy.dot`, whose threads cost more than they give; single precision is enough for pieces within bounds.
    """
    return np.einsum("...i,...i->...", data, data)


def mixed(pieces: Iterator[Samples]) -> Iterator[Samples]:
    """One channel of several, by seconds that are counted from the start; pieces of one channel stay as they are.

    ``pieces`` are float32 of shape (channels, n) or (n,); those that come out have the shape (n,).
    """
    mixer = _Mixer()
    held: list[Samples] = []
    count = 0
    for piece in pieces:
        if held and piece.shape[:-1] != held[0].shape[:-1]:
            # Files that were put together change their channels half-way.
            yield mixer.mix(np.concatenate(held, axis=-1))
            held, count, mixer = [], 0, _Mixer()
        if piece.ndim == 1:
            yield piece
            continue
        held.append(piece)
        count += piece.shape[-1]
        if count >= SAMPLE_RATE_HZ:
            data = np.concatenate(held, axis=-1)
            whole = count // SAMPLE_RATE_HZ * SAMPLE_RATE_HZ
            for start in range(0, whole, SAMPLE_RATE_HZ):
                yield mixer.mix(data[:, start : start + SAMPLE_RATE_HZ])
            held, count = [data[:, whole:]], count - whole
    if held:
        yield mixer.mix(np.concatenate(held, axis=-1))


class _Mixer:
    """The mean of channels; where they cancel out, as with one of two turned over, that which was loudest so far."""

    def __init__(self) -> None:
        self._energy: Any = 0.0

    def mix(self, data: Samples) -> Samples:
        energy = energy_of(data).astype(np.float64)
        self._energy = self._energy + energy
        mean: Samples = data.mean(axis=0)
        # Of n independent channels the mean keeps an n-th of the energy of one, of equal ones all of it.
        if len(data) * float(energy_of(mean)) < CANCELLED * float(energy.mean()):
            loudest: Samples = data[int(np.argmax(self._energy))]
            return loudest
        return mean
