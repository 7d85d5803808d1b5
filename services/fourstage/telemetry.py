"""Counting, /metrics and /healthz.

A process counts seconds, items and bytes; ratios are for whoever reads them. One registry per process, handed in
where it is needed: nothing is registered at import. ``metrics`` declares what is counted.
"""

import json
import logging
import os
import select
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    make_wsgi_app,
)
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from fourstage.errors import SettingsError
from fourstage.metrics import METRICS, SECONDS, STAGES, Metric, Role
from fourstage.settings import MetricsSettings
from fourstage.wire.messages import Usage

log = logging.getLogger(__name__)

_Metric: TypeAlias = Counter | Gauge | Histogram

_ALIVE_SECONDS = 5.0
"""Between two touches of the file that says that the data loop turns."""
HEALTHY_SECONDS = 30.0
"""A data loop that has not turned for this long is ill, whatever its HTTP thread says."""


class StageMeter:
    """The counters of one stage in this process; called from one thread."""

    def __init__(self, stage: str, telemetry: "Telemetry") -> None:
        self._batches = 0
        self._busy = self._upstream = self._downstream = 0.0
        self._telemetry = telemetry
        # Looked up once: labels() takes 3 microseconds, and a batch counts a dozen times.
        self._batches_total = telemetry.counter("fourstage_batches_total", stage)
        self._items_total = telemetry.counter("fourstage_items_total", stage)
        self._bytes_total = telemetry.counter("fourstage_bytes_total", stage)
        self._busy_total = telemetry.counter("fourstage_busy_seconds_total", stage)
        self._wait_total = {
            way: telemetry.counter("fourstage_wait_seconds_total", stage, way) for way in ("upstream", "downstream")
        }
        self._progress = telemetry.gauge("fourstage_last_progress_timestamp_seconds")

    def done(self, seconds: float, *, items: int, size: int) -> None:
        """A batch was finished after ``seconds`` of work: ``items`` images, ``size`` bytes handed on."""
        self._batches += 1
        self._batches_total.inc()
        self._items_total.inc(items)
        self._bytes_total.inc(size)
        self.busy(seconds)
        self._progress.set_to_current_time()

    def busy(self, seconds: float) -> None:
        """Work that did not finish a batch."""
        seconds = max(0.0, seconds)
        self._busy += seconds
        self._busy_total.inc(seconds)

    def uploaded(self, path: Literal["registered", "staged"], size: int) -> None:
        """Of the copy stage: ``size`` bytes of pixels went up to a GPU."""
        self._telemetry.counter("fourstage_uploaded_bytes_total", path).inc(size)

    def waited(self, seconds: float, blocked_on: Literal["upstream", "downstream"]) -> None:
        """Time without work, and on whose account."""
        seconds = max(0.0, seconds)
        if blocked_on == "upstream":
            self._upstream += seconds
        else:
            self._downstream += seconds
        self._wait_total[blocked_on].inc(seconds)

    @property
    def usage(self) -> Usage:
        """All that was counted since the process started."""
        return Usage(self._batches, self._busy, self._upstream, self._downstream)


class Telemetry:
    """The metrics of one process and its two pages."""

    def __init__(self, role: Role, settings: MetricsSettings, version: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._families = {m.name: _declare(m, role, self.registry) for m in METRICS if role in m.roles}
        self._children: dict[tuple[str, tuple[str, ...]], _Metric] = {}
        self.gauge("fourstage_build_info", version, role, socket.gethostname()).set(1)
        self._settings = settings
        self._turned = time.monotonic()
        self._waits_for_others = False
        self._touch_at = 0.0
        self._server: WSGIServer | None = None
        self._serving: threading.Thread | None = None
        self._closing = os.eventfd(0, os.EFD_CLOEXEC)

    def meter(self, stage: str) -> StageMeter:
        """The counters of one of this process's stages."""
        return StageMeter(stage, self)

    def counter(self, name: str, *labels: str) -> Counter:
        child = self._child(name, labels)
        if not isinstance(child, Counter):
            raise TypeError(f"{name} is no counter")
        return child

    def gauge(self, name: str, *labels: str) -> Gauge:
        child = self._child(name, labels)
        if not isinstance(child, Gauge):
            raise TypeError(f"{name} is no gauge")
        return child

    def histogram(self, name: str, *labels: str) -> Histogram:
        child = self._child(name, labels)
        if not isinstance(child, Histogram):
            raise TypeError(f"{name} is no histogram")
        return child

    def refused(self, what: Literal["handshakes", "messages"], reason: str, number: int) -> None:
        """So many connections or messages were refused."""
        self.counter(f"fourstage_refused_{what}_total", reason).inc(number)

    def _child(self, name: str, labels: tuple[str, ...]) -> _Metric:
        """One time series, remembered: the library finds it in 3 microseconds."""
        child = self._children.get((name, labels))
        if child is None:
            family = self._families[name]
            child = self._children[name, labels] = family.labels(*labels) if labels else family
        return child

    def turn(self) -> None:
        """The data loop went round once more."""
        self._turned = time.monotonic()
        if self._settings.alive_file and self._turned >= self._touch_at:
            self._touch_at = self._turned + _ALIVE_SECONDS
            Path(self._settings.alive_file).touch()

    @contextmanager
    def waiting_for_others(self) -> Iterator[None]:
        """The data loop waits for other trainers, each of which has a watchdog of its own: it does not hang."""
        self._waits_for_others = True
        try:
            yield
        finally:
            self._turned = time.monotonic()
            self._waits_for_others = False

    def _still_for(self) -> float:
        """Seconds that the data loop has not turned for by its own fault."""
        return 0.0 if self._waits_for_others else time.monotonic() - self._turned

    def serve(self) -> str:
        """Start answering /metrics and /healthz; returns the address as http://HOST:PORT."""
        host, port = self._settings.host, self._settings.port
        try:
            server = make_server(host, port, self._answer, _Server, _QuietHandler)
        except OSError as error:
            raise SettingsError(
                f"metrics.port = {port} on {host}: {error.strerror}", hint="0 takes a free port"
            ) from error
        self._server = server
        if self._settings.watchdog_seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        self._serving = threading.Thread(target=self._serve, args=(server,), name="metrics", daemon=True)
        self._serving.start()
        return f"http://{host}:{server.server_port}"

    def close(self) -> None:
        """Stop answering."""
        if self._server is not None and self._serving is not None:
            os.eventfd_write(self._closing, 1)
            self._serving.join()
            self._server.server_close()
            self._server = None
            os.close(self._closing)

    def _serve(self, server: WSGIServer) -> None:
        """Answer until ``close``, at once: ``serve_forever`` looks for its end twice a second."""
        waiting = select.poll()
        for descriptor in (server.fileno(), self._closing):
            waiting.register(descriptor, select.POLLIN)
        while self._closing not in dict(waiting.poll()):
            server.handle_request()

    def _watch(self) -> None:
        """End this process once its data loop hangs: whoever started it starts it again, and its peers go on."""
        while (age := self._still_for()) < self._settings.watchdog_seconds:
            time.sleep(self._settings.watchdog_seconds - age)
        log.critical("the data loop has not turned for %.0f s: this process ends itself", age)
        os._exit(1)

    def _answer(self, environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path = environment.get("PATH_INFO", "/")
        if path == "/metrics":
            page: Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]] = make_wsgi_app(self.registry)
            return page(environment, start)
        if path == "/healthz":
            age = self._still_for()
            healthy = age < HEALTHY_SECONDS
            start("200 OK" if healthy else "503 Service Unavailable", [("Content-Type", "application/json")])
            return [json.dumps({"healthy": healthy, "data_loop_age_seconds": round(age, 3)}).encode() + b"\n"]
        start("404 Not Found", [("Content-Type", "text/plain")])
        return [b"/metrics or /healthz\n"]


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that says nothing, or leaves amid its answer, is no news."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _QuietHandler(WSGIRequestHandler):
    timeout = 10.0
    """Seconds for a request: each that comes and says nothing has a thread and a descriptor."""

    def log_message(self, *_: object) -> None:
        """A scrape every few seconds is no news."""


def _declare(metric: Metric, role: Role, registry: CollectorRegistry) -> _Metric:
    family: _Metric
    if metric.kind == "counter":
        family = Counter(metric.name, metric.help, metric.labels, registry=registry)
    elif metric.kind == "gauge":
        family = Gauge(metric.name, metric.help, metric.labels, registry=registry)
    else:
        family = Histogram(metric.name, metric.help, metric.labels, registry=registry, buckets=SECONDS)
    for values in (*metric.values, *_stage_values(metric, role)):
        family.labels(*values)
    return family


def _stage_values(metric: Metric, role: Role) -> list[tuple[str, ...]]:
    if metric.labels == ("stage",):
        return [(stage,) for stage in STAGES[role]]
    if metric.labels == ("stage", "blocked_on"):
        return [(stage, blocked_on) for stage in STAGES[role] for blocked_on in ("upstream", "downstream")]
    if metric.labels == ("rank",):
        return [("0",)]
    return []
