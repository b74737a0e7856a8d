"""The compositions of decode steps in static buffers, so that a captured CUDA graph serves every later step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from generation_service.lora.active_ranks import RowWeights, check_finite_weights
from generation_service.lora.kernels.capturable_ops import CapturableOps
from generation_service.lora.ranks import RankRange
from generation_service.lora.weight_group import ModuleSlot


class StaticLoraBatch:
    """Device buffers for `rows` rows over at most `ranks` ranks of the bank. Only `fill` changes them.

    columns [ranks] int32, the bank columns in use; count [1] int32, how many of them; weights [rows, ranks] float32.
    """

    def __init__(self, rows: int, ranks: int, device: torch.device) -> None:
        self.columns = torch.zeros(ranks, dtype=torch.int32, device=device)
        self.count = torch.zeros(1, dtype=torch.int32, device=device)
        self.weights = torch.zeros(rows, ranks, dtype=torch.float32, device=device)
        self._filled: dict[int, dict[RankRange, float]] | None = None
        self._used = 0

    def fill(self, rows: dict[int, RowWeights]) -> int:
        """Write `rows[n]` as the composition of row n and nothing for the other rows; return the ranks in use.

        Does nothing if the compositions are those of the last call, as in most decode steps.

        Raises ValueError if a weight is not finite.
        """
        copied = {row: dict(weights) for row, weights in rows.items()}
        if copied == self._filled:
            return self._used
        check_finite_weights(list(rows.values()))
        ranges = sorted({owned for row in rows.values() for owned, weight in row.items() if weight != 0 and owned.rank})
        columns = [column for owned in ranges for column in range(owned.start, owned.stop)]
        weights = torch.zeros(self.weights.shape)
        for row, row_weights in rows.items():
            by_column = [row_weights.get(owned, 0.0) for owned in ranges for _ in range(owned.rank)]
            weights[row, : len(by_column)] = torch.tensor(by_column)
        self.columns.copy_(torch.tensor(columns + [0] * (len(self.columns) - len(columns)), dtype=torch.int32))
        self.count.fill_(len(columns))
        self.weights.copy_(weights)
        self._filled, self._used = copied, len(columns)
        return self._used


class StaticLora:
    """What a captured step applies: the first `rows` rows and `ranks` ranks of the buffers when it is replayed."""

    def __init__(self, batch: StaticLoraBatch, rows: int, ranks: int, ops: CapturableOps) -> None:
        self._columns = batch.columns[:ranks]
        self._count = batch.count
        self._weights = batch.weights[:rows, :ranks]
        self._ops = ops

    def affects(self, slot: ModuleSlot) -> bool:
        """Return whether any adapter has ever changed the module.

        A captured step also serves compositions that did not exist at capture, so it may skip a module only if no
        adapter can have changed it.
        """
        return slot.group.ever_adapted[slot.member]

    def shrink(self, x: Tensor, slot: ModuleSlot) -> list[Tensor]:
        """Return w * (x A^T) [M, N, C] for the one token of each row: x [N, 1, in]."""
        flat = x.reshape(-1, x.shape[-1])
        return [self._ops.shrink(flat, slot.group.a, self._columns, self._count, self._weights)]

    def expand_(self, out: Tensor, shrunk: Sequence[Tensor], slot: ModuleSlot) -> None:
        """Add shrunk B of the slot's module to out [N, 1, out], in place."""
        flat = out.view(-1, out.shape[-1])
        self._ops.expand_(flat, shrunk[0][slot.member], slot.b, self._columns, self._count)
