"""Reads the files of a jina-embeddings-v4 folder, maps their tensor names, and reports problems with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from infra.contract.errors import CheckpointError

UNUSED_PREFIXES = ("multi_vector_projector.", "lm_head.")
_SPELLINGS = (  # (in the file, in transformers' Qwen2_5_VLModel), the longest prefix first
    ("model.language_model.", "language_model."),
    ("model.visual.", "visual."),
    ("visual.", "visual."),
    ("model.", "language_model."),
)
_MAX_LISTED = 12


def read_json(path: Path, folder: Path) -> dict[str, Any]:
    """Return the JSON object in `path`. Raises CheckpointError with a remedy, if there is none."""
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


def canonical_name(key: str) -> str | None:
    """Return the name of a tensor or module in transformers' Qwen2_5_VLModel, or None if it has none."""
    for stored, canonical in _SPELLINGS:
        if key.startswith(stored):
            return canonical + key.removeprefix(stored)
    return None


def open_safetensors(path: Path) -> Any:
    """Return an open safetensors file. Raises CheckpointError if it is missing or truncated."""
    try:
        return safe_open(str(path), framework="pt")
    except FileNotFoundError:
        raise CheckpointError(
            f"{str(path.parent)!r} is not complete: {path.name!r} is missing; download the model again"
        ) from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a complete safetensors file ({error}); download it again") from error


def raise_if_any(folder: Path, problems: list[str]) -> None:
    """Raise CheckpointError that lists the problems, if there are any."""
    if problems:
        raise CheckpointError(f"{folder}: {len(problems)} tensor(s) do not bind: {summarise(problems)}")


def summarise(items: list[str]) -> str:
    """Return the first items and the number of others."""
    shown = "; ".join(items[:_MAX_LISTED])
    return shown if len(items) <= _MAX_LISTED else f"{shown}; and {len(items) - _MAX_LISTED} more"
