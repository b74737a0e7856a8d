"""Transfer of adapters from host memory to the device: packed in pinned memory, copied on a side stream."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from generation_service.lora.weights import AdapterWeights, LoraPair, all_finite
from infra.contract.errors import CheckpointError


@dataclass(frozen=True)
class HostPacker:
    """Packs adapters in the bank's dtype and layout, so that an upload is a plain copy without conversion.

    `pinned` allocates page-locked memory, from which a GPU copies asynchronously. CUDA rounds page-locked blocks up to
    a power of two, so a packed adapter can take up to twice its size.
    """

    dtype: torch.dtype
    pinned: bool = False

    def __call__(self, weights: AdapterWeights) -> AdapterWeights:
        """Copy `weights` into one block: for each module a [rank, in] and b^T [rank, out], both contiguous.

        Raises CheckpointError if a value is not finite in `dtype`.
        """
        block = torch.empty(
            sum(pair.a.numel() + pair.b.numel() for pair in weights.modules.values()),
            dtype=self.dtype,
            pin_memory=self.pinned,
        )
        modules: dict[str, LoraPair] = {}
        start = 0
        for path, pair in weights.modules.items():
            middle, stop = start + pair.a.numel(), start + pair.a.numel() + pair.b.numel()
            a = block[start:middle].view(pair.a.shape).copy_(pair.a)
            b = block[middle:stop].view(pair.b.t().shape).copy_(pair.b.t())
            modules[path] = LoraPair(a, b.t())
            start = stop
        if not all_finite(block):
            raise CheckpointError(f"{_first_non_finite(modules)}: values of the adapter are not finite in {self.dtype}")
        return AdapterWeights(weights.rank, modules, weights.revision)


class H2DCopyStream:
    """Copies tensors to `device` on a CUDA stream of its own; on a CPU device the copies are synchronous.

        stream.copy(source, destination)   # once per tensor
        stream.synchronize()               # the destinations are now readable on any stream

    A copy from pinned memory in the destination's dtype and layout is one DMA transfer. Only `synchronize` blocks, and
    it releases the GIL while it waits. Not thread-safe: the bank serialises its writers.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # Keeps both ends of a copy alive until it has completed: the caching allocator does not track this stream.
        self._in_flight: list[Tensor] = []

    def copy(self, source: Tensor, destination: Tensor) -> None:
        """Start to copy `source` into `destination`.

        Raises ValueError if their shapes differ: nothing is broadcast.
        """
        if source.shape != destination.shape:
            raise ValueError(f"source has shape {list(source.shape)}, destination {list(destination.shape)}")
        if self._stream is None:
            destination.copy_(source)
            return
        if not self._in_flight:
            # The caller's stream may still have to zero the destination.
            self._stream.wait_stream(torch.cuda.current_stream(destination.device))
        self._in_flight += (source, destination)
        with torch.cuda.stream(self._stream):
            destination.copy_(source, non_blocking=True)

    def synchronize(self) -> None:
        """Block until every copy started so far has completed."""
        if self._stream is not None:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._stream)
            event.synchronize()
        self._in_flight.clear()


def _first_non_finite(modules: dict[str, LoraPair]) -> str:
    return next(path for path, pair in modules.items() if not (pair.a.isfinite().all() and pair.b.isfinite().all()))
