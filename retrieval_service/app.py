"""The retrieval service, built from its settings: open the catalogue, load the embedder, serve."""

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
from infra.runtime.server import GrpcServer, aio_server
from retrieval_service.catalogue.catalogue import Catalogue
from retrieval_service.catalogue.qdrant import Qdrant, QdrantFolder, QdrantServer
from retrieval_service.embedders.base import Embedder
from retrieval_service.embedders.batcher import BatchedEmbedder, BatchingOptions
from retrieval_service.embedders.build import build_embedder, embedder_location, image_limits
from retrieval_service.indexing import Indexer
from retrieval_service.retriever import RetrievalDefaults, Retriever
from retrieval_service.server import RequestLimits, RetrievalServicer, add_to
from retrieval_service.settings import RetrievalSettings

log = get_logger(__name__)

#: Pause between attempts to reach a Qdrant server that is still starting.
_RETRY_PAUSE_S = 1.0


def serve_retrieval(settings: RetrievalSettings) -> None:
    """Serve until a stop signal. The port is bound at once; health is NOT_SERVING until everything is loaded."""
    asyncio.run(_serve(settings))


async def _serve(settings: RetrievalSettings) -> None:
    server = aio_server(settings.server)
    await server.start()
    try:
        async with loaded(server, settings):
            await server.serve()
    except Exception:
        await server.stop()
        raise


@asynccontextmanager
async def loaded(server: GrpcServer, settings: RetrievalSettings) -> AsyncIterator[None]:
    """Load what the settings name, and add the service to `server`; close it in the end.

    Embedder and Qdrant block, so calls run on `settings.workers` threads.
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
    with closing(open_qdrant(settings)) as qdrant, closing(_embedder(settings)) as embedder:
        yield _servicer(settings, qdrant, embedder)


def _servicer(settings: RetrievalSettings, qdrant: Qdrant, embedder: BatchedEmbedder) -> RetrievalServicer:
    with _timed("catalogue", place=str(qdrant.location), collection=settings.collection):
        catalogue = _catalogue(settings, qdrant, embedder)
    defaults = RetrievalDefaults(
        settings.top_k,
        settings.weighting,
        settings.temperature,
        settings.min_similarity,
        settings.max_top_k,
        settings.strategy,
    )
    return RetrievalServicer(
        embedder,
        catalogue,
        Retriever(embedder, catalogue, defaults),
        Indexer(embedder, catalogue, settings.max_examples, image_limits(settings)),
        RequestLimits(settings.max_prompts, image_limits(settings)),
    )


def _embedder(settings: RetrievalSettings) -> BatchedEmbedder:
    with _timed("embedder", place=embedder_location(settings)):
        model = build_embedder(settings)
    log.info(
        "embedder",
        fingerprint=model.fingerprint,
        dim=model.dim,
        reads="texts and images" if model.takes_images else "texts only: images of prompts are ignored",
        batch_size=model.batch_size,
        cache_bytes=settings.cache_bytes,
    )
    return BatchedEmbedder(model, BatchingOptions(settings.max_queue, settings.batch_wait_s, settings.cache_bytes))


def open_qdrant(settings: RetrievalSettings) -> Qdrant:
    """Open Qdrant. This comes before the embedder, so that a folder in use is reported at once, not after minutes."""
    if not settings.qdrant_url:
        return Qdrant(QdrantFolder(settings.qdrant_path))
    key = settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else None
    return Qdrant(QdrantServer(settings.qdrant_url, key, settings.qdrant_timeout_s, settings.qdrant_tls_ca))


def _catalogue(settings: RetrievalSettings, qdrant: Qdrant, embedder: Embedder) -> Catalogue:
    """Open the catalogue, waiting for a Qdrant server that is still starting."""
    give_up_at = time.monotonic() + settings.qdrant_wait_s
    while True:
        try:
            return Catalogue(
                qdrant,
                settings.collection,
                dim=embedder.dim,
                fingerprint=embedder.fingerprint,
                memory_vectors=settings.memory_vectors,
                stale_reads=settings.stale_reads,
                store_examples=settings.keep_examples,
            )
        except UnavailableError as error:
            if not qdrant.shared or time.monotonic() > give_up_at:
                raise
            log.warning("waiting_for_qdrant", problem=error.message)
            time.sleep(_RETRY_PAUSE_S)


@contextmanager
def _timed(what: str, **details: Any) -> Iterator[None]:
    started = time.monotonic()
    log.info(f"loading_{what}", **details)
    yield
    log.info(f"loaded_{what}", seconds=round(time.monotonic() - started, 3))
