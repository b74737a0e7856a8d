"""Builds the retrieval service from its settings, and serves it: open Qdrant, load the embedder, serve."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager
from typing import Any

from infra.contract.errors import UnavailableError
from infra.runtime.lifecycle import entered_on_thread
from infra.runtime.logs import get_logger
from infra.runtime.server import GrpcServer
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

_RETRY_PAUSE_S = 1.0  # between attempts to reach a Qdrant server at start


def serve_retrieval(settings: RetrievalSettings) -> None:
    """Serve until a stop signal. The port is bound at once; health is NOT_SERVING until everything is loaded."""
    asyncio.run(_serve(settings))


async def _serve(settings: RetrievalSettings) -> None:
    server = GrpcServer(settings.server)
    await server.start()
    try:
        async with loaded(server, settings):
            await server.serve()
    except Exception:
        await server.stop()
        raise


@asynccontextmanager
async def loaded(server: GrpcServer, settings: RetrievalSettings) -> AsyncIterator[None]:
    """Load the service, add it to `server`, and close it on exit.

    Embedder and Qdrant calls block, so RPCs run on `settings.workers` threads. Qdrant's async client is no alternative:
    in local mode it blocks the event loop.
    """
    executor = ThreadPoolExecutor(settings.workers, thread_name_prefix="retrieval")
    async with entered_on_thread(_opened(settings)) as servicer:
        add_to(server, servicer, executor)
        try:
            yield
        finally:
            # Not awaited: calls that outlived the grace period must not hold up the end of the process.
            executor.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _opened(settings: RetrievalSettings) -> Iterator[RetrievalServicer]:
    with closing(open_qdrant(settings.qdrant)) as qdrant, closing(_embedder(settings)) as embedder:
        yield _servicer(settings, qdrant, embedder)


def _servicer(settings: RetrievalSettings, qdrant: Qdrant, embedder: BatchedEmbedder) -> RetrievalServicer:
    with _timed("catalogue", location=str(qdrant.location), collection=settings.catalogue.collection):
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
    with _timed("embedder", location=embedder_location(settings)):
        model = build_embedder(settings)
    log.info(
        "embedder_ready",
        fingerprint=model.fingerprint,
        dim=model.dim,
        inputs="texts and images" if model.supports_images else "texts; images of prompts are ignored",
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
    """Open the catalogue, waiting until a Qdrant server has started."""
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
            log.warning("waiting_for_qdrant", problem=error.message)
            time.sleep(_RETRY_PAUSE_S)


@contextmanager
def _timed(what: str, **details: Any) -> Iterator[None]:
    started = time.monotonic()
    log.info(f"loading_{what}", **details)
    yield
    log.info(f"loaded_{what}", seconds=round(time.monotonic() - started, 3))
