"""Which kernels a device decodes with."""

from __future__ import annotations

import torch

from generation_service.adapters.fixed_ranks import FixedKernels
from generation_service.kernels.fixed_ops import TorchFixedKernels
from generation_service.kernels.triton_ops import TritonFixedKernels
from infra.contract.errors import ConfigurationError
from infra.runtime.logs import get_logger

log = get_logger(__name__)


def fixed_kernels(device: torch.device) -> FixedKernels:
    """Return the Triton kernels on a GPU, plain PyTorch elsewhere and where Triton is not installed."""
    if device.type == "cuda":
        try:
            return TritonFixedKernels()
        except ConfigurationError as error:
            log.warning("no_triton_kernels", reason=error.message)
    return TorchFixedKernels()
