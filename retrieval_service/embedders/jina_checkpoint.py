"""A jina-embeddings-v4 folder, in the layout of the hub, -> transformers' Qwen2.5-VL with one task's LoRA merged.

The folder holds Qwen2.5-VL weights (`model.*` and `visual.*`, or the newer `model.language_model.*` and
`model.visual.*`), a multi-vector projector, and in `adapters/` one PEFT file with the LoRA of every task
(`...lora_A.<task>.weight`). No code of the folder is run. The projector (late interaction) and a language-model head
are not part of a dense embedding and are left out by name; every other tensor binds exactly once, or the load fails.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel
from transformers.initialization import no_init_weights

from infra.contract.errors import CheckpointError

_SPELLINGS = (  # (in the file, in transformers' Qwen2_5_VLModel), the most specific first
    ("model.language_model.", "language_model."),
    ("model.visual.", "visual."),
    ("visual.", "visual."),
    ("model.", "language_model."),
)
_LEFT_OUT = ("multi_vector_projector.", "lm_head.")
_LORA_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.(?P<task>[^.]+)\.weight")
_DIGEST_VALUES_PER_TENSOR = 64
_SHOWN_PROBLEMS = 12


@dataclass(frozen=True)
class JinaCheckpoint:
    """A loaded model: `config` is the file's own dictionary, `digest` names the weights in 12 hexadecimal digits."""

    model: Qwen2_5_VLModel
    config: Mapping[str, Any]
    digest: str


@dataclass(frozen=True)
class _LoraFactors:
    a: Tensor  # [r, in]
    b: Tensor  # [out, r]


def load_checkpoint(folder: Path, task: str, dtype: torch.dtype, device: torch.device) -> JinaCheckpoint:
    """Load the folder's model with the LoRA of `task` merged: W + scaling * B A, summed in float32.

    Raises CheckpointError naming the folder, the file or the tensors at fault.
    """
    config = read_json(folder / "config.json", folder)
    transformers.logging.set_verbosity_error()  # what matters of a checkpoint is checked, and said, here
    with no_init_weights():
        model = Qwen2_5_VLModel(_model_config(config, folder)).eval()
    targets = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    weights = _read_base(folder, targets)
    factors, scaling = _read_lora(folder / "adapters", task, model)
    digest = _digest(weights, factors)
    state = {name: tensor.to(dtype) for name, tensor in weights.items()}
    for module, pair in factors.items():
        delta = scaling(module) * (pair.b.float() @ pair.a.float())
        state[f"{module}.weight"] = (weights[f"{module}.weight"].float() + delta).to(dtype)
    model.load_state_dict(state, strict=True, assign=True)
    return JinaCheckpoint(model.requires_grad_(False).to(device), config, digest)


def read_json(path: Path, folder: Path) -> dict[str, Any]:
    """Return the JSON object in `path`. Raises CheckpointError with the remedy when there is none."""
    if not folder.is_dir():
        raise CheckpointError(
            f"there is no folder {str(folder)!r}; download jina-embeddings-v4 and point --embedder-path at its folder"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        relative = path.relative_to(folder)
        raise CheckpointError(
            f"{str(folder)!r} is not a complete jina-embeddings-v4 folder: {str(relative)!r} is missing; "
            "download the model again, with its adapters/ folder"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


def _model_config(config: Mapping[str, Any], folder: Path) -> Qwen2_5_VLConfig:
    remote = {"auto_map", "architectures", "_name_or_path", "transformers_version"}
    try:
        parsed = Qwen2_5_VLConfig.from_dict({key: value for key, value in config.items() if key not in remote})
    except Exception as error:  # transformers validates with exceptions of several libraries
        raise CheckpointError(f"{folder / 'config.json'} does not describe a Qwen2.5-VL model: {error}") from error
    parsed._attn_implementation = "sdpa"
    return cast("Qwen2_5_VLConfig", parsed)


def _read_base(folder: Path, targets: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return every tensor of the base model under transformers' name, as stored."""
    problems: list[str] = []
    weights: dict[str, Tensor] = {}
    for path, keys in _shards(folder):
        with _opened(path) as file:
            for key in sorted(file.keys()) if keys is None else keys:
                if key.startswith(_LEFT_OUT):
                    continue
                name = canonical(key)
                if name is None or name not in targets:
                    problems.append(f"{key} is no tensor of the model")
                elif name in weights:
                    problems.append(f"{key} is there twice")
                else:
                    weights[name] = file.get_tensor(key)
                    if tuple(weights[name].shape) != targets[name]:
                        problems.append(f"{key} has shape {list(weights[name].shape)}, not {list(targets[name])}")
    problems += [f"{name} is missing" for name in targets if name not in weights]
    _raise_for(folder, problems)
    return weights


def _shards(folder: Path) -> Iterator[tuple[Path, list[str] | None]]:
    """Yield the weight files with the keys that the index promises in each (None: all that are there)."""
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
            raise CheckpointError(f"{index} names {file!r}, which is not in the folder itself")
        with _opened(path) as opened:
            there = set(opened.keys())
        if there != set(keys):
            wrong = sorted(there ^ set(keys))
            raise CheckpointError(f"{path} and the index do not name the same tensors: {_listed(wrong)}")
        yield path, keys


def _read_lora(folder: Path, task: str, model: nn.Module) -> tuple[dict[str, _LoraFactors], Callable[[str], float]]:
    """Return the LoRA of `task` by module, and the scaling of each module. Other tasks' tensors are checked only."""
    config = read_json(folder / "adapter_config.json", folder.parent)
    _refuse_unsupported(config, folder)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    factors: dict[str, dict[str, dict[str, Tensor]]] = defaultdict(lambda: defaultdict(dict))
    problems: list[str] = []
    path = folder / "adapter_model.safetensors"
    with _opened(path) as file:
        for key in sorted(file.keys()):
            match = _LORA_KEY.fullmatch(key)
            if match is None:
                problems.append(f"{key} is no LoRA factor of a task")
                continue
            if f"{match['module']}.".startswith(_LEFT_OUT):
                continue
            module, found = canonical(f"{match['module']}."), match["factor"]
            module = module.removesuffix(".") if module else match["module"]
            rank = _by_pattern(config.get("rank_pattern"), module, config.get("r"))
            if module not in linears:
                problems.append(f"{key} adapts no linear layer of the model")
                continue
            linear = linears[module]
            wanted = [rank, linear.in_features] if found == "A" else [linear.out_features, rank]
            if list(file.get_slice(key).get_shape()) != wanted:
                problems.append(f"{key} has shape {file.get_slice(key).get_shape()}, not {wanted}")
            if found in factors[match["task"]][module]:
                problems.append(f"{key} is there twice")
            factors[match["task"]][module][found] = file.get_tensor(key) if match["task"] == task else torch.empty(0)
    problems += list(_incomplete(factors))
    _raise_for(path, problems)
    if task not in factors:
        raise CheckpointError(f"{path} has no task {str(task)!r}; it has {', '.join(sorted(factors)) or 'none'}")

    def scaling(module: str) -> float:
        rank = _by_pattern(config.get("rank_pattern"), module, config.get("r"))
        alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
        return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)

    return {module: _LoraFactors(pair["A"], pair["B"]) for module, pair in factors[task].items()}, scaling


def _refuse_unsupported(config: Mapping[str, Any], folder: Path) -> None:
    if config.get("peft_type", "LORA") != "LORA":
        raise CheckpointError(f"{folder} holds an adapter of peft_type {config['peft_type']}; only LORA is supported")
    for key, harmless in (("use_dora", False), ("fan_in_fan_out", False), ("bias", "none"), ("modules_to_save", None)):
        if config.get(key, harmless) not in (harmless, None, []):
            raise CheckpointError(f"{folder}: {key}={config[key]!r} is not supported in the adapters of an embedder")
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key), int | float) or config[key] <= 0:
            raise CheckpointError(f"{folder / 'adapter_config.json'}: {key} must be above 0, got {config.get(key)!r}")


def _incomplete(factors: Mapping[str, Mapping[str, Mapping[str, Tensor]]]) -> Iterator[str]:
    """Name factors without their twin, modules that a task lacks, and layers that lack what other layers have."""
    modules = sorted({module for by_module in factors.values() for module in by_module})
    for task, by_module in sorted(factors.items()):
        for module in modules:
            missing = {"A", "B"} - by_module.get(module, {}).keys()
            yield from (f"{module}.lora_{factor}.{task}.weight is missing" for factor in sorted(missing))
    layered = [re.fullmatch(r"(.+\.(?:layers|blocks))\.(\d+)\.(.+)", module) for module in modules]
    by_layer: dict[tuple[str, str], set[str]] = defaultdict(set)
    kinds: dict[str, set[str]] = defaultdict(set)
    for match in filter(None, layered):
        by_layer[match[1], match[2]].add(match[3])
        kinds[match[1]].add(match[3])
    for (stack, layer), there in by_layer.items():
        yield from (f"{stack}.{layer}.{kind} has no LoRA, other layers do" for kind in sorted(kinds[stack] - there))


def canonical(key: str) -> str | None:
    """Return the name in transformers' Qwen2_5_VLModel of a tensor or module, or None when it can have none."""
    for stored, ours in _SPELLINGS:
        if key.startswith(stored):
            return ours + key.removeprefix(stored)
    return None


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Return the value whose pattern matches the end of the module's path, as PEFT reads `rank_pattern`."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _opened(path: Path) -> Any:
    try:
        return safe_open(str(path), framework="pt")
    except FileNotFoundError:
        raise CheckpointError(
            f"{str(path.parent)!r} is not complete: {path.name!r} is missing; download the model again"
        ) from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is no complete safetensors file ({error}); download it again") from error


def _raise_for(place: Path, problems: list[str]) -> None:
    if problems:
        raise CheckpointError(f"{place}: {len(problems)} tensor(s) do not bind: {_listed(problems)}")


def _listed(items: list[str]) -> str:
    shown = "; ".join(items[:_SHOWN_PROBLEMS])
    return shown if len(items) <= _SHOWN_PROBLEMS else f"{shown}; and {len(items) - _SHOWN_PROBLEMS} more"


def _digest(weights: Mapping[str, Tensor], factors: Mapping[str, _LoraFactors]) -> str:
    """Return a name for the weights: SHA-256 over all names and shapes and evenly spaced values of each tensor."""
    digest = hashlib.sha256()
    named: Iterable[tuple[str, Tensor]] = [
        *sorted(weights.items()),
        *((f"{module}.{side}", getattr(pair, side)) for module, pair in sorted(factors.items()) for side in ("a", "b")),
    ]
    for name, tensor in named:
        flat = tensor.flatten()
        sampled = flat[:: max(1, len(flat) // _DIGEST_VALUES_PER_TENSOR)].float().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(sampled.numpy().tobytes())
    return digest.hexdigest()[:12]
