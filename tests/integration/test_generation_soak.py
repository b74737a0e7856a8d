"""Many random requests at a full queue, some cancelled or invalid: each ends once, and nothing leaks."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from generation_service.app import GenerationStack, generation_stack
from generation_service.engine.sequence import Delta, Event, Request, Sequence
from generation_service.models.images import decode_images
from infra.contract.composition import FusionMethod, Mixture, WeightedAdapter
from infra.contract.errors import DeadlineError, LoraRetrieverError, OverloadedError
from infra.contract.generation import Decoding, Generation
from infra.contract.prompt import Prompt
from tests.support.harness.generation_stack import settings_for
from tests.support.harness.soak_load import (
    BAD_ADAPTERS,
    BANK_RANKS,
    MAX_ADAPTERS,
    WHOLE_BANK,
    WHOLE_BANK_MODULE,
    Planned,
    planned_requests,
    write_soak_fixture,
)

REQUESTS = 2000
CALLERS = 8
RUNNING = 24
WAITING = 32
RECOMPUTED = 80
TIME_LIMIT_S = 500  # Only ends a test that hangs: a loaded machine takes minutes.
SERVICE_THREADS = ("engine", "encoder", "adapter-", "caller-")


class Callers:
    """Threads that make all requests as fast as the queue accepts them, and record the outcomes of each."""

    def __init__(self, stack: GenerationStack, requests: list[Planned]) -> None:
        self._stack = stack
        self._requests = requests
        self._numbers: Iterator[int] = iter(range(len(requests)))
        self._lock = threading.Lock()
        self._draw = random.Random(1)
        self._cancelled_later: list[Sequence] = []
        self.ends: dict[int, list[object]] = defaultdict(list)
        self._sequences: dict[int, Sequence] = {}
        self.refusals: list[OverloadedError] = []
        self.most_waiting = 0

    def run(self) -> None:
        """Make all requests and wait for their ends."""
        threads = [threading.Thread(target=self._call, name=f"caller-{number}") for number in range(CALLERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIME_LIMIT_S)
            assert not thread.is_alive()
        self._cancel(len(self._cancelled_later))
        deadline = time.monotonic() + TIME_LIMIT_S
        while len(self.ends) < len(self._requests):
            assert time.monotonic() < deadline, f"{len(self._requests) - len(self.ends)} requests never ended"
            time.sleep(0.02)

    def _call(self) -> None:
        while True:
            with self._lock:
                number = next(self._numbers, None)
            if number is None:
                return
            planned = self._requests[number]
            try:
                sequence = self._submitted(number, planned)
            except LoraRetrieverError as error:
                self.ends[number].append(error)
                continue
            self._sequences[number] = sequence
            if planned.cancel == "at once":
                self._stack.engine.cancel(sequence)
            with self._lock:
                self.most_waiting = max(self.most_waiting, self._stack.engine.waiting)
                if planned.cancel == "later":
                    self._cancelled_later.append(sequence)
                due = self._draw.random() < 0.1
            if due:
                self._cancel(1)

    def _submitted(self, number: int, planned: Planned) -> Sequence:
        """Admit, encode and submit as the service does, and submit again whenever the queue is full."""
        stack = self._stack
        deadline = None if planned.patience_s is None else time.monotonic() + planned.patience_s
        composition = stack.admission.admit(planned.composition)
        prompt = stack.model.encode(planned.prompt, decode_images(planned.prompt, stack.service.served.image_limits))
        request = Request(prompt, composition, planned.decoding, deadline)
        while True:
            try:
                return stack.engine.submit(request, lambda event: self._on_event(number, event))
            except OverloadedError as error:
                self.refusals.append(error)
                if deadline is not None and time.monotonic() > deadline:
                    raise DeadlineError("the deadline passed before the queue had room") from error
                time.sleep(0.02)

    def _on_event(self, number: int, event: Event) -> None:
        """Record an end; cancel after the first token if planned. Called on: engine and residency threads."""
        if not isinstance(event, Delta):
            self.ends[number].append(event)
            return
        sequence = self._sequences.get(number)
        if sequence is not None and self._requests[number].cancel == "after a token":
            self._stack.engine.cancel(sequence)

    def _cancel(self, count: int) -> None:
        with self._lock:
            self._draw.shuffle(self._cancelled_later)
            due, self._cancelled_later = self._cancelled_later[:count], self._cancelled_later[count:]
        for sequence in due:
            self._stack.engine.cancel(sequence)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_2000_requests_at_full_queue_each_end_once_and_leak_nothing(tmp_path: Path) -> None:
    tiny_model, requests = write_soak_fixture(tmp_path), list(planned_requests(REQUESTS, seed=11))
    settings = settings_for(
        tiny_model.base,
        [tiny_model.roots],
        bank_ranks=BANK_RANKS,
        max_adapters=MAX_ADAPTERS,
        max_running=RUNNING,
        max_waiting=WAITING,
        max_sequence_tokens=256,
        prefill_tokens=64,
    )
    with generation_stack(settings) as stack:
        callers = Callers(stack, requests)
        callers.run()
        assert callers.most_waiting == WAITING
        assert callers.refusals
        full = {"waiting": str(WAITING), "max_waiting": str(WAITING)}
        assert all(refusal.metadata == full for refusal in callers.refusals)
        ends = {number: callers.ends[number][0] for number in range(REQUESTS)}
        for number, end in ends.items():
            assert type(end) in requests[number].ends, (requests[number], end)
        assert_load_covered_all_kinds(requests, ends)
        assert_nothing_held(stack)
        assert_answers_equal_those_alone(stack, requests, ends)
        assert_nothing_held(stack)
        assert_all_ranks_reclaimable(stack)
    assert all(len(ends) == 1 for ends in callers.ends.values())
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(SERVICE_THREADS)]


def assert_load_covered_all_kinds(requests: list[Planned], ends: dict[int, object]) -> None:
    """Assert that the load was as intended: every kind of composition was answered, every kind of error occurred."""
    answered = {requests[number].kind for number, end in ends.items() if isinstance(end, Generation)}
    assert answered == {"base", "mixture", *FusionMethod}
    seen = {type(end) for end in ends.values()}
    assert seen == set().union(*(planned.ends for planned in requests))
    assert set(BAD_ADAPTERS.values()) < seen
    assert sum(isinstance(end, Generation) for end in ends.values()) > REQUESTS // 2


def assert_nothing_held(stack: GenerationStack) -> None:
    """Assert that no slot, place in the queue, lease or load is left."""
    with suppress(TimeoutError):
        asyncio.run(settled(stack))
    assert (stack.engine.running, stack.engine.waiting, stack.residency.leased_ranks) == (0, 0, 0)
    assert (stack.residency.queued, stack.residency.waiting_for_room) == (0, 0)
    assert stack.bank.free + stack.residency.ranks == stack.bank.ranks


def assert_all_ranks_reclaimable(stack: GenerationStack) -> None:
    """Assert that an adapter as large as the bank evicts all residents, and that their weights are zeroed."""
    assert stack.residency.ranks > 0
    whole = Mixture((WeightedAdapter(WHOLE_BANK, 1.0),))
    asyncio.run(stack.service.generate(Prompt.of("Go back."), whole, Decoding(max_new_tokens=1)))
    (resident,) = stack.residency.residents()
    assert (resident.adapter_id, stack.bank.free, stack.residency.ranks) == (WHOLE_BANK, 0, BANK_RANKS)
    others = [group for group in stack.bank.groups if WHOLE_BANK_MODULE not in group.paths]
    assert others
    assert not any(group.a.any() or group.b.any() for group in others)


def assert_answers_equal_those_alone(stack: GenerationStack, requests: list[Planned], ends: dict[int, object]) -> None:
    """Assert that a sample of the greedy requests, made again one at a time, gets the same answers."""
    greedy = [
        number for number, end in ends.items() if isinstance(end, Generation) and requests[number].decoding.greedy
    ]
    sampled = random.Random(2).sample(greedy, RECOMPUTED)
    assert {requests[number].kind for number in sampled} == {"base", "mixture", *FusionMethod}
    for number in sampled:
        planned, end = requests[number], ends[number]
        alone = asyncio.run(stack.service.generate(planned.prompt, planned.composition, planned.decoding))
        assert isinstance(end, Generation)
        assert (alone.text, alone.finish_reason, alone.usage) == (end.text, end.finish_reason, end.usage), planned
        assert alone.applied == end.applied


async def settled(stack: GenerationStack) -> None:
    async with asyncio.timeout(20):
        while stack.engine.running or stack.engine.waiting or stack.residency.leased_ranks:
            await asyncio.sleep(0.01)
