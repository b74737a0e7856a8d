"""Parts that are waiting to be embedded, and the calls that wait for them.

This is not infra.runtime.single_flight: a part is queued, batched with other parts, dropped once the deadlines of all
its callers have passed, and embedded by a thread of the embedder rather than by its first caller.
"""

from __future__ import annotations

import math
from concurrent.futures import Future
from dataclasses import dataclass, field

from infra.contract.errors import DeadlineError, UnavailableError, field_path
from infra.runtime.deadline import as_timeout
from retrieval_service.embedders.base import FloatArray
from retrieval_service.embedders.part_embedder import EmbedPart, ModelInput, PartEmbedder


@dataclass(eq=False)
class Caller:
    """One call, which stops waiting at its deadline, `ends_at`."""

    ends_at: float


@dataclass(eq=False)
class PendingPart:
    """A part that callers wait for. `turn` is the forward pass in which it is due.

    One caller preprocesses it (`prepare`), an embedder thread resolves `future`, and every caller waits in `result`.
    """

    digest: bytes
    turn: int
    callers: set[Caller] = field(default_factory=set)  # guarded by the embedder's lock
    future: Future[FloatArray] = field(default_factory=Future)
    _model_input: ModelInput | None = None

    @property
    def ends_at(self) -> float:
        """When the last caller stops waiting; -inf if none is left."""
        return max((caller.ends_at for caller in self.callers), default=-math.inf)

    @property
    def model_input(self) -> ModelInput:
        """The preprocessed part."""
        assert self._model_input is not None  # only preprocessed parts are queued
        return self._model_input

    def prepare(self, model: PartEmbedder, part: EmbedPart) -> bool:
        """Preprocess the part; return whether it succeeded. If not, every caller of the part gets the error."""
        try:
            self._model_input = model.prepare(part)
        except BaseException as error:  # whatever the error, other callers may be waiting
            self.future.set_exception(error)
            return False
        return True

    def result(self, part: EmbedPart, caller: Caller) -> FloatArray:
        """Wait for the vector, [dim].

        Raises DeadlineError if the caller's deadline passes, and the embedder's errors with the caller's own field
        path: callers share a pending part, but it has another path in each of their requests.
        """
        try:
            with field_path(part.path):
                return self.future.result(as_timeout(caller.ends_at))
        except TimeoutError as error:
            if self.future.done():  # the embedder raised TimeoutError itself
                raise
            raise deadline_passed() from error


def deadline_passed() -> DeadlineError:
    """Return the error of a caller whose deadline passed."""
    return DeadlineError("the deadline passed before the prompt was embedded; allow more time, or send fewer prompts")


def server_stopping() -> UnavailableError:
    """Return the error of a caller of a closed embedder."""
    return UnavailableError("the server is stopping; retry on another one, or here in a moment")
