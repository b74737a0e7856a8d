"""What embedders that run in torch share: device, precision, vector length and a digest of the weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from infra.contract.errors import ConfigurationError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_VALUES_PER_TENSOR = 64  # sampled for the digest; hashing all weights of a large model would delay every start


def resolve_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is a GPU if there is one. Raises ConfigurationError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(f"device {name!r} is not available: {str(error).splitlines()[0]}") from error


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype called `name`; "auto" is float32 on the CPU, bfloat16 elsewhere. Raises ConfigurationError."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in _DTYPES:
        raise ConfigurationError(f"dtype {name!r} must be one of auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def resolve_dim(requested: int | None, full: int, allowed: Sequence[int] | None) -> int:
    """Return the length of vectors: `full`, or one of the model's Matryoshka lengths. Raises ConfigurationError."""
    dims = sorted({*(allowed or ()), full})
    if requested is None:
        return full
    if requested not in dims:
        raise ConfigurationError(
            f"truncate_dim {requested} is not one of this model's dimensions: {', '.join(map(str, dims))}"
        )
    return requested


def weights_digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """Return 12 hexadecimal digits: SHA-256 over all names, shapes and evenly spaced values of each tensor."""
    digest = hashlib.sha256()
    for name, tensor in named:
        flat = tensor.flatten()
        sampled = flat[:: max(1, len(flat) // _VALUES_PER_TENSOR)].float().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(sampled.numpy().tobytes())
    return digest.hexdigest()[:12]
