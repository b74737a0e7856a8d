"""Reads the LoRA of one task from the PEFT file that contains those of all tasks."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from infra.contract.errors import CheckpointError
from retrieval_service.embedders.jina_files import (
    UNUSED_PREFIXES,
    canonical_name,
    open_safetensors,
    raise_if_any,
    read_json,
)

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.(?:default\.)?(?P<task>[^.]+)\.weight")
_LAYER = re.compile(r"(?P<stack>.+\.(?:layers|blocks))\.(?P<layer>\d+)\.(?P<linear>.+)")


@dataclass(frozen=True)
class LoraPair:
    """One module's factors, a [r, in] and b [out, r], with scaling alpha/r, or alpha/sqrt(r) for rsLoRA."""

    a: Tensor
    b: Tensor
    scaling: float

    def delta(self) -> Tensor:
        """Return scaling * B A, [out, in], in float32."""
        return self.scaling * (self.b.float() @ self.a.float())


Factors = dict[tuple[str, str, str], str]  # (module, "A" or "B", task) -> key in the file


def read_lora(folder: Path, task: str, model: nn.Module) -> dict[str, LoraPair]:
    """Return the LoRA of `task` by module. The tensors of other tasks are checked but not loaded.

    Raises CheckpointError that names the file, the setting or the invalid tensors.
    """
    config = read_json(folder / "adapter_config.json", folder.parent)
    _refuse_unsupported(config, folder)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    path = folder / "adapter_model.safetensors"
    with open_safetensors(path) as file:
        shapes = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no mapping
        factors, problems = _bind(shapes, linears, config)
        raise_if_any(path, problems + list(_incomplete(factors, linears)))
        tasks = {name for _, _, name in factors}
        if task not in tasks:
            raise CheckpointError(f"{path} has no task {str(task)!r}; it has {', '.join(sorted(tasks)) or 'none'}")
        return {
            module: LoraPair(
                file.get_tensor(factors[module, "A", task]),
                file.get_tensor(factors[module, "B", task]),
                _scaling(config, module),
            )
            for module in sorted({module for module, _, _ in factors})
        }


def _bind(
    shapes: Mapping[str, list[int]], linears: Mapping[str, nn.Linear], config: Mapping[str, Any]
) -> tuple[Factors, list[str]]:
    """Return the factors by (module, side, task), and the problems of tensors that do not bind."""
    factors: Factors = {}
    problems: list[str] = []
    for key, shape in sorted(shapes.items()):
        match = _KEY.fullmatch(key)
        if match is None:
            problems.append(f"{key} is not a LoRA factor of a task")
            continue
        if f"{match['module']}.".startswith(UNUSED_PREFIXES):
            continue
        module = canonical_name(match["module"])
        if module is None or module not in linears:
            problems.append(f"{key} does not adapt a linear layer of the model")
            continue
        rank, linear = _rank(config, module), linears[module]
        expected = [rank, linear.in_features] if match["factor"] == "A" else [linear.out_features, rank]
        if shape != expected:
            problems.append(f"{key} has shape {shape}, not {expected}")
        factor = (module, match["factor"], match["task"])
        if factor in factors:
            problems.append(f"{key} appears twice")
        factors[factor] = key
    return factors, problems


def _incomplete(factors: Factors, linears: Mapping[str, nn.Linear]) -> Iterator[str]:
    """Yield the factors that a task lacks, and the layers without a LoRA that other layers of their stack have."""
    modules = {module for module, _, _ in factors}
    for task in sorted({task for _, _, task in factors}):
        for module in sorted(modules):
            missing = [side for side in "AB" if (module, side, task) not in factors]
            yield from (f"{module}.lora_{side}.{task}.weight is missing" for side in missing)
    adapted: dict[str, set[str]] = defaultdict(set)
    for match in filter(None, map(_LAYER.fullmatch, modules)):
        adapted[match["stack"]].add(match["linear"])
    for match in filter(None, map(_LAYER.fullmatch, linears)):
        if match["linear"] in adapted[match["stack"]] and match[0] not in modules:
            yield f"{match[0]} has no LoRA, but other layers have one"


def _refuse_unsupported(config: Mapping[str, Any], folder: Path) -> None:
    if config.get("peft_type", "LORA") != "LORA":
        raise CheckpointError(f"{folder} holds an adapter of peft_type {config['peft_type']}; only LORA is supported")
    for key, supported in (("use_dora", False), ("fan_in_fan_out", False), ("bias", "none"), ("modules_to_save", None)):
        if config.get(key, supported) not in (supported, None, []):
            raise CheckpointError(f"{folder}: {key}={config[key]!r} is not supported in the adapters of an embedder")
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key), int | float) or config[key] <= 0:
            raise CheckpointError(f"{folder / 'adapter_config.json'}: {key} must be above 0, got {config.get(key)!r}")


def _scaling(config: Mapping[str, Any], module: str) -> float:
    rank = _rank(config, module)
    alpha = _by_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _rank(config: Mapping[str, Any], module: str) -> int:
    return int(_by_pattern(config.get("rank_pattern"), module, config["r"]))


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Return the value whose pattern matches the end of the module's path, as PEFT reads `rank_pattern`."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
