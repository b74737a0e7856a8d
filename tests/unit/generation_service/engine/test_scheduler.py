"""The scheduler alone: which sequences get slots, and how a step's prefill budget is shared."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation_service.adapters.leases import BankLease
from generation_service.engine.scheduler import Scheduler
from generation_service.engine.sequence import Request, RunningSequence, Sequence
from generation_service.engine.text_stream import TextStream
from generation_service.execution.sampler import TokenChooser
from infra.contract.errors import OverloadedError
from infra.contract.generation import Decoding
from tests.support.harness.scripted_engine import BASE, scripted_prompt


def sequence(length: int = 4, deadline: float | None = None) -> Sequence:
    return Sequence(
        request=Request(scripted_prompt("", length), BASE, Decoding(), deadline),
        listener=lambda _: None,
        text=TextStream(str),
        chooser=TokenChooser(Decoding()),
        max_new_tokens=1,
    )


def enqueue_ready(scheduler: Scheduler, *sequences: Sequence) -> None:
    """Queue sequences whose adapters are loaded."""
    for waiting in sequences:
        scheduler.enqueue(waiting)
        scheduler.adapters_ready(waiting, BankLease({}, (), lambda _: None))


def sequences_of(running: list[RunningSequence]) -> list[Sequence]:
    return [one.sequence for one in running]


def test_oldest_sequences_get_free_slots() -> None:
    scheduler = Scheduler(slots=2, max_waiting=9, prefill_tokens=99)
    first, second, third = sequence(), sequence(), sequence()
    enqueue_ready(scheduler, first, second, third)
    assert sequences_of(scheduler.admit()) == [first, second]
    assert scheduler.waiting == [third]
    scheduler.remove(first)
    assert sequences_of(scheduler.admit()) == [third]
    assert sequences_of(scheduler.prefilling) == [second, third]
    assert scheduler.decoding == []


def test_sequence_whose_adapters_load_does_not_delay_others() -> None:
    scheduler = Scheduler(slots=2, max_waiting=9, prefill_tokens=99)
    loading, ready = sequence(), sequence()
    scheduler.enqueue(loading)
    enqueue_ready(scheduler, ready)
    assert sequences_of(scheduler.admit()) == [ready]
    assert not scheduler.idle
    scheduler.remove(ready)
    assert scheduler.idle


def test_remove_returns_lease_in_every_phase() -> None:
    scheduler = Scheduler(slots=1, max_waiting=9, prefill_tokens=99)
    running, ready, loading = sequence(), sequence(), sequence()
    enqueue_ready(scheduler, running, ready)
    scheduler.enqueue(loading)
    (admitted,) = scheduler.admit()
    assert scheduler.remove(running) is admitted.seat.lease
    assert scheduler.remove(ready) is not None
    assert scheduler.remove(loading) is None
    assert (scheduler.all_sequences, scheduler.free_slots, scheduler.idle) == ([], 1, True)


def admit(scheduler: Scheduler, *lengths: int) -> list[RunningSequence]:
    """Admit sequences with prompts of `lengths` tokens."""
    enqueue_ready(scheduler, *(sequence(length) for length in lengths))
    return scheduler.admit()


def prefill(scheduler: Scheduler) -> list[tuple[int, int]]:
    """Prefill one step's chunks; return the slot and tokens of each."""
    chunks = scheduler.chunks()
    for chunk in chunks:
        chunk.running.prefill.advance(chunk.tokens)
        if not chunk.running.prefill.remaining:
            chunk.running.start_decoding()
    return [(chunk.running.seat.slot, chunk.tokens) for chunk in chunks]


def test_one_step_prefills_bounded_number_of_tokens() -> None:
    scheduler = Scheduler(slots=9, max_waiting=9, prefill_tokens=10)
    admit(scheduler, 23, 4, 2, 1, 5)
    steps = [prefill(scheduler) for _ in range(5)]
    assert steps == [[(0, 10)], [(0, 10)], [(0, 3), (1, 4), (2, 2), (3, 1)], [(4, 5)], []]


def test_sequence_decodes_once_its_prompt_is_prefilled() -> None:
    scheduler = Scheduler(slots=3, max_waiting=9, prefill_tokens=10)
    long, short = admit(scheduler, 12, 3)
    assert (scheduler.prefilling, scheduler.decoding) == ([long, short], [])
    prefill(scheduler)
    assert (scheduler.prefilling, scheduler.decoding) == ([long, short], [])
    prefill(scheduler)
    assert (scheduler.prefilling, scheduler.decoding) == ([], [long, short])


def test_sequence_removed_during_prefill_frees_its_slot_for_next() -> None:
    scheduler = Scheduler(slots=1, max_waiting=9, prefill_tokens=10)
    (first,) = admit(scheduler, 25)
    second = sequence(6)
    enqueue_ready(scheduler, second)
    prefill(scheduler)
    scheduler.remove(first.sequence)
    assert sequences_of(scheduler.admit()) == [second]
    assert [(chunk.running.sequence, chunk.tokens) for chunk in scheduler.chunks()] == [(second, 6)]


def test_cancelled_and_late_sequences_expire() -> None:
    scheduler = Scheduler(slots=1, max_waiting=9, prefill_tokens=10)
    late, cancelled, patient = sequence(deadline=5.0), sequence(), sequence(deadline=6.0)
    enqueue_ready(scheduler, late, cancelled, patient)
    scheduler.admit()
    cancelled.cancelled = True
    assert set(scheduler.expired(5.0)) == {late, cancelled}


@given(st.lists(st.integers(1, 40), max_size=8), st.integers(1, 16))
def test_every_prompt_is_prefilled_once_in_order_within_bound(lengths: list[int], bound: int) -> None:
    scheduler = Scheduler(slots=8, max_waiting=99, prefill_tokens=bound)
    admitted = admit(scheduler, *lengths)
    order = []
    while chunks := prefill(scheduler):
        assert sum(tokens for _, tokens in chunks) <= bound
        order += [slot for slot, _ in chunks]
    assert order == sorted(order)
    assert scheduler.decoding == admitted
    assert len(order) <= sum(lengths) / bound + len(lengths)


def test_full_queue_refuses() -> None:
    scheduler = Scheduler(slots=1, max_waiting=2, prefill_tokens=99)
    enqueue_ready(scheduler, sequence(), sequence())
    with pytest.raises(OverloadedError, match="2 requests wait") as caught:
        scheduler.enqueue(sequence())
    assert caught.value.metadata == {"waiting": "2", "max_waiting": "2"}
    scheduler.admit()
    scheduler.enqueue(sequence())


def test_next_deadline_is_earliest_of_all() -> None:
    scheduler = Scheduler(slots=1, max_waiting=9, prefill_tokens=99)
    assert scheduler.next_deadline() is None
    enqueue_ready(scheduler, sequence(deadline=5.0), sequence(), sequence(deadline=3.0))
    scheduler.admit()
    assert scheduler.next_deadline() == 3.0


@given(st.lists(st.sampled_from(["enqueue", "remove", "admit"]), max_size=60), st.integers(1, 4))
def test_no_slot_has_two_owners_and_none_is_lost(moves: list[str], slots: int) -> None:
    scheduler = Scheduler(slots, max_waiting=99, prefill_tokens=8)
    for move in moves:
        if move == "enqueue":
            enqueue_ready(scheduler, sequence())
        elif move == "admit":
            scheduler.admit()
        elif scheduler.all_sequences:
            scheduler.remove(scheduler.all_sequences[-1])
        owned = [running.seat.slot for running in scheduler.running]
        assert len(set(owned)) == len(owned) == slots - scheduler.free_slots
