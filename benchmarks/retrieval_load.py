"""Load on a real service: callers retrieve while adapters are registered and deleted. Wrong results are collected."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from loraretriever.v1 import adapter_pb2, retrieval_service_pb2
from loraretriever.v1.retrieval_service_pb2_grpc import RetrievalServiceStub

from infra.contract.prompt import Prompt
from infra.runtime.channel import ChannelOptions, sync_channel
from infra.runtime.wire import prompt_to_proto

pb = retrieval_service_pb2

CONSTANTS = ("open the shop and buy shoes", "set an alarm for seven", "9 8 7 6 5 4 3 2 1 0")
_TOP_K = 50


@dataclass
class LoadResult:
    """Counts and latencies. `wrong` describes every wrong result and every error; it must be empty."""

    calls: int = 0
    registered: int = 0
    deleted: int = 0
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class _Load:
    """Runs `callers` threads that retrieve, and two that register an adapter, find it, delete it and search again."""

    def __init__(self, address: str, base_model: str) -> None:
        self._address, self._base_model = address, base_model
        self._ids = itertools.count()
        self._deleted: set[str] = set()  # acknowledged deletions
        self._lock = threading.Lock()  # Guards: _deleted, result.
        self._stop = threading.Event()
        self.result = LoadResult()

    def run(self, callers: int, seconds: float) -> LoadResult:
        with self._stub() as stub:
            for number, text in enumerate(CONSTANTS):
                self._create(stub, f"constant-{number}", text)
        threads = [*[self._retrieve] * callers, *[self._register_and_delete] * 2]
        with ThreadPoolExecutor(len(threads)) as pool:
            running = [pool.submit(self._guarded, work, number) for number, work in enumerate(threads)]
            self._stop.wait(seconds)
            self._stop.set()
            for future in running:
                future.result()
        with self._stub() as stub:
            for number in range(len(CONSTANTS)):
                stub.DeleteAdapter(pb.DeleteAdapterRequest(adapter_id=f"constant-{number}"))
        return self.result

    @contextmanager
    def _stub(self) -> Iterator[RetrievalServiceStub]:
        with sync_channel(ChannelOptions(self._address)) as channel:
            yield RetrievalServiceStub(channel)  # type: ignore[no-untyped-call]

    def _guarded(self, work: Callable[[RetrievalServiceStub, int], None], number: int) -> None:
        try:
            with self._stub() as stub:
                while not self._stop.is_set():
                    work(stub, number)
        except Exception as error:
            self._wrong(f"{work.__name__}: {type(error).__name__}: {error}")

    def _retrieve(self, stub: RetrievalServiceStub, caller: int) -> None:
        with self._lock:
            deleted = set(self._deleted)
            turn = self.result.calls = self.result.calls + 1
        constant = turn % len(CONSTANTS)
        # One in four prompts repeats a concurrent one; the others are new.
        text = CONSTANTS[constant] if turn % 4 == 0 else f"{CONSTANTS[constant]} {caller} {turn}"
        started = time.perf_counter()
        matches = self._retrieved(stub, text)
        elapsed = time.perf_counter() - started
        with self._lock:
            self.result.seconds.append(elapsed)
        for adapter_id in deleted & set(matches):
            self._wrong(f"{adapter_id} was found after its deletion was acknowledged")
        if f"constant-{constant}" not in matches:
            self._wrong(f"constant-{constant} was not found")

    def _register_and_delete(self, stub: RetrievalServiceStub, _number: int) -> None:
        adapter_id = f"guest-{next(self._ids)}"
        text = f"{adapter_id} wants to be found"
        self._create(stub, adapter_id, text)
        if adapter_id not in self._retrieved(stub, text):
            self._wrong(f"{adapter_id} was not found after its registration was acknowledged")
        stub.DeleteAdapter(pb.DeleteAdapterRequest(adapter_id=adapter_id))
        with self._lock:
            self._deleted.add(adapter_id)
            self.result.registered += 1
            self.result.deleted += 1
        if adapter_id in self._retrieved(stub, text):
            self._wrong(f"{adapter_id} was found after its deletion was acknowledged")

    def _create(self, stub: RetrievalServiceStub, adapter_id: str, text: str) -> None:
        adapter = adapter_pb2.Adapter(
            adapter_id=adapter_id, base_model=self._base_model, checkpoint_uri=f"adapters/{adapter_id}"
        )
        examples = pb.ExamplePrompts(prompts=[prompt_to_proto(Prompt.of(text))])
        stub.CreateAdapter(pb.CreateAdapterRequest(adapter=adapter, examples=examples), timeout=60)

    def _retrieved(self, stub: RetrievalServiceStub, text: str) -> list[str]:
        options = pb.RetrievalOptions(top_k=_TOP_K, base_model=self._base_model)
        request = pb.RetrieveAdaptersRequest(prompts=[prompt_to_proto(Prompt.of(text))], options=options)
        response = stub.RetrieveAdapters(request, timeout=60)
        return [match.adapter.adapter_id for match in response.selections[0].matches]

    def _wrong(self, what: str) -> None:
        with self._lock:
            self.result.wrong.append(what)


def run_load(address: str, *, callers: int = 16, seconds: float = 60.0, base_model: str = "load") -> LoadResult:
    """Load the service at `address` for `seconds`. Its catalogue must not hold adapters of `base_model`."""
    return _Load(address, base_model).run(callers, seconds)


def percentile(seconds: list[float], share: float) -> float:
    """Return the latency within which `share` percent of the calls completed."""
    return float(np.percentile(seconds, share))
