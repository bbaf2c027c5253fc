"""A stage applied by workers on a Ray cluster: actors that load the model once and are given files as they have room.

Each worker holds a bounded number of files, so neither it nor this process ever holds more than its share, whatever the
size of the partition. What a worker has finished has been taken from it or is in the cache; what it held when it died
is given to another.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Generic

import audio_assets
from audio_assets import settings
from audio_assets.errors import AudioAssetsError, SettingsError
from audio_assets.resources.mapper import Item, Result, Stage, Tell

REACH_S = 5.0
"""How long the head node may take to accept a connection."""

DEATHS_ALONE, DEATHS_LOST = 2, 3
"""Workers that may die holding a file before it is tried alone, and before it is given up."""

STILLBORN = 5
"""Workers that may die one after the other before any was ready."""

NO_WORKER_S = 300.0
"""How long a run waits for its first worker before it looks whether there can be one, and again before it looks anew.

Other runs keep the cores of the cluster for as long as a stage of theirs takes: hours are nothing unusual."""

IDLE_S = 30.0
"""How long a worker waits for the next stage before it gives its cores back."""

_HOLD_S = 5.0
_LINGER_S = 0.005
_MESSAGES = 512
"""A worker answers with what has come, after so many seconds at most, so many messages at once."""

_COMPARED = (
    "av",
    "ctranslate2",
    "faster-whisper",
    "numpy",
    "onnxruntime",
    "openai",
    "pyarrow",
    "simplemma",
    "spacy",
)
"""Packages whose version may change a result."""


def connect() -> Any:
    """The `ray` module, connected to the cluster of ``RAY_ADDRESS``.

    Raises:
        SettingsError: Ray is not installed, the address is missing or nobody answers there, or the cluster has another
            version of Ray or Python.
    """
    ray = _ray()
    if ray.is_initialized():
        return ray
    address = _address()
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    except (RuntimeError, ConnectionError, ValueError) as error:
        reason = " ".join(str(error).split())
        advice = "install the same on all nodes" if "ersion mismatch" in reason else "is the cluster up? `ray status`"
        raise SettingsError(f"RAY_ADDRESS {address}: {reason[:300]}; {advice}") from None
    finally:
        # Ray answers SIGTERM by leaving at once; how a run ends is for those who run it.
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
    return ray


def check() -> None:
    """Look for what keeps a run from the cluster, without joining it.

    Raises:
        SettingsError: Ray is not installed, or the address is missing or nobody answers there.
    """
    _ray()
    _address()


def _ray() -> Any:
    # No usage reports to Ray's authors, and no changes to this process's view of its GPUs.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise SettingsError(
            "AUDIO_ASSETS_MAPPER is ray, and Ray is not installed; `pip install 'audio-assets[ray]'`"
        ) from None
    return ray


def _address() -> str:
    address = settings.require(settings.load().ray_address, "RAY_ADDRESS", "AUDIO_ASSETS_MAPPER is ray")
    _reach(address)
    return address


def _reach(address: str) -> None:
    """See whether somebody listens: Ray itself would ask for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address in ("auto", "local") or not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_S).close()
    except (OSError, OverflowError) as error:
        # A port over 65535 is an overflow.
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(
            f"RAY_ADDRESS {address}: nobody answers there ({reason}); start the cluster"
            " (`ray start --head`), or correct the address"
        ) from None


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """What a process has installed that may change a result: the package's own source, and libraries."""
    found = {"Python": ".".join(map(str, sys.version_info[:2]))}
    for name in _COMPARED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    source = hashlib.sha256()
    root = Path(audio_assets.__file__).parent
    for path in sorted(root.rglob("*.py")):
        source.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    found["the source of audio_assets"] = source.hexdigest()[:12]
    return found


def travelling_settings() -> dict[str, str]:
    """The settings of this run, as environment variables for its workers. What is not set here is a node's own."""
    found = settings.load()
    names = found.model_fields_set - {"ray_address", "audio_assets_mapper", "audio_assets_scratch"}
    values = {name.upper(): getattr(found, name) for name in names}
    shown = {k: v.get_secret_value() if hasattr(v, "get_secret_value") else str(v) for k, v in values.items()}
    home = settings.home()
    return {k: v for k, v in shown.items() if v != "None"} | {"AUDIO_ASSETS_HOME": home.shared or str(home.root)}


@dataclass
class _Messages:
    """What a worker has to say, in order: results, news, and at last how it ended."""

    results: list[tuple[Any, Any]] = field(default_factory=list)
    news: list[Any] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    ended: bool = False
    doomed: str | None = None
    broken: BaseException | None = None


class Worker:
    """One worker: applies stages, one after the other, to the files that it is given. An actor of the cluster."""

    def __init__(self) -> None:
        self._environment = dict(os.environ)
        self._starting = threading.Lock()

    def begin(self, parts: tuple[bytes, dict[str, str], str | None]) -> tuple[str, dict[str, str]]:
        """Take over a stage and the settings of its run; loads the model.

        Returns:
            The name of the node, and what must be the same on all.
        """
        import ray
        from ray import cloudpickle

        pickled, travelled, probe = parts
        os.environ.clear()
        os.environ.update(self._environment | travelled)
        self._stage: Stage[Any, Any] = cloudpickle.loads(pickled)
        self._given: queue.SimpleQueue[list[Any] | None] = queue.SimpleQueue()
        self._said: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        address = ray.util.get_node_ip_address()
        if probe is not None and not Path(probe).exists():
            home = travelled["AUDIO_ASSETS_HOME"]
            return address, {
                "error": f"the run's AUDIO_ASSETS_HOME {home} is not there; share the directory, or set it to "
                "s3://bucket/folder"
            }
        try:
            return address, {**versions(), "model and options": self._stage.alike()}
        except AudioAssetsError as error:
            return address, {"error": str(error)}

    def give(self, items: list[Any] | None) -> None:
        """More files; None: there are no more."""
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()
            self._given.put(items)

    def take(self) -> _Messages:
        """What was said since, after waiting a little for the first of it."""
        told = _Messages()
        try:
            message = self._said.get(timeout=_HOLD_S)
            until = time.monotonic() + _LINGER_S
            for _ in range(_MESSAGES):
                self._sort(told, *message)
                if told.ended:
                    break
                message = self._said.get(timeout=max(0.0, until - time.monotonic()))
            else:
                self._said.put(message)
        except queue.Empty:
            pass
        told.figures = self._stage.figures()
        return told

    def _sort(self, told: _Messages, kind: str, value: Any) -> None:
        if kind == "result":
            told.results.append(value)
        elif kind == "news":
            told.news.append(value)
        else:
            told.ended = True
            if isinstance(value, SettingsError):
                told.doomed = str(value)
            else:
                told.broken = value

    def _items(self) -> Iterator[Any]:
        while (items := self._given.get()) is not None:
            yield from items

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            for result in self._stage.apply(self._items(), lambda news: self._said.put(("news", news))):
                self._said.put(("result", (self._stage.name_of(result), result)))
        except BaseException as raised:  # it is raised again where the results are read
            error = raised
        self._said.put(("end", error))


@dataclass
class _Place:
    """A worker as this process sees it: what it was given and has not answered."""

    actor: Any
    tried: bool
    holds: dict[Hashable, Any] = field(default_factory=dict)
    ready: bool = False
    alone: bool = False
    told: bool = False
    pending: Any = None
    figures: dict[str, float] = field(default_factory=dict)


Needs = tuple[float, float]
"""Cores and GPUs of a worker."""


class _Idle:
    """Workers without work, for `IDLE_S`: the next stage of the run takes them over, model and imports included."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._actors: dict[Needs, list[Any]] = {}

    def take(self, needs: Needs) -> Any:
        with self._lock:
            actors = self._actors.get(needs)
            return actors.pop() if actors else None

    def put(self, ray: Any, needs: Needs, actor: Any) -> None:
        with self._lock:
            self._actors.setdefault(needs, []).append(actor)

        def end() -> None:
            with self._lock:
                if actor not in self._actors[needs]:
                    return
                self._actors[needs].remove(actor)
            _end(ray, actor)

        timer = threading.Timer(IDLE_S, end)
        timer.daemon = True
        timer.start()


_idle = _Idle()


class RayResults(Generic[Item, Result]):
    """Results of a stage that workers on the cluster apply, as they come."""

    def __init__(self, ray: Any, stage: Stage[Item, Result], items: Sequence[Item], tell: Tell) -> None:
        self._ray, self._tell = ray, tell
        found = settings.load()
        self._cpus, self._window = found.audio_assets_ray_cpus, found.audio_assets_ray_in_flight
        self._gpus = found.audio_assets_ray_gpus if stage.runs_model() else 0.0
        self._needs = (self._cpus, self._gpus)
        self._stage = stage.within(self._cpus)
        self._groups: dict[Hashable, list[Item]] = {}
        for item in items:
            self._groups.setdefault(stage.together(item), []).append(item)
        self._waiting: deque[list[Item]] = deque(self._groups.values())
        self._groups = {}
        self._deaths: dict[Hashable, int] = {}
        self._places: dict[Any, _Place] = {}
        self._figures: dict[str, float] = {}
        self._likeness: tuple[str, dict[str, str]] | None = None
        self._left = len(items)
        self._stillborn = 0
        self.redone = 0
        """Files that were given out again, since their worker was lost."""
        self._results = self._work()

    def __iter__(self) -> Generator[Result, None, None]:
        return self._results

    def close(self) -> None:
        """End the work; results that were not read are lost."""
        self._results.close()
        for place in list(self._places.values()):
            self._dismiss(place)

    def figures(self) -> dict[str, float]:
        """The sum of what all workers counted, those that were lost included as far as they could tell."""
        total = dict(self._figures) or self._stage.figures()
        for place in self._places.values():
            _add(total, place.figures)
        return total | ({"redone": float(self.redone)} if self.redone else {})

    @property
    def queued(self) -> int:
        """Files that no worker has yet."""
        return sum(map(len, self._waiting))

    def _work(self) -> Generator[Result, None, None]:
        pickled = self._ray.cloudpickle.dumps(self._stage)
        probe = _probe()
        self._parts = self._ray.put((pickled, travelling_settings(), None if probe is None else str(probe)))
        count = self._worker_count()
        for _ in range(count):
            self._hire()
        looked = time.monotonic()
        try:
            while self._left:
                by_ref = {place.pending: place for place in self._places.values()}
                done, _ = self._ray.wait(list(by_ref), num_returns=len(by_ref), timeout=0)
                if not done:
                    done, _ = self._ray.wait(list(by_ref), num_returns=1, timeout=_HOLD_S)
                for ref in done:
                    yield from self._hear(by_ref[ref], ref)
                if any(place.ready for place in self._places.values()):
                    looked = time.monotonic()
                elif time.monotonic() - looked > NO_WORKER_S:
                    self._wait_on()
                    looked = time.monotonic()
            yield from self._farewell()
            for place in list(self._places.values()):
                if place.ready and not place.told:
                    self._retire(place)
        finally:
            for place in list(self._places.values()):
                self._dismiss(place)
            if probe is not None:
                probe.unlink(missing_ok=True)

    def _wait_on(self) -> None:
        """Go on waiting while there is a node for a worker, whoever has its cores now.

        Raises:
            AudioAssetsError: there is none any more.
        """
        if not self._fitting(self._nodes()):
            raise AudioAssetsError(
                f"no worker could start for {NO_WORKER_S:.0f} s, and no node of the Ray cluster has what one needs any"
                " more: `ray status` says what is left. What was done is kept; run again"
            )
        logging.getLogger(__name__).warning(
            "no worker has had room on the Ray cluster for %.0f s; waiting until others give back its cores",
            NO_WORKER_S,
        )

    def _nodes(self) -> list[dict[str, float]]:
        """What each node that is there has, free or not."""
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _fitting(self, nodes: list[dict[str, float]]) -> int:
        """Workers that fit on ``nodes`` when nobody else has their cores."""
        fitting = 0
        for node in nodes:
            fits = node.get("CPU", 0.0) / self._cpus
            if self._gpus:
                per_gpu = int(1 / self._gpus) if self._gpus < 1 else 1 / self._gpus
                fits = min(fits, node.get("GPU", 0.0) * per_gpu)
            fitting += int(fits)
        return fitting

    def _worker_count(self) -> int:
        """As many as fit on the nodes that are there, and no more than there is work for.

        Raises:
            SettingsError: no node has what one worker needs.
        """
        nodes = self._nodes()
        fitting = self._fitting(nodes)
        if not fitting:
            has = "; ".join(sorted(f"{n.get('CPU', 0):g} cores, {n.get('GPU', 0):g} GPUs" for n in nodes)) or "nothing"
            raise SettingsError(
                f"a worker needs {self._cpus:g} cores and {self._gpus:g} GPUs, and no node of the Ray cluster has them"
                f" ({has}); lower AUDIO_ASSETS_RAY_CPUS or AUDIO_ASSETS_RAY_GPUS"
            )
        most = settings.load().audio_assets_ray_workers or fitting
        return max(1, min(fitting, most, len(self._waiting)))

    def _hire(self) -> None:
        """Ask for a worker: it is there when the cluster has room."""
        actor = _idle.take(self._needs)
        place = _Place(actor, tried=actor is not None)
        if actor is None:
            place.actor = actor = (
                self._ray.remote(Worker)
                .options(
                    num_cpus=self._cpus,
                    num_gpus=self._gpus,
                    max_restarts=0,
                    max_concurrency=4,
                    scheduling_strategy="SPREAD",
                )
                .remote()
            )
        place.pending = actor.begin.remote(self._parts)
        self._places[actor] = place

    def _hear(self, place: _Place, ref: Any) -> Generator[Result, None, None]:
        """Take what a worker said and give it more to do."""
        try:
            said = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError:
            raise
        except self._ray.exceptions.RayError as error:
            yield from self._bury(place, error)
            return
        if not place.ready:
            self._compare(*said)
            place.ready = True
            self._stillborn = 0
        else:
            for news in said.news:
                self._tell(news)
            place.figures = said.figures
            for name, result in said.results:
                if name in place.holds:
                    del place.holds[name]
                    self._left -= 1
                    yield result
            if said.doomed is not None:
                raise SettingsError(said.doomed)
            if said.broken is not None:
                raise said.broken
            if said.ended:
                self._retire(place)
                return
        self._feed(place)
        place.pending = place.actor.take.remote()

    def _feed(self, place: _Place) -> None:
        """Fill a worker up to its window. A file that workers died of is tried alone."""
        batch: list[Item] = []
        while self._waiting and not place.alone and len(place.holds) < self._window:
            group = self._waiting[0]
            alone = any(self._deaths.get(self._stage.name(item), 0) >= DEATHS_ALONE for item in group)
            if alone and place.holds:
                break
            self._waiting.popleft()
            for item in group:
                place.holds[self._stage.name(item)] = item
            batch += group
            place.alone = alone
        if place.alone and not place.holds:
            place.alone = False
            self._feed(place)
            return
        if batch:
            place.actor.give.remote(batch)
            place.told = True

    def _compare(self, node: str, likeness: dict[str, str]) -> None:
        """Refuse a node that would give other results.

        Raises:
            SettingsError: it has other versions or another model than another node, or cannot work at all.
        """
        if "error" in likeness:
            raise SettingsError(f"Ray node {node}: {likeness['error']}")
        mine = versions()
        there, reference = self._likeness or ("this process", {**likeness, **mine})
        for what, value in likeness.items():
            if value != reference[what]:
                raise SettingsError(
                    f"Ray node {node} has {what} {value}, and {there} has {reference[what]}: their results would"
                    " differ; install and configure the same on all nodes"
                )
        self._likeness = self._likeness or (f"node {node}", likeness)

    def _bury(self, place: _Place, error: BaseException) -> Generator[Result, None, None]:
        """A worker is gone: what it held is for another; what workers keep dying of is given up."""
        if not place.ready and not place.tried:
            self._stillborn += 1
            if self._stillborn >= STILLBORN:
                told = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()[:300]
                raise SettingsError(f"no worker starts on the Ray cluster: {told}; install the same on all nodes")
        # One that does not answer may only be cut off: it must not go on beside its successor.
        self._dismiss(place)
        groups: dict[Hashable, list[Item]] = {}
        for name, item in place.holds.items():
            self._deaths[name] = self._deaths.get(name, 0) + 1
            if self._deaths[name] >= DEATHS_LOST:
                self._left -= 1
                reason = " ".join(str(error).split())[:200]
                yield self._stage.lost(item, f"{DEATHS_LOST} workers died of it; the last: {reason}")
                continue
            self.redone += 1
            groups.setdefault(self._stage.together(item), []).append(item)
        self._waiting.extendleft(reversed(groups.values()))
        if self._left:
            self._hire()

    def _farewell(self) -> Generator[Result, None, None]:
        """Let the workers come to their end, so that what they count and keep is complete."""
        working = [place for place in self._places.values() if place.told]
        for place in working:
            place.actor.give.remote(None)
        deadline = time.monotonic() + 3 * _HOLD_S
        while working and time.monotonic() < deadline:
            by_ref = {place.pending: place for place in working}
            done, _ = self._ray.wait(list(by_ref), num_returns=1, timeout=_HOLD_S)
            for ref in done:
                yield from self._hear(by_ref[ref], ref)
            working = [place for place in working if place.actor in self._places]

    def _retire(self, place: _Place) -> None:
        """A worker that came to its end is kept for a while: the next stage of the run need not wait for one."""
        self._places.pop(place.actor, None)
        _add(self._figures, place.figures)
        place.figures = {}
        _idle.put(self._ray, self._needs, place.actor)

    def _dismiss(self, place: _Place) -> None:
        self._places.pop(place.actor, None)
        _add(self._figures, place.figures)
        place.figures = {}
        _end(self._ray, place.actor)


def _probe() -> Path | None:
    """A file in the home, by which a node tells that it sees the same directory; None where the home is a bucket."""
    home = settings.home()
    if home.shared is not None:
        return None
    home.root.mkdir(parents=True, exist_ok=True)
    probe = home.root / f".seen-{uuid.uuid4().hex}.part"
    probe.touch()
    return probe


def _end(ray: Any, actor: Any) -> None:
    """End a worker. The cluster may be gone; then so is the worker, and asking would wait for another cluster."""
    if ray.is_initialized():
        with contextlib.suppress(Exception):
            ray.kill(actor, no_restart=True)


def _add(total: dict[str, float], part: dict[str, float]) -> None:
    for name, value in part.items():
        total[name] = total.get(name, 0.0) + value
