"""Several adapters, each with a weight, as one adapter: computed from the parameters, before decoding."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from generation_service.adapters.weights import AdapterWeights, LoraPair
from infra.contract.composition import FusionMethod
from infra.contract.errors import FailedPreconditionError, InvalidArgumentError, UnimplementedError


@dataclass(frozen=True)
class WeightedWeights:
    """An adapter's parameters and its share. `name` is what errors call it."""

    weights: AdapterWeights
    weight: float
    name: str = ""


def fuse(members: Sequence[WeightedWeights], method: FusionMethod) -> AdapterWeights:
    """Return one adapter of weight 1 that stands for `members`, module by module; scaling is folded into every b.

    Members of weight 0 are left out; with none left the result adapts nothing. Raises InvalidArgumentError for
    weights that are not finite, FailedPreconditionError when the method cannot combine these ranks,
    UnimplementedError for a method that is not there yet.
    """
    merge = _METHODS.get(method)
    if merge is None:
        offered = ", ".join(sorted(_METHODS))
        raise UnimplementedError(f"fusion by {method.value!r} is not offered by this version: use {offered}")
    for index, member in enumerate(members):
        if not math.isfinite(member.weight):
            raise InvalidArgumentError(f"adapters[{index}].weight", f"must be finite, got {member.weight}")
    used = [member for member in members if member.weight != 0]
    paths = dict.fromkeys(path for member in used for path in member.weights.modules)
    return AdapterWeights.of({path: merge(path, _parts(used, path)) for path in paths})


@dataclass(frozen=True)
class _Part:
    pair: LoraPair
    weight: float
    name: str


def _parts(members: Sequence[WeightedWeights], path: str) -> list[_Part]:
    return [
        _Part(member.weights.modules[path], member.weight, member.name or f"adapters[{index}]")
        for index, member in enumerate(members)
        if path in member.weights.modules
    ]


def _linear(path: str, parts: Sequence[_Part]) -> LoraPair:
    """A = sum_j w_j A_j and B = sum_j w_j s_j B_j (LoraRetriever, "fusion"): with cross terms, for equal ranks."""
    if len({part.pair.rank for part in parts}) > 1:
        ranks = ", ".join(f"{part.name} has {part.pair.rank}" for part in parts)
        raise FailedPreconditionError(
            f"linear fusion needs equal ranks, and at {path} {ranks}: use concat, svd, or a mixture", module=path
        )
    a = torch.stack([part.weight * part.pair.a for part in parts]).sum(0)
    b = torch.stack([part.weight * part.pair.b for part in parts]).sum(0)
    return LoraPair(a, b)


def _concat(path: str, parts: Sequence[_Part]) -> LoraPair:
    """A = [A_1; A_2; ...], B = [w_1 s_1 B_1, ...]: the sum of the deltas, exactly, at the sum of their ranks."""
    return LoraPair(
        torch.cat([part.pair.a for part in parts]), torch.cat([part.weight * part.pair.b for part in parts], dim=1)
    )


def _svd(path: str, parts: Sequence[_Part]) -> LoraPair:
    """The best approximation of sum_j w_j s_j B_j A_j whose rank is the largest of its members' (Eckart-Young).

    With B = Q_b R_b and A^T = Q_a R_a of the concatenation, the singular vectors of the delta are Q_b U and Q_a V of
    R_b R_a^T = U S V^T: the delta itself is never formed.
    """
    exact = _concat(path, parts)
    rank = max(part.pair.rank for part in parts)
    dtype = torch.promote_types(exact.a.dtype, torch.float32)
    q_b, r_b = torch.linalg.qr(exact.b.to(dtype))
    q_a, r_a = torch.linalg.qr(exact.a.to(dtype).t())
    u, s, v_t = torch.linalg.svd(r_b @ r_a.t(), full_matrices=False)
    root = s[:rank].sqrt()
    return LoraPair(((q_a @ v_t[:rank].t()) * root).t().contiguous(), (q_b @ u[:, :rank]) * root)


_METHODS: Mapping[FusionMethod, Callable[[str, Sequence[_Part]], LoraPair]] = {
    FusionMethod.LINEAR: _linear,
    FusionMethod.CONCAT: _concat,
    FusionMethod.SVD: _svd,
}
