"""What Prometheus reads. Several workers share one directory of files, so any of them answers for all."""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from engine import Engine

DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Of prometheus-client; to be set before it is imported."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

REQUESTS = Counter("hotledger_http_requests", "Requests by operation and HTTP status", ("operation", "status"))
SECONDS = Histogram("hotledger_http_request_seconds", "How long they took", ("operation",), buckets=_SECONDS)
OUTCOMES = Counter("hotledger_outcomes", "Items of requests that write, by status word or code", ("code",))
BATCHES = Counter("hotledger_engine_batches", "Calls of post; outcomes by batches is the size of a batch")
QUEUED = Gauge("hotledger_engine_queued", "Requests that wait to be sent", multiprocess_mode="livesum")
OPEN = Gauge("hotledger_shard_open", "1 if the shard takes payments", multiprocess_mode="max")
BACKLOG = Gauge("hotledger_ledger_backlog_records", "Records that the ledger lacks", multiprocess_mode="max")
SEQUENCE = Gauge("hotledger_journal_sequence", "The journal's last sequence", multiprocess_mode="max")


class EngineFigures:
    """What an engine's queue tells, taken over at times. The engine has no public way to ask (yet)."""

    def __init__(self) -> None:
        self._batches = 0

    def take(self, engine: Engine | None) -> None:
        if engine is None:
            self._batches = 0
            QUEUED.set(0)
            return
        batcher = engine._batcher
        BATCHES.inc(batcher.batches_sent - self._batches)
        self._batches = batcher.batches_sent
        QUEUED.set(batcher._queued)


def exposition() -> bytes:
    """All metrics in Prometheus' text format."""
    if DIRECTORY_VARIABLE not in os.environ:
        return generate_latest()
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # the library has no types here
    return generate_latest(registry)


def worker_ends() -> None:
    """What was true of this process alone is no more."""
    if DIRECTORY_VARIABLE in os.environ:
        mark_process_dead(os.getpid())  # type: ignore[no-untyped-call]  # the library has no types here
