"""Settings -> the service, running: open the catalogue, load the embedder, serve."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from infra.contract.errors import UnavailableError
from infra.runtime.images import ImageLimits
from infra.runtime.logs import get_logger
from infra.runtime.server import ServerOptions, sync_server
from retrieval_service.catalogue import Catalogue
from retrieval_service.embedders.base import Embedder, LateFusion
from retrieval_service.embedders.jina_files import read_json
from retrieval_service.indexing import Indexer
from retrieval_service.qdrant import LocalFolder, Qdrant, Server
from retrieval_service.retriever import RetrievalDefaults, Retriever
from retrieval_service.server import RequestLimits, RetrievalServicer, add_to
from retrieval_service.settings import RetrievalSettings

log = get_logger(__name__)

_RETRY_PAUSE_S = 1.0


def serve_retrieval(settings: RetrievalSettings) -> None:
    """Serve until a stop signal. The port answers at once, NOT_SERVING until all is loaded."""
    server = sync_server(ServerOptions.from_settings(settings), settings.workers)
    server.start()
    with closing(_qdrant(settings)) as qdrant:
        add_to(server, _servicer(settings, qdrant))
        server.serve_forever()


def _servicer(settings: RetrievalSettings, qdrant: Qdrant) -> RetrievalServicer:
    limits = ImageLimits(settings.max_images, settings.max_image_bytes, settings.max_decoded_pixels)
    with _timed("embedder", folder=str(settings.embedder_path), task=settings.embedder_task):
        embedder = _embedder(settings, limits)
    with _timed("catalogue", place=str(qdrant.place), collection=settings.collection):
        catalogue = _catalogue(settings, qdrant, embedder)
    defaults = RetrievalDefaults(
        settings.top_k, settings.weighting, settings.temperature, settings.min_similarity, settings.max_top_k
    )
    return RetrievalServicer(
        embedder,
        catalogue,
        Retriever(embedder, catalogue, defaults),
        Indexer(embedder, catalogue, settings.max_examples),
        RequestLimits(settings.max_prompts, limits),
    )


def _embedder(settings: RetrievalSettings, limits: ImageLimits) -> Embedder:
    late_fusion = LateFusion(settings.text_weight, settings.image_weight, settings.max_query_images)
    read_json(settings.embedder_path / "config.json", settings.embedder_path)
    # Imported late: torch and transformers take seconds, and what is wrong in the settings should show before.
    from retrieval_service.embedders.jina_v4 import JinaV4Embedder, JinaV4Options, Task, TextPrefix

    options = JinaV4Options(
        task=Task(settings.embedder_task),
        prefix=TextPrefix(settings.text_prefix),
        dim=settings.truncate_dim,
        max_image_pixels=settings.max_image_pixels,
        max_text_tokens=settings.max_text_tokens,
        late_fusion=late_fusion,
        limits=limits,
        batch_size=settings.batch_size,
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.torch_threads,
    )
    return JinaV4Embedder(settings.embedder_path, options)


def _qdrant(settings: RetrievalSettings) -> Qdrant:
    """Open Qdrant before the embedder is loaded: a folder in use shows within a second, not after minutes."""
    if not settings.qdrant_url:
        return Qdrant(LocalFolder(settings.qdrant_path))
    key = settings.qdrant_api_key
    return Qdrant(Server(settings.qdrant_url, key.get_secret_value() if key else None, settings.qdrant_timeout_s))


def _catalogue(settings: RetrievalSettings, qdrant: Qdrant, embedder: Embedder) -> Catalogue:
    """Open the catalogue, waiting for a Qdrant server that is not up yet."""
    give_up = time.monotonic() + settings.qdrant_wait_s
    while True:
        try:
            return Catalogue(qdrant, settings.collection, dim=embedder.dim, fingerprint=embedder.fingerprint)
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
