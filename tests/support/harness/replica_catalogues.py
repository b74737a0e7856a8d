"""Adapters with random vectors, and catalogues on one Qdrant server as replicas open them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np

from infra.contract.adapter import Adapter
from infra.contract.retrieval import RetrievalStrategy
from retrieval_service.catalogue.catalogue import Catalogue
from retrieval_service.catalogue.points import AdapterFilter, AdapterVectors
from retrieval_service.catalogue.qdrant import Qdrant, QdrantServer
from retrieval_service.embedders.base import FloatArray, normalise

EVERYTHING = AdapterFilter()
_DIM = 8


def adapter(name: str, **fields: Any) -> Adapter:
    return Adapter(name, **{"base_model": "tiny", "checkpoint_uri": f"at/{name}", **fields})


def random_vectors(seed: int, count: int = 4) -> AdapterVectors:
    return AdapterVectors.of(list(np.random.default_rng(seed).normal(size=(count, _DIM)).astype(np.float32)), _DIM)


def query_vectors(count: int = 3) -> FloatArray:
    return normalise(np.random.default_rng(99).normal(size=(count, _DIM)))


@contextmanager
def open_catalogue(server: QdrantServer, **options: Any) -> Iterator[Catalogue]:
    with closing(Qdrant(server)) as qdrant:
        yield Catalogue(qdrant, "adapters", dim=_DIM, fingerprint="one", **options)


def retrieved_ids(catalogue: Catalogue, strategy: RetrievalStrategy = RetrievalStrategy.CENTROID) -> set[str]:
    """Return the ids of all adapters, as a search finds them."""
    matches = catalogue.search(query_vectors(1), EVERYTHING, 99, strategy).matches[0]
    return {match.adapter.adapter_id for match in matches}
