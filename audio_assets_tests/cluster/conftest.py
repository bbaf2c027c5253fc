"""A Ray cluster of two nodes on loopback, and stages that say where they were applied."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from audio_assets.errors import SettingsError
from audio_assets.resources.mapper import Tell

GCS_PORT = 6399


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            # Of Ray's own code, of which every process has some: files left to the collector, forks, signals.
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))


class TwoNodes:
    """A head node and one more, of two cores each."""

    def __init__(self) -> None:
        import ray
        from ray.cluster_utils import Cluster

        self._ray = ray
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 2,
                "gcs_server_port": GCS_PORT,
                "object_store_memory": 100 << 20,
                "include_dashboard": False,
            },
        )
        self.address = str(self._cluster.address)
        self._second: Any = None

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to use this cluster: Ray's switch for loopback too, or it asks another address."""
        return {
            "AUDIO_ASSETS_MAPPER": "ray",
            "RAY_ADDRESS": self.address,
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "PYTHONPATH": os.environ["PYTHONPATH"],
        }

    def have_second(self, **environment: str) -> None:
        """See to it that there is a second node, with this environment."""
        if self._second is not None:
            self.kill_second()
        self._second = self._cluster.add_node(
            num_cpus=2,
            object_store_memory=100 << 20,
            env_vars=environment or None,
        )

    @property
    def has_second(self) -> bool:
        return self._second is not None

    def kill_second(self) -> None:
        """SIGKILL to the second node's raylet and workers, as when a machine loses power."""
        node, self._second = self._second, None
        raylet = node.all_processes["raylet"][0].process.pid
        workers = children(raylet)
        for pid in [raylet, *workers]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)

    def shutdown(self) -> None:
        self._ray.shutdown()
        self._cluster.shutdown()


def children(pid: int) -> list[int]:
    """The processes that ``pid`` started, and theirs."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                found.append(int(path.parent.name))
    return found + [each for child in found for each in children(child)]


@pytest.fixture(scope="session")
def _ray_cluster() -> Iterator[TwoNodes]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray's own switch for keeping to loopback; its name is older than its use.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    # A node is taken for dead after some seconds instead of half a minute.
    os.environ["RAY_health_check_period_ms"] = "1000"  # noqa: SIM112
    os.environ["RAY_health_check_timeout_ms"] = "2000"  # noqa: SIM112
    os.environ["RAY_health_check_failure_threshold"] = "5"  # noqa: SIM112
    # Workers import the stages of these tests.
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    pytest.importorskip("ray", reason="Ray is not installed: make cluster-test")
    cluster = TwoNodes()
    yield cluster
    cluster.shutdown()


@pytest.fixture
def two_nodes(_ray_cluster: TwoNodes, monkeypatch: pytest.MonkeyPatch) -> TwoNodes:
    """Two nodes, and the settings that point this process at them."""
    if not _ray_cluster.has_second:
        _ray_cluster.have_second()
    monkeypatch.setenv("AUDIO_ASSETS_MAPPER", "ray")
    monkeypatch.setenv("RAY_ADDRESS", _ray_cluster.address)
    return _ray_cluster


@dataclass
class Toy:
    """A stage whose items are numbers, and whose results say which process did them."""

    seconds: float = 0.0
    log: Path | None = None
    poison: frozenset[int] = frozenset()
    doom: bool = False
    same: int = 1
    likeness: str = "toy"

    def apply(self, items: Iterable[int], tell: Tell) -> Generator[tuple[int, int], None, None]:
        for item in items:
            if self.doom:
                raise SettingsError("the key was refused")
            if self.log is not None:
                with self.log.open("a") as log:
                    log.write(f"{item} {os.getpid()}\n")
            if item in self.poison:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(self.seconds)
            tell(item)
            yield item, os.getpid()

    def name(self, item: int) -> int:
        return item

    def name_of(self, result: tuple[int, int]) -> int:
        return result[0]

    def together(self, item: int) -> int:
        return item // self.same

    def lost(self, item: int, reason: str) -> tuple[int, str]:
        return item, reason

    def figures(self) -> dict[str, float]:
        return {"pid": float(os.getpid())}

    def within(self, cores: float) -> Toy:
        return self

    def runs_model(self) -> bool:
        return False

    def alike(self) -> str:
        return os.environ.get("TOY_LIKENESS", self.likeness)


@pytest.fixture
def done(tmp_path: Path) -> Callable[[], list[tuple[int, int]]]:
    """What a `Toy` that logs to ``tmp_path / "log"`` has begun: items and processes."""

    def read() -> list[tuple[int, int]]:
        log = tmp_path / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [(int(line.split()[0]), int(line.split()[1])) for line in lines if len(line.split()) == 2]

    return read
