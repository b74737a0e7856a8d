"""What occupies the adapter bank, and the leases that keep it there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from generation_service.lora.ranks import RankRange
from infra.contract.composition import FusionMethod, WeightedAdapter


@dataclass(frozen=True)
class AdapterKey:
    """One revision of an adapter."""

    adapter_id: str
    revision: str


@dataclass(frozen=True)
class FusionKey:
    """One fusion: its members sorted by id, its method, and the options that the method uses."""

    members: tuple[WeightedAdapter, ...]
    method: FusionMethod
    rank: int | None = None
    density: float | None = None
    seed: int | None = None


ResidentKey = AdapterKey | FusionKey


@dataclass(eq=False)
class Resident:
    """What occupies one range of the bank. `leases` counts the compositions in use that include it."""

    key: ResidentKey
    owned: RankRange
    leases: int = 0
    pinned: bool = False

    @property
    def evictable(self) -> bool:
        """Whether its range may be freed."""
        return not self.leases and not self.pinned


@dataclass(frozen=True)
class ResidentAdapter:
    """An adapter on the device, with its rank and the bytes that it takes there."""

    adapter_id: str
    revision: str
    rank: int
    byte_size: int
    pinned: bool


class BankLease:
    """The ranges of one composition. None of them is evicted or overwritten before `release`."""

    def __init__(
        self,
        residents: Mapping[Resident, float],
        applied: tuple[WeightedAdapter, ...],
        on_release: Callable[[Mapping[Resident, float]], None],
        fusion_method: FusionMethod | None = None,
    ) -> None:
        self._residents: Mapping[Resident, float] = residents
        self._on_release = on_release
        self._released = False
        self.ranges: Mapping[RankRange, float] = {resident.owned: weight for resident, weight in residents.items()}
        self.applied = applied
        self.fusion_method = fusion_method

    def release(self) -> None:
        """Return the ranges to the bank. A second call does nothing."""
        if not self._released:
            self._released = True
            self._on_release(self._residents)
