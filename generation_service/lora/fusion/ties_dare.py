"""TIES and DARE on whole deltas, so that ranks may differ and no cross terms arise."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from generation_service.lora.weights import LoraPair

#: Elements of all members' deltas that are formed at a time. It bounds the temporaries at about 16 MiB of float32 each
#: for a module of any size; larger blocks mean fewer, larger products. Not tuned.
_BLOCK_ELEMENTS = 2**22


@dataclass(frozen=True)
class WeightedPair:
    """One member's factors of one module, and its weight: delta = b @ a.

    a [r, in]; b [out, r] with the scaling folded in; both float32 or float64. `name` identifies the member in errors
    and seeds its random mask in DARE.
    """

    a: Tensor
    b: Tensor
    weight: float
    name: str

    @classmethod
    def of(cls, pair: LoraPair, weight: float, name: str) -> WeightedPair:
        """Convert `pair` to the precision that fusion computes in."""
        dtype = torch.promote_types(pair.a.dtype, torch.float32)
        return cls(pair.a.to(dtype), pair.b.to(dtype), weight, name)

    @property
    def rank(self) -> int:
        """Rows of a, which are the columns of b."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape [out, in] of the delta."""
        return self.b.shape[0], self.a.shape[1]

    def delta(self, rows: slice = slice(None)) -> Tensor:
        """Return `rows` of b @ a."""
        return self.b[rows] @ self.a


def ties(pairs: Sequence[WeightedPair], density: float) -> Tensor:
    """Return [out, in], the deltas D_j = s_j B_j A_j of one module merged by TIES (Yadav et al. 2023, algorithm 1).

    Trim: T_j keeps the floor(density n) elements of D_j of largest magnitude, at least one.
    Elect: g = sign(sum_j w_j T_j), element by element.
    Merge: (sum_j w_j) * mean, weighted by w_j, of those T_j whose sign is g.

    With equal weights that is the paper's mean times lambda = sum_j w_j; where all signs agree, it is sum_j w_j T_j.
    """
    blocks = _row_blocks(pairs)
    thresholds = [_trim_threshold(pair, density, blocks) for pair in pairs]
    total = sum(pair.weight for pair in pairs)
    merged = _empty_delta(pairs)
    for rows in blocks:
        deltas = [pair.delta(rows) for pair in pairs]
        trimmed = [
            delta.masked_fill_(delta.abs() < threshold, 0) for delta, threshold in zip(deltas, thresholds, strict=True)
        ]
        elected = torch.zeros_like(trimmed[0])
        for pair, delta in zip(pairs, trimmed, strict=True):
            elected.add_(delta, alpha=pair.weight)
        elected.sign_()
        agreeing_weight, agreeing_sum = torch.zeros_like(elected), torch.zeros_like(elected)
        for pair, delta in zip(pairs, trimmed, strict=True):
            agrees = (delta * elected > 0).to(delta.dtype)
            agreeing_weight.add_(agrees, alpha=pair.weight)
            agreeing_sum.add_(delta.mul_(agrees), alpha=pair.weight)
        merged[rows] = agreeing_sum.mul_(total).div_(agreeing_weight.masked_fill_(agreeing_weight == 0, 1))
    return merged


def dare(pairs: Sequence[WeightedPair], density: float, seed: str) -> Tensor:
    """Return [out, in], sum_j w_j M_j * D_j / density, for the deltas D_j of one module (DARE, Yu et al. 2024).

    The mask M_j keeps each element with probability `density`. It is drawn from `seed` and the member's name, so it
    depends neither on the other members nor on their order.
    """
    generators = [torch.Generator().manual_seed(_hash(f"{seed} {pair.name}")) for pair in pairs]
    merged = _empty_delta(pairs)
    for rows in _row_blocks(pairs):
        block = merged[rows].zero_()
        for pair, generator in zip(pairs, generators, strict=True):
            mask = torch.rand(block.shape, generator=generator) < density
            block.add_(pair.delta(rows).mul_(mask), alpha=pair.weight / density)
    return merged


def _trim_threshold(pair: WeightedPair, density: float, blocks: Sequence[slice]) -> float:
    """Return the smallest magnitude that trimming keeps.

    The delta is formed in the same `blocks` as in `ties`: products of other shapes can differ in the last bit, and an
    element at the threshold would be lost.
    """
    if density >= 1:
        return 0.0
    magnitudes = torch.empty(pair.shape, dtype=pair.a.dtype)
    for rows in blocks:
        torch.abs(pair.delta(rows), out=magnitudes[rows])
    # numpy's partition took 0.11 s on 13.8 M elements, torch.kthvalue 0.54 s (lab log, 2026-11-22).
    flat = magnitudes.flatten().numpy()
    dropped = flat.size - max(1, int(density * flat.size))
    flat.partition(dropped)
    return float(flat[dropped])


def _empty_delta(pairs: Sequence[WeightedPair]) -> Tensor:
    return pairs[0].a.new_empty(pairs[0].shape)


def _row_blocks(pairs: Sequence[WeightedPair]) -> list[slice]:
    """Return slices over the output rows whose deltas, of all members together, have at most _BLOCK_ELEMENTS."""
    outputs, inputs = pairs[0].shape
    rows = max(1, _BLOCK_ELEMENTS // (inputs * len(pairs)))
    return [slice(start, min(start + rows, outputs)) for start in range(0, outputs, rows)]


def _hash(text: str) -> int:
    """Return a hash that is the same in every process, unlike `hash`."""
    return zlib.crc32(text.encode())
