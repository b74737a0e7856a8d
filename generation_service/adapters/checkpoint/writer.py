"""Write weights as a PEFT folder, which PEFT, vLLM and this server load."""

from __future__ import annotations

from pathlib import Path

from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from generation_service.adapters.checkpoint.folder_files import WEIGHTS_FILE
from generation_service.lora.weights import AdapterWeights
from infra.contract.errors import InvalidArgumentError

_PREFIX = "base_model.model."


def write_checkpoint(folder: Path, weights: AdapterWeights, base_model: str) -> None:
    """Write `weights` for the base model named `base_model`, under the names of modules in transformers.

    The scaling is folded into B already, so alpha equals r. Modules of lower rank are padded with zeros to the largest:
    vLLM reads no rank pattern. Raises InvalidArgumentError if there is nothing to write, or it cannot be written.
    """
    if not weights.modules:
        raise InvalidArgumentError("adapters", "the result adapts no layer: give at least one weight other than 0")
    config = LoraConfig(
        r=weights.rank, lora_alpha=weights.rank, base_model_name_or_path=base_model, inference_mode=True
    )
    config.target_modules = sorted(weights.modules)  # A set would be written in another order each time.
    tensors: dict[str, Tensor] = {}
    for path, pair in weights.modules.items():
        missing = weights.rank - pair.rank
        tensors[f"{_PREFIX}{path}.lora_A.weight"] = pad(pair.a, (0, 0, 0, missing)).contiguous()
        tensors[f"{_PREFIX}{path}.lora_B.weight"] = pad(pair.b, (0, missing)).contiguous()
    try:
        config.save_pretrained(str(folder))
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    except (OSError, AssertionError) as error:
        raise InvalidArgumentError("folder", f"{folder} cannot be written: {error}") from error
