"""The headers of safetensors files: names, shapes and types, no values."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open

BROKEN = (SafetensorError, ValueError, KeyError)
"""What reading a file that is no whole safetensors file raises, beside OSError."""

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class TensorHeader:
    """A tensor as its file's header describes it; `dtype` in torch's words, in the file's where torch has none."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def values(self) -> int:
        """How many values it holds."""
        return prod(self.shape)


def file_headers(path: Path) -> dict[str, TensorHeader]:
    """Return the tensors of a safetensors file by name. Raises OSError or one of BROKEN."""
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in list(file.keys())}
        return {
            name: TensorHeader(tuple(part.get_shape()), _DTYPES.get(part.get_dtype(), part.get_dtype()))
            for name, part in slices.items()
        }
