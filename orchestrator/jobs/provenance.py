"""The system that answered a job, recorded to repeat the job and to notice answers of another system."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from infra.contract.adapter import Adapter
from infra.contract.errors import LoraRetrieverError
from infra.contract.retrieval import CatalogueInfo
from infra.runtime.deadline import PROVENANCE_TIMEOUT_S
from infra.runtime.logs import get_logger
from orchestrator.answering.model_info import ModelInfo

log = get_logger(__name__)

_T = TypeVar("_T")


@dataclass(frozen=True)
class RunningSystem:
    """What ran when a job was accepted; a field is empty if its tier did not reply.

    Attributes:
        base_model: Name of the base model.
        base_model_revision: Digest of its files.
        dtype: Type of its weights.
        catalogue_revision: Revision of the adapter catalogue.
        embedder: Fingerprint of the embedder.
    """

    base_model: str = ""
    base_model_revision: str = ""
    dtype: str = ""
    catalogue_revision: str = ""
    embedder: str = ""


class ModelSource(Protocol):
    """Describes the base model: orchestrator.clients.generation.GenerationClient."""

    async def get_model(self, timeout_s: float | None = None) -> ModelInfo:
        """Return the base model that runs."""


class CatalogueSource(Protocol):
    """Describes the adapter catalogue: orchestrator.clients.retrieval.RetrievalClient."""

    async def get_catalogue(self, timeout_s: float | None = None) -> CatalogueInfo:
        """Return the catalogue's revision and the embedder's fingerprint."""

    async def list_adapters(
        self, base_model: str = "", kind: str = "", tags: Sequence[str] = (), timeout_s: float | None = None
    ) -> list[Adapter]:
        """Return the adapters of the catalogue."""


@dataclass(frozen=True)
class System:
    """The two tiers that answer jobs. A tier that does not reply in time is not an error."""

    generation: ModelSource
    retrieval: CatalogueSource

    async def running(self) -> RunningSystem:
        """Return what runs now."""
        model, catalogue = await asyncio.gather(
            _or_none(self.generation.get_model(PROVENANCE_TIMEOUT_S)),
            _or_none(self.retrieval.get_catalogue(PROVENANCE_TIMEOUT_S)),
        )
        return RunningSystem(
            base_model=model.base_model if model else "",
            base_model_revision=model.revision if model else "",
            dtype=model.dtype if model else "",
            catalogue_revision=catalogue.revision if catalogue else "",
            embedder=catalogue.embedder_fingerprint if catalogue else "",
        )

    async def adapter_ids(self) -> frozenset[str] | None:
        """Return the ids of the catalogue's adapters; None if retrieval does not reply."""
        adapters = await _or_none(self.retrieval.list_adapters(timeout_s=PROVENANCE_TIMEOUT_S))
        return None if adapters is None else frozenset(adapter.adapter_id for adapter in adapters)


async def _or_none(call: Awaitable[_T]) -> _T | None:
    try:
        return await call
    except LoraRetrieverError as error:
        log.warning("provenance_incomplete", reason=error.message)
        return None
