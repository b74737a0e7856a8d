"""The portable products, with ranks read in place and gathered."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from generation_service.lora.kernels import torch_ops
from generation_service.lora.kernels.torch_ops import RankSet, expand_, shrink

RUNS = {"one": [(3, 9)], "two": [(0, 2), (5, 6)], "many": [(0, 1), (2, 5), (6, 7), (9, 16)]}


def rank_set(runs: list[tuple[int, int]]) -> RankSet:
    columns = torch.cat([torch.arange(start, stop) for start, stop in runs])
    return RankSet(columns, tuple(slice(start, stop) for start, stop in runs))


@pytest.fixture(params=[0, 16384], ids=["by run", "gathered"])
def threshold(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(torch_ops, "GATHER_BELOW_VALUES", request.param)
    return int(request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 40])
@pytest.mark.parametrize("runs", RUNS)
def test_products_over_runs_match_products_over_columns(
    runs: str, tokens: int, dtype: torch.dtype, threshold: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    ranks = rank_set(RUNS[runs])
    a = torch.randn(16, 3, 12, generator=generator).to(dtype)
    b = torch.randn(16, 20, generator=generator).to(dtype)[:, 4:17]
    x = torch.randn(tokens, 12, generator=generator).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    exact = torch.einsum("ti,rmi->trm", x.double(), a[ranks.columns].double())
    torch.testing.assert_close(shrink(x, a, ranks).double(), exact, rtol=tolerance, atol=tolerance)
    shrunk = torch.randn(tokens, ranks.count, generator=generator).to(dtype)
    before = torch.randn(tokens, 13, generator=generator).to(dtype)
    out = before.clone()
    expand_(out, shrunk, b, ranks)
    exact = before.double() + shrunk.double() @ b[ranks.columns].double()
    torch.testing.assert_close(out.double(), exact, rtol=2 * tolerance, atol=2 * tolerance)


def copies(ranks: RankSet, bank: Tensor, tokens: int) -> bool:
    gathered = ranks.gathered(bank, tokens)
    return gathered is not None and gathered.data_ptr() != bank[ranks.runs[0]].data_ptr()


def test_runs_are_gathered_only_if_small_or_for_many_tokens() -> None:
    wide, narrow = torch.zeros(16, 40000), torch.zeros(16, 8)
    assert not copies(rank_set(RUNS["one"]), wide, 1000)
    assert copies(rank_set(RUNS["many"]), narrow, 1)
    assert not copies(rank_set(RUNS["many"]), wide, 4)
    assert copies(rank_set(RUNS["many"]), wide, 5)
