"""What ran when a job was accepted, as far as the tiers say it."""

from __future__ import annotations

from dataclasses import dataclass

from infra.contract.errors import LoraRetrieverError, UnavailableError
from infra.contract.retrieval import CatalogueInfo
from orchestrator.answering.model_info import ModelInfo, ModelLimits
from orchestrator.jobs.provenance import RunningSystem, System


@dataclass
class Tier:
    """Answers as both tiers, or raises."""

    failure: LoraRetrieverError | None = None
    asked_for_s: float | None = None

    async def get_model(self, timeout_s: float | None = None) -> ModelInfo:
        self._ask(timeout_s)
        return ModelInfo("tiny", "fake", "cpu", "float32", ModelLimits(), revision="weights-1")

    async def get_catalogue(self, timeout_s: float | None = None) -> CatalogueInfo:
        self._ask(timeout_s)
        return CatalogueInfo("catalogue-1", "embedder-1", dimension=16, adapter_count=4)

    def _ask(self, timeout_s: float | None) -> None:
        self.asked_for_s = timeout_s
        if self.failure is not None:
            raise self.failure


AWAY = UnavailableError("nobody is there")


async def test_both_tiers_say_what_runs_in_a_short_time() -> None:
    tier = Tier()
    assert await System(tier, tier).running() == RunningSystem(
        "tiny", "weights-1", "float32", "catalogue-1", "embedder-1"
    )
    assert tier.asked_for_s is not None


async def test_what_a_tier_that_is_away_would_say_stays_empty() -> None:
    assert await System(Tier(AWAY), Tier()).running() == RunningSystem(
        catalogue_revision="catalogue-1", embedder="embedder-1"
    )
    assert await System(Tier(), Tier(AWAY)).running() == RunningSystem("tiny", "weights-1", "float32")
    assert await System(Tier(AWAY), Tier(AWAY)).running() == RunningSystem()
