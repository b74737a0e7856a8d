"""Decode steps over static inputs: row n is always slot n, and every input is a buffer at a fixed address."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from generation_service.execution.inputs import DecodeRow
from generation_service.execution.kv_cache import SlotKVCache, StaticDecodeView
from generation_service.lora.bank import AdapterBank
from generation_service.lora.kernels.capturable_ops import CapturableOps
from generation_service.lora.static_batch import StaticLora, StaticLoraBatch
from generation_service.models.base import BaseModel

# Buckets grow by powers of two, so that few graphs serve all steps at the price of at most twice the cached length (or
# the ranks) that a step needs. The minima save the captures of the smallest buckets, whose cost would hardly differ.
# They are chosen by reasoning; no measurement is recorded.
_MIN_SPAN = 256
_MIN_RANKS = 64


@dataclass(frozen=True)
class Bucket:
    """The sizes that a captured step is built for: slots, cached tokens, ranks, and modules adapted so far."""

    rows: int
    span: int
    ranks: int
    adapted: int


class StaticDecode:
    """The static inputs of decode steps and the forward pass over them. `forward` reads no value on the host."""

    def __init__(self, model: BaseModel, bank: AdapterBank, cache: SlotKVCache, ops: CapturableOps) -> None:
        self._model, self._bank, self._cache, self._ops = model, bank, cache, ops
        slots, device = cache.shape.slots, model.description.device
        # Rows: token, cached length, position in the cache to write to, position id.
        self._inputs = torch.zeros(4, slots, dtype=torch.long, device=device)
        self._slots = torch.arange(slots, device=device)
        self._lora_batch = StaticLoraBatch(slots, bank.ranks, device)

    def fill(self, rows: Sequence[DecodeRow]) -> Bucket:
        """Write a step's rows into the buffers; return the bucket that serves them.

        Raises ValueError for a range without an adapter, or a weight that is not finite.
        """
        shape = self._cache.shape
        self._bank.routing.check([row.ranges for row in rows])
        inputs = torch.zeros(4, shape.slots, dtype=torch.long)
        inputs[2] = shape.length  # Idle slots write to the cache's spare position, which is never read.
        for row in rows:
            inputs[:, row.slot] = torch.tensor([row.token, row.length, row.length, row.length + row.position_delta])
        self._inputs.copy_(inputs)
        used_ranks = self._lora_batch.fill({row.slot: row.ranges for row in rows})
        return Bucket(
            rows=min(_power_of_two(max(row.slot for row in rows) + 1), shape.slots),
            span=min(_power_of_two(max(max(row.length for row in rows) + 1, _MIN_SPAN)), shape.length),
            ranks=self._rank_bucket(used_ranks),
            adapted=self._bank.adapted_modules if used_ranks else 0,
        )

    @torch.inference_mode()
    def forward(self, bucket: Bucket) -> Tensor:
        """Run the newest token of slots 0 to bucket.rows - 1, idle or not; return their logits [rows, vocab]."""
        rows = bucket.rows
        tokens, lengths, write_positions, positions = self._inputs[:, :rows]
        view = StaticDecodeView(self._cache, self._slots[:rows], lengths, write_positions, bucket.span)
        lora = StaticLora(self._lora_batch, rows, bucket.ranks, self._ops) if bucket.ranks else None
        axes = self._model.description.position_axes
        with self._bank.routing.applying(lora):
            embeddings = self._model.embed_tokens(tokens[:, None])
            hidden = self._model.forward(embeddings, positions[:, None].expand(axes, -1, -1), view.mask(), view)
            return self._model.logits(hidden[:, -1])

    def _rank_bucket(self, used: int) -> int:
        if not used:
            return 0
        if self._ops.cost_follows_count:
            return self._bank.ranks
        return min(_power_of_two(max(used, _MIN_RANKS)), self._bank.ranks)


def _power_of_two(number: int) -> int:
    """Return the smallest power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()
