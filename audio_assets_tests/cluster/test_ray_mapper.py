"""Stages on a Ray cluster of two nodes: nothing lost, nothing twice, whoever dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from audio_assets.errors import SettingsError
from audio_assets.resources import ray_mapper
from audio_assets.resources.mapper import MapperResource

from .conftest import Toy, TwoNodes

Done = Callable[[], list[tuple[int, int]]]


def run(stage: Toy, count: int, tell: Callable[[Any], None] = lambda news: None) -> list[Any]:
    with closing(MapperResource().map(stage, list(range(count)), tell)) as results:
        return list(results)


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    out: list[Any] = []
    thread = threading.Thread(target=lambda: out.append(work()))
    thread.start()
    return thread, out


def test_every_item_has_one_result_news_comes_along_and_both_nodes_work(two_nodes: TwoNodes) -> None:
    told: list[int] = []
    results = run(Toy(seconds=0.1), 200, told.append)
    assert sorted(item for item, _ in results) == list(range(200)) == sorted(told)
    # A node has two workers; on a busy machine the last of the four may come when all is done.
    assert len({pid for _, pid in results}) >= 3
    assert os.getpid() not in {pid for _, pid in results}


def test_items_that_belong_together_are_done_by_one_worker_in_their_order(two_nodes: TwoNodes) -> None:
    results = run(Toy(same=5), 100)
    by_group: dict[int, set[int]] = {}
    for item, pid in results:
        by_group.setdefault(item // 5, set()).add(pid)
    assert all(len(pids) == 1 for pids in by_group.values())
    for group in by_group:
        order = [item for item, _ in results if item // 5 == group]
        assert order == sorted(order)


def test_a_worker_never_holds_more_than_its_window(
    two_nodes: TwoNodes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, done: Done
) -> None:
    monkeypatch.setenv("AUDIO_ASSETS_RAY_IN_FLIGHT", "2")
    monkeypatch.setenv("AUDIO_ASSETS_RAY_WORKERS", "2")
    results = iter(MapperResource().map(Toy(log=tmp_path / "log"), list(range(50))))
    next(results)
    # Nobody takes results: the workers do what they hold and no more.
    time.sleep(2)
    assert len(done()) <= 2 * 2 + 2
    assert len(list(results)) == 49


def test_figures_are_those_of_all_workers(two_nodes: TwoNodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIO_ASSETS_RAY_WORKERS", "3")
    results = MapperResource().map(Toy(seconds=0.02), list(range(60)))
    pids = {pid for _, pid in results}
    assert results.figures()["pid"] == sum(pids)


def test_what_dooms_every_file_ends_the_run(two_nodes: TwoNodes) -> None:
    with pytest.raises(SettingsError, match="the key was refused"):
        run(Toy(doom=True), 20)


def test_a_killed_worker_is_replaced_and_only_what_it_held_is_done_again(
    two_nodes: TwoNodes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, done: Done
) -> None:
    monkeypatch.setenv("AUDIO_ASSETS_RAY_IN_FLIGHT", "4")
    mapped = MapperResource().map(Toy(seconds=0.1, log=tmp_path / "log"), list(range(80)))
    thread, out = in_thread(lambda: list(mapped))
    until(lambda: len(done()) > 20)
    os.kill(done()[-1][1], signal.SIGKILL)
    thread.join(60)
    assert sorted(item for item, _ in out[0]) == list(range(80))
    begun = [item for item, _ in done()]
    assert len(begun) - len(set(begun)) <= 4
    assert 1 <= mapped.redone <= 4  # type: ignore[attr-defined]


def test_a_node_that_loses_power_costs_what_its_workers_held(
    two_nodes: TwoNodes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, done: Done
) -> None:
    monkeypatch.setenv("AUDIO_ASSETS_RAY_IN_FLIGHT", "4")
    mapped = MapperResource().map(Toy(seconds=0.1, log=tmp_path / "log"), list(range(300)))
    thread, out = in_thread(lambda: list(mapped))
    until(lambda: len({pid for _, pid in done()}) == 4 and len(done()) > 20)
    two_nodes.kill_second()
    struck = time.monotonic()
    thread.join(90)
    assert not thread.is_alive()
    assert time.monotonic() - struck < 60
    assert sorted(item for item, _ in out[0]) == list(range(300))
    begun = [item for item, _ in done()]
    # Two workers of four files each; one of them could have been between two answers.
    assert len(begun) - len(set(begun)) <= 2 * 4
    assert mapped.redone <= 2 * 4  # type: ignore[attr-defined]


def test_a_file_that_kills_its_workers_is_a_failed_row_and_its_neighbours_are_not(
    two_nodes: TwoNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUDIO_ASSETS_RAY_IN_FLIGHT", "4")
    results = dict(run(Toy(poison=frozenset({7})), 30))
    assert sorted(results) == list(range(30))
    assert "3 workers died of it" in results[7]
    assert all(isinstance(pid, int) for item, pid in results.items() if item != 7)


ENOUGH = 600
"""Files of 0.2 s that keep one node busy until a worker of the other has started, on a busy machine too."""


def test_a_node_with_another_model_is_refused_in_one_line(two_nodes: TwoNodes) -> None:
    two_nodes.have_second(TOY_LIKENESS="another")
    try:
        with pytest.raises(SettingsError, match=r"has model and options .*install and configure the same on all nodes"):
            run(Toy(seconds=0.2), ENOUGH)
    finally:
        two_nodes.kill_second()


def test_a_node_with_another_version_of_the_package_is_refused_in_one_line(two_nodes: TwoNodes, tmp_path: Path) -> None:
    import shutil

    import audio_assets

    shutil.copytree(Path(audio_assets.__file__).parent, tmp_path / "other" / "audio_assets")
    with (tmp_path / "other" / "audio_assets" / "errors.py").open("a") as source:
        source.write("\n# a change\n")
    two_nodes.have_second(PYTHONPATH=f"{tmp_path / 'other'}:{os.environ['PYTHONPATH']}")
    try:
        with pytest.raises(SettingsError, match=r"has the source of audio_assets .* the same on all nodes") as raised:
            run(Toy(seconds=0.2), ENOUGH)
        assert "\n" not in str(raised.value)
    finally:
        two_nodes.kill_second()


def test_a_node_that_does_not_see_the_home_is_refused_in_one_line(
    two_nodes: TwoNodes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # As on another machine: the path is the same, what lies there is not.
    monkeypatch.setattr(ray_mapper, "_probe", lambda: tmp_path / "elsewhere")
    with pytest.raises(SettingsError, match=r"AUDIO_ASSETS_HOME .* is not there; share the directory, or set it to s3"):
        run(Toy(), 10)


def test_a_worker_that_fits_on_no_node_is_refused(two_nodes: TwoNodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIO_ASSETS_RAY_CPUS", "64")
    with pytest.raises(SettingsError, match=r"needs 64 cores .* lower AUDIO_ASSETS_RAY_CPUS"):
        run(Toy(), 1)
