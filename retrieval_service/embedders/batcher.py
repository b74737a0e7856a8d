"""Many callers' texts and images -> few forward passes.

A caller reads its own parts (tokens, pixels) in its own thread, puts them in one bounded queue, and waits. Threads of
the embedder take what waits: the part that is due, and those of like size beside it. The same part is embedded once,
however many callers ask for it at a time, and its vector is kept.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infra.contract.errors import (
    DeadlineError,
    FailedPreconditionError,
    OverloadedError,
    UnavailableError,
)
from infra.contract.prompt import Prompt
from infra.runtime.deadline import remaining_s
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

log = get_logger(__name__)

_PROMPTS_AT_ONCE = 32  # of one call: bounds the pixels that it holds in memory
_LAST_PASS_S = 2.0
_OF_THE_EMBEDDER = (UnavailableError, OverloadedError, DeadlineError, FailedPreconditionError)


@dataclass(frozen=True)
class BatchingOptions:
    """`max_queue` parts may wait; a pass starts up to `max_wait_s` late for callers who are about to join it."""

    max_queue: int = 1024
    max_wait_s: float = 0.005
    cache_bytes: int = 256 * 2**20


class BatchedEmbedder:
    """An embedder for many threads, whose calls share forward passes, work under way, and a cache."""

    def __init__(self, model: PartEmbedder, options: BatchingOptions | None = None) -> None:
        self._model = model
        self._fingerprint = model.fingerprint
        self._options = options or BatchingOptions()
        self._cache = VectorCache(self._options.cache_bytes)
        self._changed = threading.Condition()  # guards all below
        self._in_flight: dict[bytes, PendingPart] = {}
        self._queue: list[PendingPart] = []
        self._reading = 0
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
        """Names the weights and every setting that changes a vector."""
        return self._fingerprint

    def embed(self, prompts: Sequence[Prompt]) -> FloatArray:
        """Return one vector a prompt, [len(prompts), dim].

        Raises InvalidArgumentError, its path from `[i]` of the prompt on; OverloadedError when too much waits already;
        DeadlineError when the call that is being served ends before.
        """
        vectors = np.empty((len(prompts), self.dim), np.float32)
        for start in range(0, len(prompts), _PROMPTS_AT_ONCE):
            window = prompts[start : start + _PROMPTS_AT_ONCE]
            vectors[start : start + len(window)] = embed_prompts(self._model, window, self._vectors, start)
        return vectors

    def close(self) -> None:
        """Refuse what waits; a pass under way may end, but is not waited for long."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(_LAST_PASS_S)

    def _vectors(self, parts: Sequence[EmbedPart]) -> Sequence[FloatArray]:
        left_s = remaining_s()
        caller = Caller(math.inf if left_s is None else time.monotonic() + left_s)
        digests = [part.digest(self._fingerprint) for part in parts]
        found, unread = self._claim(parts, digests, caller)
        try:
            failed = [(one, part) for one, part in unread if not one.read(self._model, part)]
            self._put([one for one, _ in unread], caller, complete=not failed)
            for one, part in failed:
                one.result(part, caller)
            return [
                one.result(part, caller) if isinstance(one, PendingPart) else one
                for one, part in zip(found, parts, strict=True)
            ]
        finally:
            with self._changed:
                for waited in found:
                    if isinstance(waited, PendingPart):
                        waited.callers.discard(caller)

    def _claim(
        self, parts: Sequence[EmbedPart], digests: Sequence[bytes], caller: Caller
    ) -> tuple[list[FloatArray | PendingPart], list[tuple[PendingPart, EmbedPart]]]:
        """Return each part's vector, or who gets it; and those that this caller must read, since nobody did."""
        unread: list[tuple[PendingPart, EmbedPart]] = []
        found: list[FloatArray | PendingPart] = []
        with self._changed:
            self._check_room(digests, caller)
            for part, digest in zip(parts, digests, strict=True):
                vector = self._cache.get(digest)
                wanted = self._in_flight.get(digest)
                source = "cache" if vector is not None else "model" if wanted is None else "in_flight"
                metrics.parts_total.labels(part.kind, source).inc()
                if vector is not None:
                    found.append(vector)
                    continue
                if wanted is None:
                    turn = self._passes + len(unread) // self._model.batch_size  # a long call lets others between
                    wanted = self._in_flight[digest] = PendingPart(digest, turn)
                    unread.append((wanted, part))
                wanted.callers.add(caller)
                found.append(wanted)
            self._reading += bool(unread)
        return found, unread

    def _check_room(self, digests: Sequence[bytes], caller: Caller) -> None:
        if self._closed:
            raise server_stopping()
        if caller.ends_at <= time.monotonic():
            raise deadline_passed()
        waiting, limit = len(self._queue), self._options.max_queue
        new = sum(digest not in self._in_flight and self._cache.get(digest) is None for digest in set(digests))
        if waiting and new and waiting + new > limit:
            metrics.refused_total.inc()
            raise OverloadedError(
                f"{waiting} texts and images wait for the embedder already, and {new} more are over the limit of "
                f"{limit}; try again in a moment",
                queue_length=str(waiting),
            )

    def _put(self, read: Sequence[PendingPart], caller: Caller, *, complete: bool) -> None:
        """Queue what was read. A caller whose part could not be read fails: it waits for none of the others."""
        if not read:
            return
        with self._changed:
            self._reading -= 1
            for one in read:
                if not complete:
                    one.callers.discard(caller)
                if one.future.done():
                    del self._in_flight[one.digest]
                elif self._closed:
                    self._settle(one, server_stopping())
                else:
                    self._queue.append(one)
            metrics.queue_length.set(len(self._queue))
            self._changed.notify_all()

    def _work(self) -> None:
        while batch := self._next():
            self._embed(batch)

    def _next(self) -> list[PendingPart]:
        """Wait for work, and return what shares the next pass; nothing when closed."""
        with self._changed:
            wait_until = math.inf
            while not self._closed:
                self._drop_the_dead()
                now = time.monotonic()
                wait_until = min(wait_until, now + self._options.max_wait_s) if self._queue else math.inf
                if self._queue and (now >= wait_until or not self._more_are_coming()):
                    return self._take()
                self._changed.wait(None if math.isinf(wait_until) else wait_until - now)
            for one in self._queue:
                self._settle(one, server_stopping())
            self._queue.clear()
        return []

    def _more_are_coming(self) -> bool:
        """Whether a pass would miss callers: some are reading, or those of the last pass are on their way back."""
        if len(self._queue) >= self._model.batch_size:
            return False
        callers = set().union(*(one.callers for one in self._queue))
        return self._reading > 0 or len(callers) < self._callers_of_last_pass

    def _take(self) -> list[PendingPart]:
        due = min(self._queue, key=lambda one: one.turn)
        alike = [one for one in self._queue if one.row.kind is due.row.kind]
        alike.sort(key=lambda one: one.row.size)
        places = batch_around([one.row.size for one in alike], alike.index(due), self._model)
        batch = [alike[place] for place in places]
        taken = set(map(id, batch))
        self._queue = [one for one in self._queue if id(one) not in taken]
        self._passes += 1
        self._callers_of_last_pass = len(set().union(*(one.callers for one in batch)))
        metrics.queue_length.set(len(self._queue))
        return batch

    def _drop_the_dead(self) -> None:
        now = time.monotonic()
        dead = [one for one in self._queue if one.ends_at <= now]
        if dead:
            metrics.dropped_total.inc(len(dead))
            self._queue = [one for one in self._queue if one.ends_at > now]
            for one in dead:
                self._settle(one, deadline_passed())

    def _embed(self, batch: Sequence[PendingPart]) -> None:
        """Run one pass. When it fails, each part of it has one of its own: only the culprit's callers fail."""
        kind = batch[0].row.kind

        def left_s() -> float:
            with self._changed:
                return max(one.ends_at for one in batch) - time.monotonic()

        outcomes: Sequence[FloatArray | BaseException] = []
        try:
            with metrics.batch_seconds.labels(kind).time():
                vectors = self._model.run([one.row for one in batch], left_s)
            outcomes = list(check_vectors(vectors, len(batch), self.dim))
        except BaseException as error:  # whatever it is, callers wait for it
            if len(batch) == 1 or isinstance(error, _OF_THE_EMBEDDER):
                outcomes = [error] * len(batch)
            else:
                log.warning(
                    "a batch failed; embedding its parts one by one", size=len(batch), error=type(error).__name__
                )
        if not outcomes:  # by now the error has let go of the pass's memory
            for one in batch:
                self._embed([one])
            return
        metrics.batch_size.labels(kind).observe(len(batch))
        with self._changed:
            for one, outcome in zip(batch, outcomes, strict=True):
                self._settle(one, outcome)
            metrics.cache_bytes.set(self._cache.used_bytes)

    def _settle(self, wanted: PendingPart, outcome: FloatArray | BaseException) -> None:
        """Give all who wait for a part its vector, or the error."""
        self._in_flight.pop(wanted.digest, None)
        if isinstance(outcome, BaseException):
            wanted.future.set_exception(outcome)
        else:
            self._cache.put(wanted.digest, outcome)
            wanted.future.set_result(outcome)
