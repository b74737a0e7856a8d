"""Zero-copy views of the tensors of a safetensors file in memory.

The library's own `load` copies every tensor while it holds the interpreter lock: 0.1 s for 100 MB, during which the
engine could not start a step. Layout (huggingface/safetensors, "Format"): the length of the header as 8 little-endian
bytes; the header, a JSON object of name -> {dtype, shape, data_offsets}; then the tensors without gaps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself."""
_METADATA = "__metadata__"
_MAX_DIMENSIONS = 8
"""More than any LoRA has; it bounds the work on a hostile header."""


def tensors_in(data: bytearray) -> dict[str, Tensor]:
    """Return the tensors of the file `data`, sharing its memory. Raises ValueError if it is not a complete file."""
    header, start = _header(data)
    entries = {name: _entry(name, described, len(data)) for name, described in header.items() if name != _METADATA}
    end = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if start + entry.start != end:
            raise ValueError(f"the data of {name} does not start where the previous tensor ends")
        end = start + entry.stop
    if end != len(data):
        raise ValueError(f"its header describes {end} bytes and it has {len(data)}")
    return {name: _view(data, start + entry.start, entry.dtype, entry.shape) for name, entry in entries.items()}


class _Entry(NamedTuple):
    """A tensor in the header. `start` and `stop` are byte offsets after the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


def _header(data: bytearray) -> tuple[Mapping[str, Any], int]:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, _MAX_HEADER_BYTES):
        raise ValueError("it ends within its header")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    return header, 8 + length


def _entry(name: str, described: object, limit: int) -> _Entry:
    """Return the entry of a tensor in a file of `limit` bytes. Raises ValueError for an impossible one."""
    match described:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(stop)]} if dtype in _DTYPES:
            if (
                len(shape) <= _MAX_DIMENSIONS
                and all(type(size) is int and 0 <= size <= limit for size in shape)
                and start >= 0
                and stop - start == math.prod(shape) * _DTYPES[dtype].itemsize
            ):
                return _Entry(_DTYPES[dtype], tuple(shape), start, stop)
    raise ValueError(f"its header describes {name} as {str(described)[:100]}")


def _view(data: bytearray, start: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    count = math.prod(shape)
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype, count=count, offset=start).view(shape)
