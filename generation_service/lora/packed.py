"""A second copy of a linear layer's weight, in the blocked layout that oneDNN multiplies small batches with fastest."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Values from which a weight is packed: the product with a smaller one is no faster, whatever the number of rows
#: (192 x 576 and 128 x 896 lost up to half of their speed, 576 x 576 gained 1.2 times from 2 rows on).
MIN_VALUES = 1 << 18

#: Values from which a single row, which only reads the weight, is multiplied with the packed copy by several threads:
#: 2 times as fast for a head of 49,152 x 576 and 3 times for 4,864 x 896, where 576 x 1,536 lost a quarter.
_MIN_VALUES_OF_ONE_ROW = 1 << 20
_TUNED_FOR_ROWS = 8


class PackedWeight:
    """The packed copy of a weight [out, in] in float32 on a CPU. The weight must not change afterwards."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight
        self._multiplies_one_row = torch.get_num_threads() > 1 and weight.numel() >= _MIN_VALUES_OF_ONE_ROW
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _TUNED_FOR_ROWS)

    def linear(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """Return x W^T + bias [..., out] of `input` [..., in], as F.linear does but for rounding."""
        if input.numel() == input.shape[-1] and not self._multiplies_one_row:
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
    return weight.numel() >= MIN_VALUES and is_packable(weight)


def is_packable(weight: Tensor) -> bool:
    """Return whether this build of torch packs `weight`: float32 on a CPU."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    )
