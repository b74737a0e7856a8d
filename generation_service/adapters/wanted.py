"""A composition -> the ranges that it needs, and what each of them holds."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import assert_never

from generation_service.adapters.leases import AdapterKey, FusionKey, ResidentKey
from generation_service.adapters.sources import AdapterSource
from generation_service.adapters.store import WeightStore
from generation_service.adapters.weights import AdapterWeights
from generation_service.compose.fusion import WeightedWeights, fuse
from infra.contract.composition import DEFAULT_DENSITY, Fusion, FusionMethod, Mixture, WeightedAdapter

Member = tuple[WeightedAdapter, AdapterSource]


@dataclass(eq=False)
class Wanted:
    """One range that a composition needs. `load` gives its content; `weights` is that content once it is there."""

    key: ResidentKey
    weight: float
    load: Callable[[], AdapterWeights]
    weights: AdapterWeights | None = None


def wanted_by(composition: Mixture | Fusion, members: Sequence[Member], store: WeightStore) -> list[Wanted]:
    """Return what `composition` needs, its adapters being `members`, revisions and sources known.

    A mixture needs a range for each adapter, a fusion one for its result, whatever the order of its members.
    """
    match composition:
        case Mixture():
            return [_adapter(share, source, store) for share, source in members]
        case Fusion():
            return [_fusion(composition, sorted(members, key=lambda member: member[0].adapter_id), store)]
        case _:
            assert_never(composition)


def _adapter(share: WeightedAdapter, source: AdapterSource, store: WeightStore) -> Wanted:
    return Wanted(AdapterKey(share.adapter_id, share.revision), share.weight, lambda: store.weights(source))


def _fusion(fusion: Fusion, members: Sequence[Member], store: WeightStore) -> Wanted:
    key = fusion_key(fusion, [share for share, _ in members])

    def load() -> AdapterWeights:
        fused = fuse(
            [WeightedWeights(store.weights(source), share.weight, share.adapter_id) for share, source in members],
            key.method,
            rank=key.rank,
            density=key.density or DEFAULT_DENSITY,
            seed=key.seed or 0,
        )
        return store.in_host_form(fused)

    return Wanted(key, 1.0, load)


def fusion_key(fusion: Fusion, members: Sequence[WeightedAdapter]) -> FusionKey:
    """Return what `fusion` is, equal for equal fusions: `members` in the order of their ids, defaults filled in."""
    uses_density = fusion.method in (FusionMethod.TIES, FusionMethod.DARE)
    density = (fusion.density or DEFAULT_DENSITY) if uses_density else None
    seed = fusion.seed
    if seed is None and fusion.method is FusionMethod.DARE:
        said = repr([(share.adapter_id, share.revision, share.weight) for share in members])
        seed = zlib.crc32(said.encode())
    return FusionKey(tuple(members), fusion.method, fusion.rank, density, seed)
