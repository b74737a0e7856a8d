"""A request in the engine: its phase, its seat while it runs, and its answer so far."""

from __future__ import annotations

import itertools
import time
from collections import abc
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import TYPE_CHECKING

from generation_service.engine.text_stream import TextStream
from generation_service.execution.inputs import DecodeRow, Prefill
from infra.contract.generation import Decoding, FinishReason, Generation, Timings, Usage

if TYPE_CHECKING:
    from generation_service.adapters.admission import AdmittedComposition
    from generation_service.engine.protocols import Lease, Load
    from generation_service.execution.sampler import TokenChooser
    from generation_service.models.base import EncodedPrompt


@dataclass(frozen=True)
class Delta:
    """The next piece of an answer's text."""

    text: str


Event = Delta | Generation | Exception
"""What a listener receives: deltas, then exactly one Generation or exception."""

Listener = abc.Callable[[Event], None]


@dataclass(frozen=True)
class Request:
    """One prompt to answer with an admitted composition. `deadline` is a time of `time.monotonic`, or None."""

    prompt: EncodedPrompt
    composition: AdmittedComposition
    decoding: Decoding
    deadline: float | None = None


class Phase(Enum):
    """Where a sequence is in its life. It only ever moves down this list."""

    WAITING = auto()
    """Queued for a slot, or for its adapters."""
    PREFILLING = auto()
    """In a slot; part of its prompt is not in the KV cache yet."""
    DECODING = auto()
    """In a slot; each step adds one token."""
    FINISHED = auto()
    """Its listener has received the answer or an error, or is about to."""


@dataclass(frozen=True)
class Seat:
    """What a sequence holds from admission to its end: a slot of the KV cache and a lease on the adapter bank."""

    slot: int
    lease: Lease


_sequence_numbers = itertools.count(1)


@dataclass(eq=False)
class Sequence:
    """A request in the engine, from submission to its end.

    `phase` and `cancelled` are guarded by the engine's condition. `load` is set once, by the submitting thread after
    the sequence is queued, so the sequence may end before that. The rest belongs to the engine thread.
    """

    request: Request
    listener: Listener
    text: TextStream
    chooser: TokenChooser
    max_new_tokens: int
    number: int = field(default_factory=lambda: next(_sequence_numbers))
    phase: Phase = Phase.WAITING
    cancelled: bool = False
    load: Load | None = None
    tokens: list[int] = field(default_factory=list)
    submitted_at: float = field(default_factory=time.monotonic)

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt, image tokens included."""
        return self.request.prompt.length

    def expired(self, now: float) -> bool:
        """Return whether the caller's deadline has passed at `now`, a time of `time.monotonic`."""
        return self.request.deadline is not None and now >= self.request.deadline

    def drop_images(self) -> None:
        """Free the prompt's pixels. The first prefill chunk has embedded them."""
        if self.request.prompt.pixels is not None:
            self.request = replace(self.request, prompt=self.request.prompt.without_images())

    def emit(self, text: str) -> None:
        """Send `text` to the listener unless it is empty."""
        if text:
            self.listener(Delta(text))


class RunningSequence:
    """A sequence that was admitted: it has a seat, and its prompt is being prefilled or has been."""

    def __init__(self, sequence: Sequence, seat: Seat) -> None:
        self.sequence = sequence
        self.seat = seat
        self.prefill = Prefill(seat.slot, sequence.request.prompt, seat.lease.ranges)
        self._admitted_at = self._first_token_at = time.monotonic()
        sequence.phase = Phase.PREFILLING

    @property
    def decode_row(self) -> DecodeRow:
        """Its row of the next decode step.

        The cache holds the keys and values of all tokens but the newest, which that step computes.
        """
        sequence = self.sequence
        return DecodeRow(
            slot=self.seat.slot,
            token=sequence.tokens[-1],
            length=sequence.prompt_length + len(sequence.tokens) - 1,
            position_delta=sequence.request.prompt.position_delta,
            ranges=self.seat.lease.ranges,
        )

    @property
    def progress(self) -> str:
        """How far it has come, to complete an error message."""
        if self.prefill.remaining:
            return f"after {self.prefill.offset} of the prompt's {self.sequence.prompt_length} tokens were prefilled"
        return f"after {len(self.sequence.tokens)} tokens of the answer"

    def start_decoding(self) -> None:
        """Move to DECODING when the prompt is prefilled and the first token chosen."""
        self._first_token_at = time.monotonic()
        self.sequence.phase = Phase.DECODING

    def generation(self, reason: FinishReason) -> Generation:
        """Return the answer so far as a finished generation."""
        sequence, prompt = self.sequence, self.sequence.request.prompt
        return Generation(
            text=sequence.text.text,
            finish_reason=reason,
            usage=Usage(prompt.length, prompt.image_tokens, len(sequence.tokens)),
            timings=Timings(
                queue_s=self._admitted_at - sequence.submitted_at,
                prefill_s=self._first_token_at - self._admitted_at,
                decode_s=time.monotonic() - self._first_token_at,
            ),
            applied=self.seat.lease.applied,
            fusion_method=self.seat.lease.fusion_method,
        )
