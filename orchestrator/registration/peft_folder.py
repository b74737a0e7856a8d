"""Read a PEFT adapter folder as an adapter of the catalogue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from infra.contract.adapter import Adapter, base_model_name
from infra.contract.errors import CheckpointError
from orchestrator.registration.safetensors_header import AdaptedLayers, read_layers


def read_adapter(
    name: str,
    checkpoint: Path,
    *,
    base_model: str = "",
    kind: str = "",
    tags: tuple[str, ...] = (),
    display_name: str = "",
    description: str = "",
) -> Adapter:
    """Return the adapter in a PEFT folder, with its base model, its largest rank and the layers it adapts.

    A folder that is not on this machine is registered as given and needs `base_model`. Raises CheckpointError if
    adapter_config.json is unreadable or adapter_model.safetensors is damaged.
    """
    local = checkpoint.is_dir()
    config = _config(checkpoint) if local else {}
    layers = read_layers(checkpoint) if local else AdaptedLayers()
    if not local and not base_model:
        raise CheckpointError(
            f"--checkpoint {checkpoint} is not a folder on this machine; give the PEFT folder, or, if only the "
            "generation service's machine has it, name its base model with --base-model"
        )
    base_model_path = str(config.get("base_model_name_or_path") or "").rstrip("/")
    if not base_model and not base_model_path:
        raise CheckpointError(f"{checkpoint}/adapter_config.json has no base model; give --base-model")
    return Adapter(
        adapter_id=name,
        base_model=base_model_name(base_model or base_model_path),
        checkpoint_uri=str(checkpoint.resolve()) if local else str(checkpoint),
        kind=kind,
        display_name=display_name,
        description=description,
        tags=tags,
        rank=max(_largest_rank(config, checkpoint), layers.rank),
        targets=layers.targets or _targets(config),
    )


def _targets(config: dict[str, Any]) -> tuple[str, ...]:
    modules = config.get("target_modules")
    return tuple(sorted(map(str, modules))) if isinstance(modules, list) else ()


def _largest_rank(config: dict[str, Any], folder: Path) -> int:
    try:
        return max([int(config.get("r") or 0), *map(int, dict(config.get("rank_pattern") or {}).values())])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}/adapter_config.json: r and rank_pattern must be ranks ({error})") from error


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); give a PEFT adapter folder") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} is not a JSON object; give a PEFT adapter folder")
    return config
