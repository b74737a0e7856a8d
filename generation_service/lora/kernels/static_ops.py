"""Products over ranks named by a tensor, in plain PyTorch: what the Triton kernels are compared with."""

from __future__ import annotations

from torch import Tensor


class TorchFixedKernels:
    """Copies the columns out of the bank, then multiplies all of them, in use or not."""

    follows_count = False

    def shrink(self, x: Tensor, a: Tensor, columns: Tensor, count: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted x A^T, 0 where the weight is 0: x [N, in]; a [bank ranks, M, in]. Returns [M, N, C]."""
        chosen = a.index_select(0, columns)
        product = (x @ chosen.view(-1, x.shape[1]).t()).view(len(x), len(columns), a.shape[1])
        weighted = (product * weights[..., None]).masked_fill(weights[..., None] == 0, 0)
        return weighted.to(x.dtype).permute(2, 0, 1).contiguous()

    def expand_(self, out: Tensor, shrunk: Tensor, b: Tensor, columns: Tensor, count: Tensor) -> None:
        """Add shrunk B to out [N, out] in place. shrunk [N, C]; b [bank ranks, out]."""
        out.addmm_(shrunk, b.index_select(0, columns))
