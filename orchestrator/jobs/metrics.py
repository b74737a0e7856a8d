"""Prometheus metrics of evaluation jobs: samples and shards at the workers, queue and jobs at the orchestrator."""

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
    "Tries of a sample that were repeated because a service was full or could not be reached, by reason.",
    ["reason"],
)
shards_running = Gauge("loraretriever_evaluation_shards_running", "Shards that this worker has under way.")
shards_total = Counter(
    "loraretriever_evaluation_shards",
    "Shards that this worker left: done, last (the job's last one), unfinished (released), idle (lost to another).",
    ["outcome"],
)
jobs_total = Counter("loraretriever_evaluation_jobs", "Jobs ended by this process, by state.", ["state"])
units_resent_total = Counter(
    "loraretriever_evaluation_units_resent",
    "Messages sent for shards and reports that no worker had been woken for.",
)
queued_units = Gauge("loraretriever_evaluation_queued_units", "Shards and reports that wait for a worker.")
running_units = Gauge("loraretriever_evaluation_running_units", "Shards and reports that workers hold.")
active_jobs = Gauge("loraretriever_evaluation_active_jobs", "Evaluation jobs that have not ended.")
live_workers = Gauge("loraretriever_evaluation_live_workers", "Workers with a fresh heartbeat.")
