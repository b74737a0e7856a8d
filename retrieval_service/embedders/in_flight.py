"""Parts that are being embedded, and the calls that wait for them.

This is not infra.runtime.single_flight: a part is queued, batched with other parts, dropped once the deadlines of all
its callers have passed, and embedded by a thread of the embedder rather than by its first caller.
"""

from __future__ import annotations

import math
import time
from concurrent.futures import Future
from dataclasses import dataclass, field

from infra.contract.errors import DeadlineError, UnavailableError, field_path
from retrieval_service.embedders.base import FloatArray
from retrieval_service.embedders.part_embedder import EmbedPart, ModelInput, PartEmbedder


@dataclass(eq=False)
class Caller:
    """One call; it stops waiting at `ends_at`, time.monotonic()."""

    ends_at: float

    @property
    def left_s(self) -> float | None:
        """Seconds until then, None without an end."""
        return None if math.isinf(self.ends_at) else max(self.ends_at - time.monotonic(), 0.0)


@dataclass(eq=False)
class PendingPart:
    """A part that callers wait for. `turn` is when it is due, counted in forward passes."""

    digest: bytes
    turn: int
    callers: set[Caller] = field(default_factory=set)
    future: Future[FloatArray] = field(default_factory=Future)
    _row: ModelInput | None = None

    @property
    def ends_at(self) -> float:
        """When the last of its callers stops waiting; -inf when all are gone."""
        return max((caller.ends_at for caller in self.callers), default=-math.inf)

    @property
    def row(self) -> ModelInput:
        """The part as it was read."""
        assert self._row is not None  # only what was read is queued
        return self._row

    def read(self, model: PartEmbedder, part: EmbedPart) -> bool:
        """Read the part; return whether that went well. If not, all who wait for it get the error."""
        try:
            self._row = model.row(part)
        except BaseException as error:  # whatever it is, others may wait for this part
            self.future.set_exception(error)
            return False
        return True

    def result(self, part: EmbedPart, caller: Caller) -> FloatArray:
        """Wait for the vector, [dim].

        Raises DeadlineError when the caller's time is up, and what the embedder raised, with the part's own path.
        """
        try:
            with field_path(part.path):
                return self.future.result(caller.left_s)
        except TimeoutError as error:
            if self.future.done():
                raise
            raise deadline_passed() from error


def deadline_passed() -> DeadlineError:
    """Return the error of callers whose time is up."""
    return DeadlineError("the deadline passed before the prompt was embedded; allow more time, or send fewer prompts")


def server_stopping() -> UnavailableError:
    """Return the error of callers of an embedder that is closed."""
    return UnavailableError("the server is stopping; try another one, or this one in a moment")
