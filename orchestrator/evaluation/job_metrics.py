"""What Prometheus sees of evaluation jobs: samples at the workers, the queue and resent units at the server."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

samples_total = Counter(
    "loraretriever_evaluation_samples",
    "Samples recorded by this worker: answered or failed.",
    ["outcome"],
)
samples_running = Gauge("loraretriever_evaluation_samples_running", "Samples that this worker is answering.")
units_resent_total = Counter(
    "loraretriever_evaluation_units_resent",
    "Shards and reports sent again: silent worker or lost message.",
)
queued_units = Gauge("loraretriever_evaluation_queued_units", "Shards and reports that wait for a worker.")
active_jobs = Gauge("loraretriever_evaluation_active_jobs", "Evaluation jobs that have not ended.")
