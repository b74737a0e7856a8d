"""Which kernels a device decodes with."""

from __future__ import annotations

import torch

from generation_service.lora.kernels.static_ops import TorchFixedKernels
from generation_service.lora.kernels.triton_ops import TritonFixedKernels
from generation_service.lora.static_batch import FixedKernels
from infra.runtime.logs import get_logger

log = get_logger(__name__)


def fixed_kernels(device: torch.device) -> FixedKernels:
    """Return the Triton kernels on a GPU, plain PyTorch elsewhere and where Triton cannot run."""
    if device.type == "cuda":
        try:
            kernels = TritonFixedKernels()
            with torch.cuda.device(device):
                try_out(kernels, device)
        except Exception as error:
            log.warning("no_triton_kernels", reason=f"{type(error).__name__}: {error}")
        else:
            return kernels
    return TorchFixedKernels()


def try_out(kernels: FixedKernels, device: torch.device) -> None:
    """Multiply once: the first launch compiles, for which a machine may lack a C compiler. Raises what that raises."""
    x, a = torch.ones(1, 32, device=device), torch.ones(16, 1, 32, device=device)
    columns = torch.arange(16, dtype=torch.int32, device=device)
    count = torch.full((1,), 16, dtype=torch.int32, device=device)
    shrunk = kernels.shrink(x, a, columns, count, torch.ones(1, 16, device=device))
    kernels.expand_(torch.zeros(1, 32, device=device), shrunk[0], a[:, 0], columns, count)
