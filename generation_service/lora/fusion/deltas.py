"""TIES and DARE on the deltas themselves, so that ranks need not agree and no cross terms arise."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from generation_service.lora.fusion.parts import Part

_BLOCK_ELEMENTS = 2**22


def ties(parts: Sequence[Part], density: float) -> Tensor:
    """Return [out, in], the deltas D_j = s_j B_j A_j of one module merged by TIES (Yadav et al. 2023, algorithm 1).

    Trim: T_j keeps the floor(density n) elements of D_j of largest magnitude, at least one. Elect: g = sign(sum_j w_j
    T_j), element by element. Merge: sum_j w_j * (the mean, weighted by w_j, of those T_j whose sign is g). With equal
    weights that is the paper's mean, times lambda = sum_j w_j; where all agree, it is the weighted sum.
    """
    blocks = _blocks(parts)
    floors = [_least_kept(part, density, blocks) for part in parts]
    total = sum(part.weight for part in parts)
    merged = _empty(parts)
    for rows in blocks:
        deltas = [part.delta(rows) for part in parts]
        trimmed = [delta.masked_fill_(delta.abs() < floor, 0) for delta, floor in zip(deltas, floors, strict=True)]
        elected = torch.zeros_like(trimmed[0])
        for part, delta in zip(parts, trimmed, strict=True):
            elected.add_(delta, alpha=part.weight)
        elected.sign_()
        agreeing, summed = torch.zeros_like(elected), torch.zeros_like(elected)
        for part, delta in zip(parts, trimmed, strict=True):
            agrees = (delta * elected > 0).to(delta.dtype)
            agreeing.add_(agrees, alpha=part.weight)
            summed.add_(delta.mul_(agrees), alpha=part.weight)
        merged[rows] = summed.mul_(total).div_(agreeing.masked_fill_(agreeing == 0, 1))
    return merged


def dare(parts: Sequence[Part], density: float, seed: str) -> Tensor:
    """Return [out, in], sum_j w_j M_j * D_j / density, for the deltas D_j of one module (DARE, Yu et al. 2024).

    M_j keeps each element with probability `density`. It is drawn from `seed` and the part's name, and so does not
    depend on the other adapters or their order.
    """
    draws = [torch.Generator().manual_seed(_hash(f"{seed} {part.name}")) for part in parts]
    merged = _empty(parts)
    for rows in _blocks(parts):
        block = merged[rows].zero_()
        for part, draw in zip(parts, draws, strict=True):
            kept = torch.rand(block.shape, generator=draw) < density
            block.add_(part.delta(rows).mul_(kept), alpha=part.weight / density)
    return merged


def _least_kept(part: Part, density: float, blocks: Sequence[slice]) -> float:
    """Return the least magnitude that trimming the part's delta keeps. Formed in `blocks`, as it is used."""
    if density >= 1:
        return 0.0
    magnitudes = torch.empty(part.shape, dtype=part.a.dtype)
    for rows in blocks:
        torch.abs(part.delta(rows), out=magnitudes[rows])
    flat = magnitudes.flatten().numpy()
    dropped = flat.size - max(1, int(density * flat.size))
    flat.partition(dropped)
    return float(flat[dropped])


def _empty(parts: Sequence[Part]) -> Tensor:
    return parts[0].a.new_empty(parts[0].shape)


def _blocks(parts: Sequence[Part]) -> list[slice]:
    """Return slices over the output rows, so that what is held of all deltas at once is bounded."""
    outputs, inputs = parts[0].shape
    rows = max(1, _BLOCK_ELEMENTS // (inputs * len(parts)))
    return [slice(start, min(start + rows, outputs)) for start in range(0, outputs, rows)]


def _hash(text: str) -> int:
    return zlib.crc32(text.encode())
