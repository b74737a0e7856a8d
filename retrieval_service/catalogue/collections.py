"""Where the catalogue lies in Qdrant: one collection an embedder, and an alias that names the one in use.

The alias is the catalogue's name. The collection behind it is called after the alias and the fingerprint of the
embedder that made its vectors, so vectors of two embedders never meet. Re-indexing and restoring fill a new collection
and then move the alias, in one step; the collection before stays, so that the alias can be moved back.
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

SCHEMA = 1
_KEYWORDS = ("adapter_id", "base_model", "kind", "tags")


@dataclass(frozen=True)
class Head:
    """What a collection says of itself. `former` is the collection that the alias named before, or empty."""

    collection: str
    revision: str
    fingerprint: str
    dim: int
    former: str = ""

    def made_by(self, fingerprint: str, dim: int) -> bool:
        """Return whether an embedder's vectors can be compared with those of the collection."""
        return (self.fingerprint, self.dim) == (fingerprint, dim)


def head_of(client: QdrantClient, name: str) -> Head:
    """Return the head of the collection that `name`, an alias or a collection, names.

    Raises FailedPreconditionError when it was not made by this version of the service.
    """
    metadata = dict(client.get_collection(name).config.metadata or {})
    if metadata.get("schema") != SCHEMA:
        raise FailedPreconditionError(
            f"collection {name!r} was not made by this version of the service; choose another --collection"
        )
    return Head(
        str(metadata.get("collection") or name),
        str(metadata["revision"]),
        str(metadata["fingerprint"]),
        int(metadata["dim"]),
        str(metadata.get("former") or ""),
    )


def exists(client: QdrantClient, name: str) -> bool:
    """Return whether there is an alias or a collection of that name."""
    return target_of(client, name) is not None or client.collection_exists(name)


def target_of(client: QdrantClient, alias: str) -> str | None:
    """Return the collection that an alias names."""
    named = (one.collection_name for one in client.get_aliases().aliases if one.alias_name == alias)
    return next(named, None)


def open_collection(client: QdrantClient, alias: str, fingerprint: str, dim: int, *, indexed: bool) -> Head:
    """Return the head of the catalogue, made if there is none. `indexed`: whether payloads are to be indexed.

    Raises ConfigurationError when it holds vectors of another embedder, or is none of ours.
    """
    if not exists(client, alias):
        make(client, name_for(alias, fingerprint, dim), fingerprint, dim, indexed=indexed)
        point(client, alias, name_for(alias, fingerprint, dim))
    try:
        head = head_of(client, alias)
    except FailedPreconditionError as error:
        raise ConfigurationError(error.message) from error
    if not head.made_by(fingerprint, dim):
        raise ConfigurationError(
            f"collection {alias!r} was made with [{head.fingerprint}], this server embeds with [{fingerprint}]: "
            "use the same embedder and settings, or bring the catalogue to the new ones with "
            "'loraretriever retrieval reindex', or choose another --collection and register the adapters again"
        )
    return head


def name_for(alias: str, fingerprint: str, dim: int, *, unique: bool = False) -> str:
    """Return the name of an embedder's collection; `unique`: one that no collection has yet."""
    digest = hashlib.sha256(f"{fingerprint}\n{dim}".encode()).hexdigest()[:12]
    return f"{alias}-{digest}" + (f"-{uuid.uuid4().hex[:8]}" if unique else "")


def make(client: QdrantClient, name: str, fingerprint: str, dim: int, *, indexed: bool, former: str = "") -> None:
    """Make an empty collection, unless it is there."""
    vectors = {
        CENTROID: models.VectorParams(size=dim, distance=models.Distance.COSINE),
        EXAMPLES: models.VectorParams(
            size=dim,
            distance=models.Distance.COSINE,
            multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
            hnsw_config=models.HnswConfigDiff(m=0),
            on_disk=True,
        ),
    }
    metadata: dict[str, Any] = {"schema": SCHEMA, "collection": name, "fingerprint": fingerprint, "dim": dim}
    metadata |= {"revision": new_revision(), "former": former}
    try:
        client.create_collection(name, vectors_config=vectors, metadata=metadata)
    except UnexpectedResponse:
        if not client.collection_exists(name):  # else another replica was faster
            raise
    if indexed:
        for field in _KEYWORDS:
            client.create_payload_index(name, field, models.PayloadSchemaType.KEYWORD)


def point(client: QdrantClient, alias: str, collection: str) -> None:
    """Let the alias name a collection from now on, in one step."""
    steps: list[Any] = []
    if target_of(client, alias) is not None:
        steps.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)))
    created = models.CreateAlias(collection_name=collection, alias_name=alias)
    steps.append(models.CreateAliasOperation(create_alias=created))
    client.update_collection_aliases(change_aliases_operations=steps)


def describe(client: QdrantClient, collection: str, **changes: str) -> None:
    """Change what a collection says of itself, and give it a new revision."""
    client.update_collection(collection, metadata={"revision": new_revision(), **changes})


def new_revision() -> str:
    """Return a name that no other revision has; later ones sort after it."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
