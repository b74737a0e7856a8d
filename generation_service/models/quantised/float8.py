"""Float8 checkpoints: weights times their scales, by tensor, by row or by block.

Published layouts: `weight_scale_inv` for each block of `weight_block_size` (DeepSeek-V3, Qwen3-FP8), `weight_scale` for
the tensor or each row (`quant_method: fp8`, and compressed-tensors of type float-quantized). Both scales multiply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from generation_service.adapters.checkpoint.tensor_headers import TensorHeader
from generation_service.models.folder import StoredTensor
from infra.contract.errors import CheckpointError

TYPES = ("F8_E4M3", "F8_E5M2")
_SCALES = ("_scale_inv", "_scale")
_OF_ACTIVATIONS = (".input_scale", ".activation_scale", ".k_scale", ".v_scale", ".q_scale", ".output_scale")
"""Scales that some engines round activations with. Activations stay unrounded here, so these are not needed."""


def dequantised(
    folder: Path, stored: Mapping[str, StoredTensor], block: tuple[int, int] | None
) -> dict[str, StoredTensor]:
    """Return the tensors of a float8 checkpoint as they are served: weights scaled, scales left out.

    Raises CheckpointError for a weight without a scale of a fitting shape.
    """
    served = {name: tensor for name, tensor in stored.items() if not name.endswith(_OF_ACTIVATIONS)}
    for name in [name for name, tensor in served.items() if tensor.header.dtype in TYPES]:
        scale_name = next((name + ending for ending in _SCALES if name + ending in stored), None)
        if scale_name is None:
            raise CheckpointError(
                f"{folder}: {name} is stored as {served[name].header.dtype} and has no {name}_scale or "
                f"{name}_scale_inv: download the folder again",
                path=str(folder),
            )
        weight, scale = served[name], served.pop(scale_name)
        _check_shapes(folder, name, weight.header, scale.header, block)
        read = partial(_read_scaled, (weight.file, name), (scale.file, scale_name), block)
        served[name] = replace(weight, header=TensorHeader(weight.header.shape, "float32"), read=read)
    return served


def block_size(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the rows and columns of a block as `quantization_config` states them; None if scales are not by block."""
    stated = settings.get("weight_block_size")
    for group in (settings.get("config_groups") or {}).values():
        stated = stated or (group.get("weights") or {}).get("block_structure")
    return (int(stated[0]), int(stated[1])) if stated else None


def _check_shapes(
    folder: Path, name: str, weight: TensorHeader, scale: TensorHeader, block: tuple[int, int] | None
) -> None:
    shape = weight.shape
    fitting = {(), (1,), (1, 1), shape[:1], (*shape[:1], 1)}
    if block and len(shape) == 2:
        fitting.add((-(-shape[0] // block[0]), -(-shape[1] // block[1])))
    if scale.shape not in fitting:
        blocks = f" in blocks of {block[0]} x {block[1]}" if block else ""
        raise CheckpointError(
            f"{folder}: the scale of {name} is {list(scale.shape)}, which does not fit {list(shape)}{blocks}: "
            "config.json and the files are not of one model; download the folder again",
            path=str(folder),
        )


def _read_scaled(weight: tuple[Path, str], scale: tuple[Path, str], block: tuple[int, int] | None) -> Tensor:
    values, factors = _tensor(*weight).float(), _tensor(*scale).float()
    if factors.dim() == 2 and block and factors.shape != (values.shape[0], 1) and factors.numel() > 1:
        rows, columns = values.shape
        factors = factors.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
    elif factors.dim() == 1 and factors.numel() > 1:
        factors = factors[:, None]
    return values * factors


def _tensor(file: Path, name: str) -> Tensor:
    with safe_open(file, framework="pt") as opened:
        tensor: Tensor = opened.get_tensor(name)
    return tensor if tensor.dim() else tensor.reshape(1)


def is_float8(stored: Mapping[str, StoredTensor]) -> bool:
    """Return whether any tensor is stored in float8."""
    return any(tensor.header.dtype in TYPES for tensor in stored.values())
