"""Fake adapters that a test can block, change and break, and a residency over a small bank of them."""

from __future__ import annotations

import copy
import queue
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from generation_service.adapters.admission import Admission
from generation_service.adapters.checkpoint.peft_config import PeftConfig
from generation_service.adapters.host_cache import HostCache
from generation_service.adapters.leases import BankLease, ResidentAdapter
from generation_service.adapters.load import CompositionLoad, Outcome
from generation_service.adapters.residency import Residency
from generation_service.adapters.source import AdapterSource
from generation_service.lora.bank import AdapterBank
from generation_service.lora.weights import AdapterWeights, LoraPair
from infra.contract.composition import Composition, Fusion, FusionMethod, Mixture, WeightedAdapter
from infra.contract.errors import CheckpointError, LoraRetrieverError, NotFoundError

TARGETS = {"layer": (6, 5)}


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for `condition`, which another thread brings about."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class FakeAdapterStore:
    """Adapters "r4-a" of rank 4 and so on.

    A test may change their `revision`, break some, let every read end in `read_error`, and block all reads while
    `unblocked` is not set.
    """

    def __init__(self) -> None:
        self.revision = "1"
        self.base_model = "tiny"
        self.broken: set[str] = set()
        self.read_error: LoraRetrieverError | None = None
        self.targets: dict[str, frozenset[str]] = {}
        self.lookups: list[str] = []
        self.read: list[str] = []
        self.configs_read: list[str] = []
        self.config_error: CheckpointError | None = None
        self.unblocked = threading.Event()
        self.unblocked.set()

    def resolve(self, adapter_id: str, revision: str) -> AdapterSource:
        self.lookups.append(adapter_id)
        if adapter_id == "unknown":
            raise NotFoundError("adapter 'unknown' is not known")
        return AdapterSource(adapter_id, revision or self.revision, Path("unused"), self.base_model)

    def weights(self, source: AdapterSource) -> AdapterWeights:
        assert self.unblocked.wait(timeout=20)
        if self.read_error is not None:
            raise self.read_error
        self.read.append(source.adapter_id)
        if source.adapter_id in self.broken:
            raise CheckpointError(f"{source.adapter_id} is half a file")
        return self.made(source.adapter_id, source.revision)

    @staticmethod
    def made(adapter_id: str, revision: str) -> AdapterWeights:
        """Return the adapter of that name and revision."""
        rank = rank_of(adapter_id)
        draw = torch.Generator().manual_seed(zlib.crc32(f"{adapter_id} {revision}".encode()))
        pair = LoraPair(torch.randn(rank, 6, generator=draw), torch.randn(5, rank, generator=draw))
        return AdapterWeights.of({"layer": pair}, revision)

    def config(self, source: AdapterSource) -> PeftConfig:
        if self.config_error is not None:
            raise self.config_error
        self.configs_read.append(source.adapter_id)
        return PeftConfig(
            rank_of(source.adapter_id), 1.0, target_modules=self.targets.get(source.adapter_id, frozenset())
        )


class ResidencyHarness:
    """Admission and residency over a bank of `ranks`."""

    def __init__(
        self,
        ranks: int = 16,
        host_bytes: int = 2**20,
        host_form: Callable[[AdapterWeights], AdapterWeights] = lambda weights: weights,
    ) -> None:
        self.disk = FakeAdapterStore()
        self.bank = AdapterBank(TARGETS, ranks, torch.float32, "cpu")
        self.host_cache = HostCache(
            self.disk, self.disk.weights, ["tiny"], host_bytes, config_of=self.disk.config, host_form=host_form
        )
        self.residency = Residency(self.bank, self.host_cache)
        self.admission = Admission(self.host_cache, ranks, self.residency.pinned_ranks, max_adapters=4)
        self.layer = torch.nn.Linear(6, 5, bias=False)
        self.model = torch.nn.ModuleDict({"layer": copy.deepcopy(self.layer)})
        self.bank.install(self.model)

    def request(self, composition: Composition) -> tuple[CompositionLoad, queue.SimpleQueue[Outcome]]:
        """Admit a composition and request its lease."""
        outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        return self.residency.request(self.admission.admit(composition), outcomes.put), outcomes

    def lease(self, composition: Composition) -> BankLease:
        """Return the composition's lease."""
        outcome = self.request(composition)[1].get(timeout=20)
        assert isinstance(outcome, BankLease), outcome
        return outcome

    def refused(self, composition: Composition) -> LoraRetrieverError:
        """Return the error of loading an admitted composition."""
        outcome = self.request(composition)[1].get(timeout=20)
        assert isinstance(outcome, LoraRetrieverError), outcome
        return outcome

    def pin(self, adapter_id: str) -> ResidentAdapter:
        """Pin an adapter."""
        return self.residency.pin(self.admission.admit_adapter(adapter_id)).result(timeout=20)

    def applied(self, lease: BankLease, x: Tensor) -> Tensor:
        """Return what a model with this bank adds to x [1, tokens, 6] under the lease, [1, tokens, 5]."""
        with torch.inference_mode(), self.bank.routing.step([lease.ranges]):
            changed: Tensor = self.model["layer"](x)
            plain: Tensor = self.layer(x)
        return changed - plain

    def expected(self, composition: Mixture | Fusion, revisions: dict[str, str], x: Tensor) -> Tensor:
        """Return the weighted sum of the adapters' own deltas, [1, tokens, 5]."""
        total = torch.zeros(1, x.shape[1], 5)
        for share in composition.adapters:
            pair = self.disk.made(share.adapter_id, revisions[share.adapter_id]).modules["layer"]
            total += share.weight * x @ pair.a.T @ pair.b.T
        return total

    @property
    def names(self) -> set[str]:
        """The ids of the resident adapters."""
        return {resident.adapter_id for resident in self.residency.residents()}


def mixture(*names: str, weight: float = 0.5) -> Mixture:
    return Mixture(tuple(WeightedAdapter(name, weight) for name in names))


def fusion(*names: str, weight: float = 0.5, method: FusionMethod = FusionMethod.CONCAT) -> Fusion:
    return Fusion(tuple(WeightedAdapter(name, weight) for name in names), method)


def rank_of(adapter_id: str) -> int:
    """Return the rank in an adapter's name: 4 for "r4-a"."""
    return int(adapter_id[1:].split("-", maxsplit=1)[0])
