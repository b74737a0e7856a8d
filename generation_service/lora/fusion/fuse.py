"""Fuse several weighted adapters into one: computed from their parameters, before decoding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, assert_never

import torch
from torch import Tensor

from generation_service.lora.fusion.ties_dare import WeightedPair, dare, ties
from generation_service.lora.fusion.truncation import best_of_dense, best_of_factors
from generation_service.lora.weights import AdapterWeights, LoraPair, all_finite
from infra.contract.composition import DEFAULT_DENSITY, FusionMethod
from infra.contract.errors import FailedPreconditionError, InvalidArgumentError

_Merged = TypeVar("_Merged", Tensor, LoraPair)


@dataclass(frozen=True)
class FusionMember:
    """One adapter of a fusion and its weight. `name` identifies it in errors and seeds its random mask in DARE."""

    weights: AdapterWeights
    weight: float
    name: str = ""


def fuse(
    members: Sequence[FusionMember],
    method: FusionMethod,
    *,
    rank: int | None = None,
    density: float = DEFAULT_DENSITY,
    seed: int = 0,
) -> AdapterWeights:
    """Return one adapter, to be applied with weight 1, in place of `members`; scaling is folded into every b.

    `rank` (svd, ties, dare; None: the largest rank of any member), `density` (ties, dare) and `seed` (dare) are those
    of infra.contract.composition.Fusion. Computes in float32, or in float64 if the members are float64. Members of
    weight 0 are left out; if none is left, the result adapts nothing.

    Cost for a module of in x out, k members of rank r, and a result of rank R:
        linear, concat: k r (in + out) values, read and written once.
        svd: (k r)^2 (in + out) + (k r)^3 multiplications.
        ties, dare: k r in out multiplications, a few passes over k in out elements, and 8 (R + 16) in out
        multiplications for the factors. One dense matrix of in x out is held at a time, for any k.

    Raises:
        InvalidArgumentError: a weight is not finite.
        FailedPreconditionError: the method cannot combine these ranks or values.
    """
    for index, member in enumerate(members):
        if not math.isfinite(member.weight):
            raise InvalidArgumentError(f"adapters[{index}].weight", f"must be finite, got {member.weight}")
    used = [member for member in members if member.weight != 0]
    if method is FusionMethod.AUTO:
        method = _method_for(used)
    merge = _merger(method, rank or max((member.weights.rank for member in used), default=0), density, seed)
    paths = dict.fromkeys(path for member in used for path in member.weights.modules)
    return AdapterWeights.of({path: merge(path, _pairs_of(used, path)) for path in paths})


def _pairs_of(members: Sequence[FusionMember], path: str) -> list[WeightedPair]:
    return [
        WeightedPair.of(member.weights.modules[path], member.weight, member.name or f"adapters[{index}]")
        for index, member in enumerate(members)
        if path in member.weights.modules
    ]


def _merger(
    method: FusionMethod, rank: int, density: float, seed: int
) -> Callable[[str, Sequence[WeightedPair]], LoraPair]:
    match method:
        case FusionMethod.LINEAR:
            return _linear
        case FusionMethod.CONCAT:
            return lambda path, pairs: _concat(pairs)
        case FusionMethod.SVD:
            return lambda path, pairs: best_of_factors(_finite(path, pairs, _concat(pairs)), rank)
        case FusionMethod.TIES:
            return lambda path, pairs: best_of_dense(_finite(path, pairs, ties(pairs, density)), rank)
        case FusionMethod.DARE:
            return lambda path, pairs: best_of_dense(_finite(path, pairs, dare(pairs, density, f"{seed} {path}")), rank)
        case FusionMethod.AUTO:
            raise AssertionError("auto was replaced by _method_for")
        case _:
            assert_never(method)


def _method_for(members: Sequence[FusionMember]) -> FusionMethod:
    """Return the method that `auto` means: linear if the ranks of every module agree, otherwise svd."""
    ranks: dict[str, set[int]] = {}
    for member in members:
        for path, pair in member.weights.modules.items():
            ranks.setdefault(path, set()).add(pair.rank)
    return FusionMethod.SVD if any(len(of_module) > 1 for of_module in ranks.values()) else FusionMethod.LINEAR


def _linear(path: str, pairs: Sequence[WeightedPair]) -> LoraPair:
    """Return A = sum_j w_j A_j and B = sum_j w_j s_j B_j (LoraRetriever, "fusion").

    Their product has cross terms between the adapters, and the ranks must be equal.
    """
    if len({pair.rank for pair in pairs}) > 1:
        ranks = ", ".join(f"{pair.name} has {pair.rank}" for pair in pairs)
        raise FailedPreconditionError(
            f"linear fusion needs equal ranks, and at {path} {ranks}: use concat, svd, or a mixture",
            field="composition.fusion.method",
            module=path,
        )
    a, b = pairs[0].weight * pairs[0].a, pairs[0].weight * pairs[0].b
    for pair in pairs[1:]:
        a.add_(pair.a, alpha=pair.weight)
        b.add_(pair.b, alpha=pair.weight)
    return LoraPair(a, b)


def _concat(pairs: Sequence[WeightedPair]) -> LoraPair:
    """Return A = [A_1; A_2; ...], B = [w_1 s_1 B_1, w_2 s_2 B_2, ...]: exactly the sum of the weighted deltas."""
    return LoraPair(torch.cat([pair.a for pair in pairs]), torch.cat([pair.weight * pair.b for pair in pairs], dim=1))


def _finite(path: str, pairs: Sequence[WeightedPair], merged: _Merged) -> _Merged:
    """Return `merged`, or raise FailedPreconditionError: a matrix with values that are not finite has no factors."""
    tensors = (merged.a, merged.b) if isinstance(merged, LoraPair) else (merged,)
    if not all(map(all_finite, tensors)):
        names = ", ".join(pair.name for pair in pairs)
        raise FailedPreconditionError(
            f"fusing {names} overflows at {path}: lower their weights, or leave out the adapter with the huge values",
            field="composition.fusion.adapters",
            module=path,
        )
    return merged
