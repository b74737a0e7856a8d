"""Products over ranks named by a tensor, by Triton: nothing is copied out of the bank, however large it is."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from infra.contract.errors import ConfigurationError

LONGEST_PART = 4096
"""Input features that one program sums; longer inputs are cut into parts, summed by a second launch."""

# Blocks fill the memory pipeline of a large GPU and fit the shared memory (100 KB) of a small one.
_RANK_BLOCK = 16
_OUT_BLOCK = 64
_LARGEST_ROW_BLOCK = 64
_STAGES = 4


class TritonFixedKernels:
    """The same as TorchFixedKernels, at a cost that follows the ranks in use.

    x, a, b and out are of one dtype (float32, bfloat16, float16), their last dimension contiguous; products are summed
    in float32, in the same order every time. `kernels` is the module of the jitted functions, None for that of this
    process. Raises ConfigurationError where Triton is not installed.
    """

    follows_count = True

    def __init__(self, kernels: ModuleType | None = None) -> None:
        self._kernels: Any = kernels if kernels is not None else _jitted()

    def shrink(self, x: Tensor, a: Tensor, columns: Tensor, count: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted x A^T, 0 where the weight is 0: x [N, in]; a [bank ranks, M, in]. Returns [M, N, C]."""
        (rows, inputs), members, ranks = x.shape, a.shape[1], len(columns)
        parts = -(-inputs // LONGEST_PART)
        block_n = _row_block(rows)
        k = (512 if block_n <= 32 else 256) // x.dtype.itemsize
        part = -(-inputs // (parts * k)) * k
        out = x.new_empty(members, rows, ranks)
        to = out if parts == 1 else x.new_empty(parts, members, rows, ranks, dtype=torch.float32)
        across, down = -(-ranks // _RANK_BLOCK), -(-rows // block_n)
        blocks = {"block_n": block_n, "block_c": _RANK_BLOCK}
        self._kernels.shrink[(across, members * parts, down)](
            x,
            a,
            columns,
            count,
            weights,
            to,
            rows,
            ranks,
            inputs,
            members,
            x.stride(0),
            a.stride(0),
            a.stride(1),
            weights.stride(0),
            part=part,
            parts=parts,
            block_k=k,
            num_stages=_STAGES,
            **blocks,
        )
        if parts > 1:
            self._kernels.finish[(across, members, down)](
                to, count, weights, out, rows, ranks, members, weights.stride(0), parts=parts, **blocks
            )
        return out

    def expand_(self, out: Tensor, shrunk: Tensor, b: Tensor, columns: Tensor, count: Tensor) -> None:
        """Add shrunk B to out [N, out] in place. shrunk [N, C]; b [bank ranks, out]."""
        rows, outputs = out.shape
        block_n = _row_block(rows)
        self._kernels.expand[(-(-outputs // _OUT_BLOCK), -(-rows // block_n))](
            out,
            shrunk,
            b,
            columns,
            count,
            rows,
            outputs,
            out.stride(0),
            shrunk.stride(0),
            b.stride(0),
            block_n=block_n,
            block_r=128 if out.dtype.itemsize == 2 else 32,
            block_o=_OUT_BLOCK,
        )


def _row_block(rows: int) -> int:
    """Return the rows of one program: a power of two, at least the 16 that a matrix unit takes."""
    return min(max(16, 1 << (rows - 1).bit_length()), _LARGEST_ROW_BLOCK)


def _jitted() -> ModuleType:
    try:
        return importlib.import_module(".triton_kernels", __package__)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "triton":
            raise
        raise ConfigurationError(
            "the Triton kernels need triton, which torch for CUDA brings along: install it, or use TorchFixedKernels"
        ) from error
