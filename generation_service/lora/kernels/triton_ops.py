"""LoRA products by Triton over the ranks that a device tensor names: nothing is copied out of the bank."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from infra.contract.errors import ConfigurationError

LONGEST_SPLIT = 4096
"""Input features that one program sums. Longer inputs are split (split-K) and summed by a second launch.

Splitting adds parallelism at the price of that launch; it was kept to long inputs (lab log, 2026-11-22).
"""

# Block sizes are chosen by reasoning: they keep enough loads in flight for a large GPU and fit the shared memory
# (100 KB) of a small one. They have not been tuned on a device (lab log, 2026-11-22).
_RANK_BLOCK = 16  # The narrowest tile of a tensor core; a rank-16 adapter fills it exactly.
_OUT_BLOCK = 64
_MAX_ROW_BLOCK = 64
_STAGES = 4


class TritonCapturableOps:
    """CapturableOps whose cost follows the ranks in use.

    x, a, b and out share one dtype (float32, bfloat16 or float16) and have a contiguous last dimension. Sums are taken
    in float32 and in a fixed order, so results are reproducible. `kernels` is the module of the jitted functions; None
    imports it. Raises ConfigurationError if Triton is not installed.
    """

    cost_follows_count = True

    def __init__(self, kernels: ModuleType | None = None) -> None:
        self._kernels: Any = kernels if kernels is not None else _jitted()

    def shrink(self, x: Tensor, a: Tensor, columns: Tensor, count: Tensor, weights: Tensor) -> Tensor:
        """Return out[m, n, c] = weights[n, c] * (x[n] . a[columns[c], m]), exactly 0 where the weight is 0.

        x [N, in]; a [bank ranks, M, in]; out [M, N, C].
        """
        (rows, inputs), members, ranks = x.shape, a.shape[1], len(columns)
        block_n = _row_block(rows)
        # Bytes of one row of a K block: larger row blocks take narrower ones, to stay within shared memory.
        block_k = (512 if block_n <= 32 else 256) // x.dtype.itemsize
        splits, split = _split_inputs(inputs, block_k)
        out = x.new_empty(members, rows, ranks)
        target = out if splits == 1 else x.new_empty(splits, members, rows, ranks, dtype=torch.float32)
        rank_blocks, row_blocks = -(-ranks // _RANK_BLOCK), -(-rows // block_n)
        blocks = {"block_n": block_n, "block_c": _RANK_BLOCK}
        self._kernels.shrink[(rank_blocks, members * splits, row_blocks)](
            x,
            a,
            columns,
            count,
            weights,
            target,
            rows,
            ranks,
            inputs,
            members,
            x.stride(0),
            a.stride(0),
            a.stride(1),
            weights.stride(0),
            split=split,
            splits=splits,
            block_k=block_k,
            num_stages=_STAGES,
            **blocks,
        )
        if splits > 1:
            self._kernels.finish[(rank_blocks, members, row_blocks)](
                target, count, weights, out, rows, ranks, members, weights.stride(0), splits=splits, **blocks
            )
        return out

    def expand_(self, out: Tensor, shrunk: Tensor, b: Tensor, columns: Tensor, count: Tensor) -> None:
        """Add out[n] += sum_c shrunk[n, c] b[columns[c]], in place.

        out [N, out]; shrunk [N, C]; b [bank ranks, out].
        """
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
            block_r=128 if out.dtype.itemsize == 2 else 32,  # Ranks a step; float32 tiles need the shared memory.
            block_o=_OUT_BLOCK,
        )


def _split_inputs(inputs: int, block_k: int) -> tuple[int, int]:
    """Return the number of splits of an input, and the features of each: whole K blocks, as even as possible."""
    splits = -(-inputs // LONGEST_SPLIT)
    return splits, -(-inputs // (splits * block_k)) * block_k


def _row_block(rows: int) -> int:
    """Return the rows of one program: a power of two, and at least 16, the smallest operand of `tl.dot`."""
    return min(max(16, 1 << (rows - 1).bit_length()), _MAX_ROW_BLOCK)


def _jitted() -> ModuleType:
    try:
        return importlib.import_module(".triton_kernels", __package__)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "triton":
            raise
        raise ConfigurationError(
            "the Triton kernels need triton, which CUDA builds of torch install: install it, or use TorchCapturableOps"
        ) from error
