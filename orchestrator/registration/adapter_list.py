"""Read and write a JSON list of adapters and their vectors: the study's config, and the output of `adapters export`.

An array of {"lora_name", "lora_path", "embedding_path", "description"}. `embedding_path` is a .npy file with one mean
vector [d] or the vectors of m examples [m, d]. Exports add the other fields of an adapter and the embedder's
fingerprint.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from infra.contract.adapter import Adapter
from infra.contract.errors import CheckpointError, InvalidArgumentError, LoraRetrieverError
from orchestrator.registration.peft_folder import read_adapter
from orchestrator.registration.training_examples import read_vectors

_KIND_BY_PREFIX = ("app", "category")
_OPTIONAL_FIELDS = ("kind", "display_name", "base_model")


@dataclass(frozen=True)
class ListedAdapter:
    """An adapter with its vectors (little-endian float32) and the fingerprint of their embedder (empty: not known)."""

    adapter: Adapter
    vectors: tuple[bytes, ...]
    fingerprint: str = ""


@dataclass(frozen=True)
class BadEntry:
    """An entry that could not be read or registered: its index from 0, its name if it has one, and the problem."""

    index: int
    name: str
    problem: str


def read_adapter_list(
    file: Path, *, base_model: str = "", kind: str = "", prefix: str = ""
) -> list[tuple[int, ListedAdapter] | BadEntry]:
    """Return the entries in order, each with its index, or as a BadEntry if it cannot be read.

    Paths are relative to the file's folder, or to the working folder if nothing exists there. The base model is
    `base_model`, else the entry's, else the checkpoint's; the kind is `kind`, else the entry's, else "app" for a name
    such as "app_lora_x"; `prefix` precedes every id.

    Raises InvalidArgumentError if the file is not an array of entries.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidArgumentError("config", f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, list):
        raise InvalidArgumentError("config", f'{file} must be an array of {{"lora_name", "lora_path", ...}} objects')
    entries = [_entry(index, entry, file.resolve().parent, base_model, kind) for index, entry in enumerate(content)]
    return [_prefixed(entry, prefix) for entry in entries] if prefix else entries


def write_adapter_list(file: Path, listed: Sequence[ListedAdapter]) -> None:
    """Write adapters for `read_adapter_list`, with their vectors in a folder next to the file."""
    import numpy as np  # deferred: an installation without extras has clients and no numpy

    folder = file.with_name(f"{file.stem}.vectors")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        entries = []
        for item in listed:
            vectors = np.stack([np.frombuffer(vector, "<f4") for vector in item.vectors])
            np.save(folder / f"{item.adapter.adapter_id}.npy", vectors, allow_pickle=False)
            entries.append(_as_entry(item, f"{folder.name}/{item.adapter.adapter_id}.npy"))
        file.write_text(json.dumps(entries, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidArgumentError("file", f"{file} cannot be written: {error.strerror or error}") from error


def _as_entry(listed: ListedAdapter, embedding_path: str) -> dict[str, Any]:
    adapter = listed.adapter
    return {
        "lora_name": adapter.adapter_id,
        "lora_path": adapter.checkpoint_uri,
        "embedding_path": embedding_path,
        "description": adapter.description,
        "display_name": adapter.display_name,
        "base_model": adapter.base_model,
        "kind": adapter.kind,
        "tags": list(adapter.tags),
        "rank": adapter.rank,
        "targets": list(adapter.targets),
        "embedder_fingerprint": listed.fingerprint,
    }


def _entry(index: int, entry: Any, folder: Path, base_model: str, kind: str) -> tuple[int, ListedAdapter] | BadEntry:
    name = str(entry.get("lora_name", "")) if isinstance(entry, dict) else ""
    try:
        if not isinstance(entry, dict):
            raise InvalidArgumentError("", 'is not an object {"lora_name", "lora_path", "embedding_path"}')
        return index, _listed(entry, folder, base_model, kind)
    except LoraRetrieverError as error:
        return BadEntry(index, name, error.message)


def _prefixed(entry: tuple[int, ListedAdapter] | BadEntry, prefix: str) -> tuple[int, ListedAdapter] | BadEntry:
    if isinstance(entry, BadEntry):
        return entry
    index, listed = entry
    adapter = replace(listed.adapter, adapter_id=prefix + listed.adapter.adapter_id)
    return index, replace(listed, adapter=adapter)


def _listed(entry: dict[str, Any], folder: Path, base_model: str, kind: str) -> ListedAdapter:
    texts = {name: _text(entry, name) for name in ("lora_name", "lora_path", "embedding_path", "description")}
    optional = {name: _text(entry, name) for name in _OPTIONAL_FIELDS}
    for name in ("lora_name", "lora_path", "embedding_path"):
        if not texts[name]:
            raise InvalidArgumentError(name, "is missing")
    checkpoint = _located(texts["lora_path"], folder)
    base_model = base_model or optional["base_model"]
    if not checkpoint.is_dir() and not base_model:
        raise CheckpointError(
            f"lora_path: {texts['lora_path']} is not a folder on this machine; copy it here, or add --base-model"
        )
    adapter = read_adapter(
        texts["lora_name"],
        checkpoint,
        base_model=base_model,
        kind=kind or optional["kind"] or _kind_of(texts["lora_name"]),
        tags=_strings(entry, "tags"),
        display_name=optional["display_name"],
        description=texts["description"],
    )
    vectors = read_vectors(_located(texts["embedding_path"], folder))
    return ListedAdapter(_with_entry_shape(adapter, entry), tuple(vectors), _text(entry, "embedder_fingerprint"))


def _with_entry_shape(adapter: Adapter, entry: dict[str, Any]) -> Adapter:
    """Return the adapter with the entry's rank and targets if its checkpoint is not on this machine."""
    rank = entry.get("rank", 0)
    if not isinstance(rank, int):
        raise InvalidArgumentError("rank", f"must be a whole number, got {rank!r}")
    targets = adapter.targets or _strings(entry, "targets")
    return replace(adapter, rank=adapter.rank or rank, targets=targets)


def _kind_of(name: str) -> str:
    return next((kind for kind in _KIND_BY_PREFIX if name.startswith(f"{kind}_lora_")), "")


def _located(path: str, folder: Path) -> Path:
    below = folder / path
    return below if below.exists() or Path(path).is_absolute() else Path(path)


def _text(entry: dict[str, Any], name: str) -> str:
    value = entry.get(name) or ""
    if not isinstance(value, str):
        raise InvalidArgumentError(name, f"must be a string, got {value!r:.60}")
    return value


def _strings(entry: dict[str, Any], name: str) -> tuple[str, ...]:
    values = entry.get(name) or []
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise InvalidArgumentError(name, f"must be an array of strings, got {values!r:.60}")
    return tuple(values)
