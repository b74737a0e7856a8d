"""The device and dtype settings -> torch's devices and dtypes."""

from __future__ import annotations

import torch

from infra.contract.errors import ConfigurationError


def resolve_device(name: str) -> torch.device:
    """Return the torch device of that name; auto: a GPU if there is one. Raises ConfigurationError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(f"device {name!r} is not known to torch: use cpu, cuda, cuda:0, ...") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(f"device {name!r} needs a GPU, and torch finds none: use cpu or auto")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """Return the dtype of that name; auto: the checkpoint's (None) on a GPU, float32 on a CPU."""
    if name == "auto":
        return None if device.type == "cuda" else torch.float32
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype
