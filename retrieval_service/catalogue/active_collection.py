"""The collection that one embedder reads and writes, followed behind the catalogue's alias."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qdrant_client import QdrantClient

from infra.contract.errors import FailedPreconditionError
from retrieval_service.catalogue.adapter_store import AdapterStore
from retrieval_service.catalogue.collections import CollectionInfo, collection_info, open_collection
from retrieval_service.catalogue.qdrant import Qdrant


class ActiveCollection:
    """Resolves the alias on every access, because a re-index or restore may move it at any time.

    After a re-index the alias refers to another embedder's collection. This embedder then keeps reading its own, so
    that replicas can be restarted one by one, and refuses to write.
    """

    def __init__(self, qdrant: Qdrant, alias: str, *, fingerprint: str, dim: int) -> None:
        """Open or create the collection.

        Raises ConfigurationError if it holds vectors of another embedder or was not created by this service.
        """
        self.alias = alias
        self._qdrant = qdrant
        with qdrant.session() as client:
            # Replaced as a whole by any thread; a thread that still sees the old value only reads it once more.
            self._latest = open_collection(client, alias, fingerprint, dim, indexed=qdrant.shared)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the embedder whose vectors the collection holds."""
        return self._latest.fingerprint

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return self._latest.dim

    @contextmanager
    def reading(self) -> Iterator[tuple[AdapterStore, CollectionInfo]]:
        """Yield this embedder's collection: the one behind the alias, or the last one that was."""
        with self._qdrant.session() as client:
            info = self._current(client)
            yield AdapterStore(client, info.collection), info

    @contextmanager
    def writing(self) -> Iterator[AdapterStore]:
        """Yield the collection behind the alias.

        Raises FailedPreconditionError if it now belongs to another embedder.
        """
        with self._qdrant.session() as client:
            info = collection_info(client, self.alias)
            if not self._is_ours(info):
                raise FailedPreconditionError(
                    f"the catalogue was re-indexed with [{info.fingerprint}], but this server embeds with "
                    f"[{self.fingerprint}]: it still answers but accepts no changes; restart it with the new embedder"
                )
            self._latest = info
            yield AdapterStore(client, info.collection)

    def _current(self, client: QdrantClient) -> CollectionInfo:
        info = collection_info(client, self.alias)
        if not self._is_ours(info):
            return collection_info(client, self._latest.collection)
        self._latest = info
        return info

    def _is_ours(self, info: CollectionInfo) -> bool:
        return info.matches_embedder(self.fingerprint, self.dim)
