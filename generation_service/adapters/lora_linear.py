"""A linear layer that adds the deltas of the running step's adapters."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from generation_service.adapters.routing import Routing
from generation_service.kernels.torch_ops import add_mixture_delta


@dataclass
class Shelf:
    """One module's part of the bank: a [R, in], b [R, out]. Column r of every module belongs to the same adapter.

    `adapted_by` are the tickets of the ranges that hold something here; it is replaced, never changed in place.
    """

    a: Tensor
    b: Tensor
    adapted_by: frozenset[int] = frozenset()

    @property
    def bytes(self) -> int:
        """Bytes on the device."""
        return self.a.nbytes + self.b.nbytes


class LoraLinear(nn.Linear):
    """y = W x + bias + sum_j w_j s_j B_j A_j x, with the adapters and weights of the step (LoraRetriever, eq. 4).

    Stands in for the linear layer it is made from: the same parameters under the same names, so that the model's
    state dict, dtype look-ups and tied weights do not change. The bank's tensors are no part of the module.
    """

    def __init__(self, base: nn.Linear, path: str, shelf: Shelf, routing: Routing) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.training = base.training
        self._path = path
        self._shelf = shelf
        self._routing = routing
        self._image_prefix = routing.image_prefix(path)

    def forward(self, input: Tensor) -> Tensor:
        """Return the base layer's output, exactly, when no adapter of the step adapts this module."""
        out = F.linear(input, self.weight, self.bias)
        active = self._routing.active
        if active is None or self._untouched_by(active.tickets):
            return out
        mask = self._routing.mask_for(self._path, self._image_prefix, input)
        a, b = active.rows_of(self._shelf.a), active.rows_of(self._shelf.b)
        x = input.to(a.dtype)
        if out.dtype == a.dtype:
            return add_mixture_delta(out, x, a, b, mask)
        delta = x.new_zeros(out.shape)
        return out + add_mixture_delta(delta, x, a, b, mask).to(out.dtype)

    def _untouched_by(self, tickets: Collection[int]) -> bool:
        return self._shelf.adapted_by.isdisjoint(tickets)
