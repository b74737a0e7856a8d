"""Requests that arrive whoever is busy: mixed lengths, Poisson arrivals, and what their callers saw."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from generation_service.models.base import EncodedPrompt

PERCENTILE = 0.95
FIRST_TRIAL = 0.85
LARGEST_OVERLOAD = 1.5


@dataclass(frozen=True)
class Ask:
    """A prompt, and how many tokens its answer has."""

    prompt: EncodedPrompt
    answer_tokens: int


@dataclass(frozen=True)
class Served:
    """One run: seconds from each request's arrival to its whole answer, the answers, and the seconds of all."""

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

    def serve(self, asks: Sequence[Ask], arrivals_s: Sequence[float]) -> Served:
        """Answer `asks`, the n-th of which arrives `arrivals_s[n]` seconds from now, in ascending order."""


def log_uniform(draw: random.Random, least: int, most: int) -> int:
    """Return a length between `least` and `most`: as many short as long ones, by their logarithm."""
    return round(math.exp(draw.uniform(math.log(least), math.log(most))))


def poisson_arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Return `count` arrival times in seconds at `rate` a second; infinite: all at once. Rates share their draws."""
    draw = random.Random(seed)
    gaps = [draw.expovariate(1.0) for _ in range(count)]
    return [at / rate for at in accumulate(gaps)]


@dataclass(frozen=True)
class Search:
    """Runs of one server at several rates; None: all requests there at once."""

    runs: tuple[tuple[float | None, Served], ...]

    def sustained(self, bound_s: float) -> float:
        """Return the most requests answered in a second while 95 % took no longer than `bound_s`; 0: never.

        What was answered counts and not what was offered: a short overload does not pass for a rate.
        """
        return max((served.requests_per_s for _, served in self.runs if served.p95_s <= bound_s), default=0.0)


def search(server: Server, asks: Sequence[Ask], bound_s: float, *, seed: int, trials: int) -> Search:
    """Run once with all requests there at once, then bisect for the highest rate whose p95 is within `bound_s`."""
    full = server.serve(asks, poisson_arrivals(len(asks), math.inf, seed))
    low, high = 0.0, LARGEST_OVERLOAD * full.requests_per_s
    runs: list[tuple[float | None, Served]] = [(None, full)]
    rate = FIRST_TRIAL * full.requests_per_s
    for _ in range(trials):
        served = server.serve(asks, poisson_arrivals(len(asks), rate, seed))
        runs.append((rate, served))
        low, high = (rate, high) if served.p95_s <= bound_s else (low, rate)
        rate = (low + high) / 2
    return Search(tuple(runs))
