"""A composition -> the ranges that it needs, and what each of them holds."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import assert_never

from generation_service.adapters.admission import adapters_path, naming
from generation_service.adapters.host_cache import WeightStore
from generation_service.adapters.leases import AdapterKey, FusionKey, ResidentKey
from generation_service.adapters.source import AdapterSource
from generation_service.lora.fusion.fuse import FusionMember, fuse
from generation_service.lora.weights import AdapterWeights
from infra.contract.composition import DEFAULT_DENSITY, Fusion, FusionMethod, Mixture, WeightedAdapter
from infra.contract.errors import CheckpointError

Member = tuple[WeightedAdapter, AdapterSource]
_Load = Callable[[], AdapterWeights]


@dataclass(eq=False)
class Wanted:
    """One range that a composition needs. `load` gives its content; `weights` is that content once it is there."""

    key: ResidentKey
    weight: float
    load: _Load
    weights: AdapterWeights | None = None


def wanted_by(composition: Mixture | Fusion, members: Sequence[Member], store: WeightStore) -> list[Wanted]:
    """Return what `composition` needs, its adapters being `members`, revisions and sources known.

    A mixture needs a range for each adapter, a fusion one for its result, whatever the order of its members.
    """
    path = adapters_path(composition)
    read = [
        (share, _reading(share, source, store, f"{path}[{index}]")) for index, (share, source) in enumerate(members)
    ]
    match composition:
        case Mixture():
            return [Wanted(AdapterKey(share.adapter_id, share.revision), share.weight, load) for share, load in read]
        case Fusion():
            return [_fusion(composition, sorted(read, key=lambda member: member[0].adapter_id), store)]
        case _:
            assert_never(composition)


def _reading(share: WeightedAdapter, source: AdapterSource, store: WeightStore, path: str) -> _Load:
    """Return what reads an adapter; its errors name it, and where in the request it is."""

    def load() -> AdapterWeights:
        with naming(path, share.adapter_id):
            return store.weights(source)

    return load


def _fusion(fusion: Fusion, members: Sequence[tuple[WeightedAdapter, _Load]], store: WeightStore) -> Wanted:
    key = fusion_key(fusion, [share for share, _ in members])

    def load() -> AdapterWeights:
        fused = fuse(
            [FusionMember(read(), share.weight, share.adapter_id) for share, read in members],
            key.method,
            rank=key.rank,
            density=key.density or DEFAULT_DENSITY,
            seed=key.seed or 0,
        )
        try:
            return store.in_host_form(fused)
        except CheckpointError as error:
            names = ", ".join(repr(share.adapter_id) for share, _ in members)
            raise CheckpointError(
                f"fusing {names}: {error.message}: lower their weights, or leave out the adapter with the huge values",
                field="composition.fusion.adapters",
            ) from error

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
