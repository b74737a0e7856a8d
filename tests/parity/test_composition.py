"""The bank's mixtures and fusions against the formula in float64, under adverse loads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from generation_service.lora.fusion.fuse import FusionMember, fuse
from infra.contract.composition import FusionMethod
from tests.parity.lora_layers import SHAPES, TOLERANCE, LoraLayers, TrainedLora, assert_close, trained

WORKLOADS = {
    "base": [{}],
    "one": [{0: 1.0}],
    "identical": [{0: 0.6, 2: 0.4}] * 8,
    "distinct": [{0: 1.0}, {1: 1.0}, {2: 1.0}, {3: 1.0}, {4: 1.0}],
    "skewed": [{0: 1.0}] * 6 + [{3: 0.5, 4: 0.5}],
    "mixed": [{}, {0: 0.2, 1: 0.3, 2: 0.5}, {4: 1.0}, {}, {2: 0.0, 3: 0.7}, {0: 0.0}],
    "all at once": [{0: 0.1, 1: 0.2, 2: 0.3, 3: 0.2, 4: 0.2}] * 33,
}


def five_loras(generator: torch.Generator) -> list[TrainedLora]:
    """Ranks 1 to 64, other alphas, one rsLoRA, two that leave a module alone."""
    return [
        trained(8, 16, False, ("q", "down"), generator),
        trained(1, 3, False, ("q",), generator),
        trained(64, 32, True, ("q", "down"), generator),
        trained(16, 16, False, ("down",), generator),
        trained(5, 1, False, ("q", "down"), generator),
    ]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("tokens", [1, 4, 9])
@pytest.mark.parametrize("workload", WORKLOADS)
def test_mixture_is_weighted_sum_of_deltas(workload: str, tokens: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    world = LoraLayers(five_loras(generator), dtype)
    rows: list[dict[int, float]] = WORKLOADS[workload]  # type: ignore[assignment]
    for path, (inputs, _) in SHAPES.items():
        x = torch.randn(len(rows), tokens, inputs, generator=generator).to(dtype)
        assert_close(world.forward(path, x, rows), world.truth(path, x, rows), dtype)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[LoraLayers, list[dict[int, float]], torch.Generator]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    loras = [
        trained(
            draw(st.integers(1, 64)),
            draw(st.sampled_from([1, 8, 16, 32])),
            draw(st.booleans()),
            draw(st.sampled_from([("q",), ("down",), ("q", "down")])),
            generator,
        )
        for _ in range(draw(st.integers(1, 6)))
    ]
    weight = st.one_of(st.just(0.0), st.floats(0, 1, width=32), st.sampled_from([1.0, 0.5, 1 / 3]))
    row = st.dictionaries(st.integers(0, len(loras) - 1), weight, max_size=len(loras))
    rows = draw(st.lists(row, min_size=1, max_size=33))
    return LoraLayers(loras, draw(st.sampled_from(list(TOLERANCE))), draw(st.integers(0, 9))), rows, generator


@settings(deadline=None, max_examples=60)
@given(worlds(), st.sampled_from([1, 2, 3, 9]))
def test_any_mixture_is_weighted_sum(
    drawn: tuple[LoraLayers, list[dict[int, float]], torch.Generator], tokens: int
) -> None:
    world, rows, generator = drawn
    for path, (inputs, _) in SHAPES.items():
        x = torch.randn(len(rows), tokens, inputs, generator=generator).to(world.dtype)
        assert_close(world.forward(path, x, rows), world.truth(path, x, rows), world.dtype)


@settings(deadline=None, max_examples=40)
@given(worlds())
def test_row_is_the_same_alone_and_in_any_batch(
    drawn: tuple[LoraLayers, list[dict[int, float]], torch.Generator],
) -> None:
    world, rows, generator = drawn
    for path, (inputs, _) in SHAPES.items():
        x = torch.randn(len(rows), 2, inputs, generator=generator).to(world.dtype)
        together = world.forward(path, x, rows)
        for n, row in enumerate(rows[:5]):
            assert_close(world.forward(path, x[n : n + 1], [row])[0], together[n].double(), world.dtype)


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_reused_range_has_no_trace_of_former_owner(data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    world = LoraLayers([trained(4, 8, False, ("q", "down"), generator)], torch.float64, spare=12)
    for _ in range(data.draw(st.integers(3, 12))):
        if len(world.ranges) > 1 and (world.bank.largest_free < 8 or data.draw(st.booleans())):
            place = data.draw(st.integers(1, len(world.ranges) - 1))
            world.bank.release(world.ranges.pop(place))
            world.loras.pop(place)
        else:
            paths = data.draw(st.sampled_from([("q",), ("down",), ("q", "down")]))
            world.loras.append(trained(data.draw(st.integers(1, 8)), 8, data.draw(st.booleans()), paths, generator))
            world.ranges.append(world.hold(world.loras[-1].weights))
        rows: list[dict[int, float]] = [{number: 0.5} for number in range(len(world.loras))]
        for path, (inputs, _) in SHAPES.items():
            x = torch.randn(len(rows), 1, inputs, generator=generator, dtype=torch.float64)
            assert_close(world.forward(path, x, rows), world.truth(path, x, rows), world.dtype)


@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.2), (1.0, 0.0, 0.0), (0.0, 0.4, 0.6), (1.0, 1.0, 1.0)])
def test_concat_fusion_matches_mixture(weights: tuple[float, ...]) -> None:
    generator = torch.Generator().manual_seed(3)
    world = LoraLayers(five_loras(generator), torch.float64, spare=90)
    mixture = dict(enumerate(weights))
    members = [FusionMember(world.loras[number].weights, weight) for number, weight in mixture.items()]
    fused = fuse(members, FusionMethod.CONCAT)
    world.ranges.append(world.hold(fused))
    assert fused.rank == sum(world.loras[number].rank for number, weight in mixture.items() if weight)
    for path, (inputs, _) in SHAPES.items():
        x = torch.randn(2, 3, inputs, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(
            world.forward(path, x, [{5: 1.0}, {}]), world.forward(path, x, [mixture, {}]), rtol=1e-12, atol=1e-12
        )


def einsum_mixture(x: Tensor, a: Tensor, b: Tensor, m: Tensor) -> Tensor:
    """Return [b, l, o] by the paper's batch form: x [b, l, d]; a [p, r, d]; b [p, o, r] with scaling; m [b, p]."""
    shrunk = torch.einsum("bld,prd->blpr", x, a) * m[:, None, :, None]
    return torch.einsum("blpr,por->blo", shrunk, b)


def test_mixture_matches_paper_einsum() -> None:
    generator = torch.Generator().manual_seed(5)
    loras = [trained(8, 16, False, ("q",), generator) for _ in range(4)]
    world = LoraLayers(loras, torch.float64)
    m = torch.rand(6, 4, generator=generator, dtype=torch.float64).round(decimals=1)
    rows = [{p: float(weight) for p, weight in enumerate(row)} for row in m]
    x = torch.randn(6, 3, 24, generator=generator, dtype=torch.float64)
    a = torch.stack([lora.factors["q"][0] for lora in loras])
    b = torch.stack([lora.factors["q"][1] * lora.scaling for lora in loras])
    delta = world.forward("q", x, rows) - world.forward("q", x, [{}] * 6)
    torch.testing.assert_close(delta, einsum_mixture(x, a, b, m), rtol=1e-11, atol=1e-11)
