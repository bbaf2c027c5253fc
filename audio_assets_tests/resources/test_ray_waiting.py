"""A run whose workers find no room: it waits for those who have the cores, and not for nodes that are gone.

The cluster is a stand-in whose clock is turned by hand; what a real one does is in ``audio_assets_tests/cluster``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from audio_assets.errors import AudioAssetsError, SettingsError
from audio_assets.resources import ray_mapper
from audio_assets.resources.ray_mapper import NO_WORKER_S, RayResults
from audio_assets_tests.cluster.conftest import Toy

NODE = {"Alive": True, "Resources": {"CPU": 2.0}}


class Actor:
    """A worker that does what it is given at once, when the cluster has had room for it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self._given, self._ended = cluster, list[Any](), False
        self.begin = SimpleNamespace(remote=lambda parts: (self, self._begun))
        self.give = SimpleNamespace(remote=self._take_over)
        self.take = SimpleNamespace(remote=lambda: (self, self._said))

    @property
    def is_there(self) -> bool:
        return self._cluster.now >= self._cluster.room_at

    def _begun(self) -> tuple[str, dict[str, str]]:
        return "node", {**ray_mapper.versions(), "model and options": "toy"}

    def _take_over(self, items: list[Any] | None) -> None:
        self._ended = items is None
        self._given += items or []

    def _said(self) -> ray_mapper._Messages:
        results = [(item, (item, 0)) for item in self._given]
        self._given = []
        return ray_mapper._Messages(results=results, ended=self._ended)


class Cluster:
    """What `RayResults` uses of Ray, on nodes whose cores others have until ``room_at``."""

    cloudpickle = SimpleNamespace(dumps=lambda stage: b"")
    exceptions = SimpleNamespace(RayError=ConnectionError, RayTaskError=InterruptedError)

    def __init__(self, room_at: float, nodes: Callable[[float], list[dict[str, Any]]]) -> None:
        self.now, self.room_at, self._nodes = 0.0, room_at, nodes

    def put(self, value: Any) -> Any:
        return value

    def nodes(self) -> list[dict[str, Any]]:
        return self._nodes(self.now)

    def remote(self, worker: type) -> Any:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: Actor(self)))

    def wait(self, refs: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        done = [ref for ref in refs if ref[0].is_there][:num_returns]
        if not done:
            self.now += timeout
        return done, [ref for ref in refs if ref not in done]

    def get(self, ref: Any) -> Any:
        return ref[1]()

    def is_initialized(self) -> bool:
        return False


Start = Callable[..., Cluster]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Start:
    monkeypatch.setattr(ray_mapper, "_idle", ray_mapper._Idle())
    monkeypatch.setattr(ray_mapper, "IDLE_S", 0.0)

    def start(room_at: float = 0.0, nodes: Callable[[float], list[dict[str, Any]]] = lambda now: [NODE]) -> Cluster:
        cluster = Cluster(room_at, nodes)
        monkeypatch.setattr(ray_mapper, "time", SimpleNamespace(monotonic=lambda: cluster.now))
        return cluster

    return start


def work(cluster: Cluster) -> list[int]:
    return sorted(item for item, _ in RayResults(cluster, Toy(), list(range(40)), lambda news: None))


def test_a_run_waits_for_hours_while_others_have_the_cores_and_says_so(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = start(room_at=7_200.0)
    with caplog.at_level(logging.WARNING):
        assert work(cluster) == list(range(40))
    assert cluster.now >= 7_200
    said = [record.message for record in caplog.records]
    assert 20 <= len(said) <= 24
    assert all("waiting until others give back its cores" in line for line in said)


def test_a_run_fails_when_no_node_is_left_for_a_worker(start: Start) -> None:
    cluster = start(room_at=7_200.0, nodes=lambda now: [NODE] if now < 2_000 else [{**NODE, "Alive": False}])
    with pytest.raises(AudioAssetsError, match=r"no node of the Ray cluster has what one needs any more.*run again"):
        work(cluster)
    assert 2_000 <= cluster.now <= 2_000 + 2 * NO_WORKER_S


def test_a_worker_that_fits_on_no_node_is_refused_at_once(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIO_ASSETS_RAY_CPUS", "64")
    cluster = start()
    with pytest.raises(SettingsError, match=r"needs 64 cores .* lower AUDIO_ASSETS_RAY_CPUS"):
        work(cluster)
    assert cluster.now == 0
