"""Admission: a composition is checked once, from its adapters' configs alone, before any weights are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import assert_never

from generation_service.adapters.checkpoint.peft_config import PeftConfig
from generation_service.adapters.host_cache import HostCache
from generation_service.adapters.leases import AdapterKey, ResidentKey
from generation_service.adapters.source import AdapterSource
from infra.contract.composition import Base, Composition, Fusion, FusionMethod, Mixture, WeightedAdapter
from infra.contract.errors import CapacityError, FailedPreconditionError, InvalidArgumentError, LoraRetrieverError


@dataclass(frozen=True)
class AdmittedAdapter:
    """An adapter with its revision resolved, its source, and the request's field that names it."""

    share: WeightedAdapter
    source: AdapterSource
    path: str


@dataclass(frozen=True)
class AdmittedComposition:
    """A composition that passed `Admission.admit`: revisions resolved, sources located, ranks within the bank.

    `adapters` are those of `composition`, in its order. `path` is the request's field for all of them together.
    """

    composition: Composition
    adapters: tuple[AdmittedAdapter, ...] = ()
    path: str = ""


class Admission:
    """Checks compositions against the limits of this server.

    `pinned_ranks` returns the ranks that pinned adapters hold in the bank, some keys excluded. Safe from any thread;
    `admit` and `admit_adapter` block on disk and network, so they must not run on the event loop or engine thread.
    """

    def __init__(
        self,
        host_cache: HostCache,
        bank_ranks: int,
        pinned_ranks: Callable[[Set[ResidentKey]], int],
        max_adapters: int,
    ) -> None:
        self.max_adapters = max_adapters
        self._host_cache = host_cache
        self._bank_ranks = bank_ranks
        self._pinned_ranks = pinned_ranks

    def admit(self, composition: Composition) -> AdmittedComposition:
        """Return `composition` with its adapters' revisions and sources. Reads configs, no weights.

        Resolved revisions are cached, so admitting the same ones again needs no look-up. Errors carry the field of the
        request, and the limit if there is one, in their metadata.

        Raises:
            InvalidArgumentError: more adapters than one composition may have.
            NotFoundError: an adapter or revision is unknown.
            CheckpointError: a config is broken or asks for what is not supported.
            BaseModelMismatchError: an adapter was trained on another base model.
            CapacityError: an adapter, or the composition, needs more ranks than the bank can free.
            FailedPreconditionError: the fusion method cannot combine these adapters.
        """
        match composition:
            case Base():
                return AdmittedComposition(composition)
            case Mixture() | Fusion():
                path = f"composition.{type(composition).__name__.lower()}.adapters"
                self._check_count(composition, path)
                return self._admit(composition, path, [f"{path}[{i}]" for i in range(len(composition.adapters))])
            case _:
                assert_never(composition)

    def admit_adapter(self, adapter_id: str, revision: str = "") -> AdmittedComposition:
        """Return a mixture of one adapter with weight 1, for a request that names it in its own fields.

        Raises what `admit` raises for such a mixture.
        """
        return self._admit(Mixture((WeightedAdapter(adapter_id, 1.0, revision),)), "adapter_id", [""])

    def _admit(self, composition: Mixture | Fusion, path: str, adapter_paths: Sequence[str]) -> AdmittedComposition:
        adapters, configs = [], []
        for share, adapter_path in zip(composition.adapters, adapter_paths, strict=True):
            with error_context(adapter_path, share.adapter_id):
                source = self._host_cache.resolve(share.adapter_id, share.revision)
                config = self._host_cache.config(source)
                self._check_rank(share.adapter_id, config)
            adapters.append(AdmittedAdapter(replace(share, revision=source.revision), source, adapter_path))
            configs.append(config)
        resolved = _with_method(replace(composition, adapters=tuple(adapter.share for adapter in adapters)), configs)
        self._check_capacity(resolved, configs, path)
        return AdmittedComposition(resolved, tuple(adapters), path)

    def _check_count(self, composition: Mixture | Fusion, path: str) -> None:
        count = len(composition.adapters)
        if count > self.max_adapters:
            raise InvalidArgumentError(
                path,
                f"{count} adapters are too many; at most {self.max_adapters} in one composition",
                adapters=str(count),
                limit=str(self.max_adapters),
            )

    def _check_rank(self, adapter_id: str, config: PeftConfig) -> None:
        if config.largest_rank > self._bank_ranks:
            raise CapacityError(
                f"adapter {adapter_id!r} has rank {config.largest_rank}, and the adapter bank takes "
                f"{self._bank_ranks} at most: choose another adapter, or start the server with a larger --bank-ranks",
                rank=str(config.largest_rank),
                limit=str(self._bank_ranks),
            )

    def _check_capacity(self, composition: Mixture | Fusion, configs: Sequence[PeftConfig], path: str) -> None:
        """Raise CapacityError unless the composition fits together with the pinned adapters that it does not use."""
        match composition:
            case Mixture():
                needed = sum(config.largest_rank for config in configs)
                used = {AdapterKey(share.adapter_id, share.revision) for share in composition.adapters}
            case Fusion():
                self._check_fusion_rank(composition)
                needed, used = _fused_rank(composition, configs), set()
            case _:
                assert_never(composition)
        pinned = self._pinned_ranks(used)
        if needed + pinned > self._bank_ranks:
            raise capacity_error(needed, self._bank_ranks, pinned, path)

    def _check_fusion_rank(self, fusion: Fusion) -> None:
        if fusion.rank is not None and fusion.rank > self._bank_ranks:
            raise CapacityError(
                f"the fusion is to have rank {fusion.rank}, and the adapter bank takes {self._bank_ranks} at most: ask "
                "for a lower rank, or start the server with a larger --bank-ranks",
                rank=str(fusion.rank),
                limit=str(self._bank_ranks),
                field="composition.fusion.rank",
            )


def capacity_error(needed: int, bank_ranks: int, pinned: int, path: str, detail: str = "") -> CapacityError:
    """Return the error for a composition of `needed` ranks that do not fit together with the pinned adapters."""
    return CapacityError(
        f"this composition needs {needed} ranks, each adapter's side by side; the adapter bank has {bank_ranks}, and "
        f"other pinned adapters hold {pinned}{detail}: compose fewer adapters, unload some, or start the server with a "
        "larger --bank-ranks",
        need=str(needed),
        limit=str(bank_ranks),
        pinned=str(pinned),
        field=path,
    )


@contextmanager
def error_context(path: str, adapter_id: str) -> Iterator[None]:
    """Add the adapter and its field, below `path` of the request, to an error raised within.

    Raises a new error of the same class rather than changing it: concurrent requests may share one error from a
    single-flight look-up, each with its own path.
    """
    try:
        yield
    except InvalidArgumentError:
        raise
    except LoraRetrieverError as error:
        name = "revision" if "revision" in error.metadata else "adapter_id"
        message = error.message if repr(adapter_id) in error.message else f"adapter {adapter_id!r}: {error.message}"
        field = f"{path}.{name}" if path else name
        raise type(error)(message, **{"adapter_id": adapter_id, **error.metadata, "field": field}) from error


def _fused_rank(fusion: Fusion, configs: Sequence[PeftConfig]) -> int:
    """Return the rank of a fusion's result; an adapter counts with the largest rank that its config names."""
    members = {
        share.adapter_id: config for share, config in zip(fusion.adapters, configs, strict=True) if share.weight != 0
    }
    match fusion.method:
        case FusionMethod.LINEAR:
            _check_equal_ranks(members)
            return _largest_rank(members)
        case FusionMethod.CONCAT:
            groups = _by_target(members)
            return max((sum(config.largest_rank for config in group.values()) for group in groups), default=0)
        case FusionMethod.SVD | FusionMethod.TIES | FusionMethod.DARE:
            return fusion.rank or _largest_rank(members)
        case FusionMethod.AUTO:
            raise AssertionError("auto was replaced by _with_method")
        case _:
            assert_never(fusion.method)


def _with_method(composition: Mixture | Fusion, configs: Sequence[PeftConfig]) -> Mixture | Fusion:
    """Replace the method `auto`: linear if the members agree on the rank of every module, otherwise svd."""
    if not isinstance(composition, Fusion) or composition.method is not FusionMethod.AUTO:
        return composition
    pairs = zip(composition.adapters, configs, strict=True)
    ranks = {(config.rank, tuple(sorted(config.rank_pattern.items()))) for share, config in pairs if share.weight != 0}
    # Members with a weight of 0 change nothing, so they do not decide either.
    return replace(composition, method=FusionMethod.LINEAR if len(ranks) <= 1 else FusionMethod.SVD)


def _check_equal_ranks(members: Mapping[str, PeftConfig]) -> None:
    """Raise FailedPreconditionError if members that adapt the same module have unequal ranks.

    Members with a rank pattern are left to the fusion itself, which sees the rank of each module.
    """
    for group in _by_target(members):
        uniform = {name: config.rank for name, config in group.items() if not config.rank_pattern}
        if len(set(uniform.values())) > 1:
            ranks = ", ".join(f"{name} has {rank}" for name, rank in uniform.items())
            raise FailedPreconditionError(
                f"linear fusion needs equal ranks, and {ranks}: use concat, svd, or a mixture",
                field="composition.fusion.method",
                ranks=ranks,
            )


def _by_target(members: Mapping[str, PeftConfig]) -> list[dict[str, PeftConfig]]:
    """Group the members whose configs name the same target module, literally."""
    groups: dict[str, dict[str, PeftConfig]] = {}
    for name, config in members.items():
        for target in config.target_modules or {""}:
            groups.setdefault(target, {})[name] = config
    return list(groups.values())


def _largest_rank(members: Mapping[str, PeftConfig]) -> int:
    return max((config.largest_rank for config in members.values()), default=0)
