"""Prometheus metrics of this tier, in addition to the call metrics of infra.runtime."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from infra.runtime.metrics import SECONDS_BUCKETS

queue_length = Gauge("loraretriever_retrieval_queue_length", "Texts and images that are waiting to be embedded.")
cache_bytes = Gauge("loraretriever_retrieval_cache_bytes", "Memory of cached vectors.")
parts_total = Counter(
    "loraretriever_retrieval_parts",
    "Texts and images of prompts, by kind and source of the vector: cache, in_flight (another call was already waiting "
    "for the same part), or model.",
    ["kind", "source"],
)
dropped_total = Counter(
    "loraretriever_retrieval_dropped_parts",
    "Texts and images that were dropped because no caller was waiting any more.",
)
refused_total = Counter("loraretriever_retrieval_refused_calls", "Calls refused because the embedder's queue was full.")
batch_size = Histogram(
    "loraretriever_retrieval_batch_size",
    "Texts or images in one forward pass of the embedder, by kind.",
    ["kind"],
    buckets=(1, 2, 4, 8, 12, 16, 24, 32, 64, 128),
)
batch_seconds = Histogram(
    "loraretriever_retrieval_batch_seconds",
    "Seconds of one forward pass of the embedder, by kind.",
    ["kind"],
    buckets=SECONDS_BUCKETS,
)
