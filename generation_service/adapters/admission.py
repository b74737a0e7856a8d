"""What a composition asks of the bank, told from its adapters' configs alone: before anything is read or queued."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import assert_never

from generation_service.adapters.peft_config import PeftConfig
from infra.contract.composition import Composition, Fusion, FusionMethod, Mixture
from infra.contract.errors import CapacityError, FailedPreconditionError, LoraRetrieverError


def adapters_field(composition: Mixture | Fusion) -> str:
    """Return the field path of the composition's adapters in a request."""
    return f"composition.{type(composition).__name__.lower()}.adapters"


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Add the field `path` to the metadata of an error raised within; one about a revision names that field of it."""
    try:
        yield
    except LoraRetrieverError as error:
        named = "revision" if "revision" in error.metadata else "adapter_id"
        error.metadata = {**error.metadata, "field": f"{path}.{named}"}
        raise


def check_rank(adapter_id: str, config: PeftConfig, bank_ranks: int) -> None:
    """Raise CapacityError for an adapter of a rank beyond the bank's."""
    if config.largest_rank > bank_ranks:
        raise CapacityError(
            f"adapter {adapter_id!r} has rank {config.largest_rank}, and the adapter bank takes {bank_ranks} at most: "
            "choose another adapter, or start the server with a larger --bank-ranks",
            rank=str(config.largest_rank),
            limit=str(bank_ranks),
        )


def check_composition(composition: Composition, configs: Sequence[PeftConfig], bank_ranks: int, pinned: int) -> None:
    """Raise an error for what can never be placed, `configs` being those of its adapters, in order.

    CapacityError when it needs more ranks than the bank has beside `pinned`, those that other adapters hold for good;
    FailedPreconditionError for a linear fusion of adapters that are known to meet in a module with unequal ranks. An
    adapter counts with the largest rank its config names.
    """
    match composition:
        case Mixture():
            need = sum(config.largest_rank for config in configs)
        case Fusion():
            need = _fused_rank(composition, configs)
        case _:
            return
    if need + pinned > bank_ranks:
        raise beyond_bank(need, bank_ranks, pinned, field=adapters_field(composition))


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
            return _largest(members)
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
