"""A linear layer that adds the deltas of the running step's adapters."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from generation_service.adapters.applied import Applied, Place
from generation_service.adapters.routing import Routing
from generation_service.adapters.shelf import Shelf


class SharedShrink:
    """The product with A of one shelf: the first of its modules to see an input makes it for all.

    It is held from the first module's call to the last one's, for the very same tensor object within one step.
    """

    def __init__(self, shelf: Shelf) -> None:
        self._members = len(shelf.paths)
        self._input: Tensor | None = None
        self._applied: Applied | None = None
        self._product: list[Tensor] = []
        self._uses = 0

    def of(self, input: Tensor, x: Tensor, place: Place, applied: Applied) -> list[Tensor]:
        """Return the weighted x A^T, x being `input` in the bank's dtype."""
        if self._input is not input or self._applied is not applied:
            self._input, self._applied, self._uses = input, applied, 0
            self._product = applied.shrink(x, place)
        self._uses += 1
        product = self._product
        if self._uses >= self._members:
            self._input, self._applied, self._product = None, None, []
        return product


class LoraLinear(nn.Linear):
    """y = W x + bias + sum_j w_j s_j B_j A_j x, with the adapters and weights of the step (LoraRetriever, eq. 4).

    Stands in for the linear layer it is made from: the same parameters under the same names, so that the model's
    state dict, dtype look-ups and tied weights do not change. The bank's tensors are no part of the module.
    """

    def __init__(self, base: nn.Linear, place: Place, shared: SharedShrink, routing: Routing) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.training = base.training
        self._place = place
        self._shared = shared
        self._routing = routing

    def forward(self, input: Tensor) -> Tensor:
        """Return the base layer's output, exactly, when no adapter of the step adapts this module."""
        out = F.linear(input, self.weight, self.bias)
        applied, place = self._routing.active, self._place
        if applied is None or not applied.touches(place):
            return out
        x = input.to(place.shelf.a.dtype)
        shrunk = self._shared.of(input, x, place, applied)
        if out.dtype == x.dtype:
            applied.expand_(out, shrunk, place)
            return out
        delta = x.new_zeros(out.shape)
        applied.expand_(delta, shrunk, place)
        return out + delta.to(out.dtype)
