"""Which kernels decode: those that run here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from generation_service.lora.kernels import choice
from generation_service.lora.kernels.choice import fixed_kernels, try_out
from generation_service.lora.kernels.static_ops import TorchFixedKernels

CPU = torch.device("cpu")


class Uncompilable(TorchFixedKernels):
    def shrink(self, *_: Tensor) -> Tensor:
        raise RuntimeError("Failed to find C compiler")


def test_kernels_are_tried_with_arguments_that_fit() -> None:
    try_out(TorchFixedKernels(), CPU)
    with pytest.raises(RuntimeError, match="C compiler"):
        try_out(Uncompilable(), CPU)


def test_plain_pytorch_takes_over_where_triton_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "TritonFixedKernels", Uncompilable)
    monkeypatch.setattr(choice.torch.cuda, "device", lambda device: torch.inference_mode())
    monkeypatch.setattr(choice, "try_out", lambda kernels, device: try_out(kernels, CPU))
    assert type(fixed_kernels(torch.device("cuda"))) is TorchFixedKernels
    assert type(fixed_kernels(CPU)) is TorchFixedKernels
