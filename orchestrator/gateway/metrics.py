"""Prometheus metrics of the gateway: requests by route and status."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from infra.runtime.metrics import SECONDS_BUCKETS

requests_total = Counter(
    "loraretriever_http_requests", "HTTP requests served, by route, method and status.", ["route", "method", "status"]
)
request_seconds = Histogram(
    "loraretriever_http_request_seconds",
    "Seconds from an HTTP request's arrival to the end of its response, by route.",
    ["route"],
    buckets=SECONDS_BUCKETS,
)
requests_running = Gauge("loraretriever_http_requests_running", "HTTP requests being served.")
