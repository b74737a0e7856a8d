"""What the engine needs of the model, the runner and the adapter bank."""

from __future__ import annotations

from collections import abc
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from generation_service.adapters.admission import AdmittedComposition
    from generation_service.execution.inputs import DecodeRow, Prefill
    from generation_service.lora.ranks import RankRange
    from generation_service.models.base import ModelDescription
    from infra.contract.composition import FusionMethod, WeightedAdapter


class Lease(Protocol):
    """The bank ranges that a sequence decodes with. The bank does not overwrite them before `release`."""

    @property
    def ranges(self) -> abc.Mapping[RankRange, float]:
        """The weight of each range."""

    @property
    def applied(self) -> tuple[WeightedAdapter, ...]:
        """The adapters with the revisions used."""

    @property
    def fusion_method(self) -> FusionMethod | None:
        """How the adapters were fused; None if they were not."""

    def release(self) -> None:
        """Return the ranges to the bank. A second call does nothing."""


class Load(Protocol):
    """A composition that is being brought into the adapter bank."""

    def cancel(self) -> None:
        """Cancel the load if it has not completed. Safe from any thread."""


class AdapterLoader(Protocol):
    """Brings compositions into the adapter bank."""

    def request(self, composition: AdmittedComposition, on_ready: abc.Callable[[Lease | Exception], None], /) -> Load:
        """Load `composition` and call `on_ready` once with its lease or an error, on any thread.

        `on_ready` may run before `request` returns. It is not called after the load is cancelled.
        """


class StepRunner(Protocol):
    """Runs the forward passes. Called on: engine thread."""

    def prefill(self, prefill: Prefill, tokens: int, /) -> Tensor | None:
        """Prefill the next `tokens` of a prompt; return logits [1, vocab] after its last token, else None."""

    def prefill_together(self, prefills: abc.Sequence[Prefill], /) -> Tensor | None:
        """Prefill whole prompts without images; return logits [N, vocab] after each, None: they must run alone."""

    def decode(self, rows: abc.Sequence[DecodeRow], /) -> Tensor:
        """Decode one token of every row; return logits [rows, vocab]."""

    def clear(self, slot: int, /) -> None:
        """Zero the KV cache of a slot."""


class TextModel(Protocol):
    """What the engine needs of the base model: its end-of-sequence tokens and its detokenizer."""

    @property
    def description(self) -> ModelDescription:
        """The model's properties, its end-of-sequence tokens among them."""

    @property
    def shortest_window(self) -> int | None:
        """The shortest sliding window of a layer in tokens; None: every layer attends to all tokens."""

    def decode(self, tokens: abc.Sequence[int], /) -> str:
        """Return the text of `tokens`."""
