"""The headers of safetensors files: names, shapes and types, no values."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open

BROKEN = (SafetensorError, ValueError, KeyError)
"""What reading a file that is not a complete safetensors file raises, other than OSError."""

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class TensorHeader:
    """A tensor as described by its file's header; `dtype` is torch's name, or the file's if torch has none."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def values(self) -> int:
        """Number of elements."""
        return prod(self.shape)


def file_headers(path: Path) -> dict[str, TensorHeader]:
    """Return the tensors of a safetensors file by name. Raises OSError or one of BROKEN."""
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in list(file.keys())}
        return {
            name: TensorHeader(tuple(part.get_shape()), _DTYPES.get(part.get_dtype(), part.get_dtype()))
            for name, part in slices.items()
        }
