"""Decoding options, and the answers of the generation service."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from infra.contract.composition import FusionMethod, WeightedAdapter
from infra.contract.errors import InvalidArgumentError

MAX_STOP_STRINGS = 8
MAX_SEED = 2**64 - 1
#: Counts are 32-bit numbers on the wire.
MAX_COUNT = 2**31 - 1


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen and when to stop.

    `max_new_tokens` None: the server's default. `temperature` 0: greedy. `token_top_k` 0: all tokens.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    token_top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and not 1 <= self.max_new_tokens <= MAX_COUNT:
            raise InvalidArgumentError(
                "max_new_tokens", f"must be at least 1 and below 2^31, got {self.max_new_tokens}"
            )
        if not math.isfinite(self.temperature) or self.temperature < 0:
            raise InvalidArgumentError("temperature", f"must be finite and not negative, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InvalidArgumentError("top_p", f"must be in (0, 1], got {self.top_p}")
        if not 0 <= self.token_top_k <= MAX_COUNT:
            raise InvalidArgumentError("token_top_k", f"must not be negative and below 2^31, got {self.token_top_k}")
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise InvalidArgumentError("seed", f"must be in [0, 2^64), got {self.seed}")
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidArgumentError("stop", f"at most {MAX_STOP_STRINGS} stop strings, got {len(self.stop)}")
        if any(not stop for stop in self.stop):
            raise InvalidArgumentError("stop", "a stop string is empty")

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always chosen."""
        return self.temperature == 0


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True)
class Usage:
    """Number of tokens of the prompt (including image tokens), of its images, and of the answer."""

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Timings:
    """Seconds in the queue, from admission to the first token, and from the first token to the last."""

    queue_s: float
    prefill_s: float
    decode_s: float


@dataclass(frozen=True)
class Generation:
    """An answer, the adapters that were applied (none: the base model alone), and how they were fused, if they were."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    applied: tuple[WeightedAdapter, ...] = ()
    fusion_method: FusionMethod | None = None
