"""The adapter bank: preallocated A and B for every module, in which each adapter owns one range of rank columns."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import nn

from generation_service.lora.h2d_copy import H2DCopyStream
from generation_service.lora.linear import LoraLinear
from generation_service.lora.packed import PackedWeight, can_pack
from generation_service.lora.ranks import RankAllocator, RankRange
from generation_service.lora.routing import Routing
from generation_service.lora.weight_group import LoraWeightGroup, ModuleSlot, group_targets
from generation_service.lora.weights import AdapterWeights, LoraPair, Shapes
from infra.contract.errors import CheckpointError


class AdapterBank:
    """A [ranks, in] and B [ranks, out] for every module of `targets`, at fixed addresses, zero where unused.

    Modules that read the same input (q, k and v; gate and up) form one LoraWeightGroup and share one product with A.

    An adapter of rank r owns the same r columns in every module, even where its rank is lower or it adapts
    nothing. Nothing is padded to the largest adapter. The adapter's scaling is folded into B.

    Called on: `write` and `release` on loader threads, while the engine thread runs steps that use other ranges.
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
        self.groups = [
            LoraWeightGroup(paths, self.targets, ranks, dtype, self.device) for paths in group_targets(self.targets)
        ]
        self._slots = {
            path: ModuleSlot(path, group, member, self.routing.image_prefix(path))
            for group in self.groups
            for member, path in enumerate(group.paths)
        }
        self._copies = H2DCopyStream(self.device)
        self._lock = threading.Lock()  # Guards: _written, _copies, and writes to the groups.

    @property
    def ranks(self) -> int:
        """Rank columns of every module, which is also the largest rank that fits."""
        return self._ranges.ranks

    @property
    def free(self) -> int:
        """Rank columns that no adapter owns."""
        return self._ranges.free

    @property
    def largest_free(self) -> int:
        """The largest rank that `acquire` would grant now."""
        return self._ranges.largest_free

    @property
    def bytes(self) -> int:
        """Bytes on the device, whether in use or not."""
        return sum(group.bytes for group in self.groups)

    @property
    def bytes_per_rank(self) -> int:
        """Bytes of one rank column over all modules."""
        return self.bytes // self.ranks

    @property
    def adapted_modules(self) -> int:
        """Modules that any adapter has changed since the start; it never decreases."""
        return sum(sum(group.ever_adapted) for group in self.groups)

    def install(self, model: nn.Module, pack: bool = False) -> None:
        """Replace every linear layer named in `targets` by a LoraLinear that shares its parameters.

        With `pack`, layers that read rows of tokens also get a packed copy of their weight, where that is possible.

        Raises ValueError if a target is not a linear layer of the shape that `targets` gives.
        """
        linears = {path: self._linear(model, path) for path in self.targets}
        for path, linear in linears.items():
            parent, _, name = path.rpartition(".")
            slot = self._slots[path]
            packed = PackedWeight(linear.weight) if pack and not slot.image_prefix and can_pack(linear.weight) else None
            setattr(model.get_submodule(parent), name, LoraLinear(linear, slot, self.routing, packed))

    def acquire(self, rank: int) -> RankRange:
        """Return a range of `rank` columns, all zero. Raises CapacityError if no gap is large enough."""
        return self._ranges.acquire(rank)

    def write(self, owned: RankRange, weights: AdapterWeights) -> None:
        """Copy `weights` into a freshly acquired range and publish it.

        A range is written once, so that a published adapter never changes under a running step.

        Raises:
            CheckpointError: a module or shape does not belong to this base model, or a value is not finite in `dtype`.
            ValueError: the range is not acquired, is too small, or was written before.
        """
        with self._lock:
            self._ranges.check(owned)
            if owned in self._written:
                raise ValueError(f"{owned} holds an adapter already: release it, then acquire another range")
            if weights.rank > owned.rank:
                raise ValueError(f"an adapter of rank {weights.rank} does not fit {owned}")
            pairs = {path: self._converted(path, pair) for path, pair in weights.modules.items()}
            try:
                for path, pair in pairs.items():
                    slot = self._slots[path]
                    slot.group.write(slot.member, owned, pair, self._copies)
            finally:
                self._copies.synchronize()
            # Published last: `Routing.check` refuses a range whose copies have not completed.
            self._written.add(owned)

    def release(self, owned: RankRange) -> None:
        """Zero the range and free its columns. Raises ValueError if it is not acquired.

        The caller guarantees that no running sequence uses it.
        """
        with self._lock:
            self._ranges.check(owned)
            for group in self.groups:
                group.clear(owned)
            self._written.discard(owned)
            self._ranges.release(owned)

    def _linear(self, model: nn.Module, path: str) -> nn.Linear:
        module = model.get_submodule(path)
        if not isinstance(module, nn.Linear) or isinstance(module, LoraLinear):
            raise ValueError(f"{path} is a {type(module).__name__}; a bank is installed once, on linear layers")
        if (module.in_features, module.out_features) != self.targets[path]:
            raise ValueError(f"{path} is {module.in_features} -> {module.out_features}, not {self.targets[path]}")
        return module

    def _converted(self, path: str, pair: LoraPair) -> LoraPair:
        if path not in self.targets:
            raise CheckpointError(f"the adapter adapts {path!r}, which this base model has no adaptable layer for")
        inputs, outputs = self.targets[path]
        if pair.a.shape != (pair.rank, inputs) or pair.b.shape != (outputs, pair.rank):
            raise CheckpointError(
                f"{path}: a {list(pair.a.shape)} and b {list(pair.b.shape)} do not fit a layer of {inputs} -> {outputs}"
            )
        converted = LoraPair(pair.a.to(self.dtype), pair.b.to(self.dtype))
        if not (converted.a.isfinite().all() and converted.b.isfinite().all()):
            raise CheckpointError(f"{path}: values of the adapter are not finite in {self.dtype}")
        return converted
