"""Triton kernels over the ranks of a bank that a tensor on the device names. Imported by triton_ops, where needed.

No value is read on the host, so that a captured launch serves any ranks: programs beyond `count` end at once, and the
cost follows the ranks in use. Sums run in a fixed order in float32: no atomics.
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
    part: tl.constexpr,
    parts: tl.constexpr,
    block_n: tl.constexpr,
    block_c: tl.constexpr,
    block_k: tl.constexpr,
) -> None:
    """Write the product of block_n rows with block_c ranks of one module, over one part of the input.

    x [rows, inputs]; a [bank ranks, members, inputs]; columns [ranks]; weights [rows, ranks]. With one part out is
    [members, rows, ranks], weighted, 0 where the weight is; else [parts, members, rows, ranks], to be summed by
    `finish`.
    """
    member = tl.program_id(1) % members
    chunk = tl.program_id(1) // members
    n = tl.program_id(2) * block_n + tl.arange(0, block_n)
    c = tl.program_id(0) * block_c + tl.arange(0, block_c)
    used = tl.load(count)
    inside = (n < rows)[:, None] & (c < ranks)[None, :]
    to = out + (tl.program_id(1) * rows + n)[:, None] * ranks + c[None, :]
    if tl.program_id(0) * block_c >= used:
        if parts == 1:
            tl.store(to, tl.full((block_n, block_c), 0.0, tl.float32).to(out.dtype.element_ty), mask=inside)
        return
    column = tl.load(columns + c, mask=c < used, other=0).to(tl.int64)
    from_a = a + column * a_rank + member * a_member
    from_x = x + n * x_row
    end = tl.minimum((chunk + 1) * part, inputs)
    total = tl.full((block_n, block_c), 0.0, tl.float32)
    for start in range(0, part, block_k):
        k = chunk * part + start + tl.arange(0, block_k)
        of_x = tl.load(from_x[:, None] + k[None, :], mask=(n < rows)[:, None] & (k < end)[None, :], other=0.0)
        of_a = tl.load(from_a[None, :] + k[:, None], mask=(c < used)[None, :] & (k < end)[:, None], other=0.0)
        total = tl.dot(of_x, of_a, total, input_precision="ieee")
    if parts == 1:
        weight = tl.load(weights + n[:, None] * weights_row + c[None, :], mask=inside & (c < used)[None, :], other=0.0)
        total = tl.where(weight == 0, 0.0, total * weight)
    tl.store(to, total.to(out.dtype.element_ty), mask=inside)


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
    parts: tl.constexpr,
    block_n: tl.constexpr,
    block_c: tl.constexpr,
) -> None:
    """Sum partial [parts, members, rows, ranks] in order and weight it: out [members, rows, ranks]."""
    n = tl.program_id(2) * block_n + tl.arange(0, block_n)
    c = tl.program_id(0) * block_c + tl.arange(0, block_c)
    inside = (n < rows)[:, None] & (c < ranks)[None, :]
    wanted = inside & (c < tl.load(count))[None, :]
    place = (tl.program_id(1) * rows + n)[:, None] * ranks + c[None, :]
    weight = tl.load(weights + n[:, None] * weights_row + c[None, :], mask=wanted, other=0.0)
    total = tl.full((block_n, block_c), 0.0, tl.float32)
    for chunk in range(parts):
        total += tl.load(partial + chunk * members * rows * ranks + place, mask=wanted, other=0.0)
    total = tl.where(weight == 0, 0.0, total * weight)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)


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
    """Add to block_n rows and block_o features of out [rows, outputs] what shrunk [rows, ranks] makes of B.

    b [bank ranks, outputs]; columns [ranks]. Ranks beyond `count` are not read.
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
        of_b = tl.load(
            b + (column * b_rank)[:, None] + o[None, :], mask=(r < used)[:, None] & (o < outputs)[None, :], other=0.0
        )
        total = tl.dot(weighted, of_b, total, input_precision="ieee")
    to = out + n[:, None] * out_row + o[None, :]
    inside = (n < rows)[:, None] & (o < outputs)[None, :]
    total += tl.load(to, mask=inside, other=0.0).to(tl.float32)
    tl.store(to, total.to(out.dtype.element_ty), mask=inside)
