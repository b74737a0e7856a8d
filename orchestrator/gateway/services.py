"""What the routes call."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.answering.pipeline import Pipeline
from orchestrator.clients.generation import GenerationClient
from orchestrator.clients.retrieval import RetrievalClient


@dataclass(frozen=True)
class Services:
    """The pipeline, both services, and the longest time of an answer in seconds."""

    pipeline: Pipeline
    retrieval: RetrievalClient
    generation: GenerationClient
    answer_timeout_s: float
