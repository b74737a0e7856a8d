"""Admit -> prefill -> decode -> finish: one thread owns the device, and many callers hand it sequences."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence as Many
from dataclasses import dataclass

from generation_service.adapters.leases import BankLease
from generation_service.adapters.residency import Residency
from generation_service.decode_row import DecodeRow
from generation_service.models.base import BaseModel
from generation_service.runner import Runner
from generation_service.sampler import TokenChooser, choose_tokens
from generation_service.scheduler import Scheduler
from generation_service.sequence import Listener, Request, Sequence
from generation_service.text_stream import TextStream
from infra.contract.composition import Base
from infra.contract.errors import (
    CancelledError,
    DeadlineError,
    InternalError,
    InvalidArgumentError,
    LoraRetrieverError,
    UnavailableError,
)
from infra.contract.generation import FinishReason
from infra.runtime.logs import get_logger

log = get_logger(__name__)


@dataclass(frozen=True)
class EngineLimits:
    """What the engine accepts, in requests, tokens and adapters.

    `max_sequence_tokens` counts prompt and answer; `prefill_tokens` bounds the prompts read in one step.
    """

    max_running: int
    max_waiting: int
    max_sequence_tokens: int
    max_adapters: int
    default_max_new_tokens: int
    prefill_tokens: int


class Engine:
    """Decodes many requests together, each with its own adapters.

    `submit` and `cancel` may be called from any thread. A listener is called from the engine's thread, or from a loader
    thread, and must not block; it hears exactly one end.
    """

    def __init__(self, model: BaseModel, runner: Runner, residency: Residency, limits: EngineLimits) -> None:
        self.limits = limits
        self._model = model
        self._runner = runner
        self._residency = residency
        self._scheduler = Scheduler(limits.max_running, limits.max_waiting, limits.prefill_tokens)
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread that owns the device."""
        self._thread.start()

    def close(self) -> None:
        """End the thread; whatever is under way ends in UnavailableError."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._end(self._everyone(), UnavailableError("the server is stopping: retry"))

    @property
    def running(self) -> int:
        """Sequences that hold a slot."""
        return self.limits.max_running - self._scheduler.free_slots

    @property
    def waiting(self) -> int:
        """Sequences that wait for a slot or their adapters."""
        return self._scheduler.waiting_count

    def check_room(self, beside: int = 0) -> None:
        """Raise OverloadedError when a request could not be queued now, `beside` others being on their way."""
        with self._changed:
            self._scheduler.check_room(beside)

    def submit(self, request: Request, listener: Listener) -> Sequence:
        """Queue a request. Raises InvalidArgumentError for what can never be served, OverloadedError when full."""
        self._check(request)
        wanted = request.decoding.max_new_tokens or self.limits.default_max_new_tokens
        sequence = Sequence(
            request=request,
            listener=listener,
            text=TextStream(self._model.decode, request.decoding.stop),
            chooser=TokenChooser(request.decoding),
            max_new_tokens=min(wanted, self.limits.max_sequence_tokens - request.prompt.length),
        )
        with self._changed:
            if self._closing:
                raise UnavailableError("the server is stopping: retry")
            self._scheduler.enqueue(sequence)
            self._changed.notify()
        sequence.ticket = self._residency.request(
            request.composition, lambda outcome: self._adapters_ready(sequence, outcome)
        )
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        """Drop a sequence within a step, wherever it is. Does nothing when it has ended."""
        with self._changed:
            sequence.cancelled = True
            self._changed.notify()

    def step(self) -> None:
        """Let those leave who are cancelled or late, read the prompts of those who join, and decode one token each."""
        self._drop()
        for sequence in self._admit():
            self._prefill(sequence)
        self._decode()

    def _check(self, request: Request) -> None:
        limit = self.limits.max_sequence_tokens
        if request.prompt.length >= limit:
            raise InvalidArgumentError(
                "prompt",
                f"takes {request.prompt.length} tokens, {request.prompt.image_tokens} of them for images; this server "
                f"holds {limit} for prompt and answer together: send less text, fewer or smaller images",
                tokens=str(request.prompt.length),
                limit=str(limit),
            )
        if isinstance(request.composition, Base):
            return
        count = len(request.composition.adapters)
        if count > self.limits.max_adapters:
            kind = type(request.composition).__name__.lower()
            raise InvalidArgumentError(
                f"composition.{kind}.adapters",
                f"{count} adapters are too many; at most {self.limits.max_adapters} in one composition",
                limit=str(self.limits.max_adapters),
            )

    def _adapters_ready(self, sequence: Sequence, outcome: BankLease | Exception) -> None:
        """Hear from the residency, on one of its threads or the submitter's."""
        if isinstance(outcome, Exception):
            self._end([sequence], outcome)
            return
        with self._changed:
            if not sequence.ended:
                sequence.lease = outcome
                self._changed.notify()
                return
        outcome.release()

    def _run(self) -> None:
        try:
            while self._wait():
                try:
                    self.step()
                except Exception as error:
                    self._step_failed(self._everyone(), error)
        finally:
            with self._changed:
                self._closing = True
            self._end(self._everyone(), UnavailableError("the engine stopped: retry on another replica"))

    def _wait(self) -> bool:
        """Wait until there is something to do; return False when the engine is closing."""
        with self._changed:
            while not self._closing and self._scheduler.idle and not self._leaving():
                deadline = self._scheduler.next_deadline()
                self._changed.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
            return not self._closing

    def _leaving(self) -> list[Sequence]:
        now = time.monotonic()
        return [s for s in self._everyone() if s.cancelled or s.expired(now)]

    def _drop(self) -> None:
        with self._changed:
            leaving = self._leaving()
        for sequence in leaving:
            if sequence.cancelled:
                self._end([sequence], CancelledError("the request was cancelled"))
            else:
                done = (
                    f"after {len(sequence.tokens)} tokens of the answer"
                    if sequence.slot is not None
                    else "in the queue"
                )
                self._end([sequence], DeadlineError(f"the deadline passed {done}"))

    def _admit(self) -> list[Sequence]:
        with self._changed:
            return self._scheduler.admit()

    def _prefill(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        assert sequence.lease is not None
        sequence.admitted_at = time.monotonic()
        try:
            logits = self._runner.prefill(sequence.slot, sequence.request.prompt, sequence.lease.ranges)
            (token,) = choose_tokens(logits, [sequence.chooser])
        except Exception as error:
            self._step_failed([sequence], error)
            return
        sequence.first_token_at = time.monotonic()
        sequence.forget_images()
        self._advance(sequence, token)

    def _decode(self) -> None:
        running = self._running()
        if not running:
            return
        try:
            logits = self._runner.decode([_row(sequence) for sequence in running])
            tokens = choose_tokens(logits, [sequence.chooser for sequence in running])
        except Exception as error:
            self._step_failed(running, error)
            return
        for sequence, token in zip(running, tokens, strict=True):
            self._advance(sequence, token)

    def _advance(self, sequence: Sequence, token: int | None) -> None:
        """Take a sequence's next token (None: its logits were not finite), and end it where it ends."""
        if token is None:
            applied = ", ".join(share.adapter_id for share in sequence.lease.applied) if sequence.lease else ""
            self._step_failed([sequence], InternalError(f"the model gave no finite logits with adapters [{applied}]"))
            return
        if token in self._model.description.eos_tokens:
            self._finish(sequence, FinishReason.STOP)
            return
        sequence.tokens.append(token)
        try:
            sequence.emit(sequence.text.push(token))
        except Exception as error:
            self._step_failed([sequence], error)
            return
        if sequence.text.stopped:
            self._finish(sequence, FinishReason.STOP)
        elif len(sequence.tokens) >= sequence.max_new_tokens:
            self._finish(sequence, FinishReason.LENGTH)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        try:
            sequence.emit(sequence.text.finish())
            answer = sequence.generation(reason, time.monotonic())
        except Exception as error:
            self._step_failed([sequence], error)
            return
        self._leave(sequence)
        _tell(sequence, answer)

    def _step_failed(self, sequences: Many[Sequence], error: Exception) -> None:
        """End the sequences of a step that failed; the next step runs without them."""
        log.error("step_failed", sequences=len(sequences), exc_info=error)
        self._clear([sequence.slot for sequence in sequences if sequence.slot is not None])
        if isinstance(error, LoraRetrieverError):
            self._end(sequences, error)
            return
        failure = InternalError(f"a step of the model failed and ended the {len(sequences)} requests in it: retry")
        failure.__cause__ = error
        self._end(sequences, failure)

    def _clear(self, slots: Many[int]) -> None:
        """Let nothing of a failed step reach the next sequence in its slot: 0 times NaN is NaN under any mask."""
        try:
            for slot in slots:
                self._runner.clear(slot)
        except Exception:
            log.exception("slots_not_cleared", slots=list(slots))

    def _end(self, sequences: Many[Sequence], error: Exception) -> None:
        for sequence in sequences:
            if self._leave(sequence):
                _tell(sequence, error)

    def _leave(self, sequence: Sequence) -> bool:
        """Free what the sequence holds; return False when it had left before."""
        with self._changed:
            if sequence.ended:
                return False
            sequence.ended = True
            self._scheduler.remove(sequence)
            self._changed.notify()
        if sequence.ticket is not None:
            sequence.ticket.cancel()
        if sequence.lease is not None:
            sequence.lease.release()
        return True

    def _running(self) -> list[Sequence]:
        with self._changed:
            return self._scheduler.running

    def _everyone(self) -> list[Sequence]:
        return [*self._scheduler.waiting, *self._scheduler.running]


def _row(sequence: Sequence) -> DecodeRow:
    assert sequence.slot is not None
    assert sequence.lease is not None
    delta = sequence.request.prompt.position_delta
    return DecodeRow(sequence.slot, sequence.tokens[-1], sequence.cached_length, delta, sequence.lease.ranges)


def _tell(sequence: Sequence, event: object) -> None:
    """Hand a listener its end; one that fails harms nobody else."""
    try:
        sequence.listener(event)  # type: ignore[arg-type]
    except Exception:
        log.exception("listener_failed", sequence=sequence.number)
