"""Adapters packed in host memory, and their copies to the device."""

from __future__ import annotations

import pytest
import torch

from generation_service.lora.h2d_copy import H2DCopyStream, HostPacker
from generation_service.lora.weights import AdapterWeights, LoraPair, all_finite
from infra.contract.errors import CheckpointError


def weights(*ranks: int, scale: float = 1.0) -> AdapterWeights:
    draw = torch.Generator().manual_seed(0)
    return AdapterWeights.of(
        {
            f"m{index}": LoraPair(
                torch.randn(rank, 6, generator=draw) * scale, torch.randn(5, rank, generator=draw) * scale
            )
            for index, rank in enumerate(ranks)
        },
        "revision",
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_packed_adapter_is_one_block_in_bank_layout(dtype: torch.dtype) -> None:
    original = weights(3, 1, 4)
    packed = HostPacker(dtype)(original)
    assert (packed.rank, packed.revision, packed.modules.keys()) == (4, "revision", original.modules.keys())
    for path, pair in packed.modules.items():
        torch.testing.assert_close(pair.a, original.modules[path].a.to(dtype), rtol=0, atol=0)
        torch.testing.assert_close(pair.b, original.modules[path].b.to(dtype), rtol=0, atol=0)
        assert pair.a.is_contiguous()
        assert pair.b.t().is_contiguous()
    blocks = {tensor.untyped_storage().data_ptr() for pair in packed.modules.values() for tensor in (pair.a, pair.b)}
    assert len(blocks) == 1
    assert packed.bytes == sum(pair.a.numel() + pair.b.numel() for pair in original.modules.values()) * dtype.itemsize


def test_packed_adapter_is_a_copy() -> None:
    original = weights(3)
    packed = HostPacker(torch.float32)(original)
    original.modules["m0"].a.zero_()
    assert packed.modules["m0"].a.any()


def test_values_beyond_dtype_are_refused_by_module() -> None:
    original = weights(3, 2)
    original.modules["m1"].b[0, 0] = 1e30
    HostPacker(torch.bfloat16)(original)
    with pytest.raises(CheckpointError, match=r"m1: values of the adapter are not finite in torch.float16"):
        HostPacker(torch.float16)(original)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_all_finite_tests_values_not_their_sum(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    assert all_finite(torch.full((300,), largest, dtype=dtype))
    assert all_finite(torch.zeros(0, dtype=dtype))
    for bad in (float("nan"), float("inf"), -float("inf")):
        assert not all_finite(torch.tensor([1.0, bad, largest], dtype=dtype))
    assert not all_finite(torch.tensor([float("inf"), -float("inf")], dtype=dtype))


def test_empty_adapter_packs_to_nothing() -> None:
    assert HostPacker(torch.float32)(AdapterWeights.of({})).bytes == 0


def test_copy_to_cpu_is_synchronous() -> None:
    stream = H2DCopyStream(torch.device("cpu"))
    device = torch.zeros(4, 6)
    pair = HostPacker(torch.float32)(weights(3)).modules["m0"]
    stream.copy(pair.a, device[1:])
    stream.synchronize()
    torch.testing.assert_close(device, torch.cat([torch.zeros(1, 6), pair.a]))
    with pytest.raises(ValueError, match=r"source has shape \[3, 6\], destination \[4, 6\]"):
        stream.copy(pair.a, device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_synchronized_gpu_copy_is_visible_to_every_stream() -> None:
    device = torch.device("cuda")
    stream = H2DCopyStream(device)
    packed = HostPacker(torch.bfloat16, pinned=True)(weights(64, 64))
    target = {path: torch.zeros(64, 6, dtype=torch.bfloat16, device=device) for path in packed.modules}
    torch.cuda._sleep(10_000_000)  # type: ignore[no-untyped-call]
    for path, pair in packed.modules.items():
        assert pair.a.is_pinned()
        stream.copy(pair.a, target[path].zero_())
    stream.synchronize()
    with torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
        for path, pair in packed.modules.items():
            assert torch.equal(target[path].cpu(), pair.a)
