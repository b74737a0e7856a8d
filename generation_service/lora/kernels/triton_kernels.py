"""Triton kernels over the bank columns that a device tensor lists. Imported by triton_ops on first use.

No value is read on the host, so that a captured launch serves any composition. Programs beyond `count` return at once:
the cost follows the ranks in use. Sums are taken in float32 and in a fixed order, without atomics.
"""

# mypy: disable-error-code="untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def shrink(  # noqa: PLR0917
    x: tl.tensor,
    a: tl.tensor,
    columns: tl.tensor,
    count: tl.tensor,
    weights: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    ranks: tl.tensor,
    inputs: tl.tensor,
    members: tl.tensor,
    x_row: tl.tensor,
    a_rank: tl.tensor,
    a_member: tl.tensor,
    weights_row: tl.tensor,
    split: tl.constexpr,
    splits: tl.constexpr,
    block_n: tl.constexpr,
    block_c: tl.constexpr,
    block_k: tl.constexpr,
) -> None:
    """Compute out[m, n, c] = weights[n, c] * (x[n] . a[columns[c], m]), one tile of rows and ranks per program.

    x [rows, inputs]; a [bank ranks, members, inputs]; columns [ranks]; weights [rows, ranks]. With one split, out is
    [members, rows, ranks], weighted, and 0 where the weight is 0. With several, out is [splits, members, rows, ranks]
    of unweighted partial sums over `split` input features each, for `finish` to add up.

    Grid: (rank blocks, members * splits, row blocks).
    """
    member = tl.program_id(1) % members
    chunk = tl.program_id(1) // members
    n = tl.program_id(2) * block_n + tl.arange(0, block_n)
    c = tl.program_id(0) * block_c + tl.arange(0, block_c)
    used = tl.load(count)
    inside = (n < rows)[:, None] & (c < ranks)[None, :]
    target = out + (tl.program_id(1) * rows + n)[:, None] * ranks + c[None, :]
    if tl.program_id(0) * block_c >= used:
        if splits == 1:
            tl.store(target, tl.full((block_n, block_c), 0.0, tl.float32).to(out.dtype.element_ty), mask=inside)
        return
    column = tl.load(columns + c, mask=c < used, other=0).to(tl.int64)
    a_rows = a + column * a_rank + member * a_member
    x_rows = x + n * x_row
    end = tl.minimum((chunk + 1) * split, inputs)
    total = tl.full((block_n, block_c), 0.0, tl.float32)
    for start in range(0, split, block_k):
        k = chunk * split + start + tl.arange(0, block_k)
        x_tile = tl.load(x_rows[:, None] + k[None, :], mask=(n < rows)[:, None] & (k < end)[None, :], other=0.0)
        a_tile = tl.load(a_rows[None, :] + k[:, None], mask=(c < used)[None, :] & (k < end)[:, None], other=0.0)
        total = tl.dot(x_tile, a_tile, total, input_precision="ieee")
    if splits == 1:
        weight = tl.load(weights + n[:, None] * weights_row + c[None, :], mask=inside & (c < used)[None, :], other=0.0)
        total = tl.where(weight == 0, 0.0, total * weight)
    tl.store(target, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def finish(  # noqa: PLR0917
    partial: tl.tensor,
    count: tl.tensor,
    weights: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    ranks: tl.tensor,
    members: tl.tensor,
    weights_row: tl.tensor,
    splits: tl.constexpr,
    block_n: tl.constexpr,
    block_c: tl.constexpr,
) -> None:
    """Compute out[m, n, c] = weights[n, c] * sum_s partial[s, m, n, c], summed in the order of s.

    partial [splits, members, rows, ranks]; out [members, rows, ranks]. Grid: (rank blocks, members, row blocks).
    """
    n = tl.program_id(2) * block_n + tl.arange(0, block_n)
    c = tl.program_id(0) * block_c + tl.arange(0, block_c)
    inside = (n < rows)[:, None] & (c < ranks)[None, :]
    valid = inside & (c < tl.load(count))[None, :]
    offset = (tl.program_id(1) * rows + n)[:, None] * ranks + c[None, :]
    weight = tl.load(weights + n[:, None] * weights_row + c[None, :], mask=valid, other=0.0)
    total = tl.full((block_n, block_c), 0.0, tl.float32)
    for chunk in range(splits):
        total += tl.load(partial + chunk * members * rows * ranks + offset, mask=valid, other=0.0)
    total = tl.where(weight == 0, 0.0, total * weight)
    tl.store(out + offset, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def expand(  # noqa: PLR0917
    out: tl.tensor,
    shrunk: tl.tensor,
    b: tl.tensor,
    columns: tl.tensor,
    count: tl.tensor,
    rows: tl.tensor,
    outputs: tl.tensor,
    out_row: tl.tensor,
    shrunk_row: tl.tensor,
    b_rank: tl.tensor,
    block_n: tl.constexpr,
    block_r: tl.constexpr,
    block_o: tl.constexpr,
) -> None:
    """Compute out[n] += sum_c shrunk[n, c] b[columns[c]] over the first `count` columns.

    out [rows, outputs]; shrunk [rows, ranks]; b [bank ranks, outputs]; columns [ranks].

    Grid: (output blocks, row blocks).
    """
    used = tl.load(count)
    if used == 0:
        return
    n = tl.program_id(1) * block_n + tl.arange(0, block_n)
    o = tl.program_id(0) * block_o + tl.arange(0, block_o)
    total = tl.full((block_n, block_o), 0.0, tl.float32)
    for start in range(0, used, block_r):
        r = start + tl.arange(0, block_r)
        column = tl.load(columns + r, mask=r < used, other=0).to(tl.int64)
        inside = (n < rows)[:, None] & (r < used)[None, :]
        weighted = tl.load(shrunk + n[:, None] * shrunk_row + r[None, :], mask=inside, other=0.0)
        b_tile = tl.load(
            b + (column * b_rank)[:, None] + o[None, :], mask=(r < used)[:, None] & (o < outputs)[None, :], other=0.0
        )
        total = tl.dot(weighted, b_tile, total, input_precision="ieee")
    target = out + n[:, None] * out_row + o[None, :]
    inside = (n < rows)[:, None] & (o < outputs)[None, :]
    total += tl.load(target, mask=inside, other=0.0).to(tl.float32)
    tl.store(target, total.to(out.dtype.element_ty), mask=inside)
