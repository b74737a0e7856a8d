"""Build transformers models: on the meta device for their architecture, or with every weight of a folder bound."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from generation_service.adapters.checkpoint.binding import Rename
from generation_service.lora.weights import Shapes
from generation_service.models.base import LoadOptions, ModelArchitecture
from generation_service.models.folder import (
    StoredTensor,
    check_floating_point,
    check_merged,
    open_tensors,
    read_config,
    unread_tensors,
)
from generation_service.models.quantised.methods import served_tensors
from infra.contract.errors import CheckpointError

_SAVE_INNER = "save the model inside it (`model.module` or `model._orig_mod`) with save_pretrained"
_WRAPPERS = {
    "base_model.model.": "save what PEFT's merge_and_unload() returns",
    "_orig_mod.": _SAVE_INNER,
    "module.": _SAVE_INNER,
    "_fsdp_wrapped_module.": "save the full state dict of the unwrapped model",
}
"""Prefixes of the names in a checkpoint that was saved through a wrapper -> what to save instead."""


def parse_config(folder: Path, config_class: Any, title: str) -> Any:
    """Parse the folder's config.json as `config_class`. Raises CheckpointError if it does not describe such a model."""
    read_config(folder)
    try:
        config = config_class.from_pretrained(folder, local_files_only=True)
        # Weights are dequantised while they are read; transformers would build layers for the stored type.
        vars(config).pop("quantization_config", None)
        return config
    except Exception as error:  # transformers validates with the exceptions of several libraries.
        raise CheckpointError(
            f"{folder / 'config.json'} does not describe a {title} model: {' '.join(str(error).split())[:300]}",
            path=str(folder),
        ) from error


def build_without_weights(folder: Path, model_class: Any, config: Any, title: str) -> Any:
    """Build `model_class` from `config` on the meta device: parameters have shapes and no memory."""
    try:
        with torch.device("meta"):
            return model_class._from_config(config)
    except Exception as error:
        raise CheckpointError(
            f"{folder / 'config.json'} describes a {title} model that cannot be built: {error}", path=str(folder)
        ) from error


def load_with_weights(
    folder: Path, model_class: Any, config: Any, options: LoadOptions, title: str, *, attention: str = "sdpa"
) -> Any:
    """Load `model_class` with the folder's weights, frozen, on the device of `options`.

    On the meta device, binds the names, shapes and types in the headers of the files and reads no values: the check of
    a folder is this same function.

    Raises CheckpointError naming the tensors that are missing, unexpected, of another shape or not floating point.
    """
    stored = served_tensors(folder)
    check_merged(folder, stored)
    check_floating_point(folder, stored)
    device = options.device
    try:
        with ExitStack() as files:
            tensors = unread_tensors(stored) if device.type == "meta" else open_tensors(stored, files)
            model, report = model_class.from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                dtype=options.dtype or _dtype_of(config, stored),
                device_map=device if device.type == "meta" else None,
                attn_implementation=attention,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:
        raise CheckpointError(f"{folder} cannot be loaded as {title}: {error}", path=str(folder)) from error
    _check_bound(folder, report)
    return model.eval().requires_grad_(False).to(device)


def _dtype_of(config: Any, stored: Mapping[str, StoredTensor]) -> torch.dtype:
    """Return the dtype that the config states, else that of the first tensor in the files."""
    stated = config.dtype or config.get_text_config().dtype
    found = stated or getattr(torch, next(iter(stored.values())).header.dtype)
    assert isinstance(found, torch.dtype)
    return found


def linear_layers(model: nn.Module, *below: str) -> Shapes:
    """Return the linear layers below the given prefixes: module path -> (in, out)."""
    prefixes = tuple(f"{prefix}." for prefix in below)
    return {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(prefixes)
    }


def architecture_of(
    title: str, model: Any, targets: Shapes, by_image: tuple[str, ...], canonical: Rename
) -> ModelArchitecture:
    """Return the architecture of a transformers model whose config has a `text_config`, or is one."""
    text = model.config.get_text_config()
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", False) else None
    return ModelArchitecture(
        title=title,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        dtype=model.config.dtype or text.dtype,
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        vocab_size=text.vocab_size,
        max_positions=min(text.max_position_embeddings, window or text.max_position_embeddings),
        by_image=by_image,
        targets=targets,
        canonical=canonical,
    )


def _check_bound(folder: Path, report: dict[str, Any]) -> None:
    unexpected = sorted(report["unexpected_keys"])
    problems = {
        "missing from the files": sorted(report["missing_keys"]),
        "of another shape than config.json says": sorted(
            entry if isinstance(entry, str) else str(entry[0]) for entry in report["mismatched_keys"]
        ),
        "in the files without a place in the model": unexpected,
        "that could not be read": sorted(str(message) for message in report.get("error_msgs") or ()),
    }
    reasons = [f"{len(names)} tensors {what}: {', '.join(names[:8])}" for what, names in problems.items() if names]
    if reasons:
        raise CheckpointError(
            f"{folder} does not hold the model of its config.json; " + "; ".join(reasons) + binding_remedy(unexpected),
            path=str(folder),
        )


def binding_remedy(unplaced: Collection[str]) -> str:
    """Return what to do about tensors that do not bind, as the end of a message; `unplaced` have no place."""
    prefix = next((known for known in _WRAPPERS if unplaced and all(name.startswith(known) for name in unplaced)), None)
    if prefix is None:
        return ": download the folder again, or give the config.json that belongs to these weights"
    return f"; their names start with {prefix!r}, which a training wrapper adds: {_WRAPPERS[prefix]}"
