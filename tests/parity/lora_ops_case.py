"""Cases for CapturableOps, where everything that must not be read is NaN, and their float64 reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from generation_service.lora.kernels.capturable_ops import CapturableOps

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Largest error by dtype, relative to the largest magnitude of the result."""
NOWHERE = 2**31 - 1


@dataclass(frozen=True)
class Sizes:
    """`used` of at most `ranks` ranks, for `rows` rows and `members` modules of `inputs` and `outputs` features."""

    rows: int
    ranks: int
    used: int
    members: int = 1
    inputs: int = 64
    outputs: int = 48


class Case:
    """One product. Each row uses about half of the ranks; one rank in use has a NaN in A and weight 0 in every row.

    Rows of the bank that are not in use hold NaN, and the columns beyond `used` point `beyond`. B is the last of the
    bank's modules, so that its rows lie apart.
    """

    def __init__(
        self, sizes: Sizes, dtype: torch.dtype, seed: int, *, device: str = "cpu", beyond: int = NOWHERE
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.sizes, self.dtype = sizes, dtype
        bank_ranks = sizes.ranks + 9
        places = torch.randperm(bank_ranks, generator=generator)[: sizes.used]
        weights = torch.rand(sizes.rows, sizes.ranks, generator=generator)
        weights[torch.rand(weights.shape, generator=generator) < 0.5] = 0
        weights[:, sizes.used :] = 0
        a = torch.full((bank_ranks, sizes.members, sizes.inputs), torch.nan)
        a[places] = torch.randn(sizes.used, sizes.members, sizes.inputs, generator=generator) * sizes.inputs**-0.5
        b = torch.full((bank_ranks, sizes.outputs + 5), torch.nan)
        b[places] = torch.randn(sizes.used, sizes.outputs + 5, generator=generator) * max(1, sizes.used) ** -0.5
        if sizes.used > 1:
            a[places[0], :, 0] = torch.nan
            weights[:, 0] = 0
        columns = torch.full((sizes.ranks,), beyond, dtype=torch.int32)
        columns[: sizes.used] = places.int()
        self.x = torch.randn(sizes.rows, sizes.inputs, generator=generator).to(device, dtype)
        self.a, self.b = a.to(device, dtype), b.to(device, dtype)[:, 5:]
        self.out = torch.randn(sizes.rows, sizes.outputs, generator=generator).to(device, dtype)
        self.columns, self.weights = columns.to(device), weights.to(device)
        self.count = torch.tensor([sizes.used], dtype=torch.int32, device=device)

    def shrink(self, kernels: CapturableOps) -> Tensor:
        """Return the shrunk products of `kernels`, [M, N, C]."""
        return kernels.shrink(self.x, self.a, self.columns, self.count, self.weights)

    def expand(self, kernels: CapturableOps, shrunk: Tensor) -> Tensor:
        """Return the output [N, out] after adding the last module's delta from shrunk [M, N, C]."""
        out = self.out.clone()
        kernels.expand_(out, shrunk[-1], self.b, self.columns, self.count)
        return out

    def true_shrunk(self) -> Tensor:
        """Return [M, N, C] in float64, rank by rank."""
        sizes = self.sizes
        result = torch.zeros(sizes.members, sizes.rows, sizes.ranks, dtype=torch.float64)
        for c, place in enumerate(self.columns[: sizes.used].tolist()):
            for n in range(sizes.rows):
                weight = float(self.weights[n, c])
                if weight != 0:
                    result[:, n, c] = weight * (self.a[place].cpu().double() @ self.x[n].cpu().double())
        return result

    def true_out(self, shrunk: Tensor) -> Tensor:
        """Return the output [N, out] in float64 for the shrunk products that the kernel was given."""
        result = self.out.cpu().double()
        for c, place in enumerate(self.columns[: self.sizes.used].tolist()):
            result += shrunk[-1, :, c, None].cpu().double() * self.b[place].cpu().double()
        return result

    def check(self, kernels: CapturableOps) -> None:
        """Fail unless both products match the reference and unused values are exactly 0."""
        shrunk = self.shrink(kernels)
        assert shrunk.shape == (self.sizes.members, self.sizes.rows, self.sizes.ranks)
        assert not shrunk[:, self.weights == 0].any()
        assert_close(shrunk, self.true_shrunk(), self.dtype)
        assert_close(self.expand(kernels, shrunk), self.true_out(shrunk), self.dtype)


def assert_close(actual: Tensor, truth: Tensor, dtype: torch.dtype, leeway: float = 1) -> None:
    """Fail unless every value is within `leeway` times the tolerance of `dtype`, relative to the largest magnitude."""
    assert actual.dtype == dtype
    allowed = leeway * TOLERANCE[dtype] * float(truth.abs().max())
    torch.testing.assert_close(actual.cpu().double(), truth, rtol=0, atol=allowed)
