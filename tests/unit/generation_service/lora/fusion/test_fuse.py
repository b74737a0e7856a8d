"""Fusion of adapters: what each method computes, and what it cannot combine."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from generation_service.lora.fusion.fuse import FusionMember, fuse
from generation_service.lora.weights import AdapterWeights, LoraPair
from infra.contract.composition import FusionMethod
from infra.contract.errors import FailedPreconditionError, InvalidArgumentError


def adapter(seed: int, **ranks: int) -> AdapterWeights:
    generator = torch.Generator().manual_seed(seed)
    return AdapterWeights.of(
        {
            path: LoraPair(
                torch.randn(rank, 12, generator=generator, dtype=torch.float64),
                torch.randn(10, rank, generator=generator, dtype=torch.float64),
            )
            for path, rank in ranks.items()
        }
    )


def delta(weights: AdapterWeights, path: str) -> Tensor:
    pair = weights.modules.get(path)
    return pair.b @ pair.a if pair else torch.zeros(10, 12, dtype=torch.float64)


def weighted_sum(members: list[FusionMember], path: str) -> Tensor:
    return sum((m.weight * delta(m.weights, path) for m in members), start=torch.zeros(10, 12, dtype=torch.float64))


MIXED = [
    FusionMember(adapter(1, q=3, k=2), 0.5, "adidas"),
    FusionMember(adapter(2, q=5), 0.3, "gmail"),
    FusionMember(adapter(3, k=1), 0.2, "clock"),
]


def test_linear_sums_factors_separately() -> None:
    first, second = adapter(1, q=4), adapter(2, q=4)
    fused = fuse([FusionMember(first, 0.75), FusionMember(second, 0.25)], FusionMethod.LINEAR)
    pair = fused.modules["q"]
    torch.testing.assert_close(pair.a, 0.75 * first.modules["q"].a + 0.25 * second.modules["q"].a)
    torch.testing.assert_close(pair.b, 0.75 * first.modules["q"].b + 0.25 * second.modules["q"].b)
    assert fused.rank == 4


def test_linear_of_one_adapter_is_that_adapter() -> None:
    only = adapter(1, q=4, k=2)
    fused = fuse([FusionMember(only, 1.0)], FusionMethod.LINEAR)
    for path, pair in only.modules.items():
        assert torch.equal(fused.modules[path].a, pair.a)
        assert torch.equal(fused.modules[path].b, pair.b)


def test_linear_sums_only_adapters_of_module() -> None:
    first, second = adapter(1, q=4, k=2), adapter(2, q=4)
    fused = fuse([FusionMember(first, 0.5), FusionMember(second, 0.5)], FusionMethod.LINEAR)
    torch.testing.assert_close(fused.modules["k"].a, 0.5 * first.modules["k"].a)
    torch.testing.assert_close(delta(fused, "k"), 0.25 * delta(first, "k"))


def test_linear_of_unequal_ranks_names_them() -> None:
    with pytest.raises(FailedPreconditionError) as caught:
        fuse(MIXED, FusionMethod.LINEAR)
    assert "adidas has 3, gmail has 5" in caught.value.message
    assert "at q" in caught.value.message
    assert caught.value.metadata == {"field": "composition.fusion.method", "module": "q"}
    assert "use concat, svd, or a mixture" in caught.value.message


def test_linear_ignores_rank_of_zero_weight_adapter() -> None:
    first = adapter(1, q=3)
    fused = fuse([FusionMember(first, 1.0), FusionMember(adapter(2, q=5), 0.0)], FusionMethod.LINEAR)
    torch.testing.assert_close(delta(fused, "q"), delta(first, "q"))


def test_concat_is_exact_at_sum_of_ranks() -> None:
    fused = fuse(MIXED, FusionMethod.CONCAT)
    assert {path: pair.rank for path, pair in fused.modules.items()} == {"q": 8, "k": 3}
    for path in ("q", "k"):
        torch.testing.assert_close(delta(fused, path), weighted_sum(MIXED, path), rtol=1e-13, atol=1e-13)


def test_concat_leaves_out_zero_weights() -> None:
    fused = fuse([*MIXED, FusionMember(adapter(4, q=9, v=9), 0.0)], FusionMethod.CONCAT)
    assert {path: pair.rank for path, pair in fused.modules.items()} == {"q": 8, "k": 3}


def best(exact: Tensor, rank: int) -> Tensor:
    """Return the best approximation of `exact` by `rank`, from its whole SVD."""
    u, s, v_t = torch.linalg.svd(exact)
    truncated: Tensor = (u[:, :rank] * s[:rank]) @ v_t[:rank]
    return truncated


@pytest.mark.parametrize("rank", [None, 1, 4, 7])
def test_svd_is_best_approximation_at_its_rank(rank: int | None) -> None:
    fused = fuse(MIXED, FusionMethod.SVD, rank=rank)
    assert {path: pair.rank for path, pair in fused.modules.items()} == {"q": min(rank or 5, 8), "k": min(rank or 5, 3)}
    for path, pair in fused.modules.items():
        torch.testing.assert_close(
            delta(fused, path), best(weighted_sum(MIXED, path), pair.rank), rtol=1e-10, atol=1e-10
        )


def test_svd_is_exact_at_full_rank() -> None:
    fused = fuse(MIXED, FusionMethod.SVD, rank=8)
    for path in ("q", "k"):
        torch.testing.assert_close(delta(fused, path), weighted_sum(MIXED, path), rtol=1e-12, atol=1e-12)


def test_svd_of_one_adapter_is_its_delta() -> None:
    only = adapter(1, q=4)
    fused = fuse([FusionMember(only, 1.0)], FusionMethod.SVD)
    torch.testing.assert_close(delta(fused, "q"), delta(only, "q"))


def test_svd_rank_is_limited_by_layer() -> None:
    fused = fuse([FusionMember(adapter(1, q=20), 1.0)], FusionMethod.SVD)
    assert fused.modules["q"].rank == 10
    torch.testing.assert_close(delta(fused, "q"), delta(adapter(1, q=20), "q"))


@pytest.mark.parametrize("method", FusionMethod)
def test_fusion_of_zero_weights_is_empty(method: FusionMethod) -> None:
    fused = fuse([FusionMember(member.weights, 0.0) for member in MIXED], method)
    assert fused.rank == 0
    assert not fused.modules


@pytest.mark.parametrize("method", FusionMethod)
def test_fusion_does_not_modify_its_members(method: FusionMethod) -> None:
    sources = [adapter(1, q=4), adapter(2, q=4)]
    before = [(pair.a.clone(), pair.b.clone()) for source in sources for pair in source.modules.values()]
    for count in (1, 2):
        fused = fuse([FusionMember(source, 1.0) for source in sources[:count]], method, density=1.0)
        for pair in fused.modules.values():
            pair.a.zero_()
            pair.b.zero_()
    after = [(pair.a, pair.b) for source in sources for pair in source.modules.values()]
    assert all(torch.equal(x, y) for old, new in zip(before, after, strict=True) for x, y in zip(old, new, strict=True))


@pytest.mark.parametrize("method", FusionMethod)
def test_half_precision_adapters_are_fused_in_float32(method: FusionMethod) -> None:
    pairs = [adapter(seed, q=4).modules["q"] for seed in (1, 2)]
    half = [AdapterWeights.of({"q": LoraPair(pair.a.bfloat16(), pair.b.bfloat16())}) for pair in pairs]
    full = [
        AdapterWeights.of({"q": LoraPair(pair.a.double(), pair.b.double())})
        for pair in (weights.modules["q"] for weights in half)
    ]
    fused, exact = (
        fuse([FusionMember(w, 0.3, f"a{index}") for index, w in enumerate(members)], method, density=0.75)
        for members in (half, full)
    )
    assert fused.modules["q"].a.dtype is fused.modules["q"].b.dtype is torch.float32
    torch.testing.assert_close(delta(fused, "q").double(), delta(exact, "q"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", [FusionMethod.SVD, FusionMethod.TIES, FusionMethod.DARE])
def test_values_beyond_any_use_are_refused_by_name(method: FusionMethod) -> None:
    pair = adapter(1, q=4).modules["q"]
    huge = AdapterWeights.of({"q": LoraPair(pair.a.float() * 1e30, pair.b.float() * 1e30)})
    with pytest.raises(FailedPreconditionError, match=r"fusing mad, gmail overflows at q") as caught:
        fuse([FusionMember(huge, 1e20, "mad"), FusionMember(adapter(2, q=4), 1.0, "gmail")], method)
    assert caught.value.metadata == {"field": "composition.fusion.adapters", "module": "q"}


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_non_finite_weight_is_refused(weight: float) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        fuse([MIXED[0], FusionMember(MIXED[1].weights, weight)], FusionMethod.CONCAT)
    assert caught.value.field == "adapters[1].weight"


def test_auto_is_svd_for_mixed_ranks_and_linear_for_equal_ones() -> None:
    equal = [FusionMember(adapter(1, q=4), 0.5), FusionMember(adapter(2, q=4, k=2), 0.5)]
    for members, method in ((MIXED, FusionMethod.SVD), (equal, FusionMethod.LINEAR)):
        automatic, chosen = fuse(members, FusionMethod.AUTO), fuse(members, method)
        assert automatic.rank == chosen.rank
        for path in chosen.modules:
            torch.testing.assert_close(delta(automatic, path), delta(chosen, path))
