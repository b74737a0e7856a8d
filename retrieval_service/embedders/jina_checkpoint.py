"""Loads a jina-embeddings-v4 folder, in the layout of the hub, as transformers' Qwen2.5-VL with one task's LoRA merged.

The folder holds Qwen2.5-VL weights (`model.*` and `visual.*`, or the newer `model.language_model.*` and
`model.visual.*`), a multi-vector projector, and in `adapters/` one PEFT file with the LoRA of every task
(`...lora_A.<task>.weight`). No code of the folder is run. The projector (late interaction) and a language-model head
do not contribute to a dense embedding and are skipped by name; every other tensor must bind exactly once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel
from transformers.initialization import no_init_weights

from infra.contract.errors import CheckpointError
from retrieval_service.embedders.jina_files import (
    UNUSED_PREFIXES,
    canonical_name,
    open_safetensors,
    raise_if_any,
    read_json,
    summarise,
)
from retrieval_service.embedders.jina_lora import LoraPair, read_lora
from retrieval_service.embedders.torch_model import weights_digest


@dataclass(frozen=True)
class JinaCheckpoint:
    """A loaded model: `config` is the content of config.json, `digest` 12 hexadecimal digits of the weights."""

    model: Qwen2_5_VLModel
    config: Mapping[str, Any]
    digest: str


def load_checkpoint(folder: Path, task: str, dtype: torch.dtype, device: torch.device) -> JinaCheckpoint:
    """Load the folder's model with the LoRA of `task` merged: W + scaling * B A, summed in float32.

    Raises CheckpointError that names the folder, the file or the invalid tensors.
    """
    config = read_json(folder / "config.json", folder)
    transformers.logging.set_verbosity_error()  # every problem of a checkpoint is checked and reported here
    with no_init_weights():
        model = Qwen2_5_VLModel(_model_config(config, folder)).eval()
    targets = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    weights = _read_base(folder, targets)
    lora = read_lora(folder / "adapters", task, model)
    digest = _digest(weights, lora)
    state = {name: tensor.to(dtype) for name, tensor in weights.items()}
    for module, pair in lora.items():
        state[f"{module}.weight"] = (weights[f"{module}.weight"].float() + pair.delta()).to(dtype)
    model.load_state_dict(state, strict=True, assign=True)
    return JinaCheckpoint(model.requires_grad_(False).to(device), config, digest)


def _model_config(config: Mapping[str, Any], folder: Path) -> Qwen2_5_VLConfig:
    remote = {"auto_map", "architectures", "_name_or_path", "transformers_version"}
    try:
        parsed = Qwen2_5_VLConfig.from_dict({key: value for key, value in config.items() if key not in remote})
    except Exception as error:  # transformers validates with exceptions of several libraries
        raise CheckpointError(f"{folder / 'config.json'} does not describe a Qwen2.5-VL model: {error}") from error
    parsed._attn_implementation = "sdpa"
    return cast("Qwen2_5_VLConfig", parsed)


def _read_base(folder: Path, targets: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return every tensor of the base model by its name in transformers, in its stored precision."""
    problems: list[str] = []
    weights: dict[str, Tensor] = {}
    for path, keys in _shards(folder):
        with open_safetensors(path) as file:
            for key in sorted(file.keys()) if keys is None else keys:
                if key.startswith(UNUSED_PREFIXES):
                    continue
                name = canonical_name(key)
                if name is None or name not in targets:
                    problems.append(f"{key} is not a tensor of the model")
                elif name in weights:
                    problems.append(f"{key} appears twice")
                else:
                    weights[name] = file.get_tensor(key)
                    if tuple(weights[name].shape) != targets[name]:
                        problems.append(f"{key} has shape {list(weights[name].shape)}, not {list(targets[name])}")
    problems += [f"{name} is missing" for name in targets if name not in weights]
    raise_if_any(folder, problems)
    return weights


def _shards(folder: Path) -> Iterator[tuple[Path, list[str] | None]]:
    """Yield the weight files, each with the keys that the index lists for it (None: no index)."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        yield folder / "model.safetensors", None
        return
    by_file: dict[str, list[str]] = defaultdict(list)
    for key, file in read_json(index, folder).get("weight_map", {}).items():
        by_file[file].append(key)
    for file, keys in sorted(by_file.items()):
        path = folder / file
        if path.parent != folder:
            raise CheckpointError(f"{index} names {file!r}, which is outside the folder")
        with open_safetensors(path) as shard:
            present = set(shard.keys())
        if present != set(keys):
            differing = sorted(present ^ set(keys))
            raise CheckpointError(f"{path} and the index do not contain the same tensors: {summarise(differing)}")
        yield path, keys


def _digest(weights: Mapping[str, Tensor], lora: Mapping[str, LoraPair]) -> str:
    """Return a digest of the base weights and the LoRA factors."""
    factors = (
        (f"{module}.{side}", getattr(pair, side)) for module, pair in sorted(lora.items()) for side in ("a", "b")
    )
    return weights_digest([*sorted(weights.items()), *factors])
