"""The real engine over a random model with adapters on disk, without the gRPC server.

Import `harness` first.
"""

from __future__ import annotations

import copy
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness import say
from random_adapters import random_adapter, write_peft_folder
from random_models import SHAPES, RandomBaseModel, Shape, copy_sharing_weights
from torch import Tensor

from generation_service.adapters.admission import Admission
from generation_service.adapters.checkpoint.reader import read_checkpoint
from generation_service.adapters.host_cache import HostCache
from generation_service.adapters.leases import BankLease
from generation_service.adapters.load import Outcome
from generation_service.adapters.residency import Residency
from generation_service.adapters.source import AdapterSource
from generation_service.engine.engine import Engine
from generation_service.engine.limits import EngineLimits
from generation_service.engine.sequence import Delta, Event, Listener, Request
from generation_service.execution.inputs import Prefill
from generation_service.execution.kv_cache import CacheShape, SlotKVCache
from generation_service.execution.runner import Runner
from generation_service.lora.bank import AdapterBank
from generation_service.lora.h2d_copy import HostPacker
from generation_service.lora.ranks import RankRange
from generation_service.lora.weights import AdapterWeights
from generation_service.models.base import EncodedPrompt
from infra.contract.composition import Composition, Mixture, WeightedAdapter
from infra.contract.errors import NotFoundError
from infra.contract.generation import Decoding, Generation

SMALL = Shape("small", 256, 6, 8, 2, 1024, 4096)
"""An adapter of rank 4 takes about 3 % of its bytes, close to the 2 % of rank 16 on InternVL2-2B."""
ENGINE_SHAPES = {SMALL.name: SMALL, **SHAPES}


class AdapterFiles:
    """Adapters "a0", "a1", ... of one rank, backed by `files` different folders, so that a thousand need little disk.

    To the engine each is a different adapter, with its own entry in host memory and on the device. Adapter n reads
    folder n modulo `files`, which is in the page cache, as it would be with enough memory.
    """

    def __init__(self, model: RandomBaseModel, folder: Path, *, known: int, files: int, rank: int) -> None:
        self._model = model
        self._known = known
        self._folders = [
            write_peft_folder(
                folder / str(number),
                random_adapter(model.description.targets, rank, seed=number, dtype=model.description.dtype),
            )
            for number in range(min(files, known))
        ]

    def resolve(self, adapter_id: str, revision: str) -> AdapterSource:
        """Return the adapter's source."""
        number = int(adapter_id.removeprefix("a"))
        if number >= self._known:
            raise NotFoundError(f"adapter {adapter_id!r} is unknown: there are {self._known}")
        return AdapterSource(adapter_id, "1", self._folders[number % len(self._folders)], "random")

    def read(self, source: AdapterSource) -> AdapterWeights:
        """Read the adapter like the server."""
        about = self._model.description
        return read_checkpoint(source.folder, about.targets, self._model.canonical, dtype=about.dtype)


def adapter_bytes(model: RandomBaseModel, rank: int) -> int:
    """Return the bytes of an adapter of `rank` on all modules, in the model's dtype."""
    about = model.description
    return rank * about.dtype.itemsize * sum(inputs + outputs for inputs, outputs in about.targets.values())


@dataclass(frozen=True)
class Sizes:
    """Sizes of a setup: bank ranks, cache slots and tokens, and bytes of adapters in host memory."""

    bank_ranks: int
    slots: int
    sequence_tokens: int
    host_bytes: int


class CountingBank(AdapterBank):
    """An AdapterBank that counts its writes."""

    writes = 0

    def write(self, owned: RankRange, weights: AdapterWeights) -> None:
        """Write `weights` and count."""
        super().write(owned, weights)
        self.writes += 1


@dataclass(frozen=True)
class PlannedRequest:
    """A request before its composition is admitted."""

    prompt: EncodedPrompt
    composition: Composition
    decoding: Decoding


class EngineSetup:
    """One engine with its bank, over model weights that it may share with other setups."""

    def __init__(self, model: RandomBaseModel, adapters: AdapterFiles, sizes: Sizes) -> None:
        self.model = copy.copy(model)
        self.model.module = copy_sharing_weights(model.module)
        about = model.description
        self.bank = CountingBank(about.targets, sizes.bank_ranks, about.dtype, about.device)
        self.store = HostCache(
            adapters,
            adapters.read,
            ["random"],
            sizes.host_bytes,
            host_form=HostPacker(about.dtype, pinned=about.device.type == "cuda"),
        )
        self.residency = Residency(self.bank, self.store)
        self.admission = Admission(self.store, sizes.bank_ranks, self.residency.pinned_ranks, max_adapters=16)
        length = -(-(sizes.sequence_tokens + 1) // 64) * 64
        cache = CacheShape(about.layers, sizes.slots, about.kv_heads, length, about.head_dim)
        self.runner = Runner(self.model, self.bank, SlotKVCache(cache, about.dtype, about.device))
        self.engine = Engine(
            self.model,
            self.runner,
            self.residency,
            EngineLimits(
                max_running=sizes.slots,
                max_waiting=4 * sizes.slots,
                max_sequence_tokens=sizes.sequence_tokens,
                default_max_new_tokens=16,
                prefill_tokens=2048,
            ),
        )

    @contextmanager
    def running(self) -> Iterator[EngineSetup]:
        """Run the engine until exit."""
        self.engine.start()
        try:
            yield self
        finally:
            self.engine.close()
            self.residency.close()

    @property
    def loads(self) -> int:
        """Adapters and fusions written into the bank so far."""
        return self.bank.writes

    def fill(self, adapters: Sequence[str]) -> None:
        """Load `adapters` in order, so that bank and host memory hold as many of the last ones as fit."""
        for adapter in adapters:
            self.lease(Mixture((WeightedAdapter(adapter, 1.0),))).release()

    def lease(self, composition: Composition) -> BankLease:
        """Return the composition's lease once it is in the bank. Raises the error of its load."""
        outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self.residency.request(self.admission.admit(composition), outcomes.put)
        outcome = outcomes.get()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def logits(self, composition: Composition, prompt: EncodedPrompt) -> Tensor:
        """Return the logits [1, vocab] after `prompt`. The engine must be idle."""
        lease = self.lease(composition)
        try:
            logits = self.runner.prefill(Prefill(0, prompt, lease.ranges), prompt.length)
            assert logits is not None
            return logits
        finally:
            lease.release()

    def token_times(self, request: PlannedRequest, loading: Iterable[str]) -> list[float]:
        """Return the time of each token of an answer while the adapters of `loading` are loaded one after another."""
        times: list[float] = []
        ended = threading.Event()

        def on_event(event: Event) -> None:
            times.append(time.perf_counter())
            if not isinstance(event, Delta):
                ended.set()

        self._submit(request, on_event)
        for adapter in loading:
            if ended.is_set():
                break
            self.fill([adapter])
        ended.wait()
        return times[:-1]

    def answer(self, requests: Iterable[PlannedRequest], together: int) -> list[Generation]:
        """Answer all requests, `together` of them at any time; return the answers in the order of the requests.

        Raises the error of a request that failed.
        """
        room = threading.Semaphore(together)
        pending: list[_Pending] = []
        for request in requests:
            room.acquire()
            one = _Pending(room)
            pending.append(one)
            self._submit(request, one.on_event)
        return [one.answer() for one in pending]

    def _submit(self, request: PlannedRequest, listener: Listener) -> None:
        admitted = self.admission.admit(request.composition)
        self.engine.submit(Request(request.prompt, admitted, request.decoding), listener)


class _Pending:
    """Receives the end of one request."""

    def __init__(self, room: threading.Semaphore) -> None:
        self._room = room
        self._ended = threading.Event()
        self._end: Generation | Exception | None = None

    def on_event(self, event: Event) -> None:
        if not isinstance(event, Delta):
            self._end = event
            self._ended.set()
            self._room.release()

    def answer(self) -> Generation:
        self._ended.wait()
        if isinstance(self._end, Generation):
            return self._end
        assert self._end is not None
        raise self._end


def request_of(prompt: EncodedPrompt, composition: Composition, answer_tokens: int) -> PlannedRequest:
    """Return a request for a greedy answer of exactly `answer_tokens`, since random models never stop."""
    return PlannedRequest(prompt, composition, Decoding(max_new_tokens=answer_tokens))


def require_same_answers(what: str, ours: Sequence[Generation], theirs: Sequence[Generation]) -> None:
    """Exit unless both gave the same texts: the speed of a wrong answer means nothing."""
    differing = [n for n, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a.text != b.text]
    if differing:
        raise SystemExit(f"{what}: answers {differing} of {len(ours)} differ, so nothing was timed")
    say(f"  equal: {what} ({len(ours)} answers)")
