"""Read rank and adapted layers from the header of an adapter's safetensors file, without its tensors."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.contract.errors import CheckpointError

_WEIGHTS_FILE, _PICKLE_FILE = "adapter_model.safetensors", "adapter_model.bin"
_LORA_A = re.compile(r"(?:^|\.)(?P<layer>[^.]+)\.lora_A(?:\.[^.]+)?\.weight$")
_MAX_HEADER_BYTES = 100 * 2**20
"""Above the safetensors library's own limit of 100 MB; a larger length is not that of a header."""


@dataclass(frozen=True)
class AdaptedLayers:
    """The largest rank of an adapter and the names of the layers it adapts; 0 and empty: not known."""

    rank: int = 0
    targets: tuple[str, ...] = ()


def read_layers(folder: Path) -> AdaptedLayers:
    """Return the adapted layers of a PEFT folder; they are not known if it has no weights file.

    Raises CheckpointError if the weights are a pickle, a damaged or truncated safetensors file, or not a LoRA.
    """
    file = folder / _WEIGHTS_FILE
    if not file.exists():
        if (folder / _PICKLE_FILE).exists():
            raise CheckpointError(f"{folder} has {_PICKLE_FILE}, a pickle, which is never loaded; save {_WEIGHTS_FILE}")
        return AdaptedLayers()
    ranks = {
        match["layer"]: int(tensor["shape"][0])
        for name, tensor in sorted(_header(file).items(), key=lambda item: _rows(item[1]))
        if (match := _LORA_A.search(name))
    }
    if not ranks:
        raise CheckpointError(f"{file} has no lora_A tensor; give the folder of a LoRA adapter")
    return AdaptedLayers(max(ranks.values()), tuple(sorted(ranks)))


def _rows(tensor: Any) -> int:
    return int(tensor["shape"][0]) if tensor.get("shape") else 0


def _header(file: Path) -> dict[str, Any]:
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(size - 8, _MAX_HEADER_BYTES):
                raise ValueError("its header extends beyond its end")
            header = json.loads(stream.read(length))
        tensors = {str(name): tensor for name, tensor in header.items() if name != "__metadata__"}
        end = max((int(tensor["data_offsets"][1]) for tensor in tensors.values()), default=0)
        if not all(isinstance(tensor["shape"], list) for tensor in tensors.values()):
            raise ValueError("its header has no shapes")
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{file} is not a complete safetensors file ({error}); was it written to the end?"
        ) from error
    if 8 + length + end != size:
        raise CheckpointError(f"{file} has {size} bytes of {8 + length + end}; was it written to the end?")
    return tensors
