"""Admit -> read prompts -> decode -> finish: one thread owns the device, and many callers hand it sequences."""

from __future__ import annotations

import threading
import time

from generation_service.adapters.leases import BankLease
from generation_service.adapters.residency import Residency
from generation_service.engine.completion import Endings
from generation_service.engine.limits import EngineLimits
from generation_service.engine.scheduler import Scheduler
from generation_service.engine.sequence import Listener, Request, Sequence
from generation_service.engine.text_stream import TextStream
from generation_service.execution.inputs import DecodeRow, Prefill
from generation_service.execution.runner import Runner
from generation_service.execution.sampler import TokenChooser, choose_tokens
from generation_service.models.base import BaseModel
from infra.contract.composition import Composition
from infra.contract.errors import InternalError, UnavailableError
from infra.contract.generation import FinishReason


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
        self._endings = Endings(self._scheduler, self._changed, runner.clear)
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
        self._endings.end(self._everyone(), UnavailableError("the server is stopping: retry"))

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

    def check_composition(self, composition: Composition) -> Composition:
        """Return `composition` with its adapters' revisions named, for `submit`. It may read their configs: it blocks.

        Raises InvalidArgumentError, NotFoundError, CheckpointError, BaseModelMismatchError, CapacityError or
        FailedPreconditionError for one that could never be decoded with.
        """
        self.limits.check_composition(composition)
        return self._residency.check(composition)

    def submit(self, request: Request, listener: Listener) -> Sequence:
        """Queue a request. Raises InvalidArgumentError for what can never be served, OverloadedError when full."""
        self.limits.check_prompt(request.prompt)
        self.limits.check_composition(request.composition)
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
        if sequence.ended:
            sequence.ticket.cancel()
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        """Drop a sequence within a step, wherever it is. Does nothing when it has ended."""
        with self._changed:
            sequence.cancelled = True
            self._changed.notify()

    def step(self) -> None:
        """Let those leave who are cancelled or late, read on in the prompts, and decode one token of each answer."""
        self._drop()
        self._admit()
        self._read()
        self._decode()

    def _adapters_ready(self, sequence: Sequence, outcome: BankLease | Exception) -> None:
        """Hear from the residency, on one of its threads or the submitter's."""
        if isinstance(outcome, Exception):
            self._endings.end([sequence], outcome)
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
                    self._endings.fail(self._everyone(), error)
        finally:
            with self._changed:
                self._closing = True
            self._endings.end(self._everyone(), UnavailableError("the engine stopped: retry on another replica"))

    def _wait(self) -> bool:
        """Wait until there is something to do; return False when the engine is closing."""
        with self._changed:
            while not self._closing and self._scheduler.idle and not self._scheduler.leaving(time.monotonic()):
                deadline = self._scheduler.next_deadline()
                self._changed.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
            return not self._closing

    def _drop(self) -> None:
        with self._changed:
            leaving = self._scheduler.leaving(time.monotonic())
        for sequence in leaving:
            self._endings.drop(sequence)

    def _admit(self) -> None:
        with self._changed:
            admitted = self._scheduler.admit()
        for sequence in admitted:
            assert sequence.slot is not None
            assert sequence.lease is not None
            sequence.admitted_at = time.monotonic()
            sequence.prefill = Prefill(sequence.slot, sequence.request.prompt, sequence.lease.ranges)

    def _read(self) -> None:
        """Read this step's chunks, and take the first token of each prompt that is complete."""
        with self._changed:
            chunks = self._scheduler.chunks()
        for chunk in chunks:
            self._read_chunk(chunk.sequence, chunk.tokens)

    def _read_chunk(self, sequence: Sequence, tokens: int) -> None:
        assert sequence.prefill is not None
        try:
            logits = self._runner.prefill(sequence.prefill, tokens)
            sequence.forget_images()
            if logits is None:
                return
            (token,) = choose_tokens(logits, [sequence.chooser])
        except Exception as error:
            self._endings.fail([sequence], error)
            return
        sequence.first_token_at = time.monotonic()
        self._advance(sequence, token)

    def _decode(self) -> None:
        with self._changed:
            decoding = self._scheduler.decoding
        if not decoding:
            return
        try:
            logits = self._runner.decode([_row(sequence) for sequence in decoding])
            tokens = choose_tokens(logits, [sequence.chooser for sequence in decoding])
        except Exception as error:
            self._endings.fail(decoding, error)
            return
        for sequence, token in zip(decoding, tokens, strict=True):
            self._advance(sequence, token)

    def _advance(self, sequence: Sequence, token: int | None) -> None:
        """Take a sequence's next token (None: its logits were not finite), and end it where it ends."""
        if token is None:
            applied = ", ".join(share.adapter_id for share in sequence.lease.applied) if sequence.lease else ""
            error = InternalError(f"the model gave no finite logits with adapters [{applied}]")
            self._endings.fail([sequence], error)
            return
        if token in self._model.description.eos_tokens:
            self._endings.finish(sequence, FinishReason.STOP)
            return
        sequence.tokens.append(token)
        try:
            sequence.emit(sequence.text.push(token))
        except Exception as error:
            self._endings.fail([sequence], error)
            return
        if sequence.text.stopped:
            self._endings.finish(sequence, FinishReason.STOP)
        elif len(sequence.tokens) >= sequence.max_new_tokens:
            self._endings.finish(sequence, FinishReason.LENGTH)

    def _everyone(self) -> list[Sequence]:
        with self._changed:
            return self._scheduler.everyone


def _row(sequence: Sequence) -> DecodeRow:
    assert sequence.slot is not None
    assert sequence.lease is not None
    delta = sequence.request.prompt.position_delta
    return DecodeRow(sequence.slot, sequence.tokens[-1], sequence.cached_length, delta, sequence.lease.ranges)
