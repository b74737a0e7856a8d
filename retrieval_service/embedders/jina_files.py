"""What the files of a jina-embeddings-v4 folder are called, how they are opened, and how their problems are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from infra.contract.errors import CheckpointError

LEFT_OUT = ("multi_vector_projector.", "lm_head.")
_SPELLINGS = (  # (in the file, in transformers' Qwen2_5_VLModel), the most specific first
    ("model.language_model.", "language_model."),
    ("model.visual.", "visual."),
    ("visual.", "visual."),
    ("model.", "language_model."),
)
_SHOWN_PROBLEMS = 12


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


def canonical(key: str) -> str | None:
    """Return the name in transformers' Qwen2_5_VLModel of a tensor or module, or None when it can have none."""
    for stored, ours in _SPELLINGS:
        if key.startswith(stored):
            return ours + key.removeprefix(stored)
    return None


def opened(path: Path) -> Any:
    """Return an open safetensors file. Raises CheckpointError when it is missing or cut off."""
    try:
        return safe_open(str(path), framework="pt")
    except FileNotFoundError:
        raise CheckpointError(
            f"{str(path.parent)!r} is not complete: {path.name!r} is missing; download the model again"
        ) from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is no complete safetensors file ({error}); download it again") from error


def raise_for(place: Path, problems: list[str]) -> None:
    """Raise CheckpointError that lists the tensors at fault, if there are any."""
    if problems:
        raise CheckpointError(f"{place}: {len(problems)} tensor(s) do not bind: {listed(problems)}")


def listed(items: list[str]) -> str:
    """Return the first items, and how many more there are."""
    shown = "; ".join(items[:_SHOWN_PROBLEMS])
    return shown if len(items) <= _SHOWN_PROBLEMS else f"{shown}; and {len(items) - _SHOWN_PROBLEMS} more"
