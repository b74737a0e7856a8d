"""Settings -> the embedder that they ask for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from infra.contract.errors import ConfigurationError
from infra.runtime.images import ImageLimits
from retrieval_service.embedders.base import LateFusion
from retrieval_service.embedders.part_embedder import PartEmbedder
from retrieval_service.settings import RetrievalSettings

if TYPE_CHECKING:
    from retrieval_service.embedders.http_client import Endpoint

Kind = Literal["jina-v4", "http", "sentence-transformers"]


def build_embedder(settings: RetrievalSettings) -> PartEmbedder:
    """Load the embedder. Raises CheckpointError for its folder, ConfigurationError for settings that do not fit it."""
    # Imported late: torch and transformers take seconds, and what is wrong in the settings should show before.
    fusion = LateFusion(settings.text_weight, settings.image_weight, settings.max_query_images)
    match embedder_kind(settings):
        case "http":
            return _http(settings, fusion)
        case "jina-v4":
            return _jina(settings, _folder(settings), fusion)
        case "sentence-transformers":
            return _sentence_transformers(settings, _folder(settings))


def embedder_kind(settings: RetrievalSettings) -> Kind:
    """Return which embedder the settings mean: the one named, or what the folder looks like."""
    if settings.embedder != "auto":
        return settings.embedder
    if settings.embedder_url:
        return "http"
    folder = _folder(settings)
    # jina-embeddings-v4 has modules.json too, with code of its own behind it.
    is_jina = (folder / "adapters").exists() or "JinaEmbeddingsV4Model" in _architectures(folder / "config.json")
    return "sentence-transformers" if (folder / "modules.json").exists() and not is_jina else "jina-v4"


def embedder_location(settings: RetrievalSettings) -> str:
    """Return the folder or the address of the embedder, without what may be secret. Raises ConfigurationError."""
    return _endpoint(settings).shown if embedder_kind(settings) == "http" else str(_folder(settings))


def image_limits(settings: RetrievalSettings) -> ImageLimits:
    """Return what images of requests may be."""
    return ImageLimits(settings.max_images, settings.max_image_bytes, settings.max_decoded_pixels)


def _folder(settings: RetrievalSettings) -> Path:
    if settings.embedder_path is None:
        raise ConfigurationError("--embedder-path is missing; name the folder of a model")
    return settings.embedder_path


def _architectures(path: Path) -> list[str]:
    try:
        named = json.loads(path.read_text(encoding="utf-8")).get("architectures")
    except (OSError, ValueError, AttributeError):
        return []  # the loader says what is wrong with it
    return named if isinstance(named, list) else []


def _endpoint(settings: RetrievalSettings) -> Endpoint:
    from retrieval_service.embedders.http_client import Endpoint

    key = settings.embedder_api_key
    return Endpoint(
        url=settings.embedder_url,
        model=settings.embedder_model,
        api_key=None if key is None else key.get_secret_value(),
        timeout_s=settings.embedder_timeout_s,
        retries=settings.embedder_retries,
    )


def _http(settings: RetrievalSettings, fusion: LateFusion) -> PartEmbedder:
    from retrieval_service.embedders.http import HttpEmbedder, HttpOptions

    options = HttpOptions(
        dim=settings.truncate_dim,
        prompt=settings.text_prompt or "",
        images=settings.embedder_images,
        encoding=settings.embedder_encoding,
        late_fusion=fusion,
        limits=image_limits(settings),
        batch_size=settings.batch_size,
        parallel=settings.embedder_parallel,
        wait_s=settings.embedder_wait_s,
    )
    return HttpEmbedder(_endpoint(settings), options)


def _jina(settings: RetrievalSettings, folder: Path, fusion: LateFusion) -> PartEmbedder:
    from retrieval_service.embedders.jina_files import read_json

    read_json(folder / "config.json", folder)
    from retrieval_service.embedders.jina_v4 import JinaV4Embedder, JinaV4Options, Task, TextPrefix

    options = JinaV4Options(
        task=Task(settings.embedder_task),
        prefix=TextPrefix(settings.text_prefix),
        dim=settings.truncate_dim,
        max_image_pixels=settings.max_image_pixels,
        max_text_tokens=settings.max_text_tokens,
        late_fusion=fusion,
        limits=image_limits(settings),
        batch_size=settings.batch_size,
        batch_tokens=settings.batch_tokens,
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.torch_threads,
    )
    return JinaV4Embedder(folder, options)


def _sentence_transformers(settings: RetrievalSettings, folder: Path) -> PartEmbedder:
    from retrieval_service.embedders.sentence_transformers import SentenceOptions, SentenceTransformersEmbedder

    options = SentenceOptions(
        prefix=settings.text_prefix,
        prompt=settings.text_prompt,
        dim=settings.truncate_dim,
        max_text_tokens=settings.max_text_tokens,
        batch_size=settings.batch_size,
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.torch_threads,
    )
    return SentenceTransformersEmbedder(folder, options)
