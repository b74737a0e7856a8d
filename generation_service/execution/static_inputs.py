"""A decode step whose inputs stand at fixed addresses: row n is slot n, whoever has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from generation_service.execution.decode_row import DecodeRow
from generation_service.execution.kv_cache import FixedDecodeView, SlotKVCache
from generation_service.lora.bank import AdapterBank
from generation_service.lora.static_batch import FixedKernels, FixedRanks, FixedStep
from generation_service.models.base import BaseModel

SHORTEST_SPAN = 256
FEWEST_RANKS = 64


@dataclass(frozen=True)
class Bucket:
    """What a captured step is made for: so many slots, cached tokens and ranks, and the modules adapted by then."""

    rows: int
    span: int
    ranks: int
    adapted: int


class FixedDecode:
    """The inputs of decode steps, and the forward pass over them. Nothing in `forward` looks at a value on the host."""

    def __init__(self, model: BaseModel, bank: AdapterBank, cache: SlotKVCache, kernels: FixedKernels) -> None:
        self._model, self._bank, self._cache, self._kernels = model, bank, cache, kernels
        slots, device = cache.shape.slots, model.description.device
        self._inputs = torch.zeros(4, slots, dtype=torch.long, device=device)
        self._slots = torch.arange(slots, device=device)
        self._ranks = FixedRanks(slots, bank.ranks, device)

    def fill(self, rows: Sequence[DecodeRow]) -> Bucket:
        """Put a step's rows in place; return the bucket that serves them.

        Raises ValueError for a range that holds no adapter, or a weight that is not finite.
        """
        shape = self._cache.shape
        self._bank.routing.check([row.ranges for row in rows])
        inputs = torch.zeros(4, shape.slots, dtype=torch.long)
        inputs[2] = shape.length
        for row in rows:
            inputs[:, row.slot] = torch.tensor([row.token, row.length, row.length, row.length + row.position_delta])
        self._inputs.copy_(inputs)
        used = self._ranks.fill({row.slot: row.ranges for row in rows})
        return Bucket(
            rows=min(_power_of_two(max(row.slot for row in rows) + 1), shape.slots),
            span=min(_power_of_two(max(max(row.length for row in rows) + 1, SHORTEST_SPAN)), shape.length),
            ranks=self._rank_bucket(used),
            adapted=self._bank.adapted_modules if used else 0,
        )

    @torch.inference_mode()
    def forward(self, bucket: Bucket) -> Tensor:
        """Read the newest token of slots 0 to bucket.rows; return the logits [rows, vocab] of all, in use or not."""
        rows = bucket.rows
        tokens, lengths, places, positions = self._inputs[:, :rows]
        view = FixedDecodeView(self._cache, self._slots[:rows], lengths, places, bucket.span)
        step = FixedStep(self._ranks, rows, bucket.ranks, self._kernels) if bucket.ranks else None
        axes = self._model.description.position_axes
        with self._bank.routing.applying(step):
            embeddings = self._model.embed_tokens(tokens[:, None])
            hidden = self._model.forward(embeddings, positions[:, None].expand(axes, -1, -1), view.mask(), view)
            return self._model.logits(hidden[:, -1])

    def _rank_bucket(self, used: int) -> int:
        if not used:
            return 0
        if self._kernels.follows_count:
            return self._bank.ranks
        return min(_power_of_two(max(used, FEWEST_RANKS)), self._bank.ranks)


def _power_of_two(number: int) -> int:
    """Return the smallest power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()
