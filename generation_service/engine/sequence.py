"""The decoding state of one request."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from generation_service.engine.text_stream import TextStream
from infra.contract.composition import Composition, WeightedAdapter
from infra.contract.generation import Decoding, FinishReason, Generation, Timings, Usage

if TYPE_CHECKING:
    from generation_service.execution.inputs import Prefill
    from generation_service.execution.sampler import TokenChooser
    from generation_service.lora.ranks import RankRange
    from generation_service.models.base import EncodedPrompt


@dataclass(frozen=True)
class Delta:
    """The text that came next."""

    text: str


Event = Delta | Generation | Exception
"""What a listener hears: deltas, then exactly one Generation or exception."""

Listener = Callable[[Event], None]


class Ticket(Protocol):
    """A composition on its way into the bank."""

    def cancel(self) -> None:
        """Forget it, if it is not there yet."""


class Lease(Protocol):
    """The bank ranges that a sequence decodes with; none of them is rewritten until it is released."""

    @property
    def ranges(self) -> Mapping[RankRange, float]:
        """The weight of each range."""

    @property
    def applied(self) -> tuple[WeightedAdapter, ...]:
        """The adapters with the revisions used."""

    def release(self) -> None:
        """Give the ranges back. A second call does nothing."""


@dataclass(frozen=True)
class Request:
    """One prompt to answer. `deadline` is a time of `time.monotonic`, or None."""

    prompt: EncodedPrompt
    composition: Composition
    decoding: Decoding
    deadline: float | None = None


_numbers = itertools.count(1)


@dataclass(eq=False)
class Sequence:
    """A request on its way: it waits until its adapters are leased and a slot is free, has its prompt read, decodes."""

    request: Request
    listener: Listener
    text: TextStream
    chooser: TokenChooser
    max_new_tokens: int
    number: int = field(default_factory=lambda: next(_numbers))
    ticket: Ticket | None = None
    lease: Lease | None = None
    slot: int | None = None
    prefill: Prefill | None = None
    tokens: list[int] = field(default_factory=list)
    cancelled: bool = False
    ended: bool = False
    submitted_at: float = field(default_factory=time.monotonic)
    admitted_at: float = 0.0
    first_token_at: float = 0.0

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt, image tokens included."""
        return self.request.prompt.length

    @property
    def unread(self) -> int:
        """Tokens of the prompt that are still to be read."""
        return self.prompt_length if self.prefill is None else self.prefill.remaining

    @property
    def progress(self) -> str:
        """How far it has come, for a sentence."""
        if self.prefill is None:
            return "in the queue"
        if self.unread:
            return f"after {self.prefill.offset} of the prompt's {self.prompt_length} tokens were read"
        return f"after {len(self.tokens)} tokens of the answer"

    @property
    def cached_length(self) -> int:
        """Tokens whose keys and values the cache holds: all but the newest, which the next step reads."""
        return self.prompt_length + len(self.tokens) - 1

    def expired(self, now: float) -> bool:
        """Return whether the caller's deadline has passed."""
        return self.request.deadline is not None and now >= self.request.deadline

    def forget_images(self) -> None:
        """Let go of the prompt's pixels: they are read once."""
        if self.request.prompt.pixels is not None:
            self.request = replace(self.request, prompt=self.request.prompt.without_images())

    def emit(self, text: str) -> None:
        """Tell the listener what came next."""
        if text:
            self.listener(Delta(text))

    def generation(self, reason: FinishReason, now: float) -> Generation:
        """Return the answer as it stands."""
        prompt = self.request.prompt
        return Generation(
            text=self.text.text,
            finish_reason=reason,
            usage=Usage(prompt.length, prompt.image_tokens, len(self.tokens)),
            timings=Timings(
                queue_s=self.admitted_at - self.submitted_at,
                prefill_s=self.first_token_at - self.admitted_at,
                decode_s=now - self.first_token_at,
            ),
            applied=self.lease.applied if self.lease is not None else (),
        )
