"""The catalogue in one file, and back: a zip of JSON and of one array, no pickles.

`catalogue.json` holds what made the vectors, and the adapters in order; `vectors.npy` their examples' vectors, float32
[n, dim], as many for each adapter as its `example_count` says; `prompts.jsonl` the kept examples.
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
from retrieval_service.catalogue.adapter_store import Entry, Store
from retrieval_service.catalogue.collections import describe, exists, head_of, make, name_for, point
from retrieval_service.catalogue.points import AdapterVectors
from retrieval_service.catalogue.reindexing import forget
from retrieval_service.catalogue.stored_examples import KeptPrompts
from retrieval_service.embedders.base import FloatArray
from retrieval_service.evaluation.vector_files import DAMAGE

_FORMAT = "loraretriever-catalogue-1"
_CATALOGUE, _VECTORS, _PROMPTS = "catalogue.json", "vectors.npy", "prompts.jsonl"


@dataclass(frozen=True, eq=False)
class Backup:
    """A catalogue: what made its vectors, its adapters with them, and the encoded prompts of some."""

    fingerprint: str
    dim: int
    entries: tuple[Entry, ...]
    prompts: dict[str, list[Any]]


def take(client: QdrantClient, alias: str) -> Backup:
    """Return the catalogue as it is."""
    head = head_of(client, alias)
    store = Store(client, head.collection)
    entries = sorted(store.entries([card.point_id for card in store.cards()]), key=lambda one: one.adapter.adapter_id)
    ids = [one.adapter.adapter_id for one in entries]
    return Backup(head.fingerprint, head.dim, tuple(entries), dict(KeptPrompts(client, alias).encoded_of(ids)))


def write(backup: Backup, file: Path) -> None:
    """Write the file, whole or not at all. Raises InvalidArgumentError when it cannot be written."""
    adapters = [asdict(one.adapter) for one in backup.entries]
    catalogue = {"format": _FORMAT, "fingerprint": backup.fingerprint, "dim": backup.dim, "adapters": adapters}
    vectors = io.BytesIO()
    parts = [np.zeros((0, backup.dim), np.float32), *(one.vectors for one in backup.entries)]
    np.save(vectors, np.concatenate(parts).astype("<f4"), allow_pickle=False)
    lines = (json.dumps({"adapter_id": one, "prompts": prompts}) for one, prompts in backup.prompts.items())
    partial = file.with_name(file.name + ".partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as opened:
            opened.writestr(_CATALOGUE, json.dumps(catalogue, default=_plain, indent=1))
            opened.writestr(_VECTORS, vectors.getvalue())
            opened.writestr(_PROMPTS, "".join(f"{line}\n" for line in lines))
        partial.replace(file)
    except OSError as error:
        raise InvalidArgumentError("file", f"{file} cannot be written: {error.strerror or error}") from error


def read(file: Path) -> Backup:
    """Return what a file holds. Raises InvalidArgumentError when it is none of ours, or cut off."""
    try:
        with zipfile.ZipFile(file) as opened:
            catalogue = json.loads(opened.read(_CATALOGUE))
            vectors = np.load(io.BytesIO(opened.read(_VECTORS)), allow_pickle=False)
            lines = [json.loads(line) for line in opened.read(_PROMPTS).decode().splitlines()]
        if catalogue["format"] != _FORMAT:
            raise ValueError(f"its format is {catalogue['format']!r}, not {_FORMAT!r}")
        dim = int(catalogue["dim"])
        entries = tuple(_entries(catalogue["adapters"], vectors, dim))
        prompts = {str(one["adapter_id"]): list(one["prompts"]) for one in lines}
        return Backup(str(catalogue["fingerprint"]), dim, entries, prompts)
    except OSError as error:
        raise InvalidArgumentError("file", f"{file} cannot be read: {error.strerror or error}") from error
    except (*DAMAGE, TypeError, AttributeError, InvalidArgumentError) as error:
        raise InvalidArgumentError("file", f"{file} is no whole backup of a catalogue: {error}") from error


def restore(client: QdrantClient, alias: str, backup: Backup, *, replace: bool, indexed: bool) -> str:
    """Fill a new collection and let the alias name it; return its name. The state before is kept for a rollback.

    Raises FailedPreconditionError when the catalogue holds adapters and is not to be replaced.
    """
    head = head_of(client, alias) if exists(client, alias) else None
    former = head.collection if head else ""
    if head and not replace and next(Store(client, former).cards(), None) is not None:
        raise FailedPreconditionError(f"catalogue {alias!r} is not empty; replace what it holds with --replace")
    name = name_for(alias, backup.fingerprint, backup.dim, unique=True)
    make(client, name, backup.fingerprint, backup.dim, indexed=indexed, former=former)
    try:
        for entry in backup.entries:
            vectors = AdapterVectors.of(list(entry.vectors), backup.dim)
            Store(client, name).put(entry.adapter, vectors)
        kept = KeptPrompts(client, alias)
        for entry in backup.entries:
            kept.put(entry.adapter.adapter_id, backup.prompts.get(entry.adapter.adapter_id, ()))
        describe(client, name)
        point(client, alias, name)
    except BaseException:
        client.delete_collection(name)
        raise
    if head:
        forget(client, head)
    return name


def _entries(adapters: Any, vectors: FloatArray, dim: int) -> Iterator[Entry]:
    if vectors.ndim != 2 or vectors.shape[1] != dim or vectors.dtype != np.float32:
        raise ValueError(f"{_VECTORS} holds {vectors.dtype} {vectors.shape}, not float32 [n, {dim}]")
    start = 0
    for fields in adapters:
        adapter = _adapter(fields)
        end = start + adapter.example_count
        yield Entry(adapter, vectors[start:end])
        start = end
    if start != len(vectors):
        raise ValueError(f"its adapters count {start} vectors, {_VECTORS} holds {len(vectors)}")


def _adapter(fields: dict[str, Any]) -> Adapter:
    moment = fields["update_time"]
    lists = {"tags": tuple(fields["tags"]), "targets": tuple(fields.get("targets", ()))}
    return Adapter(**fields | lists | {"update_time": datetime.fromisoformat(moment) if moment else None})


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no JSON form")
