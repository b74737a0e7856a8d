"""The tensors of a safetensors file already in memory, without a copy.

The library's own `load` copies every tensor while it holds the interpreter: 0.1 s for 100 MB, in which the engine
could not start a step. Layout (huggingface/safetensors, "Format"): the length of the header as 8 little-endian bytes,
the header, a JSON object of name -> {dtype, shape, data_offsets}, and then the tensors, with nothing between them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

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
_METADATA = "__metadata__"
_MOST_DIMENSIONS = 8


def tensors_in(data: bytearray) -> dict[str, Tensor]:
    """Return the tensors of the file `data`, sharing its memory. Raises ValueError for what is no complete file."""
    header, start = _header(data)
    entries = {name: _entry(name, described, len(data)) for name, described in header.items() if name != _METADATA}
    end = start
    for name, (_, _, first, last) in sorted(entries.items(), key=lambda entry: entry[1][2:]):
        if start + first != end:
            raise ValueError(f"the data of {name} is not where the one before it ends")
        end = start + last
    if end != len(data):
        raise ValueError(f"its header describes {end} bytes and it has {len(data)}")
    return {name: _view(data, start + first, dtype, shape) for name, (dtype, shape, first, _) in entries.items()}


def _header(data: bytearray) -> tuple[Mapping[str, Any], int]:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, _MAX_HEADER_BYTES):
        raise ValueError("it ends before its header does")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    return header, 8 + length


def _entry(name: str, described: object, limit: int) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    """Return type, shape and place of a tensor of a file of `limit` bytes."""
    match described:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(first), int(last)]} if dtype in _DTYPES:
            if (
                len(shape) <= _MOST_DIMENSIONS
                and all(type(size) is int and 0 <= size <= limit for size in shape)
                and first >= 0
                and last - first == math.prod(shape) * _DTYPES[dtype].itemsize
            ):
                return _DTYPES[dtype], tuple(shape), first, last
    raise ValueError(f"its header describes {name} as {str(described)[:100]}")


def _view(data: bytearray, start: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    count = math.prod(shape)
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype, count=count, offset=start).view(shape)
