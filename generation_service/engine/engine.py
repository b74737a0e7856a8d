"""The step loop: one thread owns the device, and any number of callers submit sequences to it."""

from __future__ import annotations

import threading
import time
from functools import partial

from generation_service.engine.completion import Completion
from generation_service.engine.limits import EngineLimits
from generation_service.engine.protocols import AdapterLoader, Lease, StepRunner, TextModel
from generation_service.engine.scheduler import Chunk, Scheduler
from generation_service.engine.sequence import Listener, Phase, Request, RunningSequence, Sequence
from generation_service.engine.text_stream import TextStream
from generation_service.execution.sampler import TokenChooser, choose_tokens
from infra.contract.errors import InternalError, UnavailableError
from infra.contract.generation import FinishReason
from infra.runtime.logs import get_logger

log = get_logger(__name__)

#: Longest prompt that shares a forward pass with others. The mask of a packed pass is quadratic in its tokens, which a
#: long prompt, whose products are efficient alone, would pay for without a gain.
_MAX_PACKED_PROMPT = 256


class Engine:
    """Decodes many requests together, each with its own adapters.

    `submit`, `cancel` and `close` may be called from any thread. Listeners are called on the engine thread or on an
    adapter loader thread and must not block; each receives exactly one end.
    """

    def __init__(self, model: TextModel, runner: StepRunner, adapters: AdapterLoader, limits: EngineLimits) -> None:
        self.limits = limits
        self._model = model
        self._runner = runner
        self._adapters = adapters
        # Guards: the scheduler, `_closing`, and the phase and cancelled flag of every sequence. Notified when any of
        # them changes, so that the engine thread wakes. No listener, model or residency call is made while it is held.
        self._changed = threading.Condition()
        self._scheduler = Scheduler(limits.max_running, limits.max_waiting, limits.prefill_tokens)
        self._completion = Completion(self._scheduler, self._changed, runner.clear)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the engine thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop the engine thread. Unfinished sequences end with UnavailableError."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._completion.end(self._all_sequences(), UnavailableError("the server is stopping: retry"))

    @property
    def running(self) -> int:
        """Sequences that hold a slot."""
        return self.limits.max_running - self._scheduler.free_slots

    @property
    def waiting(self) -> int:
        """Sequences that wait for a slot or for their adapters."""
        return self._scheduler.waiting_count

    def check_room(self, in_preparation: int = 0) -> None:
        """Raise OverloadedError if a request could not be queued now. Counts `in_preparation` others as queued."""
        with self._changed:
            self._scheduler.check_room(in_preparation)

    def submit(self, request: Request, listener: Listener) -> Sequence:
        """Queue a request and start to load its adapters.

        Raises:
            InvalidArgumentError: the prompt leaves no room for an answer.
            OverloadedError: the queue is full.
            UnavailableError: the engine is closing.
        """
        self.limits.check_prompt(request.prompt)
        max_new_tokens = request.decoding.max_new_tokens or self.limits.default_max_new_tokens
        sequence = Sequence(
            request=request,
            listener=listener,
            text=TextStream(self._model.decode, request.decoding.stop),
            chooser=TokenChooser(request.decoding),
            max_new_tokens=min(max_new_tokens, self.limits.max_sequence_tokens - request.prompt.length),
        )
        with self._changed:
            if self._closing:
                raise UnavailableError("the server is stopping: retry")
            self._scheduler.enqueue(sequence)
            self._changed.notify()
        try:
            sequence.load = self._adapters.request(request.composition, partial(self._on_adapters, sequence))
        except BaseException:
            self.cancel(sequence)  # The caller gets no sequence that it could cancel itself.
            raise
        # The sequence may have ended before `load` was set, in which case nothing else cancels it.
        if sequence.phase is Phase.FINISHED:
            sequence.load.cancel()
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence with CancelledError before the next step. Does nothing if it has already ended."""
        with self._changed:
            sequence.cancelled = True
            self._changed.notify()

    def step(self) -> None:
        """Evict cancelled and expired sequences, admit, prefill one chunk budget, decode one token each."""
        self._evict()
        self._admit()
        self._prefill()
        self._decode()

    def _on_adapters(self, sequence: Sequence, outcome: Lease | Exception) -> None:
        """Take the outcome of a load. Called on: a residency thread, or the submitter's inside `submit`."""
        if isinstance(outcome, Exception):
            self._completion.end([sequence], outcome)
            return
        with self._changed:
            if sequence.phase is not Phase.FINISHED:
                self._scheduler.adapters_ready(sequence, outcome)
                self._changed.notify()
                return
        outcome.release()

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                try:
                    self.step()
                except Exception as error:
                    self._completion.fail_all(error)
        finally:
            with self._changed:
                self._closing = True
            stopped = UnavailableError("the engine stopped: retry on another replica")
            self._completion.end(self._all_sequences(), stopped)

    def _wait_for_work(self) -> bool:
        """Wait until a step has something to do; return False when the engine is closing."""
        with self._changed:
            while not self._closing and self._scheduler.idle and not self._scheduler.expired(time.monotonic()):
                deadline = self._scheduler.next_deadline()
                self._changed.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
            return not self._closing

    def _evict(self) -> None:
        with self._changed:
            expired = self._scheduler.expired(time.monotonic())
        for sequence in expired:
            self._completion.evict(sequence)

    def _admit(self) -> None:
        with self._changed:
            self._scheduler.admit()

    def _prefill(self) -> None:
        with self._changed:
            chunks = self._scheduler.chunks()
        short = [chunk for chunk in chunks if self._is_packable(chunk)]
        packed = short if len(short) > 1 and self._prefill_together(short) else []
        for chunk in chunks:
            if chunk not in packed:
                self._prefill_chunk(chunk)

    def _is_packable(self, chunk: Chunk) -> bool:
        """Return whether a chunk is a whole text prompt that is short enough to share a forward pass."""
        prompt, limit = chunk.running.prefill.prompt, self._model.shortest_window or _MAX_PACKED_PROMPT
        return chunk.tokens == prompt.length <= min(limit, _MAX_PACKED_PROMPT) and prompt.pixels is None

    def _prefill_together(self, chunks: list[Chunk]) -> bool:
        """Prefill whole prompts in one forward pass. Return False if they must run alone, so that one fails alone."""
        sequences = [chunk.running.sequence for chunk in chunks]
        try:
            logits = self._runner.prefill_together([chunk.running.prefill for chunk in chunks])
        except Exception as error:
            log.warning("prompts_not_packed", prompts=len(chunks), reason=f"{type(error).__name__}: {error}")
            return False
        if logits is None:
            return False
        tokens = choose_tokens(logits, [sequence.chooser for sequence in sequences])
        with self._changed:
            for chunk in chunks:
                chunk.running.start_decoding()
        for chunk, token in zip(chunks, tokens, strict=True):
            self._append(chunk.running, token)
        return True

    def _prefill_chunk(self, chunk: Chunk) -> None:
        """Prefill one chunk; after a prompt's last chunk, take the first token of its answer."""
        running, sequence = chunk.running, chunk.running.sequence
        try:
            logits = self._runner.prefill(running.prefill, chunk.tokens)
            sequence.drop_images()
            if logits is None:
                return
            (token,) = choose_tokens(logits, [sequence.chooser])
        except Exception as error:
            self._completion.fail([running], error)
            return
        with self._changed:
            running.start_decoding()
        self._append(running, token)

    def _decode(self) -> None:
        with self._changed:
            decoding = self._scheduler.decoding
        if not decoding:
            return
        try:
            logits = self._runner.decode([running.decode_row for running in decoding])
            tokens = choose_tokens(logits, [running.sequence.chooser for running in decoding])
        except Exception as error:
            self._completion.fail(decoding, error)
            return
        for running, token in zip(decoding, tokens, strict=True):
            self._append(running, token)

    def _append(self, running: RunningSequence, token: int | None) -> None:
        """Append a sequence's next token and finish it where it ends. None: its logits were not finite."""
        sequence = running.sequence
        if token is None:
            adapters = ", ".join(share.adapter_id for share in running.seat.lease.applied)
            error = InternalError(f"the model gave no finite logits with adapters [{adapters}]")
            self._completion.fail([running], error)
            return
        if token in self._model.description.eos_tokens:
            self._completion.finish(running, FinishReason.STOP)
            return
        sequence.tokens.append(token)
        try:
            sequence.emit(sequence.text.push(token))
        except Exception as error:
            self._completion.fail([running], error)
            return
        if sequence.text.stopped:
            self._completion.finish(running, FinishReason.STOP)
        elif len(sequence.tokens) >= sequence.max_new_tokens:
            self._completion.finish(running, FinishReason.LENGTH)

    def _all_sequences(self) -> list[Sequence]:
        with self._changed:
            return self._scheduler.all_sequences
