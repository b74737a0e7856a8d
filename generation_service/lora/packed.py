"""A second copy of a linear layer's weight, in the blocked layout that oneDNN multiplies small batches with fastest."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Rows of an input that the packed copy multiplies; others take the plain weight. On an AVX2 processor with one thread
#: the copy was faster from 2 rows (1.2 times on 896 x 4864, 2.5 times on a head of 49,152 x 576) to 32 (1.1 and 1.4
#: times); one row, and 64 or more, were as fast or faster without it.
_ROWS = range(2, 33)
_TUNED_FOR_ROWS = 8


class PackedWeight:
    """The packed copy of a weight [out, in] in float32 on a CPU. The weight must not change afterwards."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _TUNED_FOR_ROWS)

    def linear(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """Return x W^T + bias [..., out] of `input` [..., in], as F.linear does but for rounding."""
        if input.numel() // input.shape[-1] not in _ROWS:
            return F.linear(input, self._weight, bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(input, self._packed, bias, "none", [], "")
        return product


class PackedLinear(nn.Linear):
    """A linear layer that no adapter changes, with a packed copy of its weight. It shares the layer's parameters."""

    def __init__(self, base: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.training = base.training
        self._packed = PackedWeight(base.weight)

    def forward(self, input: Tensor) -> Tensor:
        """Return x W^T + bias [..., out]."""
        return self._packed.linear(input, self.bias)


def can_pack(weight: Tensor) -> bool:
    """Return whether this build of torch packs `weight`, and packing it can help."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    )
