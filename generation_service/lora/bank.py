"""The adapters on the device: one preallocated A and B a module, each adapter owning one range of rank columns."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import nn

from generation_service.lora.h2d_copy import Upload
from generation_service.lora.linear import LoraLinear
from generation_service.lora.ranks import RankAllocator, RankRange
from generation_service.lora.routing import Routing
from generation_service.lora.step_lora import Place
from generation_service.lora.weight_group import Shelf, groups_of
from generation_service.lora.weights import AdapterWeights, LoraPair, Shapes
from infra.contract.errors import CheckpointError


class AdapterBank:
    """For every module of `targets`, A [ranks, in] and B [ranks, out] at fixed addresses, zero where no one writes.

    Modules that read the same input (q, k and v; gate and up) share a shelf and one product with A.

    An adapter of rank r owns the same r columns in every module, whatever rank each of its modules has and whichever
    it leaves alone; nothing is padded to the largest adapter. Its scaling is folded into B. `write` may run on a
    loader thread while the engine runs steps that use other ranges.
    """

    def __init__(
        self, targets: Shapes, ranks: int, dtype: torch.dtype, device: torch.device | str, by_image: Sequence[str] = ()
    ) -> None:
        self.targets = dict(targets)
        self.dtype = dtype
        self.device = torch.device(device)
        self._written: set[RankRange] = set()
        self.routing = Routing(self._written, self.device, dtype, by_image)
        self._ranges = RankAllocator(ranks)
        self.shelves = [Shelf(group, self.targets, ranks, dtype, self.device) for group in groups_of(self.targets)]
        self._places = {
            path: Place(path, shelf, member, self.routing.image_prefix(path))
            for shelf in self.shelves
            for member, path in enumerate(shelf.paths)
        }
        self._upload = Upload(self.device)
        self._lock = threading.Lock()

    @property
    def ranks(self) -> int:
        """Rank columns of every module: the largest adapter that can ever fit."""
        return self._ranges.ranks

    @property
    def free(self) -> int:
        """Rank columns that no one owns."""
        return self._ranges.free

    @property
    def largest_free(self) -> int:
        """The largest rank that `acquire` would grant now."""
        return self._ranges.largest_free

    @property
    def bytes(self) -> int:
        """Bytes on the device, whether in use or not."""
        return sum(shelf.bytes for shelf in self.shelves)

    @property
    def bytes_per_rank(self) -> int:
        """Bytes that one rank column takes over all modules."""
        return self.bytes // self.ranks

    @property
    def adapted_modules(self) -> int:
        """Modules that an adapter ever changed since the start; it only grows."""
        return sum(sum(shelf.ever_adapted) for shelf in self.shelves)

    def install(self, model: nn.Module) -> None:
        """Replace each linear layer named in `targets` by a LoraLinear of the same parameters, in place.

        Raises ValueError when a target is not a linear layer of the shape that `targets` says.
        """
        linears = {path: self._linear(model, path) for path in self.targets}
        for path, linear in linears.items():
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, LoraLinear(linear, self._places[path], self.routing))

    def acquire(self, rank: int) -> RankRange:
        """Return a range of `rank` columns, all zero. Raises CapacityError naming the need and the limit."""
        return self._ranges.acquire(rank)

    def write(self, owned: RankRange, weights: AdapterWeights) -> None:
        """Put `weights` into the range just acquired for it; once: what is published never changes under a reader.

        Raises CheckpointError for modules or shapes that are not this base model's and for values that `dtype`
        cannot hold, ValueError for a range that is not held, too small, or written before.
        """
        with self._lock:
            self._ranges.check(owned)
            if owned in self._written:
                raise ValueError(f"{owned} holds an adapter already: release it, then acquire another range")
            if weights.rank > owned.rank:
                raise ValueError(f"an adapter of rank {weights.rank} does not fit {owned}")
            pairs = {path: self._fitted(path, pair) for path, pair in weights.modules.items()}
            try:
                for path, pair in pairs.items():
                    place = self._places[path]
                    place.shelf.put(place.member, owned, pair, self._upload)
            finally:
                self._upload.finish()
            self._written.add(owned)

    def release(self, owned: RankRange) -> None:
        """Zero the range and give its columns back. Raises ValueError when it is not held.

        The caller sees to it that no running sequence uses it.
        """
        with self._lock:
            self._ranges.check(owned)
            for shelf in self.shelves:
                shelf.clear(owned)
            self._written.discard(owned)
            self._ranges.release(owned)

    def _linear(self, model: nn.Module, path: str) -> nn.Linear:
        module = model.get_submodule(path)
        if not isinstance(module, nn.Linear) or isinstance(module, LoraLinear):
            raise ValueError(f"{path} is a {type(module).__name__}; a bank is installed once, on linear layers")
        if (module.in_features, module.out_features) != self.targets[path]:
            raise ValueError(f"{path} is {module.in_features} -> {module.out_features}, not {self.targets[path]}")
        return module

    def _fitted(self, path: str, pair: LoraPair) -> LoraPair:
        if path not in self.targets:
            raise CheckpointError(f"the adapter adapts {path!r}, which this base model has no adaptable layer for")
        inputs, outputs = self.targets[path]
        if pair.a.shape != (pair.rank, inputs) or pair.b.shape != (outputs, pair.rank):
            raise CheckpointError(
                f"{path}: a {list(pair.a.shape)} and b {list(pair.b.shape)} do not fit a layer of {inputs} -> {outputs}"
            )
        fitted = LoraPair(pair.a.to(self.dtype), pair.b.to(self.dtype))
        if not (fitted.a.isfinite().all() and fitted.b.isfinite().all()):
            raise CheckpointError(f"{path}: values of the adapter are not finite in {self.dtype}")
        return fitted
