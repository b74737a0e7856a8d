"""TIES and DARE against plain dense float64 implementations, and against PEFT's where the definitions agree."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft.utils import merge_utils
from torch import Tensor

from generation_service.lora.fusion import ties_dare
from generation_service.lora.fusion.fuse import FusionMember, fuse
from generation_service.lora.fusion.ties_dare import WeightedPair, dare, ties
from generation_service.lora.fusion.truncation import best_of_dense
from generation_service.lora.weights import AdapterWeights, LoraPair
from infra.contract.composition import FusionMethod

Dense = NDArray[np.float64]
OUT, IN = 14, 11


def part(seed: int, rank: int, weight: float, outputs: int = OUT, inputs: int = IN) -> WeightedPair:
    draw = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, inputs, generator=draw, dtype=torch.float64)
    return WeightedPair(a, torch.randn(outputs, rank, generator=draw, dtype=torch.float64), weight, f"a{seed}")


def dense(one: WeightedPair) -> Dense:
    found: Dense = (one.b @ one.a).numpy()
    return found


def ties_by_hand(parts: Sequence[WeightedPair], density: float) -> Dense:
    """Compute algorithm 1 of Yadav et al. 2023, element by element."""
    trimmed = []
    for one in parts:
        delta = dense(one).copy()
        keep = max(1, math.floor(density * delta.size))
        order = np.argsort(-np.abs(delta), axis=None)
        delta.flat[order[keep:]] = 0
        trimmed.append(delta)
    total = sum(one.weight for one in parts)
    merged = np.zeros((OUT, IN))
    for place in np.ndindex(merged.shape):
        values = [(one.weight, delta[place]) for one, delta in zip(parts, trimmed, strict=True)]
        elected = np.sign(sum(weight * value for weight, value in values))
        agreeing = [(weight, value) for weight, value in values if value and np.sign(value) == elected]
        if agreeing:
            share = sum(weight for weight, _ in agreeing)
            merged[place] = total * sum(weight * value for weight, value in agreeing) / share
    return merged


MIXED_RANKS = [(3,), (1, 4), (2, 2, 5), (8, 1, 3, 2)]


def parts_of(ranks: Sequence[int], weights: Sequence[float] | None = None) -> list[WeightedPair]:
    given = weights or [0.5 / (1 + index) for index in range(len(ranks))]
    return [part(index, rank, weight) for index, (rank, weight) in enumerate(zip(ranks, given, strict=True))]


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("ranks", MIXED_RANKS)
def test_ties_matches_weighted_paper_algorithm(ranks: Sequence[int], density: float) -> None:
    parts = parts_of(ranks)
    np.testing.assert_allclose(ties(parts, density).numpy(), ties_by_hand(parts, density), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("density", [0.2, 0.5])
def test_ties_of_equal_weights_is_scaled_peft_result(density: float) -> None:
    parts = parts_of((4, 4, 4), [0.25, 0.25, 0.25])
    deltas = [one.delta() for one in parts]
    pefts = merge_utils.ties(deltas, torch.tensor([0.25] * 3, dtype=torch.float64), density)
    torch.testing.assert_close(ties(parts, density), 3 * pefts)


def test_ties_of_one_adapter_at_full_density_is_its_weighted_delta() -> None:
    (only,) = parts_of((3,), [0.4])
    torch.testing.assert_close(ties([only], 1.0), 0.4 * only.delta())


def test_ties_of_agreeing_adapters_is_weighted_sum() -> None:
    parts = [WeightedPair(one.a.abs(), one.b.abs(), one.weight, one.name) for one in parts_of((2, 3, 1))]
    expected = sum((one.weight * one.delta() for one in parts), start=torch.zeros(OUT, IN, dtype=torch.float64))
    torch.testing.assert_close(ties(parts, 1.0), expected)


def test_ties_of_opposite_adapters_is_zero() -> None:
    (one,) = parts_of((3,), [0.5])
    assert not ties([one, WeightedPair(one.a, -one.b, 0.5, "opposite")], 0.7).any()


@pytest.mark.parametrize("merge", [lambda parts: ties(parts, 0.4), lambda parts: dare(parts, 0.4, "7")])
@pytest.mark.parametrize("elements", [1, IN * 3, IN * 8])
def test_block_size_does_not_change_result(merge: object, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert callable(merge)
    parts = parts_of((3, 2))
    whole = merge(parts)
    monkeypatch.setattr(ties_dare, "_BLOCK_ELEMENTS", elements)
    torch.testing.assert_close(merge(parts), whole, rtol=1e-13, atol=1e-13)


def dare_by_hand(parts: Sequence[WeightedPair], density: float, seed: str) -> Dense:
    """Drop with probability 1 - density, rescale, sum (Yu et al. 2024), element by element."""
    merged = np.zeros((OUT, IN))
    for one in parts:
        draw = torch.Generator().manual_seed(zlib.crc32(f"{seed} {one.name}".encode()))
        uniform = torch.rand(OUT, IN, generator=draw).numpy()
        delta = dense(one)
        for place in np.ndindex(merged.shape):
            if uniform[place] < density:
                merged[place] += one.weight * delta[place] / density
    return merged


@pytest.mark.parametrize("density", [0.01, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("ranks", MIXED_RANKS)
def test_dare_matches_weighted_paper_algorithm(ranks: Sequence[int], density: float) -> None:
    parts = parts_of(ranks)
    np.testing.assert_allclose(dare(parts, density, "3 q").numpy(), dare_by_hand(parts, density, "3 q"), rtol=1e-12)


def test_dare_at_full_density_matches_peft_and_weighted_sum() -> None:
    parts = parts_of((4, 4, 4))
    weights = torch.tensor([one.weight for one in parts], dtype=torch.float64)
    with pytest.warns(UserWarning, match="no pruning"):
        pefts = merge_utils.dare_linear([one.delta() for one in parts], weights, 1.0)
    torch.testing.assert_close(dare(parts, 1.0, "0"), pefts)


def test_dare_keeps_density_and_expectation() -> None:
    ones = WeightedPair(torch.ones(1, 400, dtype=torch.float64), torch.ones(500, 1, dtype=torch.float64), 0.6, "ones")
    merged = dare([ones], 0.3, "1")
    assert sorted(set(merged.flatten().tolist())) == pytest.approx([0.0, 2.0])
    assert merged.mean().item() == pytest.approx(0.6, rel=0.01)


def test_dare_mask_depends_on_seed_adapter_and_module_only() -> None:
    first, second = parts_of((3, 2), [0.5, 0.5])
    together = dare([first, second], 0.5, "1 q")
    torch.testing.assert_close(dare([second, first], 0.5, "1 q"), together)
    torch.testing.assert_close(dare([first], 0.5, "1 q") + dare([second], 0.5, "1 q"), together)
    assert not torch.equal(dare([first], 0.5, "2 q"), dare([first], 0.5, "1 q"))
    twin = WeightedPair(first.a, first.b, first.weight, "twin")
    assert not torch.equal(dare([twin], 0.5, "1 q"), dare([first], 0.5, "1 q"))
    q, k = (fuse([member], FusionMethod.DARE, rank=11).modules[path] for member, path in members_of_two_paths(first))
    assert not torch.allclose(q.b @ q.a, k.b @ k.a)


def members_of_two_paths(one: WeightedPair) -> list[tuple[FusionMember, str]]:
    pair = LoraPair(one.a, one.b)
    return [(FusionMember(AdapterWeights.of({path: pair}), 1.0, "same"), path) for path in ("q", "k")]


@pytest.mark.parametrize("method", [FusionMethod.TIES, FusionMethod.DARE])
@pytest.mark.parametrize("rank", [None, 2, 30])
def test_merged_delta_is_factored_as_well_as_rank_allows(method: FusionMethod, rank: int | None) -> None:
    parts = parts_of((2, 5, 1))
    members = [FusionMember(AdapterWeights.of({"q": LoraPair(one.a, one.b)}), one.weight, one.name) for one in parts]
    (pair,) = fuse(members, method, rank=rank, density=0.3, seed=9).modules.values()
    merged = ties(parts, 0.3) if method is FusionMethod.TIES else dare(parts, 0.3, "9 q")
    assert pair.rank == min(rank or 5, OUT, IN)
    lost = torch.linalg.svdvals(merged)[pair.rank :].square().sum().sqrt()
    torch.testing.assert_close((merged - pair.b @ pair.a).norm(), lost, rtol=1e-10, atol=1e-10)


def truncated_error(merged: Tensor, rank: int) -> tuple[float, float]:
    """Return the error of `best_of_dense` and the least possible one (Eckart-Young), relative to `merged`."""
    pair = best_of_dense(merged, rank)
    assert pair.rank == rank
    least = torch.linalg.svdvals(merged.double())[rank:].square().sum().sqrt()
    return float((merged - pair.b @ pair.a).norm() / merged.norm()), float(least / merged.norm())


@pytest.mark.parametrize("rank", [4, 24])
@pytest.mark.parametrize("method", [FusionMethod.TIES, FusionMethod.DARE, FusionMethod.SVD])
def test_randomised_truncation_is_within_half_a_percent_of_best(method: FusionMethod, rank: int) -> None:
    shape = (420, 300)
    parts = [part(index, 8, 0.4, *shape) for index in range(3)]
    parts = [WeightedPair(one.a.float(), one.b.float(), one.weight, one.name) for one in parts]
    match method:
        case FusionMethod.TIES:
            merged = ties(parts, 0.5)
        case FusionMethod.DARE:
            merged = dare(parts, 0.5, "0")
        case _:
            merged = sum((one.delta() for one in parts), start=torch.zeros(shape))
    error, least = truncated_error(merged, rank)
    assert error <= least * 1.005 + 1e-5
