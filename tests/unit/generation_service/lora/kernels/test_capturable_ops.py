"""The choice between Triton and plain PyTorch for captured steps."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from generation_service.lora.kernels import capturable_ops
from generation_service.lora.kernels.capturable_ops import TorchCapturableOps, capturable_ops_for, check_runs

CPU = torch.device("cpu")


class UncompilableOps(TorchCapturableOps):
    def shrink(self, *_: Tensor) -> Tensor:
        raise RuntimeError("Failed to find C compiler")


def test_trial_launch_passes_valid_arguments() -> None:
    check_runs(TorchCapturableOps(), CPU)
    with pytest.raises(RuntimeError, match="C compiler"):
        check_runs(UncompilableOps(), CPU)


def test_pytorch_replaces_triton_where_it_cannot_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capturable_ops, "TritonCapturableOps", UncompilableOps)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(capturable_ops, "check_runs", lambda ops, device: check_runs(ops, CPU))
    assert type(capturable_ops_for(torch.device("cuda"))) is TorchCapturableOps
    assert type(capturable_ops_for(CPU)) is TorchCapturableOps
