"""Metrics of this tier, in addition to those of infra.runtime for every call."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

from generation_service.adapters.residency import Residency
from generation_service.engine.engine import Engine
from infra.contract.generation import Generation

_running = Gauge("loraretriever_generation_running", "Requests that hold a slot: prefilling or decoding.")
_waiting = Gauge("loraretriever_generation_waiting", "Requests that wait for a slot or for their adapters.")
_leased = Gauge("loraretriever_generation_leased_ranks", "Ranks of the adapter bank under lease.")
_resident = Gauge(
    "loraretriever_generation_resident_ranks", "Ranks of the adapter bank that are occupied, leased or not."
)
_prompt_tokens = Counter("loraretriever_generation_prompt_tokens", "Prompt tokens of answered requests.")
_answer_tokens = Counter("loraretriever_generation_answer_tokens", "Tokens of finished answers.")


def watch(engine: Engine, residency: Residency) -> None:
    """Export the gauges of this engine and this bank."""
    _running.set_function(lambda: engine.running)
    _waiting.set_function(lambda: engine.waiting)
    _leased.set_function(lambda: residency.leased_ranks)
    _resident.set_function(lambda: residency.ranks)


def count(answer: Generation) -> None:
    """Add a finished answer to the counters."""
    _prompt_tokens.inc(answer.usage.prompt_tokens)
    _answer_tokens.inc(answer.usage.completion_tokens)
