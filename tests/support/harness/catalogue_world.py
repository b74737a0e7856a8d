"""A catalogue that tests register in, re-index, back up and roll back, with two embedders to choose from."""

from __future__ import annotations

import uuid
from typing import Any

from infra.contract.adapter import Adapter
from infra.contract.prompt import Prompt
from retrieval_service.catalogue.catalogue import Catalogue
from retrieval_service.catalogue.points import AdapterFilter
from retrieval_service.catalogue.qdrant import Qdrant
from retrieval_service.catalogue.reindexing import ReindexResult, reindex
from retrieval_service.indexing import ExamplePrompts, Indexer
from tests.support.servers.retrieval_server import WordEmbedder

OLD, NEW = WordEmbedder(dim=16, name="old"), WordEmbedder(dim=24, name="new")


class CatalogueWorld:
    """A catalogue under a name of its own, which tests may open repeatedly."""

    def __init__(self, qdrant: Qdrant, name: str = "") -> None:
        self.qdrant = qdrant
        self.name = name or f"test-{uuid.uuid4().hex}"

    def open(self, embedder: WordEmbedder) -> Catalogue:
        return Catalogue(self.qdrant, self.name, dim=embedder.dim, fingerprint=embedder.fingerprint)

    def register(self, catalogue: Catalogue, embedder: WordEmbedder, name: str, *texts: str) -> Adapter:
        examples = ExamplePrompts(tuple(Prompt.of(text) for text in texts))
        return Indexer(embedder, catalogue, 64).create(Adapter(name, "base", f"at/{name}", kind="app"), examples)

    def reindex(self, embedder: WordEmbedder, **options: Any) -> ReindexResult:
        with self.qdrant.session() as client:
            return reindex(client, self.name, embedder, indexed=self.qdrant.shared, **options)

    def collections(self) -> list[str]:
        with self.qdrant.session() as client:
            names = [collection.name for collection in client.get_collections().collections]
        return [name for name in names if name.startswith(self.name)]


def best_ids(catalogue: Catalogue, embedder: WordEmbedder, text: str) -> list[str]:
    """Return the adapters most similar to a text."""
    matches = catalogue.search(embedder.embed([Prompt.of(text)]), AdapterFilter(), 9).matches[0]
    return [match.adapter.adapter_id for match in matches]
