"""What the routes call."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.answering.pipeline import Pipeline
from orchestrator.clients.generation import GenerationClient
from orchestrator.clients.retrieval import RetrievalClient
from orchestrator.gateway.remote_images import ImageFetcher


@dataclass(frozen=True)
class Services:
    """The pipeline, both services, the longest time of an answer in seconds, and what fetches remote images."""

    pipeline: Pipeline
    retrieval: RetrievalClient
    generation: GenerationClient
    answer_timeout_s: float
    images: ImageFetcher = field(default_factory=ImageFetcher)
