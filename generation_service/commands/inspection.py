"""Recognise a folder as a base model or an adapter, and report on it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from generation_service.adapters.checkpoint.folder_files import WEIGHTS_FILE
from generation_service.adapters.checkpoint.peft_config import CONFIG_FILE as ADAPTER_CONFIG
from generation_service.commands.adapter_report import AdapterReport, inspect_adapter
from generation_service.commands.base_model_report import BaseModelReport, inspect_base_model
from generation_service.commands.server_options import ServerOptions
from generation_service.models.folder import CONFIG as MODEL_CONFIG
from generation_service.models.folder import INDEX, read_config
from generation_service.models.quantised.gguf_file import SUFFIX
from infra.contract.errors import CheckpointError, InvalidArgumentError

_SENTENCE_TRANSFORMERS = "modules.json"
_ADAPTER_FILES = (ADAPTER_CONFIG, WEIGHTS_FILE, "adapter_model.bin")
_MODEL_WEIGHTS = (INDEX, "model*.safetensors", f"*{SUFFIX}")
_MODEL_FILES = (MODEL_CONFIG, *_MODEL_WEIGHTS, "pytorch_model*.bin", "generation_config.json")


def inspect_folder(
    path: Path, base_model: Path | None = None, options: ServerOptions | None = None
) -> BaseModelReport | AdapterReport:
    """Report on the folder at `path`. Raises InvalidArgumentError if it is neither a model nor an adapter."""
    options = options or ServerOptions()
    if path.suffix == SUFFIX and path.is_file():
        return inspect_base_model(path, options.load)
    _check_folder(path, "PATH")
    if base_model is not None:
        _check_folder(base_model, "--base-model")
    is_adapter = any((path / name).exists() for name in _ADAPTER_FILES)
    if is_adapter and (base_model is not None or not _holds_base_model(path)):
        return inspect_adapter(path, base_model, options)
    if not any(any(path.glob(name)) for name in _MODEL_FILES):
        raise InvalidArgumentError(
            "PATH", f"{path} has no {MODEL_CONFIG} of a base model and no {ADAPTER_CONFIG} of an adapter{_hint(path)}"
        )
    _check_no_embedder(path)
    if base_model is not None:
        raise InvalidArgumentError("--base-model", f"{path} is a base model itself; the option applies to adapters")
    return inspect_base_model(path, options.load)


def _check_no_embedder(path: Path) -> None:
    """Raise InvalidArgumentError for jina-embeddings-v4 or a sentence-transformers folder, which look like models."""
    config: dict[str, Any] = {}
    with suppress(CheckpointError):  # The report on a model says what is wrong with its config.
        config = read_config(path)
    if "task_names" in config or (path / _SENTENCE_TRANSFORMERS).is_file():
        raise InvalidArgumentError(
            "PATH",
            f"{path} is an embedder, which the retrieval service reads: pass it to 'up' or 'serve retrieval' as "
            "--embedder-path. This command reports on base models and adapters",
        )


def _holds_base_model(path: Path) -> bool:
    """Return whether the folder has config and weights of a base model, maybe beside an adapter that was merged."""
    return (path / MODEL_CONFIG).exists() and any(any(path.glob(name)) for name in _MODEL_WEIGHTS)


def _check_folder(path: Path, name: str) -> None:
    if not path.exists():
        raise InvalidArgumentError(name, f"there is no folder {path}")
    if not path.is_dir() and path.suffix != SUFFIX:
        raise InvalidArgumentError(name, f"{path} is a file; give the folder that contains it")


def _hint(path: Path) -> str:
    names = [f"{depth}{name}" for depth in ("*/", "*/*/") for name in (MODEL_CONFIG, ADAPTER_CONFIG)]
    below = {str(file.parent): None for name in names for file in sorted(path.glob(name))}
    return f"; did you mean {', '.join(list(below)[:5])}?" if below else ""
