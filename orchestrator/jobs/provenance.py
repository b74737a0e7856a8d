"""What ran when a job was accepted: with it a job can be repeated, and one can see that another system answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from infra.contract.adapter import Adapter
from infra.contract.errors import LoraRetrieverError
from infra.contract.retrieval import CatalogueInfo
from infra.runtime.logs import get_logger
from orchestrator.answering.model_info import ModelInfo

log = get_logger(__name__)

TIMEOUT_S = 5.0

T = TypeVar("T")


@dataclass(frozen=True)
class RunningSystem:
    """The base model, the digest of its files and the type of its weights; the catalogue's revision; the fingerprint of
    the embedder. Empty: could not be asked.
    """

    base_model: str = ""
    base_model_revision: str = ""
    dtype: str = ""
    catalogue_revision: str = ""
    embedder: str = ""


class AsksModel(Protocol):
    """Says which base model runs: orchestrator.clients.generation.GenerationClient."""

    async def get_model(self, timeout_s: float | None = None) -> ModelInfo:
        """Return what runs."""


class AsksCatalogue(Protocol):
    """Says which catalogue is searched: orchestrator.clients.retrieval.RetrievalClient."""

    async def get_catalogue(self, timeout_s: float | None = None) -> CatalogueInfo:
        """Return the catalogue's revision and the embedder's fingerprint."""

    async def list_adapters(
        self, base_model: str = "", kind: str = "", tags: Sequence[str] = (), timeout_s: float | None = None
    ) -> list[Adapter]:
        """Return the adapters of the catalogue."""


@dataclass(frozen=True)
class System:
    """The two tiers that answer. A tier that does not say in time what it runs is not an error."""

    generation: AsksModel
    retrieval: AsksCatalogue

    async def running(self) -> RunningSystem:
        """Return what runs."""
        model, catalogue = await asyncio.gather(
            _or_none(self.generation.get_model(TIMEOUT_S)), _or_none(self.retrieval.get_catalogue(TIMEOUT_S))
        )
        return RunningSystem(
            base_model=model.base_model if model else "",
            base_model_revision=model.revision if model else "",
            dtype=model.dtype if model else "",
            catalogue_revision=catalogue.revision if catalogue else "",
            embedder=catalogue.embedder_fingerprint if catalogue else "",
        )

    async def adapters(self) -> frozenset[str] | None:
        """Return the ids of the catalogue's adapters; None where it does not say."""
        listed = await _or_none(self.retrieval.list_adapters(timeout_s=TIMEOUT_S))
        return None if listed is None else frozenset(adapter.adapter_id for adapter in listed)


async def _or_none(call: Awaitable[T]) -> T | None:
    try:
        return await call
    except LoraRetrieverError as error:
        log.warning("the job is accepted without all of what runs", reason=error.message)
        return None
