"""The bank's tensors for one group of modules that read the same input, such as q, k and v."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from generation_service.lora.h2d_copy import H2DCopyStream
from generation_service.lora.ranks import RankRange
from generation_service.lora.weights import LoraPair, Shapes

_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class LoraWeightGroup:
    """Stacked A [ranks, M, in] and B [ranks, sum of out] of M modules, at fixed addresses, zero where unused.

    Column r of every group belongs to the same adapter, so that all values which one rank adds to a group are
    contiguous. `member_b[m]` is B's view [ranks, out] for module m; `adapted_by[m]` holds the epochs of the ranges that
    adapt module m. The sets are replaced rather than mutated, because the engine thread reads them without a lock.
    """

    def __init__(self, paths: Iterable[str], targets: Shapes, ranks: int, dtype: torch.dtype, device: torch.device):
        self.paths = tuple(paths)
        inputs = targets[self.paths[0]][0]
        outputs = [targets[path][1] for path in self.paths]
        self.a = torch.zeros(ranks, len(self.paths), inputs, dtype=dtype, device=device)
        self.b = torch.zeros(ranks, sum(outputs), dtype=dtype, device=device)
        self.member_b: tuple[Tensor, ...] = torch.split(self.b, outputs, dim=1)
        self.adapted_by: list[frozenset[int]] = [frozenset()] * len(self.paths)
        self.ever_adapted = [False] * len(self.paths)

    @property
    def bytes(self) -> int:
        """Bytes on the device."""
        return self.a.nbytes + self.b.nbytes

    def write(self, member: int, owned: RankRange, pair: LoraPair, stream: H2DCopyStream) -> None:
        """Copy the factors of module `member` into the first columns of a range that no step uses yet."""
        columns = slice(owned.start, owned.start + pair.rank)
        self.adapted_by[member] |= {owned.epoch}
        self.ever_adapted[member] = True
        stream.copy(pair.a, self.a[columns, member])
        stream.copy(pair.b.t(), self.member_b[member][columns])

    def clear(self, owned: RankRange) -> None:
        """Zero the columns of a range that no step uses any more."""
        if any(owned.epoch in epochs for epochs in self.adapted_by):
            self.adapted_by = [epochs - {owned.epoch} for epochs in self.adapted_by]
            self.a[owned.start : owned.stop].zero_()
            self.b[owned.start : owned.stop].zero_()


@dataclass(frozen=True, eq=False)
class ModuleSlot:
    """The place of one module in the bank: member `member` of `group`.

    `image_prefix` is the `by_image` prefix that the module's path starts with, None for a module that reads token rows.
    """

    path: str
    group: LoraWeightGroup
    member: int
    image_prefix: str | None

    @property
    def b(self) -> Tensor:
        """The module's B [ranks, out]."""
        return self.group.member_b[self.member]


def group_targets(targets: Shapes) -> list[tuple[str, ...]]:
    """Partition the modules of `targets` into groups that read the same input: siblings of one layer, else one each."""
    remaining = dict.fromkeys(targets)
    groups = []
    while remaining:
        first = next(iter(remaining))
        parent, _, name = first.rpartition(".")
        names = next((names for names in _SIBLINGS if name in names), (name,))
        paths = [f"{parent}.{sibling}" if parent else sibling for sibling in names]
        group = tuple(path for path in paths if path in remaining and targets[path][0] == targets[first][0])
        for path in group:
            del remaining[path]
        groups.append(group)
    return groups
