"""The files of an adapter folder besides its config and weights: trained weights are refused, the rest is listed.

Only names are looked at. No file is opened, since many are pickles.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from generation_service.adapters.checkpoint.peft_config import CONFIG_FILE
from infra.contract.errors import CheckpointError

WEIGHTS_FILE = "adapter_model.safetensors"
_PICKLE_FILE = "adapter_model.bin"
_SHARDS = "adapter_model-*-of-*"

_WEIGHTS = re.compile(r".*\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|distcp)")
_NOT_APPLIED = re.compile(
    r"adapter_model\.(safetensors|bin)"  # The adapter, or a copy of it.
    r"|(optimizer|scheduler|scaler|sampler|random_states|rng_state|rng-state|dataloader|training_args|trainer_state)"
    r"[^/]*\.(bin|pt|pth|safetensors)"  # Written by Trainer, accelerate and FSDP in order to resume.
    r"|pytorch_model_fsdp[^/]*\.bin"
    r"|.*(_optim_states|_model_states)\.pt"  # By DeepSpeed, likewise: with these, the adapter is in its own file too.
    r"|(tokenizer|vocab|spiece)[^/]*\.bin"
)
_OWN_FOLDERS = re.compile(r"(optimizer|pytorch_model_fsdp)[_-]?\d*|checkpoint-[^/]*|v\d+-[^/]*|.*merged.*|runs|\..*")
"""Folders of resume states, of other checkpoints of a run, and of a base model that this adapter was merged into."""
_ENTRIES_LOOKED_AT = 10_000
_SHOWN = 5


def check_files(folder: Path) -> None:
    """Raise CheckpointError if trained weights that are not part of the LoRA are stored beside it."""
    trained = trained_weights(folder) if (folder / WEIGHTS_FILE).exists() else []
    if trained:
        more = f" and {len(trained) - _SHOWN} more" if len(trained) > _SHOWN else ""
        raise CheckpointError(
            f"{folder} holds trained weights that are not applied, as with modules_to_save: "
            f"{', '.join(trained[:_SHOWN])}{more}. Merge them and the LoRA into the base model and serve that; a file "
            "that the LoRA does not need can be moved out of the folder"
        )


def trained_weights(folder: Path) -> list[str]:
    """Return the weight files beside the LoRA, relative to `folder`, that its answers may depend on."""
    return [name for name in _files(folder) if _WEIGHTS.fullmatch(name) and not _NOT_APPLIED.fullmatch(_last(name))]


def ignored_files(folder: Path) -> list[str]:
    """Return the names of other entries in `folder`, which are not read."""
    own = {CONFIG_FILE, WEIGHTS_FILE, *(name.partition("/")[0] for name in trained_weights(folder))}
    return sorted(path.name for path in _entries(folder) if path.name not in own)


def missing_file(folder: Path, name: str) -> str:
    """Return why the folder has no file `name`, and what to do."""
    if not folder.is_dir():
        return f"{folder} is not a folder: an adapter is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
    if name == WEIGHTS_FILE and (folder / _PICKLE_FILE).exists():
        return (
            f"{folder} holds {_PICKLE_FILE}, a pickle, which is never opened: if you trust it, convert it with "
            f"safetensors.torch.save_file(torch.load({_PICKLE_FILE!r}, weights_only=True), {WEIGHTS_FILE!r})"
        )
    shards = sorted(path.name for path in folder.glob(_SHARDS))
    if name == WEIGHTS_FILE and shards:
        return (
            f"{folder} holds an adapter in {len(shards)} parts ({shards[0]}, ...), which PEFT does not load either: "
            f"save it again in one part, {WEIGHTS_FILE}, with a larger max_shard_size"
        )
    below = sorted(path.parent.relative_to(folder).as_posix() for path in _configs_below(folder))
    if below:
        return f"{folder} has no {name}: give the folder of one adapter: {', '.join(below[:_SHOWN])}"
    return f"{folder} has no {name}: {_other_format(folder) or 'was saving it interrupted?'}"


def _other_format(folder: Path) -> str:
    """Return which other format of LoRAs the files of the folder have, and "" if none is recognised."""
    names = [path.name for path in _entries(folder)]
    gguf = next((name for name in names if name.endswith(".gguf")), "")
    if gguf:
        return f"{gguf} is a LoRA of llama.cpp; give the PEFT folder that it was converted from"
    if "adapters.safetensors" in names or "adapters.npz" in names:
        return "it holds an MLX adapter; convert it to a PEFT folder, or train with PEFT"
    if "pytorch_lora_weights.safetensors" in names:
        return "pytorch_lora_weights.safetensors is a LoRA of diffusers, for image generation"
    others = [name for name in names if name.endswith(".safetensors") and name != WEIGHTS_FILE]
    if others and CONFIG_FILE not in names:
        return (
            f"{others[0]} alone is not a PEFT folder (kohya and diffusers write such files, for image generation): "
            "save the adapter with PEFT's save_pretrained"
        )
    return ""


def _configs_below(folder: Path) -> Iterator[Path]:
    for depth in ("*", "*/*"):
        yield from folder.glob(f"{depth}/{CONFIG_FILE}")


def _files(folder: Path) -> list[str]:
    """Return the files in `folder` and below, except in folders that are something of their own or cannot be read."""
    found: list[str] = []
    pending, entries = [folder], 0
    while pending and entries < _ENTRIES_LOOKED_AT:
        for path in _entries(pending.pop()):
            entries += 1
            if not path.is_dir():
                found.append(path.relative_to(folder).as_posix())
            elif not (path.is_symlink() or _OWN_FOLDERS.fullmatch(path.name) or (path / CONFIG_FILE).exists()):
                pending.append(path)
    return found


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _last(name: str) -> str:
    return name.rpartition("/")[2]
