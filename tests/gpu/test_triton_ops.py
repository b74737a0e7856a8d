"""The Triton kernels on a GPU, against the formula in float64."""

from __future__ import annotations

import pytest
import torch

from generation_service.lora.kernels.triton_ops import TritonCapturableOps
from tests.parity.lora_ops_case import TOLERANCE, Case, Sizes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

SIZES = [
    Sizes(rows=1, ranks=1, used=1),
    Sizes(rows=3, ranks=40, used=0, members=3),
    Sizes(rows=5, ranks=40, used=23, members=3),
    Sizes(rows=33, ranks=70, used=70, members=2, inputs=129, outputs=77),
    Sizes(rows=64, ranks=512, used=65, members=1, inputs=96, outputs=130),
    Sizes(rows=70, ranks=64, used=31),
    Sizes(rows=8, ranks=256, used=57, members=3, inputs=3584, outputs=512),
    Sizes(rows=16, ranks=256, used=48, members=1, inputs=18944, outputs=3584),
]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_any_ranks_of_any_rows_match_weighted_sum(sizes: Sizes, dtype: torch.dtype) -> None:
    Case(sizes, dtype, seed=1, device="cuda").check(TritonCapturableOps())


@pytest.mark.parametrize("rank", range(1, 65, 7))
def test_single_adapter_of_every_rank(rank: int) -> None:
    Case(Sizes(rows=1, ranks=64, used=rank), torch.bfloat16, seed=rank, device="cuda").check(TritonCapturableOps())


def test_products_are_bitwise_reproducible() -> None:
    case = Case(SIZES[-1], torch.bfloat16, seed=2, device="cuda")
    kernels = TritonCapturableOps()
    first = case.expand(kernels, case.shrink(kernels))
    for _ in range(20):
        assert torch.equal(case.expand(kernels, case.shrink(kernels)), first)
