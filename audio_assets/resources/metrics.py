"""What a run does, in figures for Prometheus: on when ``AUDIO_ASSETS_METRICS`` names an address, else nothing happens.

audio_assets_files_total{stage, status}    files that are done; a rate of it is the throughput
audio_assets_files_waiting{stage}          files of the partition in work that are not done
audio_assets_audio_seconds_total           seconds of audio that were transcribed, not taken from the cache
audio_assets_cost_usd_total                what was billed for it
audio_assets_files_redone_total{stage}     files that were given out again, since their worker was lost
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from audio_assets import settings
from audio_assets.errors import SettingsError

Result = TypeVar("Result")

LAST_PORT = 65_535
"""The greatest number of a TCP port."""

_lock = threading.Lock()
_meters: dict[str, Any] = {}


def metered(results: Any, stage: object, count: int) -> Any:
    """``results`` as they are, counted where somebody asked for it.

    Raises:
        SettingsError: the address cannot be used, or prometheus-client is not installed.
    """
    address = settings.load().audio_assets_metrics
    if address is None:
        return results
    return _Metered(results, type(stage).__name__, count, _start(address))


def check() -> None:
    """Look for what is wrong with ``AUDIO_ASSETS_METRICS`` without serving anything.

    Raises:
        SettingsError: it is no address, or prometheus-client is not installed.
    """
    address = settings.load().audio_assets_metrics
    if address is not None:
        _host_and_port(address)
        _prometheus()


def _prometheus() -> Any:
    try:
        import prometheus_client
    except ImportError:
        raise SettingsError(
            "AUDIO_ASSETS_METRICS is set, and prometheus-client is not installed; `pip install 'audio-assets[ray]'`"
        ) from None
    return prometheus_client


def _start(address: str) -> dict[str, Any]:
    """The meters of this process, served at ``address`` from the first call on."""
    with _lock:
        if _meters:
            return _meters
        host, port = _host_and_port(address)
        prometheus = _prometheus()
        registry = prometheus.CollectorRegistry()
        try:
            prometheus.start_http_server(port, addr=host, registry=registry)
        except OSError as error:
            # Another run of this machine has the address; its figures are not this one's, and no reason to stop.
            logging.getLogger(__name__).warning("metrics at %s: %s; this run shows none", address, error.strerror)
        for name, kind, told, labels in (
            ("files", prometheus.Counter, "files that are done", ["stage", "status"]),
            ("files_waiting", prometheus.Gauge, "files of the partition in work that are not done", ["stage"]),
            ("files_redone", prometheus.Counter, "files given out again, their worker being lost", ["stage"]),
            ("audio_seconds", prometheus.Counter, "seconds of audio that were transcribed", []),
            ("cost_usd", prometheus.Counter, "what was billed", []),
        ):
            _meters[name] = kind(f"audio_assets_{name}", told, labels, registry=registry)
        return _meters


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > LAST_PORT:
        raise SettingsError(f"AUDIO_ASSETS_METRICS {address!r} is no address; write it like 127.0.0.1:9464")
    return host, int(port)


class _Metered(Generic[Result]):
    """Results that are counted as they are taken."""

    def __init__(self, results: Any, stage: str, count: int, meters: dict[str, Any]):
        self._results, self._stage, self._left, self._meters = results, stage, count, meters
        self._cost_usd = self._redone = 0.0
        meters["files_waiting"].labels(stage).set(count)

    def __iter__(self) -> Iterator[Result]:
        for result in self._results:
            self._count(result)
            yield result
        self._sum()

    def close(self) -> None:
        self._results.close()
        self._sum()
        self._meters["files_waiting"].labels(self._stage).set(0)

    def figures(self) -> dict[str, float]:
        return dict(self._results.figures())

    def _count(self, result: Any) -> None:
        row = getattr(result, "row", None)
        status = str(row["status"]) if isinstance(row, dict) else getattr(result, "status", "ok")
        self._left -= 1
        self._meters["files"].labels(self._stage, status).inc()
        self._meters["files_waiting"].labels(self._stage).set(max(0, self._left))
        if getattr(result, "duration_s", None) and not getattr(result, "cached", True):
            self._meters["audio_seconds"].inc(result.duration_s)
        self._sum()

    def _sum(self) -> None:
        figures = self._results.figures()
        cost, redone = figures.get("cost_usd", 0.0), float(getattr(self._results, "redone", 0))
        self._meters["cost_usd"].inc(max(0.0, cost - self._cost_usd))
        self._meters["files_redone"].labels(self._stage).inc(max(0.0, redone - self._redone))
        self._cost_usd, self._redone = max(cost, self._cost_usd), redone
