"""Where an embedder runs, in what precision, and how many dimensions of its vectors are kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from infra.contract.errors import ConfigurationError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is a GPU where there is one. Raises ConfigurationError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(f"device {name!r} is not there: {str(error).splitlines()[0]}") from error


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype called `name`; "auto" is float32 on the CPU, bfloat16 elsewhere. Raises ConfigurationError."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in _DTYPES:
        raise ConfigurationError(f"dtype {name!r} is none of auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def resolve_dim(wanted: int | None, full: int, allowed: Sequence[int] | None) -> int:
    """Return how many dimensions are kept: all, or one of the model's Matryoshka lengths. Raises ConfigurationError."""
    dims = sorted({*(allowed or ()), full})
    if wanted is None:
        return full
    if wanted not in dims:
        raise ConfigurationError(f"truncate_dim {wanted} is none of this model's: {', '.join(map(str, dims))}")
    return wanted
