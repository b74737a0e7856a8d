"""Writes the catalogue to one file and restores it: a zip of JSON and one array, without pickles.

`catalogue.json` holds the embedder's fingerprint and the adapters in order, `vectors.npy` the vectors of their examples
as float32 [n, dim], `example_count` rows per adapter, and `prompts.jsonl` the stored examples.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from qdrant_client import QdrantClient

from infra.contract.adapter import Adapter
from infra.contract.errors import FailedPreconditionError, InvalidArgumentError
from retrieval_service.catalogue.adapter_store import AdapterStore, AdapterWithVectors
from retrieval_service.catalogue.collections import (
    bump_revision,
    catalogue_exists,
    collection_info,
    collection_name,
    create_collection,
    delete_previous,
    point_alias,
)
from retrieval_service.catalogue.points import AdapterVectors
from retrieval_service.catalogue.stored_examples import ExampleStore
from retrieval_service.embedders.base import FloatArray
from retrieval_service.evaluation.vector_files import READ_ERRORS

_FORMAT = "loraretriever-catalogue-1"
_CATALOGUE, _VECTORS, _PROMPTS = "catalogue.json", "vectors.npy", "prompts.jsonl"


@dataclass(frozen=True, eq=False)
class Backup:
    """A catalogue: its embedder's fingerprint, its adapters with vectors, and encoded prompts by adapter id."""

    fingerprint: str
    dim: int
    entries: tuple[AdapterWithVectors, ...]
    prompts: dict[str, list[Any]]


def take_backup(client: QdrantClient, alias: str) -> Backup:
    """Return the current content of the catalogue."""
    info = collection_info(client, alias)
    store = AdapterStore(client, info.collection)
    point_ids = [header.point_id for header in store.headers()]
    entries = sorted(store.read_vectors(point_ids), key=lambda entry: entry.adapter.adapter_id)
    ids = [entry.adapter.adapter_id for entry in entries]
    return Backup(info.fingerprint, info.dim, tuple(entries), dict(ExampleStore(client, alias).encoded(ids)))


def write_backup(backup: Backup, file: Path) -> None:
    """Write the file atomically. Raises InvalidArgumentError if it cannot be written."""
    adapters = [asdict(entry.adapter) for entry in backup.entries]
    catalogue = {"format": _FORMAT, "fingerprint": backup.fingerprint, "dim": backup.dim, "adapters": adapters}
    vectors = io.BytesIO()
    arrays = [np.zeros((0, backup.dim), np.float32), *(entry.vectors for entry in backup.entries)]
    np.save(vectors, np.concatenate(arrays).astype("<f4"), allow_pickle=False)
    lines = (
        json.dumps({"adapter_id": adapter_id, "prompts": prompts}) for adapter_id, prompts in backup.prompts.items()
    )
    partial = file.with_name(file.name + ".partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(_CATALOGUE, json.dumps(catalogue, default=_to_json, indent=1))
            archive.writestr(_VECTORS, vectors.getvalue())
            archive.writestr(_PROMPTS, "".join(f"{line}\n" for line in lines))
        partial.replace(file)
    except OSError as error:
        raise InvalidArgumentError("file", f"{file} cannot be written: {error.strerror or error}") from error


def read_backup(file: Path) -> Backup:
    """Return the content of a file. Raises InvalidArgumentError if it is not a complete backup."""
    try:
        with zipfile.ZipFile(file) as archive:
            catalogue = json.loads(archive.read(_CATALOGUE))
            vectors = np.load(io.BytesIO(archive.read(_VECTORS)), allow_pickle=False)
            lines = [json.loads(line) for line in archive.read(_PROMPTS).decode().splitlines()]
        if catalogue["format"] != _FORMAT:
            raise ValueError(f"its format is {catalogue['format']!r}, not {_FORMAT!r}")
        dim = int(catalogue["dim"])
        entries = tuple(_entries(catalogue["adapters"], vectors, dim))
        prompts = {str(line["adapter_id"]): list(line["prompts"]) for line in lines}
        return Backup(str(catalogue["fingerprint"]), dim, entries, prompts)
    except OSError as error:
        raise InvalidArgumentError("file", f"{file} cannot be read: {error.strerror or error}") from error
    except (*READ_ERRORS, TypeError, AttributeError, InvalidArgumentError) as error:
        raise InvalidArgumentError("file", f"{file} is not a complete backup of a catalogue: {error}") from error


def restore_backup(client: QdrantClient, alias: str, backup: Backup, *, replace: bool, indexed: bool) -> str:
    """Fill a new collection, point the alias at it and return its name. The previous state stays for a rollback.

    Raises FailedPreconditionError if the catalogue holds adapters and `replace` is not set.
    """
    info = collection_info(client, alias) if catalogue_exists(client, alias) else None
    previous = info.collection if info else ""
    if info and not replace and next(AdapterStore(client, previous).headers(), None) is not None:
        raise FailedPreconditionError(f"catalogue {alias!r} is not empty; replace its content with --replace")
    name = collection_name(alias, backup.fingerprint, backup.dim, unique=True)
    create_collection(client, name, backup.fingerprint, backup.dim, indexed=indexed, previous=previous)
    try:
        _fill(client, alias, name, backup)
        bump_revision(client, name)
        point_alias(client, alias, name)
    except BaseException:
        client.delete_collection(name)
        raise
    if info:
        delete_previous(client, info)
    return name


def _fill(client: QdrantClient, alias: str, collection: str, backup: Backup) -> None:
    store, examples = AdapterStore(client, collection), ExampleStore(client, alias)
    for entry in backup.entries:
        store.upsert(entry.adapter, AdapterVectors.of(list(entry.vectors), backup.dim))
    for entry in backup.entries:
        examples.put(entry.adapter.adapter_id, backup.prompts.get(entry.adapter.adapter_id, ()))


def _entries(adapters: Any, vectors: FloatArray, dim: int) -> Iterator[AdapterWithVectors]:
    if vectors.ndim != 2 or vectors.shape[1] != dim or vectors.dtype != np.float32:
        raise ValueError(f"{_VECTORS} holds {vectors.dtype} {vectors.shape}, not float32 [n, {dim}]")
    start = 0
    for fields in adapters:
        adapter = _from_json(fields)
        end = start + adapter.example_count
        yield AdapterWithVectors(adapter, vectors[start:end])
        start = end
    if start != len(vectors):
        raise ValueError(f"its adapters have {start} vectors in total, {_VECTORS} holds {len(vectors)}")


def _from_json(fields: dict[str, Any]) -> Adapter:
    moment = fields["update_time"]
    lists = {"tags": tuple(fields["tags"]), "targets": tuple(fields.get("targets", ()))}
    return Adapter(**fields | lists | {"update_time": datetime.fromisoformat(moment) if moment else None})


def _to_json(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no JSON form")
