"""What ran when a job was accepted, as far as the tiers reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infra.contract.adapter import Adapter
from infra.contract.errors import LoraRetrieverError, UnavailableError
from infra.contract.retrieval import CatalogueInfo
from orchestrator.answering.model_info import ModelInfo, ModelLimits
from orchestrator.jobs.provenance import RunningSystem, System


@dataclass
class FakeTier:
    """Replies as both tiers, or raises."""

    failure: LoraRetrieverError | None = None
    timeout_s: float | None = None

    async def get_model(self, timeout_s: float | None = None) -> ModelInfo:
        self._reply(timeout_s)
        return ModelInfo("tiny", "fake", "cpu", "float32", ModelLimits(), revision="weights-1")

    async def get_catalogue(self, timeout_s: float | None = None) -> CatalogueInfo:
        self._reply(timeout_s)
        return CatalogueInfo("catalogue-1", "embedder-1", dimension=16, adapter_count=4)

    async def list_adapters(
        self, base_model: str = "", kind: str = "", tags: Sequence[str] = (), timeout_s: float | None = None
    ) -> list[Adapter]:
        self._reply(timeout_s)
        return []

    def _reply(self, timeout_s: float | None) -> None:
        self.timeout_s = timeout_s
        if self.failure is not None:
            raise self.failure


AWAY = UnavailableError("away")


async def test_running_system_is_read_from_both_tiers_with_a_timeout() -> None:
    tier = FakeTier()
    assert await System(tier, tier).running() == RunningSystem(
        "tiny", "weights-1", "float32", "catalogue-1", "embedder-1"
    )
    assert tier.timeout_s is not None


async def test_fields_of_absent_tier_stay_empty() -> None:
    assert await System(FakeTier(AWAY), FakeTier()).running() == RunningSystem(
        catalogue_revision="catalogue-1", embedder="embedder-1"
    )
    assert await System(FakeTier(), FakeTier(AWAY)).running() == RunningSystem("tiny", "weights-1", "float32")
    assert await System(FakeTier(AWAY), FakeTier(AWAY)).running() == RunningSystem()


async def test_adapters_of_absent_catalogue_are_unknown() -> None:
    assert await System(FakeTier(), FakeTier()).adapter_ids() == frozenset()
    assert await System(FakeTier(), FakeTier(AWAY)).adapter_ids() is None
