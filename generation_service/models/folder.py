"""Read a base model's folder: its config, its name, its revision, and the headers of its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from generation_service.adapters.checkpoint.tensor_headers import BROKEN, TensorHeader, file_headers
from infra.contract.adapter import base_model_name
from infra.contract.errors import CheckpointError

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATING_POINT = ("float64", "float32", "float16", "bfloat16")
_PREPROCESSOR = "preprocessor_config.json"
_ADAPTER_PARTS = (".lora_A.", ".lora_B.", ".base_layer.")
_POSITION_IDS = ".position_ids"  # An integer buffer that older releases of transformers saved.
_MODEL_SUFFIXES = (".json", ".safetensors", ".gguf", ".model", ".txt", ".jinja")

# At most 256 samples of 64 KiB are hashed of each file: 16 MiB rather than gigabytes. Training changes weights
# everywhere, so samples suffice to tell two models apart.
_SAMPLES, _SAMPLE_BYTES = 256, 1 << 16


@dataclass(frozen=True)
class StoredTensor:
    """The file of a tensor, and its header: shape and dtype.

    `read` returns the values of a tensor that is dequantised, None if they are in the file as the header says.
    """

    file: Path
    header: TensorHeader
    read: Callable[[], Tensor] | None = None


@dataclass(frozen=True)
class _Lazy:
    """Values that are computed when they are indexed, as a slice object of safetensors reads them."""

    read: Callable[[], Tensor]

    def __getitem__(self, index: object) -> Tensor:
        return self.read()[index]  # type: ignore[index]


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`. Raises CheckpointError if it is missing or not an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} has no {path.name}: give the complete folder as it was downloaded", path=str(path)
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}; download it again", path=str(path)) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object; download it again", path=str(path))
    return content


def read_config(folder: Path) -> dict[str, Any]:
    """Return a model folder's config.json. Raises CheckpointError if the folder or the file is missing."""
    if not folder.is_dir():
        raise CheckpointError(
            f"there is no model folder {folder}: point --model-path at the folder of a downloaded base model",
            path=str(folder),
        )
    return read_json(folder / CONFIG)


def default_model_name(folder: Path) -> str:
    """Return the name of the model: what the config's _name_or_path means, else the folder's path."""
    return base_model_name(str(read_config(folder).get("_name_or_path") or "")) or base_model_name(
        str(folder.resolve())
    )


def folder_revision(folder: Path) -> str:
    """Return a SHA-256 (hex) over the names and contents of the folder's files, which identifies the model.

    Of a large file, only its size and evenly spread samples are hashed.

    Raises CheckpointError if a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in _model_files(folder):
        try:
            size = path.stat().st_size
            digest.update(f"{path.name}\n{size}\n".encode())
            with path.open("rb") as file:
                for start in range(0, size, max(_SAMPLE_BYTES, size // _SAMPLES)):
                    file.seek(start)
                    digest.update(file.read(_SAMPLE_BYTES))
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}", path=str(path)) from error
    return digest.hexdigest()


def check_readable(folder: Path) -> None:
    """Raise CheckpointError for a file of the model that cannot be opened, as `folder_revision` would."""
    for path in _model_files(folder):
        try:
            path.open("rb").close()
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}", path=str(path)) from error


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors of `folder` by name without their values. Raises CheckpointError if a file is incomplete.

    A single file takes precedence over shards, as in transformers.
    """
    if (folder / SINGLE).exists():
        return _stored_in(folder / SINGLE)
    if (folder / INDEX).exists():
        return _sharded(folder)
    others = sorted(path.name for path in folder.glob("*.bin"))
    hint = (
        f"it has {', '.join(others)}, which are pickles and never opened; convert them to safetensors" if others else ""
    )
    raise CheckpointError(
        f"{folder} has neither {SINGLE} nor {INDEX}" + (f": {hint}" if hint else "; download the folder again"),
        path=str(folder),
    )


def check_floating_point(folder: Path, stored: Mapping[str, StoredTensor]) -> None:
    """Raise CheckpointError for weights of another type than float64, float32, float16 and bfloat16."""
    others = {name: tensor.header.dtype for name, tensor in stored.items() if tensor.header.dtype not in FLOATING_POINT}
    weights = sorted(name for name in others if not name.endswith(_POSITION_IDS))
    if weights:
        types = ", ".join(sorted({others[name] for name in weights}))
        raise CheckpointError(
            f"{folder}: {_listed(weights)} stored as {types}; this version serves weights in bfloat16, float16 or "
            "float32: take the model without quantisation",
            path=str(folder),
        )


def check_merged(folder: Path, stored: Mapping[str, StoredTensor]) -> None:
    """Raise CheckpointError if the weights are a fine-tuned model whose adapter was not merged into it."""
    if not any(part in name for name in stored for part in _ADAPTER_PARTS):
        return
    config = read_config(folder)
    settings = [f"{name} {config[name]}" for name in ("use_llm_lora", "use_backbone_lora") if config.get(name)]
    stated = f" ({', '.join(settings)})" if settings else ""
    tool = "InternVL's tools/merge_lora.py" if settings else "merge_and_unload() of PEFT"
    raise CheckpointError(
        f"{folder} is an unmerged LoRA fine-tune{stated}: its files hold lora_A and lora_B beside the base weights; "
        f"merge them first, with {tool}",
        path=str(folder),
    )


def image_processor_settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the settings of the image processor and their file, which transformers 5 calls processor_config.json.

    Raises CheckpointError if neither file states them.
    """
    combined = folder / "processor_config.json"
    if combined.is_file():
        settings = read_json(combined).get("image_processor")
        if isinstance(settings, dict):
            return combined, settings
    return folder / _PREPROCESSOR, read_json(folder / _PREPROCESSOR)


def unread_tensors(stored: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    """Return the tensors of `stored` on the meta device: shapes and types without values."""
    return {
        name: torch.empty(tensor.header.shape, dtype=getattr(torch, tensor.header.dtype, torch.int64), device="meta")
        for name, tensor in stored.items()
    }


def open_tensors(stored: Mapping[str, StoredTensor], files: ExitStack) -> dict[str, Any]:
    """Return a slice object of safetensors for each tensor of `stored`; its values are read when it is indexed.

    The files stay open until `files` is closed.
    """
    opened = {
        path: files.enter_context(safe_open(path, framework="pt"))
        for path in {tensor.file for tensor in stored.values() if tensor.read is None}
    }
    return {
        name: opened[tensor.file].get_slice(name) if tensor.read is None else _Lazy(tensor.read)
        for name, tensor in stored.items()
    }


def eos_tokens(folder: Path) -> frozenset[int]:
    """Return the ids that end an answer: generation_config.json's, else config.json's, else its text_config's.

    Raises CheckpointError unless they are token ids.
    """
    path = folder / CONFIG
    config = read_config(folder)
    stated = [(path, config), (path, config.get("text_config"))]
    if (generation := folder / "generation_config.json").is_file():
        stated.insert(0, (generation, read_json(generation)))
    found = ((source, part.get("eos_token_id")) for source, part in stated if isinstance(part, dict))
    path, eos = next((each for each in found if each[1] is not None), (path, []))
    ids = eos if isinstance(eos, list) else [eos]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or token < 0:
            raise CheckpointError(
                f"{path}: eos_token_id must be a token id or a list of them, it is {str(eos)[:60]!r}: take the file of "
                "the base model",
                path=str(path),
            )
    return frozenset(ids)


def _model_files(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.suffix in _MODEL_SUFFIXES and entry.is_file())


def _sharded(folder: Path) -> dict[str, StoredTensor]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX} has no weight_map; download it again", path=str(folder / INDEX))
    stored: dict[str, StoredTensor] = {}
    for shard in sorted({str(shard) for shard in weight_map.values()}):
        path = folder / shard
        if path.parent != folder or shard not in weight_map.values():
            raise CheckpointError(
                f"{folder / INDEX} names {shard!r}, which is not a file of the folder", path=str(path)
            )
        in_shard = _stored_in(path)
        twice = sorted(stored.keys() & in_shard.keys())
        if twice:
            raise CheckpointError(
                f"{folder}: {_listed(twice)} in {stored[twice[0]].file.name} and in {shard}: which one counts is not "
                "known; save the model again",
                path=str(path),
            )
        stored |= in_shard
    absent = sorted(
        name for name, shard in weight_map.items() if name not in stored or stored[name].file != folder / str(shard)
    )
    if absent:
        raise CheckpointError(f"{folder}: {_listed(absent)} not in the file that {INDEX} names", path=str(folder))
    return stored


def _stored_in(path: Path) -> dict[str, StoredTensor]:
    return {name: StoredTensor(path, header) for name, header in _headers_in(path).items()}


def _headers_in(path: Path) -> dict[str, TensorHeader]:
    try:
        return file_headers(path)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} lacks {path.name}, which {INDEX} names: download the missing file", path=str(path)
        ) from None
    except (OSError, *BROKEN) as error:
        raise CheckpointError(
            f"{path} is not a complete safetensors file ({error}): download it again", path=str(path)
        ) from error


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return (
        f"{shown} and {len(names) - 5} more are" if len(names) > 5 else f"{shown} {'is' if len(names) == 1 else 'are'}"
    )
