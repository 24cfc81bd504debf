"""What Prometheus reads of a reconciler: its own small page, since it is a process of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from persister.watch import Reconciled


class ReconcileMetrics:
    """The figures of one shard's reconciler."""

    def __init__(self, shard: int) -> None:
        self.registry = CollectorRegistry()
        self._shard = str(shard)

        def gauge(name: str, what: str, *labels: str) -> Gauge:
            return Gauge(f"hotledger_reconcile_{name}", what, ("shard", *labels), registry=self.registry)

        self._runs = Counter(
            "hotledger_reconcile_runs",
            "Reconciliations; complete: whether everything could be looked at",
            ("shard", "kind", "complete"),
            registry=self.registry,
        )
        self._drift = gauge("drift", "Differences that are open now; anything but 0 needs a person")
        self._drift.labels(self._shard).set(0)
        self._found = Counter(
            "hotledger_reconcile_drift_found", "Differences that were new", ("shard", "check"), registry=self.registry
        )
        self._seconds = gauge("seconds", "How long the last one took", "kind")
        self._checked = gauge("checked", "How many things the last one looked at", "kind")
        self._complete_at = gauge("complete_timestamp_seconds", "When one last looked at everything", "kind")
        self._sequence = gauge("sequence", "How far the ledger was then")

    def told(self, run: Reconciled) -> None:
        """Take over what a reconciliation found."""
        shard, kind = self._shard, run.kind.value
        complete = run.incomplete is None
        self._runs.labels(shard, kind, str(complete).lower()).inc()
        self._drift.labels(shard).set(run.open_drift)
        for drift in run.new:
            self._found.labels(shard, drift.check_name).inc()
        self._seconds.labels(shard, kind).set(run.seconds)
        self._checked.labels(shard, kind).set(run.report.checked)
        self._sequence.labels(shard).set(run.report.sequence)
        if complete:
            self._complete_at.labels(shard, kind).set(time.time())


@contextmanager
def served(metrics: ReconcileMetrics, host: str, port: int) -> Iterator[int]:
    """Answer on the address while the block runs; yields the port. port: 0 for any that is free. Raises OSError."""
    server, thread = start_http_server(port, host, registry=metrics.registry)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
