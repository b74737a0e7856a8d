"""What the header of an adapter's safetensors file says of its layers, read without its tensors."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.contract.errors import CheckpointError

WEIGHTS_FILE, PICKLE_FILE = "adapter_model.safetensors", "adapter_model.bin"
_LORA_A = re.compile(r"(?:^|\.)(?P<layer>[^.]+)\.lora_A(?:\.[^.]+)?\.weight$")
_LARGEST_HEADER = 100 * 2**20


@dataclass(frozen=True)
class AdaptedLayers:
    """The largest rank of an adapter, and the kinds of layers that it adapts, by name; 0 and none when not known."""

    rank: int = 0
    targets: tuple[str, ...] = ()


def read_layers(folder: Path) -> AdaptedLayers:
    """Return what a PEFT folder adapts; nothing is known when its weights are not there.

    Raises CheckpointError for a file that is cut off or no safetensors file, that holds no LoRA, and for a pickle.
    """
    file = folder / WEIGHTS_FILE
    if not file.exists():
        if (folder / PICKLE_FILE).exists():
            raise CheckpointError(f"{folder} holds {PICKLE_FILE}, a pickle, which is never read; save {WEIGHTS_FILE}")
        return AdaptedLayers()
    found = {
        matched["layer"]: int(tensor["shape"][0])
        for name, tensor in sorted(_header(file).items(), key=lambda item: _rows(item[1]))
        if (matched := _LORA_A.search(name))
    }
    if not found:
        raise CheckpointError(f"{file} holds no lora_A tensor; give the folder of a LoRA adapter")
    return AdaptedLayers(max(found.values()), tuple(sorted(found)))


def _rows(tensor: Any) -> int:
    return int(tensor["shape"][0]) if tensor.get("shape") else 0


def _header(file: Path) -> dict[str, Any]:
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > min(size - 8, _LARGEST_HEADER):
                raise ValueError("its header reaches beyond its end")
            header = json.loads(opened.read(length))
        tensors = {str(name): one for name, one in header.items() if name != "__metadata__"}
        end = max((int(one["data_offsets"][1]) for one in tensors.values()), default=0)
        if not all(isinstance(one["shape"], list) for one in tensors.values()):
            raise ValueError("its header names no shapes")
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} is no whole safetensors file ({error}); was it written to the end?") from error
    if 8 + length + end != size:
        raise CheckpointError(f"{file} holds {size} bytes of {8 + length + end}: was it written to the end?")
    return tensors
