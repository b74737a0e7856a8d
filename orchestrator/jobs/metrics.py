"""What Prometheus sees of evaluation jobs: samples and shards at the workers, queue, jobs and workers at the server."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

samples_total = Counter(
    "loraretriever_evaluation_samples",
    "Samples recorded by this worker: answered or failed.",
    ["outcome"],
)
samples_running = Gauge("loraretriever_evaluation_samples_running", "Samples that this worker is answering.")
samples_retried_total = Counter(
    "loraretriever_evaluation_samples_retried",
    "Tries of a sample that were repeated, as a service was full or could not be reached, by the reason.",
    ["reason"],
)
shards_running = Gauge("loraretriever_evaluation_shards_running", "Shards that this worker has under way.")
shards_total = Counter(
    "loraretriever_evaluation_shards",
    "Shards that this worker left: done, last (the job's last one), unfinished (handed on), idle (nothing to do).",
    ["outcome"],
)
jobs_total = Counter("loraretriever_evaluation_jobs", "Jobs that ended here, by their state.", ["state"])
units_resent_total = Counter(
    "loraretriever_evaluation_units_resent",
    "Shards and reports sent again: silent worker or lost message.",
)
queued_units = Gauge("loraretriever_evaluation_queued_units", "Shards and reports that wait for a worker.")
running_units = Gauge("loraretriever_evaluation_running_units", "Shards and reports that workers have under way.")
active_jobs = Gauge("loraretriever_evaluation_active_jobs", "Evaluation jobs that have not ended.")
live_workers = Gauge("loraretriever_evaluation_live_workers", "Workers that are alive.")
