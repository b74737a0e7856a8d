"""The LoRA formula as slowly and plainly as possible: every fast path is compared with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Term:
    """One adapter of one row: a [r, in], b [out, r] as trained, its own scaling s, and its weight w in this row."""

    a: Tensor
    b: Tensor
    scaling: float
    weight: float


def lora_forward(x: Tensor, weight: Tensor, bias: Tensor | None, rows: Sequence[Sequence[Term]]) -> Tensor:
    """Return y[n, t] = W x[n, t] + bias + sum_j w_j s_j B_j (A_j x[n, t]), in float64 (LoraRetriever, eq. 4).

    x [N, T, in]; weight [out, in]; bias [out]; rows [N], the terms j of each row; y [N, T, out].
    """
    result = torch.zeros(x.shape[0], x.shape[1], weight.shape[0], dtype=torch.float64)
    for n, terms in enumerate(rows):
        for t in range(x.shape[1]):
            token = x[n, t].double()
            h = weight.double() @ token
            if bias is not None:
                h = h + bias.double()
            for term in terms:
                h = h + term.weight * term.scaling * (term.b.double() @ (term.a.double() @ token))
            result[n, t] = h
    return result
