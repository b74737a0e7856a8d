"""Open-loop load: mixed lengths, Poisson arrivals independent of the server, and the latencies callers observe."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from generation_service.models.base import EncodedPrompt

PERCENTILE = 0.95

# The search for a rate starts a little below saturation, where the bound usually lies, and never offers more than 1.5
# times what the server answers when all requests are there at once.
FIRST_TRIAL = 0.85
LARGEST_OVERLOAD = 1.5


@dataclass(frozen=True)
class LoadRequest:
    """A prompt and the length of its answer."""

    prompt: EncodedPrompt
    answer_tokens: int


@dataclass(frozen=True)
class Served:
    """One run: the latency of each request from arrival to complete answer, the answers, and the elapsed seconds."""

    latencies_s: tuple[float, ...]
    answers: tuple[tuple[int, ...], ...]
    elapsed_s: float

    @property
    def requests_per_s(self) -> float:
        """Requests answered in a second, from the first arrival to the last answer."""
        return len(self.latencies_s) / self.elapsed_s

    @property
    def p95_s(self) -> float:
        """The latency that 95 % of the requests did not exceed."""
        return sorted(self.latencies_s)[math.ceil(PERCENTILE * len(self.latencies_s)) - 1]


class Server(Protocol):
    """Answers requests as they arrive."""

    def serve(self, requests: Sequence[LoadRequest], arrivals_s: Sequence[float]) -> Served:
        """Answer `requests`; the n-th arrives `arrivals_s[n]` seconds from now. Arrivals are in ascending order."""


def log_uniform(draw: random.Random, least: int, most: int) -> int:
    """Return a length between `least` and `most`, drawn log-uniformly."""
    return round(math.exp(draw.uniform(math.log(least), math.log(most))))


def poisson_arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Return `count` arrival times at `rate` per second, all 0 for an infinite rate. All rates use the same draws."""
    draw = random.Random(seed)
    gaps = [draw.expovariate(1.0) for _ in range(count)]
    return [at / rate for at in accumulate(gaps)]


@dataclass(frozen=True)
class Search:
    """Runs of one server at several rates; None: all requests arrive at once."""

    runs: tuple[tuple[float | None, Served], ...]

    def sustained(self, bound_s: float) -> float:
        """Return the highest rate of answers with a p95 latency within `bound_s`, 0 if no run kept it.

        Counts answered rather than offered requests, so that a short overload does not count as a sustained rate.
        """
        return max((served.requests_per_s for _, served in self.runs if served.p95_s <= bound_s), default=0.0)


def search(server: Server, requests: Sequence[LoadRequest], bound_s: float, *, seed: int, trials: int) -> Search:
    """Run once with all requests at once, then bisect for the highest rate whose p95 is within `bound_s`."""
    full = server.serve(requests, poisson_arrivals(len(requests), math.inf, seed))
    low, high = 0.0, LARGEST_OVERLOAD * full.requests_per_s
    runs: list[tuple[float | None, Served]] = [(None, full)]
    rate = FIRST_TRIAL * full.requests_per_s
    for _ in range(trials):
        served = server.serve(requests, poisson_arrivals(len(requests), rate, seed))
        runs.append((rate, served))
        low, high = (rate, high) if served.p95_s <= bound_s else (low, rate)
        rate = (low + high) / 2
    return Search(tuple(runs))
