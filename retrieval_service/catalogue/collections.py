"""Qdrant collections of the catalogue: one per embedder, and an alias for the one in use.

The alias is the catalogue's name. The name of the collection behind it contains a digest of the embedder's fingerprint,
so vectors of two embedders never share a collection. Re-indexing and restoring fill a new collection and then move the
alias in one step. The previous collection is kept, so that the alias can be moved back.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from infra.contract.errors import ConfigurationError, FailedPreconditionError
from retrieval_service.catalogue.points import CENTROID, EXAMPLES

_SCHEMA = 1
_INDEXED_FIELDS = ("adapter_id", "base_model", "kind", "tags")


@dataclass(frozen=True)
class CollectionInfo:
    """Metadata of a collection. `previous` is the collection that the alias named before, or empty."""

    collection: str
    revision: str
    fingerprint: str
    dim: int
    previous: str = ""

    def matches_embedder(self, fingerprint: str, dim: int) -> bool:
        """Return whether vectors of that embedder are comparable with those of the collection."""
        return (self.fingerprint, self.dim) == (fingerprint, dim)


def collection_info(client: QdrantClient, name: str) -> CollectionInfo:
    """Return the metadata of the collection that `name`, an alias or a collection, refers to.

    Raises FailedPreconditionError if it was not created by this version of the service.
    """
    metadata = dict(client.get_collection(name).config.metadata or {})
    if metadata.get("schema") != _SCHEMA:
        raise FailedPreconditionError(
            f"collection {name!r} was not created by this version of the service; choose another --collection"
        )
    return CollectionInfo(
        str(metadata.get("collection") or name),
        str(metadata["revision"]),
        str(metadata["fingerprint"]),
        int(metadata["dim"]),
        str(metadata.get("former") or ""),
    )


def catalogue_exists(client: QdrantClient, name: str) -> bool:
    """Return whether an alias or a collection has that name."""
    return alias_target(client, name) is not None or client.collection_exists(name)


def alias_target(client: QdrantClient, alias: str) -> str | None:
    """Return the collection that an alias refers to, or None."""
    targets = (entry.collection_name for entry in client.get_aliases().aliases if entry.alias_name == alias)
    return next(targets, None)


def open_collection(client: QdrantClient, alias: str, fingerprint: str, dim: int, *, indexed: bool) -> CollectionInfo:
    """Return the metadata of the catalogue, creating it if necessary. `indexed` adds payload indexes on creation.

    Raises ConfigurationError if it holds vectors of another embedder or was not created by this service.
    """
    if not catalogue_exists(client, alias):
        name = collection_name(alias, fingerprint, dim)
        create_collection(client, name, fingerprint, dim, indexed=indexed)
        point_alias(client, alias, name)
    try:
        info = collection_info(client, alias)
    except FailedPreconditionError as error:
        raise ConfigurationError(error.message) from error
    if not info.matches_embedder(fingerprint, dim):
        raise ConfigurationError(
            f"collection {alias!r} was built with [{info.fingerprint}], but this server embeds with [{fingerprint}]: "
            "use the same embedder and settings, or convert the catalogue with "
            "'loraretriever retrieval reindex', or choose another --collection and register the adapters again"
        )
    return info


def collection_name(alias: str, fingerprint: str, dim: int, *, unique: bool = False) -> str:
    """Return the name of an embedder's collection. `unique` appends a random suffix."""
    digest = hashlib.sha256(f"{fingerprint}\n{dim}".encode()).hexdigest()[:12]
    return f"{alias}-{digest}" + (f"-{uuid.uuid4().hex[:8]}" if unique else "")


def create_collection(
    client: QdrantClient, name: str, fingerprint: str, dim: int, *, indexed: bool, previous: str = ""
) -> None:
    """Create an empty collection unless it exists."""
    vectors = {
        CENTROID: models.VectorParams(size=dim, distance=models.Distance.COSINE),
        # Only read, never searched by Qdrant: no HNSW graph (m=0), and on disk.
        EXAMPLES: models.VectorParams(
            size=dim,
            distance=models.Distance.COSINE,
            multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
            hnsw_config=models.HnswConfigDiff(m=0),
            on_disk=True,
        ),
    }
    metadata: dict[str, Any] = {"schema": _SCHEMA, "collection": name, "fingerprint": fingerprint, "dim": dim}
    metadata |= {"revision": new_revision(), "former": previous}
    try:
        client.create_collection(name, vectors_config=vectors, metadata=metadata)
    except UnexpectedResponse:
        # Another replica may have created it between the caller's check and this request.
        if not client.collection_exists(name):
            raise
    if indexed:
        for field in _INDEXED_FIELDS:
            client.create_payload_index(name, field, models.PayloadSchemaType.KEYWORD)


def point_alias(client: QdrantClient, alias: str, collection: str) -> None:
    """Point the alias at a collection. Deleting and creating it is one atomic request."""
    operations: list[Any] = []
    if alias_target(client, alias) is not None:
        operations.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)))
    created = models.CreateAlias(collection_name=collection, alias_name=alias)
    operations.append(models.CreateAliasOperation(create_alias=created))
    client.update_collection_aliases(change_aliases_operations=operations)


def bump_revision(client: QdrantClient, collection: str) -> None:
    """Give a collection a new revision, so that every replica rereads what has changed."""
    client.update_collection(collection, metadata={"revision": new_revision()})


def set_previous(client: QdrantClient, collection: str, previous: str) -> None:
    """Record the collection that a rollback returns to, under a new revision."""
    client.update_collection(collection, metadata={"revision": new_revision(), "former": previous})


def delete_previous(client: QdrantClient, info: CollectionInfo) -> None:
    """Delete the collection before the one that `info` describes: only one rollback step is kept."""
    if info.previous and catalogue_exists(client, info.previous):
        client.delete_collection(info.previous)


def new_revision() -> str:
    """Return a unique revision. Later revisions sort after earlier ones."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
