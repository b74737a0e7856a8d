"""The bank's part for one group of modules that read the same input, such as q, k and v."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from generation_service.lora.h2d_copy import Upload
from generation_service.lora.ranks import RankRange
from generation_service.lora.weights import LoraPair, Shapes

_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def groups_of(targets: Shapes) -> list[tuple[str, ...]]:
    """Return the modules of `targets` in groups that share their input: siblings of one layer, else alone."""
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


class Shelf:
    """A [ranks, M, in] and B [ranks, sum of out] of a group of M modules, at fixed addresses, zero where unused.

    Column r of every shelf belongs to the same adapter: all that one rank adds to a group lies in one piece.
    `adapted_by[m]` are the tickets of the ranges that hold something for module m; sets are replaced, never changed.
    """

    def __init__(self, group: Iterable[str], targets: Shapes, ranks: int, dtype: torch.dtype, device: torch.device):
        self.paths = tuple(group)
        inputs = targets[self.paths[0]][0]
        outputs = [targets[path][1] for path in self.paths]
        self.a = torch.zeros(ranks, len(self.paths), inputs, dtype=dtype, device=device)
        self.b = torch.zeros(ranks, sum(outputs), dtype=dtype, device=device)
        self.factors_b: tuple[Tensor, ...] = torch.split(self.b, outputs, dim=1)
        self.adapted_by: list[frozenset[int]] = [frozenset()] * len(self.paths)
        self.ever_adapted = [False] * len(self.paths)

    @property
    def bytes(self) -> int:
        """Bytes on the device."""
        return self.a.nbytes + self.b.nbytes

    def put(self, member: int, owned: RankRange, pair: LoraPair, upload: Upload) -> None:
        """Send module `member`'s factors to the first columns of a range that is not in use."""
        columns = slice(owned.start, owned.start + pair.rank)
        self.adapted_by[member] |= {owned.ticket}
        self.ever_adapted[member] = True
        upload.copy(pair.a, self.a[columns, member])
        upload.copy(pair.b.t(), self.factors_b[member][columns])

    def clear(self, owned: RankRange) -> None:
        """Zero the columns of a range that is no longer in use."""
        if any(owned.ticket in tickets for tickets in self.adapted_by):
            self.adapted_by = [tickets - {owned.ticket} for tickets in self.adapted_by]
            self.a[owned.start : owned.stop].zero_()
            self.b[owned.start : owned.stop].zero_()
