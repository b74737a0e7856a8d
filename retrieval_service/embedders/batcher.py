"""Batches the texts and images of concurrent calls into few forward passes.

A caller's thread preprocesses its own parts (tokens, pixels), puts them into one bounded queue and waits. The threads
of the embedder take the part that is due together with waiting parts of similar size. Identical parts of concurrent
calls are embedded once, and their vectors are cached.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence

import numpy as np

from infra.contract.errors import (
    DeadlineError,
    FailedPreconditionError,
    OverloadedError,
    UnavailableError,
)
from infra.contract.prompt import Prompt
from infra.runtime.deadline import ends_at, has_passed, seconds_until
from infra.runtime.logs import get_logger
from retrieval_service import metrics
from retrieval_service.embedders.base import FloatArray
from retrieval_service.embedders.in_flight import Caller, PendingPart, deadline_passed, server_stopping
from retrieval_service.embedders.part_embedder import (
    EmbedPart,
    PartEmbedder,
    batch_around,
    check_vectors,
    embed_prompts,
)
from retrieval_service.embedders.vector_cache import VectorCache
from retrieval_service.settings import BatchingOptions

log = get_logger(__name__)

_PROMPTS_PER_WINDOW = 32  # prompts of one call that are preprocessed together; bounds the pixels held in memory
_CLOSE_TIMEOUT_S = 2.0  # a pass that runs longer ends with the process: the threads are daemons
# Errors of the embedder itself, as opposed to errors that one part of a batch causes: repeating the parts cannot help.
_EMBEDDER_ERRORS = (UnavailableError, OverloadedError, DeadlineError, FailedPreconditionError)


class BatchedEmbedder:
    """An embedder for many threads, whose calls share forward passes, pending work and a cache."""

    def __init__(self, model: PartEmbedder, options: BatchingOptions | None = None) -> None:
        self._model = model
        self._fingerprint = model.fingerprint
        self._options = options or BatchingOptions()
        # Guards: all fields below, and the callers of every PendingPart. Notified when parts are queued and on close.
        self._changed = threading.Condition()
        self._cache = VectorCache(self._options.cache_bytes)
        self._in_flight: dict[bytes, PendingPart] = {}
        self._queue: list[PendingPart] = []
        self._preparing = 0  # calls that are preprocessing their parts
        self._passes = 0
        self._callers_of_last_pass = 0
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"embedder-{number}", daemon=True)
            for number in range(model.parallel)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return self._model.dim

    @property
    def fingerprint(self) -> str:
        """Identifies the weights and every setting that changes a vector."""
        return self._fingerprint

    @property
    def queue_length(self) -> int:
        """Parts that are waiting for a forward pass."""
        with self._changed:
            return len(self._queue)

    @property
    def num_in_flight(self) -> int:
        """Distinct parts that are being preprocessed, wait for a forward pass, or are in one."""
        with self._changed:
            return len(self._in_flight)

    @property
    def is_closed(self) -> bool:
        """Whether close() has been called."""
        with self._changed:
            return self._closed

    @property
    def num_preparing(self) -> int:
        """Calls that are preprocessing their parts."""
        with self._changed:
            return self._preparing

    def embed(self, prompts: Sequence[Prompt]) -> FloatArray:
        """Return one vector per prompt, [len(prompts), dim].

        Called on: the thread that serves the call, whose deadline applies.

        Raises:
            InvalidArgumentError: a prompt cannot be embedded; the field path starts at `[i]` of the prompt.
            OverloadedError: the queue is full.
            DeadlineError: the deadline of the call passed first.
        """
        vectors = np.empty((len(prompts), self.dim), np.float32)
        for start in range(0, len(prompts), _PROMPTS_PER_WINDOW):
            window = prompts[start : start + _PROMPTS_PER_WINDOW]
            vectors[start : start + len(window)] = embed_prompts(self._model, window, self._vectors, start)
        return vectors

    def close(self) -> None:
        """Refuse waiting parts. A running pass may finish, but is not waited for long."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(_CLOSE_TIMEOUT_S)

    def _vectors(self, parts: Sequence[EmbedPart]) -> Sequence[FloatArray]:
        caller = Caller(ends_at())
        digests = [part.digest(self._fingerprint) for part in parts]
        claimed, unprepared = self._claim(parts, digests, caller)
        try:
            failed = [(pending, part) for pending, part in unprepared if not pending.prepare(self._model, part)]
            self._enqueue([pending for pending, _ in unprepared], caller, complete=not failed)
            for pending, part in failed:
                pending.result(part, caller)  # raises
            return [
                entry.result(part, caller) if isinstance(entry, PendingPart) else entry
                for entry, part in zip(claimed, parts, strict=True)
            ]
        finally:
            with self._changed:
                for entry in claimed:
                    if isinstance(entry, PendingPart):
                        entry.callers.discard(caller)

    def _claim(
        self, parts: Sequence[EmbedPart], digests: Sequence[bytes], caller: Caller
    ) -> tuple[list[FloatArray | PendingPart], list[tuple[PendingPart, EmbedPart]]]:
        """Return each part's vector or pending work, and the new pending parts, which this caller must preprocess."""
        unprepared: list[tuple[PendingPart, EmbedPart]] = []
        claimed: list[FloatArray | PendingPart] = []
        with self._changed:
            self._check_room(digests, caller)
            for part, digest in zip(parts, digests, strict=True):
                vector = self._cache.get(digest)
                pending = self._in_flight.get(digest)
                source = "cache" if vector is not None else "model" if pending is None else "in_flight"
                metrics.parts_total.labels(part.kind, source).inc()
                if vector is not None:
                    claimed.append(vector)
                    continue
                if pending is None:
                    # A later turn for every further batch of this call, so that other calls run in between.
                    turn = self._passes + len(unprepared) // self._model.batch_size
                    pending = self._in_flight[digest] = PendingPart(digest, turn)
                    unprepared.append((pending, part))
                pending.callers.add(caller)
                claimed.append(pending)
            self._preparing += bool(unprepared)
        return claimed, unprepared

    def _check_room(self, digests: Sequence[bytes], caller: Caller) -> None:
        if self._closed:
            raise server_stopping()
        if has_passed(caller.ends_at):
            raise deadline_passed()
        waiting, limit = len(self._queue), self._options.max_queue
        new = sum(digest not in self._in_flight and self._cache.get(digest) is None for digest in set(digests))
        # An empty queue accepts a call of any size: otherwise a call larger than the queue could never succeed.
        if waiting and new and waiting + new > limit:
            metrics.refused_total.inc()
            raise OverloadedError(
                f"{waiting} texts and images are waiting for the embedder, and {new} more exceed the limit of {limit}; "
                "try again in a moment",
                queue_length=str(waiting),
            )

    def _enqueue(self, prepared: Sequence[PendingPart], caller: Caller, *, complete: bool) -> None:
        """Queue preprocessed parts. If any part of the call failed, its caller waits for none of the others."""
        if not prepared:
            return
        with self._changed:
            self._preparing -= 1
            for pending in prepared:
                if not complete:
                    pending.callers.discard(caller)
                if pending.future.done():
                    del self._in_flight[pending.digest]
                elif self._closed:
                    self._resolve(pending, server_stopping())
                else:
                    self._queue.append(pending)
            metrics.queue_length.set(len(self._queue))
            self._changed.notify_all()

    def _work(self) -> None:
        """Run passes until closed. Called on: an embedder thread."""
        while batch := self._next_batch():
            self._embed(batch)

    def _next_batch(self) -> list[PendingPart]:
        """Wait for parts and return those of the next pass; an empty list once closed."""
        with self._changed:
            wait_until = math.inf
            while not self._closed:
                self._drop_expired()
                now = time.monotonic()
                wait_until = min(wait_until, now + self._options.max_wait_s) if self._queue else math.inf
                if self._queue and (now >= wait_until or not self._more_expected()):
                    return self._take_batch()
                self._changed.wait(None if math.isinf(wait_until) else wait_until - now)
            for pending in self._queue:
                self._resolve(pending, server_stopping())
            self._queue.clear()
        return []

    def _more_expected(self) -> bool:
        """Return whether waiting may fill the pass: calls are preprocessing, or those of the last pass may return."""
        if len(self._queue) >= self._model.batch_size:
            return False
        callers = set().union(*(pending.callers for pending in self._queue))
        return self._preparing > 0 or len(callers) < self._callers_of_last_pass

    def _take_batch(self) -> list[PendingPart]:
        due = min(self._queue, key=lambda pending: pending.turn)
        candidates = [pending for pending in self._queue if pending.model_input.kind is due.model_input.kind]
        candidates.sort(key=lambda pending: pending.model_input.size)
        chosen = batch_around([pending.model_input.size for pending in candidates], candidates.index(due), self._model)
        batch = [candidates[index] for index in chosen]
        taken = set(map(id, batch))
        self._queue = [pending for pending in self._queue if id(pending) not in taken]
        self._passes += 1
        self._callers_of_last_pass = len(set().union(*(pending.callers for pending in batch)))
        metrics.queue_length.set(len(self._queue))
        return batch

    def _drop_expired(self) -> None:
        remaining: list[PendingPart] = []
        for pending in self._queue:
            if has_passed(pending.ends_at):
                metrics.dropped_total.inc()
                self._resolve(pending, deadline_passed())
            else:
                remaining.append(pending)
        self._queue = remaining

    def _embed(self, batch: Sequence[PendingPart]) -> None:
        """Run one pass. If it fails, repeat it part by part, so that only callers of the failing part get the error."""
        kind = batch[0].model_input.kind

        def time_left() -> float:
            with self._changed:
                return seconds_until(max(pending.ends_at for pending in batch))

        outcomes: Sequence[FloatArray | BaseException] = []
        try:
            with metrics.batch_seconds.labels(kind).time():
                vectors = self._model.forward([pending.model_input for pending in batch], time_left)
            outcomes = list(check_vectors(vectors, len(batch), self.dim))
        except BaseException as error:  # callers wait for the outcome, whatever it is
            if len(batch) == 1 or isinstance(error, _EMBEDDER_ERRORS):
                outcomes = [error] * len(batch)
            else:
                log.warning("batch_failed", size=len(batch), error=type(error).__name__)
        if not outcomes:  # outside the except block, so that the error no longer holds the pass's memory
            for pending in batch:
                self._embed([pending])
            return
        metrics.batch_size.labels(kind).observe(len(batch))
        with self._changed:
            for pending, outcome in zip(batch, outcomes, strict=True):
                self._resolve(pending, outcome)
            metrics.cache_bytes.set(self._cache.used_bytes)

    def _resolve(self, pending: PendingPart, outcome: FloatArray | BaseException) -> None:
        """Give all callers of a part its vector or the error. The lock is held."""
        self._in_flight.pop(pending.digest, None)
        if isinstance(outcome, BaseException):
            pending.future.set_exception(outcome)
        else:
            self._cache.put(pending.digest, outcome)
            pending.future.set_result(outcome)
