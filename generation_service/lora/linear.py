"""A linear layer that adds the LoRA deltas of the running step."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from generation_service.lora.packed import PackedWeight
from generation_service.lora.routing import Routing
from generation_service.lora.weight_group import ModuleSlot


class LoraLinear(nn.Linear):
    """y = W x + bias + sum_j w_j s_j B_j A_j x, over the adapters j of the row (LoraRetriever, eq. 4).

    w_j is the adapter's weight in the step's composition, s_j its scaling, which the bank folds into B_j.

    Replaces the linear layer it is built from, with the same parameters under the same names, so that the model's state
    dict, dtype queries and tied weights do not change. The bank's tensors and the packed copy of the weight are not
    registered on the module.
    """

    def __init__(self, base: nn.Linear, slot: ModuleSlot, routing: Routing, packed: PackedWeight | None = None) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.training = base.training
        self._slot = slot
        self._routing = routing
        self._packed = packed

    def forward(self, input: Tensor) -> Tensor:
        """Return [..., out]; exactly the base layer's output if no adapter of the step changes this module."""
        packed = self._packed
        out = packed.linear(input, self.bias) if packed else F.linear(input, self.weight, self.bias)
        lora, slot = self._routing.active, self._slot
        if lora is None or not lora.affects(slot):
            return out
        x = input.to(slot.group.a.dtype)
        shrunk = self._routing.shrink(input, x, slot, lora)
        if out.dtype == x.dtype:
            lora.expand_(out, shrunk, slot)
            return out
        delta = x.new_zeros(out.shape)
        lora.expand_(delta, shrunk, slot)
        return out + delta.to(out.dtype)
