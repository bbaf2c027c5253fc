"""The voice detector's network laid out anew: the same answers, and the packaged network wherever it is another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from audio_assets.speech import silero
from audio_assets.speech.engine import Samples


def answers(session: object, samples: Samples) -> list[Samples]:
    frames = samples[: len(samples) // silero.FRAME * silero.FRAME].reshape(-1, silero.FRAME)
    before = np.vstack([np.zeros((1, silero.CONTEXT), np.float32), frames[:-1, -silero.CONTEXT :]])
    state = np.zeros((1, 1, silero.STATE), np.float32)
    given = {"input": np.hstack([before, frames]), "h": state, "c": state}
    return [a.reshape(-1) for a in session.run(None, given)]


@pytest.fixture
def afresh(monkeypatch):
    """Every test decides anew which network runs."""
    silero.session.cache_clear()
    yield monkeypatch
    silero.session.cache_clear()


def network_with(path: Path, rename: str = "", scale: float = 1.0) -> Path:
    model = onnx.load(str(silero._network()))
    for tensor in model.graph.initializer:
        if tensor.name == "encoder.conv_layers.0.weight":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(scale), tensor.name))
            tensor.name = rename or tensor.name
    path.write_bytes(model.SerializeToString())
    return path


def test_probabilities_and_states_are_those_of_the_packaged_network(two_cities, afresh):
    rebuilt = silero.session()
    assert rebuilt is not silero.packaged_session()
    for mine, theirs in zip(answers(rebuilt, two_cities), answers(silero.packaged_session(), two_cities), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-4)


def test_probabilities_alone_differ_by_rounding_only(two_cities):
    mine, theirs = (answers(s, two_cities)[0] for s in (silero.session(), silero.packaged_session()))
    assert np.abs(mine - theirs).max() < 1e-5
    assert theirs.min() < 0.1 < 0.9 < theirs.max()


@pytest.mark.parametrize(
    "change", [{"rename": "another.name"}, {"scale": 1.5}], ids=["other layers", "other probabilities"]
)
def test_a_network_that_is_not_the_known_one_runs_as_it_is_packaged(tmp_path, afresh, change):
    other = network_with(tmp_path / "vad.onnx", **change)
    afresh.setattr(silero, "_network", lambda: other)
    assert silero.session() is silero.packaged_session()


def test_a_missing_network_file_does_not_stop_the_search_for_speech(tmp_path, afresh):
    afresh.setattr(silero, "_network", lambda: tmp_path / "absent.onnx")
    assert silero.session() is silero.packaged_session()
