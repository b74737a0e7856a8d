"""The lower bound on the time of a decode step, a roofline.

It is the larger of bytes read / memory bandwidth and operations / arithmetic rate. Both rates are measured in the same
run. Import `harness` first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from harness import time_interleaved
from random_models import RandomBaseModel


@dataclass(frozen=True)
class Machine:
    """A device's rates: bytes per second of a copy, read and written, and operations per second of a large product."""

    bytes_per_s: float
    operations_per_s: float


@dataclass(frozen=True)
class Work:
    """The minimum work of a decode step."""

    bytes: int
    operations: int

    def seconds(self, machine: Machine) -> float:
        """Return the lower bound, with reads and arithmetic perfectly overlapped."""
        return max(self.bytes / machine.bytes_per_s, self.operations / machine.operations_per_s)


def measure_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """Measure a copy too large for any cache, and a square matrix product in `dtype`."""
    on_gpu = device.type == "cuda"
    source = torch.ones(2**30 if on_gpu else 2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    size = 8192 if on_gpu else 1024 if dtype == torch.float32 else 256
    square = torch.ones(size, size, dtype=dtype, device=device)
    times = time_interleaved(
        {"copy": lambda: target.copy_(source), "product": lambda: square @ square},
        repetitions=7,
        warmup=2,
        device=device,
    )
    return Machine(2 * source.nbytes / min(times["copy"].seconds), 2 * size**3 / min(times["product"].seconds))


def decode_work(model: RandomBaseModel, rows: int, context: int, ranks: int = 0) -> Work:
    """Return the work of one token for `rows` rows after `context` others, with `ranks` ranks of a bank in use.

    Every weight of the linear layers and of the head is read once, every key and value, and A and B of the ranks; each
    row is multiplied with all of them.
    """
    about, shape = model.description, model.shape
    weights = sum(inputs * outputs for inputs, outputs in about.targets.values()) + shape.vocab * shape.hidden
    deltas = ranks * sum(inputs + outputs for inputs, outputs in about.targets.values())
    cached = rows * context * 2 * shape.layers * shape.kv_heads * shape.head_dim
    attended = rows * context * 2 * shape.layers * shape.hidden
    return Work((weights + deltas + cached) * about.dtype.itemsize, 2 * (rows * (weights + deltas) + attended))
