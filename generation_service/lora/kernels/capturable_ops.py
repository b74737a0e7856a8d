"""LoRA products that a CUDA graph can capture: the ranks in use are named by a device tensor, not by the host."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from generation_service.lora.kernels.triton_ops import TritonCapturableOps
from infra.runtime.logs import get_logger

log = get_logger(__name__)


class CapturableOps(Protocol):
    """Products over the bank columns that `columns` lists. No value is read on the host.

    `columns` [C] int32 are bank columns, of which the first `count` [1] int32 are in use. `weights` [N, C] are float32,
    and 0 for unused columns.
    """

    cost_follows_count: bool
    """Whether the cost grows with `count` rather than with C."""

    def shrink(self, x: Tensor, a: Tensor, columns: Tensor, count: Tensor, weights: Tensor) -> Tensor:
        """Return out[m, n, c] = weights[n, c] * (x[n] . a[columns[c], m]), exactly 0 where the weight is 0.

        x [N, in]; a [bank ranks, M, in]; out [M, N, C].
        """

    def expand_(self, out: Tensor, shrunk: Tensor, b: Tensor, columns: Tensor, count: Tensor) -> None:
        """Add out[n] += sum_c shrunk[n, c] b[columns[c]], in place.

        out [N, out]; shrunk [N, C]; b [bank ranks, out].
        """


class TorchCapturableOps:
    """CapturableOps in plain PyTorch, which the Triton kernels are compared with.

    Gathers all C columns from the bank and multiplies all of them, in use or not.
    """

    cost_follows_count = False

    def shrink(self, x: Tensor, a: Tensor, columns: Tensor, count: Tensor, weights: Tensor) -> Tensor:
        """Return out[m, n, c] = weights[n, c] * (x[n] . a[columns[c], m])."""
        gathered = a.index_select(0, columns)
        product = (x @ gathered.view(-1, x.shape[1]).t()).view(len(x), len(columns), a.shape[1])
        weighted = (product * weights[..., None]).masked_fill(weights[..., None] == 0, 0)
        return weighted.to(x.dtype).permute(2, 0, 1).contiguous()

    def expand_(self, out: Tensor, shrunk: Tensor, b: Tensor, columns: Tensor, count: Tensor) -> None:
        """Add out[n] += sum_c shrunk[n, c] b[columns[c]], in place."""
        out.addmm_(shrunk, b.index_select(0, columns))


def capturable_ops_for(device: torch.device) -> CapturableOps:
    """Return the Triton kernels on a GPU, and plain PyTorch on a CPU or where Triton cannot run."""
    if device.type == "cuda":
        try:
            ops = TritonCapturableOps()
            with torch.cuda.device(device):
                check_runs(ops, device)
        except Exception as error:
            log.warning("triton_unavailable", reason=f"{type(error).__name__}: {error}")
        else:
            return ops
    return TorchCapturableOps()


def check_runs(ops: CapturableOps, device: torch.device) -> None:
    """Launch both products once. Raises what the first launch raises.

    The first launch compiles, which fails on a machine without a C compiler.
    """
    x, a = torch.ones(1, 32, device=device), torch.ones(16, 1, 32, device=device)
    columns = torch.arange(16, dtype=torch.int32, device=device)
    count = torch.full((1,), 16, dtype=torch.int32, device=device)
    shrunk = ops.shrink(x, a, columns, count, torch.ones(1, 16, device=device))
    ops.expand_(torch.zeros(1, 32, device=device), shrunk[0], a[:, 0], columns, count)
