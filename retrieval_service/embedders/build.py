"""Builds the embedder that the settings describe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from infra.contract.errors import ConfigurationError
from infra.runtime.images import ImageLimits
from retrieval_service.embedders.late_fusion import LateFusion
from retrieval_service.embedders.part_embedder import PartEmbedder
from retrieval_service.settings import EmbedderSettings, EndpointSettings, LimitSettings, RetrievalSettings

if TYPE_CHECKING:
    from retrieval_service.embedders.http_client import Endpoint

EmbedderKind = Literal["jina-v4", "http", "sentence-transformers"]

# The embedders are imported inside the functions: torch and transformers take seconds to import, and errors in the
# settings should be reported before that.


def build_embedder(settings: RetrievalSettings) -> PartEmbedder:
    """Load the embedder.

    Raises CheckpointError if its folder is invalid, ConfigurationError if the settings do not fit it.
    """
    embedder = settings.embedder
    late_fusion = LateFusion(embedder.text_weight, embedder.image_weight, embedder.max_query_images)
    match embedder_kind(settings):
        case "http":
            return _build_http(settings, late_fusion)
        case "jina-v4":
            return _build_jina(settings, late_fusion)
        case "sentence-transformers":
            return _build_sentence_transformers(settings)


def embedder_kind(settings: RetrievalSettings) -> EmbedderKind:
    """Return the embedder that the settings name, or else detect it from the folder."""
    if settings.embedder.kind != "auto":
        return settings.embedder.kind
    if settings.endpoint.url:
        return "http"
    folder = _folder(settings.embedder)
    # jina-embeddings-v4 also has a modules.json, which refers to code of its own.
    is_jina = (folder / "adapters").exists() or "JinaEmbeddingsV4Model" in _architectures(folder / "config.json")
    return "sentence-transformers" if (folder / "modules.json").exists() and not is_jina else "jina-v4"


def embedder_location(settings: RetrievalSettings) -> str:
    """Return the folder or the address of the embedder, without secrets. Raises ConfigurationError."""
    if embedder_kind(settings) == "http":
        return _endpoint(settings.endpoint).shown
    return str(_folder(settings.embedder))


def image_limits(limits: LimitSettings) -> ImageLimits:
    """Return the limits on images in requests."""
    return ImageLimits(limits.max_images, limits.max_image_bytes, limits.max_decoded_pixels)


def _folder(embedder: EmbedderSettings) -> Path:
    if embedder.path is None:
        raise ConfigurationError("--embedder-path is missing; name the folder of a model")
    return embedder.path


def _architectures(path: Path) -> list[str]:
    try:
        architectures = json.loads(path.read_text(encoding="utf-8")).get("architectures")
    except (OSError, ValueError, AttributeError):
        return []  # the embedder's loader reports the problem
    return architectures if isinstance(architectures, list) else []


def _endpoint(endpoint: EndpointSettings) -> Endpoint:
    from retrieval_service.embedders.http_client import Endpoint

    key = endpoint.api_key
    return Endpoint(
        url=endpoint.url,
        model=endpoint.model,
        api_key=None if key is None else key.get_secret_value(),
        timeout_s=endpoint.timeout_s,
        retries=endpoint.retries,
    )


def _build_http(settings: RetrievalSettings, late_fusion: LateFusion) -> PartEmbedder:
    from retrieval_service.embedders.http import HttpEmbedder, HttpOptions

    embedder, endpoint = settings.embedder, settings.endpoint
    options = HttpOptions(
        dim=embedder.truncate_dim,
        prompt=embedder.text_prompt or "",
        images=endpoint.images,
        encoding=endpoint.encoding,
        late_fusion=late_fusion,
        limits=image_limits(settings.limits),
        batch_size=settings.batching.batch_size,
        parallel=endpoint.parallel,
        wait_s=endpoint.wait_s,
    )
    return HttpEmbedder(_endpoint(endpoint), options)


def _build_jina(settings: RetrievalSettings, late_fusion: LateFusion) -> PartEmbedder:
    from retrieval_service.embedders.jina_files import read_json

    embedder, folder = settings.embedder, _folder(settings.embedder)
    read_json(folder / "config.json", folder)  # a wrong folder is reported before torch is imported
    from retrieval_service.embedders.jina_v4 import JinaV4Embedder, JinaV4Options, Task, TextPrefix

    options = JinaV4Options(
        task=Task(embedder.task),
        prefix=TextPrefix(embedder.text_prefix),
        dim=embedder.truncate_dim,
        max_image_pixels=embedder.max_image_pixels,
        max_text_tokens=embedder.max_text_tokens,
        late_fusion=late_fusion,
        limits=image_limits(settings.limits),
        batch_size=settings.batching.batch_size,
        batch_tokens=settings.batching.batch_tokens,
        device=embedder.device,
        dtype=embedder.dtype,
        threads=embedder.torch_threads,
    )
    return JinaV4Embedder(folder, options)


def _build_sentence_transformers(settings: RetrievalSettings) -> PartEmbedder:
    from retrieval_service.embedders.sentence_transformers import SentenceOptions, SentenceTransformersEmbedder

    embedder = settings.embedder
    options = SentenceOptions(
        prefix=embedder.text_prefix,
        prompt=embedder.text_prompt,
        dim=embedder.truncate_dim,
        max_text_tokens=embedder.max_text_tokens,
        batch_size=settings.batching.batch_size,
        device=embedder.device,
        dtype=embedder.dtype,
        threads=embedder.torch_threads,
    )
    return SentenceTransformersEmbedder(_folder(embedder), options)
