"""How a base model is stored: in plain types, as GGUF, or by the method that `quantization_config` names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from generation_service.adapters.checkpoint.tensor_headers import TensorHeader
from generation_service.models.folder import StoredTensor, read_config, stored_tensors
from generation_service.models.quantised.float8 import block_size, dequantised, is_float8
from generation_service.models.quantised.gguf_file import gguf_path, read_gguf
from generation_service.models.quantised.gguf_model import tensors_of
from infra.contract.errors import CheckpointError

_FP8, _COMPRESSED = "fp8", "compressed-tensors"
_NAMES = {
    "awq": "AWQ",
    "gptq": "GPTQ",
    "bitsandbytes": "bitsandbytes",
    "torchao": "torchao",
    "mxfp4": "MXFP4",
    "hqq": "HQQ",
    "quanto": "Quanto",
    "aqlm": "AQLM",
    "fbgemm_fp8": "FBGEMM float8",
    _COMPRESSED: "compressed-tensors",
}


def check_method(folder: Path) -> None:
    """Raise CheckpointError if the model in `folder` is quantised by a method that is not served."""
    settings = _settings(folder)
    if settings is None or _is_float8_method(settings):
        return
    method = str(settings.get("quant_method") or "unknown")
    details = [str(settings[key]) for key in ("format", "quant_type") if settings.get(key)]
    bits = settings.get("bits") or (4 if settings.get("load_in_4bit") else 8 if settings.get("load_in_8bit") else None)
    details += [f"{bits} bits"] if bits else []
    stated = f" ({', '.join(details)})" if details else ""
    raise CheckpointError(
        f"{folder} is quantised with {_NAMES.get(method, method)}{stated}, which is not served; take the model that it "
        "was made from (bfloat16, float8 or GGUF): its adapters fit that",
        quant_method=method,
    )


def served_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors of `folder` as they are served, after dequantisation. Raises CheckpointError."""
    if file := gguf_path(folder):
        return {
            name: StoredTensor(file, TensorHeader(tensor.shape, "float32"), read)
            for name, (tensor, read) in tensors_of(read_gguf(file.resolve())).items()
        }
    stored = stored_tensors(folder)
    return dequantised(folder, stored, block_size(_settings(folder) or {})) if is_float8(stored) else stored


def quantisation_of(folder: Path) -> str | None:
    """Return what the weights in `folder` are dequantised from, None for plain types. Raises CheckpointError."""
    if file := gguf_path(folder):
        return f"GGUF: {read_gguf(file.resolve()).quantisations}"
    if not is_float8(stored_tensors(folder)):
        return None
    block = block_size(_settings(folder) or {})
    return f"float8, a scale for each {block[0]} x {block[1]} values" if block else "float8, a scale by row or tensor"


def _settings(folder: Path) -> Mapping[str, Any] | None:
    config = read_config(folder)
    settings = config.get("quantization_config") or config.get("compression_config")
    return settings if isinstance(settings, dict) or settings is None else {"quant_method": str(settings)}


def _is_float8_method(settings: Mapping[str, Any]) -> bool:
    method = settings.get("quant_method")
    if method == _FP8:
        return True
    weights = [group.get("weights") or {} for group in (settings.get("config_groups") or {}).values()]
    plain = bool(weights) and all(
        of.get("type") == "float" and of.get("num_bits") == 8 and of.get("symmetric", True) for of in weights
    )
    return method == _COMPRESSED and settings.get("format") == "float-quantized" and plain
