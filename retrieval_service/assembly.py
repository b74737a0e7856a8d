"""Settings -> the service, running: open the catalogue, load the embedder, serve."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from infra.contract.errors import UnavailableError
from infra.runtime.logs import get_logger
from infra.runtime.server import GrpcServer, sync_server
from retrieval_service.catalogue.catalogue import Catalogue
from retrieval_service.catalogue.qdrant import Qdrant, QdrantFolder, QdrantServer
from retrieval_service.embedders.base import Embedder
from retrieval_service.embedders.batcher import BatchedEmbedder
from retrieval_service.embedders.build import build_embedder, embedder_location, image_limits
from retrieval_service.indexing import Indexer
from retrieval_service.retriever import Retriever
from retrieval_service.server import RequestLimits, RetrievalServicer, add_to
from retrieval_service.settings import QdrantSettings, RetrievalSettings

log = get_logger(__name__)

_RETRY_PAUSE_S = 1.0


def serve_retrieval(settings: RetrievalSettings) -> None:
    """Serve until a stop signal. The port answers at once, NOT_SERVING until all is loaded."""
    server = sync_server(settings.server, settings.workers)
    server.start()
    with loaded(server, settings):
        server.serve_forever()


@contextmanager
def loaded(server: GrpcServer, settings: RetrievalSettings) -> Iterator[None]:
    """Load what the settings name and let `server` answer by it; let go of it in the end."""
    with closing(open_qdrant(settings.qdrant)) as qdrant, closing(_embedder(settings)) as embedder:
        add_to(server, _servicer(settings, qdrant, embedder))
        yield


def _servicer(settings: RetrievalSettings, qdrant: Qdrant, embedder: BatchedEmbedder) -> RetrievalServicer:
    with _timed("catalogue", place=str(qdrant.location), collection=settings.catalogue.collection):
        catalogue = _catalogue(settings, qdrant, embedder)
    limits = image_limits(settings.limits)
    return RetrievalServicer(
        embedder,
        catalogue,
        Retriever(embedder, catalogue, settings.defaults),
        Indexer(embedder, catalogue, settings.limits.max_examples, limits),
        RequestLimits(settings.limits.max_prompts, limits),
    )


def _embedder(settings: RetrievalSettings) -> BatchedEmbedder:
    with _timed("embedder", place=embedder_location(settings)):
        model = build_embedder(settings)
    log.info(
        "embedder",
        fingerprint=model.fingerprint,
        dim=model.dim,
        reads="texts and images" if model.supports_images else "texts alone: images of prompts do not count",
        batch_size=model.batch_size,
        cache_bytes=settings.batching.cache_bytes,
    )
    return BatchedEmbedder(model, settings.batching)


def open_qdrant(settings: QdrantSettings) -> Qdrant:
    """Open Qdrant. Call this before the embedder is loaded: a folder in use is reported at once, not after minutes."""
    if not settings.url:
        return Qdrant(QdrantFolder(settings.path))
    key = settings.api_key.get_secret_value() if settings.api_key else None
    return Qdrant(QdrantServer(settings.url, key, settings.timeout_s, settings.tls_ca))


def _catalogue(settings: RetrievalSettings, qdrant: Qdrant, embedder: Embedder) -> Catalogue:
    """Open the catalogue, waiting for a Qdrant server that is not up yet."""
    give_up = time.monotonic() + settings.qdrant.wait_s
    while True:
        try:
            return Catalogue(
                qdrant,
                settings.catalogue.collection,
                dim=embedder.dim,
                fingerprint=embedder.fingerprint,
                memory_vectors=settings.catalogue.memory_vectors,
                stale_reads=settings.catalogue.stale_reads,
                store_examples=settings.catalogue.keep_examples,
            )
        except UnavailableError as error:
            if not qdrant.shared or time.monotonic() > give_up:
                raise
            log.warning("waiting for Qdrant", problem=error.message)
            time.sleep(_RETRY_PAUSE_S)


@contextmanager
def _timed(what: str, **details: Any) -> Iterator[None]:
    started = time.monotonic()
    log.info(f"loading {what}", **details)
    yield
    log.info(f"loaded {what}", seconds=round(time.monotonic() - started, 3))
