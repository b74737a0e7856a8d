"""A name for weights, so that vectors of two checkpoints are told apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from torch import Tensor

_VALUES_PER_TENSOR = 64


def weights_digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """Return 12 hexadecimal digits: SHA-256 over all names and shapes and evenly spaced values of each tensor."""
    digest = hashlib.sha256()
    for name, tensor in named:
        flat = tensor.flatten()
        sampled = flat[:: max(1, len(flat) // _VALUES_PER_TENSOR)].float().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(sampled.numpy().tobytes())
    return digest.hexdigest()[:12]
