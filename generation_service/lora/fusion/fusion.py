"""Several adapters, each with a weight, as one adapter: computed from the parameters, before decoding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, assert_never

import torch
from torch import Tensor

from generation_service.lora.fusion.deltas import dare, ties
from generation_service.lora.fusion.parts import Part
from generation_service.lora.fusion.truncation import best_of_dense, best_of_factors
from generation_service.lora.weights import AdapterWeights, LoraPair, all_finite
from infra.contract.composition import DEFAULT_DENSITY, FusionMethod
from infra.contract.errors import FailedPreconditionError, InvalidArgumentError

_Merged = TypeVar("_Merged", Tensor, LoraPair)


@dataclass(frozen=True)
class WeightedWeights:
    """An adapter's parameters and its share. `name` is what errors call it, and what DARE draws its elements by."""

    weights: AdapterWeights
    weight: float
    name: str = ""


def fuse(
    members: Sequence[WeightedWeights],
    method: FusionMethod,
    *,
    rank: int | None = None,
    density: float = DEFAULT_DENSITY,
    seed: int = 0,
) -> AdapterWeights:
    """Return one adapter of weight 1 that stands for `members`, module by module; scaling is folded into every b.

    `rank` (svd, ties, dare; None: the largest of the members'), `density` (ties, dare) and `seed` (dare) are those of
    infra.contract.composition.Fusion. Computed in float32, or float64 when the members are. Members of weight 0 are
    left out; with none left the result adapts nothing. Raises InvalidArgumentError for weights that are not finite,
    FailedPreconditionError when the method cannot combine these ranks or values.

    Cost a module of in x out, for k members of rank r and a result of rank R. linear, concat: k r (in + out), read and
    written once. svd: (k r)^2 (in + out) + (k r)^3. ties, dare: k r in out multiplications, a few passes over k in out
    elements, and 8 (R + 16) in out for the factors; one dense matrix of in out is held at a time, whatever k.
    """
    for index, member in enumerate(members):
        if not math.isfinite(member.weight):
            raise InvalidArgumentError(f"adapters[{index}].weight", f"must be finite, got {member.weight}")
    used = [member for member in members if member.weight != 0]
    merge = _merger(method, rank or max((member.weights.rank for member in used), default=0), density, seed)
    paths = dict.fromkeys(path for member in used for path in member.weights.modules)
    return AdapterWeights.of({path: merge(path, _parts(used, path)) for path in paths})


def _parts(members: Sequence[WeightedWeights], path: str) -> list[Part]:
    return [
        Part.of(member.weights.modules[path], member.weight, member.name or f"adapters[{index}]")
        for index, member in enumerate(members)
        if path in member.weights.modules
    ]


def _merger(method: FusionMethod, rank: int, density: float, seed: int) -> Callable[[str, Sequence[Part]], LoraPair]:
    match method:
        case FusionMethod.LINEAR:
            return _linear
        case FusionMethod.CONCAT:
            return lambda path, parts: _concat(parts)
        case FusionMethod.SVD:
            return lambda path, parts: best_of_factors(_finite(path, parts, _concat(parts)), rank)
        case FusionMethod.TIES:
            return lambda path, parts: best_of_dense(_finite(path, parts, ties(parts, density)), rank)
        case FusionMethod.DARE:
            return lambda path, parts: best_of_dense(_finite(path, parts, dare(parts, density, f"{seed} {path}")), rank)
        case _:
            assert_never(method)


def _linear(path: str, parts: Sequence[Part]) -> LoraPair:
    """A = sum_j w_j A_j and B = sum_j w_j s_j B_j (LoraRetriever, "fusion"): with cross terms, for equal ranks."""
    if len({part.rank for part in parts}) > 1:
        ranks = ", ".join(f"{part.name} has {part.rank}" for part in parts)
        raise FailedPreconditionError(
            f"linear fusion needs equal ranks, and at {path} {ranks}: use concat, svd, or a mixture",
            field="composition.fusion.method",
            module=path,
        )
    a, b = parts[0].weight * parts[0].a, parts[0].weight * parts[0].b
    for part in parts[1:]:
        a.add_(part.a, alpha=part.weight)
        b.add_(part.b, alpha=part.weight)
    return LoraPair(a, b)


def _concat(parts: Sequence[Part]) -> LoraPair:
    """A = [A_1; A_2; ...], B = [w_1 s_1 B_1, ...]: the sum of the deltas, exactly, at the sum of their ranks."""
    return LoraPair(torch.cat([part.a for part in parts]), torch.cat([part.weight * part.b for part in parts], dim=1))


def _finite(path: str, parts: Sequence[Part], merged: _Merged) -> _Merged:
    """Return `merged`; no factors can be found of what is not finite."""
    tensors = (merged.a, merged.b) if isinstance(merged, LoraPair) else (merged,)
    if not all(map(all_finite, tensors)):
        names = ", ".join(part.name for part in parts)
        raise FailedPreconditionError(
            f"fusing {names} overflows at {path}: lower their weights, or leave out the adapter with the huge values",
            field="composition.fusion.adapters",
            module=path,
        )
    return merged
