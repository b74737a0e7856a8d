"""What a composition asks of the bank, told from its adapters' configs alone, before weights are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from typing import assert_never

from generation_service.adapters.checkpoint.peft_config import PeftConfig
from generation_service.adapters.host_cache import WeightStore
from generation_service.adapters.leases import AdapterKey, ResidentKey
from generation_service.adapters.source import AdapterSource
from infra.contract.composition import Fusion, FusionMethod, Mixture, WeightedAdapter
from infra.contract.errors import CapacityError, FailedPreconditionError, InvalidArgumentError, LoraRetrieverError


def checked(
    composition: Mixture | Fusion,
    store: WeightStore,
    bank_ranks: int,
    pinned_ranks: Callable[[Set[ResidentKey]], int],
) -> tuple[Mixture | Fusion, list[AdapterSource]]:
    """Return `composition` with its adapters' revisions named, and where they are, once it is found good.

    `pinned_ranks` tells the ranks that pinned adapters hold, beside some. Raises what Residency.check says.
    """
    path = adapters_path(composition)
    sources, configs = [], []
    for index, share in enumerate(composition.adapters):
        with naming(f"{path}[{index}]", share.adapter_id):
            source = store.resolve(share.adapter_id, share.revision)
            config = store.config(source)
            _check_rank(share.adapter_id, config, bank_ranks)
        sources.append(source)
        configs.append(config)
    own = {AdapterKey(s.adapter_id, s.revision) for s in sources} if isinstance(composition, Mixture) else set()
    need, pinned = _need(composition, configs, bank_ranks), pinned_ranks(own)
    if need + pinned > bank_ranks:
        raise beyond_bank(need, bank_ranks, pinned, field=path)
    return replace(composition, adapters=named(composition.adapters, sources)), sources


def adapters_path(composition: Mixture | Fusion) -> str:
    """Return the field of a request that the composition's adapters are in."""
    return f"composition.{type(composition).__name__.lower()}.adapters"


def named(shares: Sequence[WeightedAdapter], sources: Sequence[AdapterSource]) -> tuple[WeightedAdapter, ...]:
    """Return `shares` with the revisions of their sources."""
    return tuple(replace(share, revision=source.revision) for share, source in zip(shares, sources, strict=True))


def beyond_bank(need: int, bank_ranks: int, pinned: int, why: str = "", **metadata: str) -> CapacityError:
    """Return the error for a composition of `need` ranks that the bank cannot hold beside its pinned adapters."""
    return CapacityError(
        f"this composition needs {need} ranks, each adapter's side by side; the adapter bank has {bank_ranks}, and "
        f"other pinned adapters hold {pinned}{why}: compose fewer adapters, unload some, or start the server with a "
        "larger --bank-ranks",
        need=str(need),
        limit=str(bank_ranks),
        pinned=str(pinned),
        **metadata,
    )


@contextmanager
def naming(path: str, adapter_id: str) -> Iterator[None]:
    """Add the field `path` and the adapter to an error raised within; one about a revision names that field of it.

    Raises another of its class: several requests may have caught the same one, each with a path of its own.
    """
    try:
        yield
    except InvalidArgumentError:
        raise
    except LoraRetrieverError as error:
        name = "revision" if "revision" in error.metadata else "adapter_id"
        message = error.message if repr(adapter_id) in error.message else f"adapter {adapter_id!r}: {error.message}"
        metadata = {"adapter_id": adapter_id, **error.metadata, "field": f"{path}.{name}"}
        raise type(error)(message, **metadata) from error


def _check_rank(adapter_id: str, config: PeftConfig, bank_ranks: int) -> None:
    """Raise CapacityError for an adapter of a rank beyond the bank's."""
    if config.largest_rank > bank_ranks:
        raise CapacityError(
            f"adapter {adapter_id!r} has rank {config.largest_rank}, and the adapter bank takes {bank_ranks} at most: "
            "choose another adapter, or start the server with a larger --bank-ranks",
            rank=str(config.largest_rank),
            limit=str(bank_ranks),
        )


def _check_rank_asked(fusion: Fusion, bank_ranks: int) -> None:
    """Raise CapacityError for a fusion whose result is asked to have a rank beyond the bank's."""
    if fusion.rank is not None and fusion.rank > bank_ranks:
        raise CapacityError(
            f"the fusion is to have rank {fusion.rank}, and the adapter bank takes {bank_ranks} at most: ask for a "
            "lower rank, or start the server with a larger --bank-ranks",
            rank=str(fusion.rank),
            limit=str(bank_ranks),
            field="composition.fusion.rank",
        )


def _need(composition: Mixture | Fusion, configs: Sequence[PeftConfig], bank_ranks: int) -> int:
    """Return the ranks a composition takes in the bank. An adapter counts with the largest rank its config names."""
    match composition:
        case Mixture():
            return sum(map(_rank, configs))
        case Fusion():
            _check_rank_asked(composition, bank_ranks)
            return _fused_rank(composition, configs)
        case _:
            assert_never(composition)


def _fused_rank(fusion: Fusion, configs: Sequence[PeftConfig]) -> int:
    members = {
        share.adapter_id: config for share, config in zip(fusion.adapters, configs, strict=True) if share.weight != 0
    }
    match fusion.method:
        case FusionMethod.LINEAR:
            _check_equal_ranks(members)
            return _largest(members)
        case FusionMethod.CONCAT:
            return max((sum(map(_rank, group.values())) for group in _by_target(members)), default=0)
        case FusionMethod.SVD | FusionMethod.TIES | FusionMethod.DARE:
            return fusion.rank or _largest(members)
        case _:
            assert_never(fusion.method)


def _check_equal_ranks(members: Mapping[str, PeftConfig]) -> None:
    for group in _by_target(members):
        plain = {name: config.rank for name, config in group.items() if not config.rank_pattern}
        if len(set(plain.values())) > 1:
            ranks = ", ".join(f"{name} has {rank}" for name, rank in plain.items())
            raise FailedPreconditionError(
                f"linear fusion needs equal ranks, and {ranks}: use concat, svd, or a mixture",
                field="composition.fusion.method",
                ranks=ranks,
            )


def _by_target(members: Mapping[str, PeftConfig]) -> list[dict[str, PeftConfig]]:
    """Group the members that adapt the same modules, as far as they say so in the same words."""
    groups: dict[str, dict[str, PeftConfig]] = {}
    for name, config in members.items():
        for target in config.target_modules or {""}:
            groups.setdefault(target, {})[name] = config
    return list(groups.values())


def _largest(members: Mapping[str, PeftConfig]) -> int:
    return max(map(_rank, members.values()), default=0)


def _rank(config: PeftConfig) -> int:
    return config.largest_rank
