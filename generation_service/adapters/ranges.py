"""An admitted composition -> the bank ranges that it needs, and how to load the weights of each."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import assert_never

from generation_service.adapters.admission import AdmittedAdapter, AdmittedComposition, error_context
from generation_service.adapters.host_cache import HostCache
from generation_service.adapters.leases import AdapterKey, FusionKey, ResidentKey
from generation_service.lora.fusion.fuse import FusionMember, fuse
from generation_service.lora.weights import AdapterWeights
from infra.contract.composition import DEFAULT_DENSITY, Base, Fusion, FusionMethod, Mixture
from infra.contract.errors import CheckpointError


@dataclass(eq=False)
class RangeRequest:
    """One bank range that a composition needs. `load` blocks; `weights` is its result, once it was called."""

    key: ResidentKey
    weight: float
    load: Callable[[], AdapterWeights]
    weights: AdapterWeights | None = None


def plan_ranges(admitted: AdmittedComposition, host_cache: HostCache) -> list[RangeRequest]:
    """Return the ranges of a composition: one for each adapter of a mixture, one for the result of a fusion."""
    match admitted.composition:
        case Base():
            return []
        case Mixture():
            return [_adapter_range(adapter, host_cache) for adapter in admitted.adapters]
        case Fusion() as fusion:
            return [_fusion_range(fusion, admitted, host_cache)]
        case _:
            assert_never(admitted.composition)


def _adapter_range(adapter: AdmittedAdapter, host_cache: HostCache) -> RangeRequest:
    key = AdapterKey(adapter.share.adapter_id, adapter.share.revision)
    return RangeRequest(key, adapter.share.weight, lambda: _read(adapter, host_cache))


def _fusion_range(fusion: Fusion, admitted: AdmittedComposition, host_cache: HostCache) -> RangeRequest:
    members = sorted(admitted.adapters, key=lambda member: member.share.adapter_id)
    key = fusion_key(fusion, members)

    def load() -> AdapterWeights:
        fused = fuse(
            [
                FusionMember(_read(member, host_cache), member.share.weight, member.share.adapter_id)
                for member in members
            ],
            key.method,
            rank=key.rank,
            density=key.density or DEFAULT_DENSITY,
            seed=key.seed or 0,
        )
        try:
            return host_cache.in_host_form(fused)
        except CheckpointError as error:
            names = ", ".join(repr(member.share.adapter_id) for member in members)
            raise CheckpointError(
                f"fusing {names}: {error.message}: lower their weights, or leave out the adapter with the huge values",
                field=admitted.path,
            ) from error

    return RangeRequest(key, 1.0, load)


def fusion_key(fusion: Fusion, members: Sequence[AdmittedAdapter]) -> FusionKey:
    """Return the identity of a fusion, equal for equal results: `members` sorted by adapter id, defaults filled in."""
    uses_density = fusion.method in (FusionMethod.TIES, FusionMethod.DARE)
    density = (fusion.density or DEFAULT_DENSITY) if uses_density else None
    shares = tuple(member.share for member in members)
    seed = fusion.seed
    if seed is None and fusion.method is FusionMethod.DARE:
        identity = repr([(share.adapter_id, share.revision, share.weight) for share in shares])
        seed = zlib.crc32(identity.encode())
    return FusionKey(shares, fusion.method, fusion.rank, density, seed)


def _read(adapter: AdmittedAdapter, host_cache: HostCache) -> AdapterWeights:
    with error_context(adapter.path, adapter.share.adapter_id):
        return host_cache.weights(adapter.source)
