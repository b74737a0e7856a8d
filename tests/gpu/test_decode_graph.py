"""Steps captured with one set of adapters, replayed with others: CUDA graphs and torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from generation_service.execution.cuda_graph import CapturedDecode, CudaGraphCapture
from generation_service.lora.kernels.capturable_ops import CapturableOps, TorchCapturableOps
from generation_service.lora.kernels.triton_ops import TritonCapturableOps
from tests.parity.decode_fixture import STEPS, DecodeFixture
from tests.parity.lora_ops_case import Case, Sizes, assert_close

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

KERNELS = [TorchCapturableOps, TritonCapturableOps]
ROWS, RANKS, MEMBERS, INPUTS, OUTPUTS = 7, 60, 3, 200, 120
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


def cases(dtype: torch.dtype) -> list[Case]:
    """Return products of the same sizes that use from none to all of the ranks."""
    products = []
    for seed, used in enumerate((13, 60, 0, 1, 37)):
        sizes = Sizes(ROWS, RANKS, used, MEMBERS, INPUTS, OUTPUTS)
        case = Case(sizes, dtype, seed, device="cuda", beyond=0)
        case.a.nan_to_num_(0)
        case.b.nan_to_num_(0)
        products.append(case)
    return products


class Layer:
    """Both products of one layer over static buffers."""

    def __init__(self, kernels: CapturableOps, like: Case) -> None:
        self.kernels = kernels
        self.x, self.a, self.b = like.x.clone(), like.a.clone(), like.b.clone()
        self.columns, self.count, self.weights = like.columns.clone(), like.count.clone(), like.weights.clone()

    def forward(self) -> Tensor:
        """Return the last module's delta [N, out]."""
        shrunk = self.kernels.shrink(self.x, self.a, self.columns, self.count, self.weights)
        out = self.x.new_zeros(ROWS, OUTPUTS)
        self.kernels.expand_(out, shrunk[-1], self.b, self.columns, self.count)
        return out

    def fill(self, case: Case) -> None:
        """Copy another case's values in place."""
        for name in ("x", "a", "b", "columns", "count", "weights"):
            getattr(self, name).copy_(getattr(case, name))


def check_all(layer: Layer, repeat: Callable[[], Tensor], dtype: torch.dtype) -> None:
    for case in cases(dtype):
        layer.fill(case)
        case.out.zero_()
        assert_close(repeat(), case.true_out(case.true_shrunk()), dtype, leeway=4)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("kernels", KERNELS)
def test_layer_captured_with_one_adapter_serves_all_others(
    kernels: Callable[[], CapturableOps], dtype: torch.dtype
) -> None:
    with torch.inference_mode():
        layer = Layer(kernels(), cases(dtype)[0])
        check_all(layer, CudaGraphCapture(torch.device("cuda"))(layer.forward), dtype)


@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_compiled_layer_serves_all_adapters(kernels: Callable[[], CapturableOps], mode: str | None) -> None:
    torch.compiler.reset()
    with torch.inference_mode():
        layer = Layer(kernels(), cases(torch.bfloat16)[0])
        compiled = torch.compile(layer.forward, mode=mode, dynamic=False)
        check_all(layer, lambda: compiled().clone(), torch.bfloat16)
        check_all(layer, lambda: compiled().clone(), torch.bfloat16)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("kernels", KERNELS)
def test_model_captured_with_one_adapter_serves_all_others(
    kernels: Callable[[], CapturableOps], dtype: torch.dtype, tmp_path: Path
) -> None:
    fixture = DecodeFixture(tmp_path, "cuda", dtype)
    graphs = CapturedDecode(fixture.static(kernels()), CudaGraphCapture(torch.device("cuda")))
    for step, compositions in enumerate(STEPS):
        rows = fixture.rows(step, compositions)
        captured = graphs.decode(rows).clone()
        eager = fixture.decode_eagerly(rows)
        error = (captured - eager).abs().max() / eager.abs().max()
        assert error <= TOLERANCE[dtype]
    assert graphs.captured == 1
