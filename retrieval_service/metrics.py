"""What an operator watches of this tier, beside the calls that infra.runtime counts."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from infra.runtime.metrics import SECONDS_BUCKETS

queue_length = Gauge("loraretriever_retrieval_queue_length", "Texts and images that wait to be embedded.")
cache_bytes = Gauge("loraretriever_retrieval_cache_bytes", "Memory of the vectors that are kept.")
parts_total = Counter(
    "loraretriever_retrieval_parts",
    "Texts and images of prompts, by kind and by where their vectors came from: cache, in_flight (another caller asked "
    "for the same), or model.",
    ["kind", "source"],
)
dropped_total = Counter(
    "loraretriever_retrieval_dropped_parts", "Texts and images whose callers were gone before they were embedded."
)
refused_total = Counter("loraretriever_retrieval_refused_calls", "Calls that found the embedder's queue full.")
batch_size = Histogram(
    "loraretriever_retrieval_batch_size",
    "Texts or images in one pass of the embedder, by kind.",
    ["kind"],
    buckets=(1, 2, 4, 8, 12, 16, 24, 32, 64, 128),
)
batch_seconds = Histogram(
    "loraretriever_retrieval_batch_seconds",
    "Seconds of one pass of the embedder, by kind.",
    ["kind"],
    buckets=SECONDS_BUCKETS,
)
