"""A linear layer that adds the deltas of the running step's adapters."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from generation_service.lora.routing import Routing
from generation_service.lora.step_lora import Place


class LoraLinear(nn.Linear):
    """y = W x + bias + sum_j w_j s_j B_j A_j x, with the adapters and weights of the step (LoraRetriever, eq. 4).

    Stands in for the linear layer it is made from: the same parameters under the same names, so that the model's
    state dict, dtype look-ups and tied weights do not change. The bank's tensors are no part of the module.
    """

    def __init__(self, base: nn.Linear, place: Place, routing: Routing) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.training = base.training
        self._place = place
        self._routing = routing

    def forward(self, input: Tensor) -> Tensor:
        """Return the base layer's output, exactly, when no adapter of the step adapts this module."""
        out = F.linear(input, self.weight, self.bias)
        applied, place = self._routing.active, self._place
        if applied is None or not applied.touches(place):
            return out
        x = input.to(place.shelf.a.dtype)
        shrunk = self._routing.shrunk(input, x, place, applied)
        if out.dtype == x.dtype:
            applied.expand_(out, shrunk, place)
            return out
        delta = x.new_zeros(out.shape)
        applied.expand_(delta, shrunk, place)
        return out + delta.to(out.dtype)
