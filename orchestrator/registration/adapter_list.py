"""Adapters in a JSON file beside their vectors: the study's config, and what `adapters export` writes.

An array of {"lora_name", "lora_path", "embedding_path", "description"}; `embedding_path` is a .npy file of one mean [d]
or of the vectors of m examples [m, d]. Exports add the other fields of an adapter, and the fingerprint of the embedder.
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
_SPARE_FIELDS = ("kind", "display_name", "base_model")


@dataclass(frozen=True)
class ListedAdapter:
    """An adapter with its vectors, each little-endian float32; `fingerprint` names their embedder where it is known."""

    adapter: Adapter
    vectors: tuple[bytes, ...]
    fingerprint: str = ""


@dataclass(frozen=True)
class BadEntry:
    """An entry that could not be read or registered: its place from 0 on, its name if it has one, and why."""

    index: int
    name: str
    problem: str


def read_adapter_list(
    file: Path, *, base_model: str = "", kind: str = ""
) -> list[tuple[int, ListedAdapter] | BadEntry]:
    """Return the entries in order, each with its place, or why it cannot be read.

    Paths are relative to the file's folder, or to the working folder where nothing is there. The base model is
    `base_model`, or the entry's own, or read from the checkpoint; the kind `kind`, or the entry's own, or "app" for
    "app_lora_x". Raises InvalidArgumentError when the file holds no such array.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidArgumentError("config", f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, list):
        raise InvalidArgumentError("config", f'{file} must hold an array of {{"lora_name", "lora_path", ...}} objects')
    return [_entry(index, entry, file.resolve().parent, base_model, kind) for index, entry in enumerate(content)]


def write_adapter_list(file: Path, listed: Sequence[ListedAdapter]) -> None:
    """Write adapters so that `read_list` gives them back, their vectors in a folder beside the file."""
    import numpy as np  # deferred: an installation without extras has clients and no numpy

    folder = file.with_name(f"{file.stem}.vectors")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        entries = []
        for one in listed:
            vectors = np.stack([np.frombuffer(vector, "<f4") for vector in one.vectors])
            np.save(folder / f"{one.adapter.adapter_id}.npy", vectors, allow_pickle=False)
            entries.append(_as_entry(one, f"{folder.name}/{one.adapter.adapter_id}.npy"))
        file.write_text(json.dumps(entries, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidArgumentError("file", f"{file} cannot be written: {error.strerror or error}") from error


def _as_entry(one: ListedAdapter, embedding_path: str) -> dict[str, Any]:
    adapter = one.adapter
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
        "embedder_fingerprint": one.fingerprint,
    }


def _entry(index: int, entry: Any, folder: Path, base_model: str, kind: str) -> tuple[int, ListedAdapter] | BadEntry:
    name = str(entry.get("lora_name", "")) if isinstance(entry, dict) else ""
    try:
        if not isinstance(entry, dict):
            raise InvalidArgumentError("", 'is no object {"lora_name", "lora_path", "embedding_path"}')
        return index, _listed(entry, folder, base_model, kind)
    except LoraRetrieverError as error:
        return BadEntry(index, name, error.message)


def _listed(entry: dict[str, Any], folder: Path, base_model: str, kind: str) -> ListedAdapter:
    texts = {name: _text(entry, name) for name in ("lora_name", "lora_path", "embedding_path", "description")}
    spare = {name: _text(entry, name) for name in _SPARE_FIELDS}
    for name in ("lora_name", "lora_path", "embedding_path"):
        if not texts[name]:
            raise InvalidArgumentError(name, "is missing")
    checkpoint = _located(texts["lora_path"], folder)
    named = base_model or spare["base_model"]
    if not checkpoint.is_dir() and not named:
        raise CheckpointError(f"lora_path: {texts['lora_path']} is no folder here; make it one, or add --base-model")
    adapter = read_adapter(
        texts["lora_name"],
        checkpoint,
        base_model=named,
        kind=kind or spare["kind"] or _kind_of(texts["lora_name"]),
        tags=_strings(entry, "tags"),
        display_name=spare["display_name"],
        description=texts["description"],
    )
    vectors = read_vectors(_located(texts["embedding_path"], folder))
    return ListedAdapter(_with_known(adapter, entry), tuple(vectors), _text(entry, "embedder_fingerprint"))


def _with_known(adapter: Adapter, entry: dict[str, Any]) -> Adapter:
    """Return the adapter with rank and targets of the entry, where its checkpoint is not here to be read."""
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
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise InvalidArgumentError(name, f"must be an array of strings, got {values!r:.60}")
    return tuple(values)
