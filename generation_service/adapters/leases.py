"""What occupies the adapter bank, and how a composition holds it there."""

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
    """One fusion: its members in the order of their ids, its method, and the options that the method uses."""

    members: tuple[WeightedAdapter, ...]
    method: FusionMethod
    rank: int | None = None
    density: float | None = None
    seed: int | None = None


ResidentKey = AdapterKey | FusionKey


@dataclass(eq=False)
class Resident:
    """What occupies one range of the bank, how many leases hold it there, and whether it is pinned."""

    key: ResidentKey
    owned: RankRange
    leases: int = 0
    pinned: bool = False

    @property
    def idle(self) -> bool:
        """Whether it may be reclaimed."""
        return not self.leases and not self.pinned


@dataclass(frozen=True)
class ResidentAdapter:
    """An adapter on the device: its rank, and the bytes it takes there."""

    adapter_id: str
    revision: str
    rank: int
    byte_size: int
    pinned: bool


class BankLease:
    """The ranges of one composition, held until released."""

    def __init__(
        self,
        residents: Mapping[Resident, float],
        applied: tuple[WeightedAdapter, ...],
        give_back: Callable[[Mapping[Resident, float]], None],
    ) -> None:
        self._residents: Mapping[Resident, float] = residents
        self._give_back = give_back
        self._released = False
        self.ranges: Mapping[RankRange, float] = {resident.owned: weight for resident, weight in residents.items()}
        self.applied = applied

    def release(self) -> None:
        """Give the ranges back. A second call does nothing."""
        if not self._released:
            self._released = True
            self._give_back(self._residents)


Outcome = BankLease | Exception
Ready = Callable[[Outcome], None]
