"""Who runs, in which slot."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation_service.adapters.leases import BankLease
from generation_service.engine.scheduler import Scheduler
from generation_service.engine.sequence import Request, Sequence
from generation_service.engine.text_stream import TextStream
from generation_service.execution.inputs import Prefill
from generation_service.execution.sampler import TokenChooser
from infra.contract.composition import Base
from infra.contract.errors import OverloadedError
from infra.contract.generation import Decoding
from tests.support.harness.scripted_engine import scripted_prompt


def sequence(length: int = 4, ready: bool = True, deadline: float | None = None) -> Sequence:
    made = Sequence(
        request=Request(scripted_prompt("", length), Base(), Decoding(), deadline),
        listener=lambda _: None,
        text=TextStream(str),
        chooser=TokenChooser(Decoding()),
        max_new_tokens=1,
    )
    if ready:
        made.lease = BankLease({}, (), lambda _: None)
    return made


def queued(scheduler: Scheduler, *sequences: Sequence) -> None:
    for one in sequences:
        scheduler.enqueue(one)


def test_the_oldest_get_the_free_slots() -> None:
    scheduler = Scheduler(slots=2, max_waiting=9, prefill_tokens=99)
    first, second, third = sequence(), sequence(), sequence()
    queued(scheduler, first, second, third)
    assert scheduler.admit() == [first, second]
    assert scheduler.waiting == [third]
    scheduler.remove(first)
    assert scheduler.admit() == [third]
    assert scheduler.reading == [second, third]
    assert scheduler.decoding == []


def test_a_sequence_whose_adapters_load_holds_up_no_other() -> None:
    scheduler = Scheduler(slots=2, max_waiting=9, prefill_tokens=99)
    loading, ready = sequence(ready=False), sequence()
    queued(scheduler, loading, ready)
    assert scheduler.admit() == [ready]
    assert not scheduler.idle
    scheduler.remove(ready)
    assert scheduler.idle


def seated(scheduler: Scheduler, *lengths: int) -> list[Sequence]:
    """Admit sequences with prompts of `lengths` tokens, which are then to be read."""
    queued(scheduler, *(sequence(length) for length in lengths))
    admitted = scheduler.admit()
    for one in admitted:
        assert one.slot is not None
        one.prefill = Prefill(one.slot, one.request.prompt, {})
    return admitted


def read(scheduler: Scheduler) -> list[tuple[int, int]]:
    """Read one step's chunks; return each one's slot and tokens."""
    chunks = scheduler.chunks()
    for chunk in chunks:
        assert chunk.sequence.prefill is not None
        chunk.sequence.prefill.advance(chunk.tokens)
    return [(chunk.sequence.slot or 0, chunk.tokens) for chunk in chunks]


def test_one_step_reads_a_bounded_number_of_prompt_tokens() -> None:
    scheduler = Scheduler(slots=9, max_waiting=9, prefill_tokens=10)
    seated(scheduler, 23, 4, 2, 1, 5)
    steps = [read(scheduler) for _ in range(5)]
    assert steps == [[(0, 10)], [(0, 10)], [(0, 3), (1, 4), (2, 2), (3, 1)], [(4, 5)], []]


def test_a_sequence_decodes_once_its_prompt_is_read() -> None:
    scheduler = Scheduler(slots=3, max_waiting=9, prefill_tokens=10)
    long, short = seated(scheduler, 12, 3)
    assert (scheduler.reading, scheduler.decoding) == ([long, short], [])
    read(scheduler)
    assert (scheduler.reading, scheduler.decoding) == ([long, short], [])
    read(scheduler)
    assert (scheduler.reading, scheduler.decoding) == ([], [long, short])


def test_a_sequence_that_leaves_while_its_prompt_is_read_frees_its_slot_for_the_next() -> None:
    scheduler = Scheduler(slots=1, max_waiting=9, prefill_tokens=10)
    (first,) = seated(scheduler, 25)
    second = sequence(6)
    queued(scheduler, second)
    read(scheduler)
    scheduler.remove(first)
    assert scheduler.admit() == [second]
    assert [(chunk.sequence, chunk.tokens) for chunk in scheduler.chunks()] == [(second, 6)]


def test_those_leave_who_are_cancelled_or_late() -> None:
    scheduler = Scheduler(slots=1, max_waiting=9, prefill_tokens=10)
    late, cancelled, patient = sequence(deadline=5.0), sequence(), sequence(deadline=6.0)
    queued(scheduler, late, cancelled, patient)
    scheduler.admit()
    cancelled.cancelled = True
    assert set(scheduler.leaving(5.0)) == {late, cancelled}


@given(st.lists(st.integers(1, 40), max_size=8), st.integers(1, 16))
def test_every_prompt_is_read_once_in_order_within_the_bound(lengths: list[int], bound: int) -> None:
    scheduler = Scheduler(slots=8, max_waiting=99, prefill_tokens=bound)
    sequences = seated(scheduler, *lengths)
    order = []
    while chunks := read(scheduler):
        assert sum(tokens for _, tokens in chunks) <= bound
        order += [slot for slot, _ in chunks]
    assert order == sorted(order)
    assert [one.unread for one in sequences] == [0] * len(lengths)
    assert len(order) <= sum(lengths) / bound + len(lengths)


def test_a_full_queue_refuses() -> None:
    scheduler = Scheduler(slots=1, max_waiting=2, prefill_tokens=99)
    queued(scheduler, sequence(), sequence())
    with pytest.raises(OverloadedError, match="2 requests wait") as caught:
        scheduler.enqueue(sequence())
    assert caught.value.metadata == {"waiting": "2", "max_waiting": "2"}
    scheduler.admit()
    scheduler.enqueue(sequence())


def test_the_next_deadline_is_the_earliest_of_all() -> None:
    scheduler = Scheduler(slots=1, max_waiting=9, prefill_tokens=99)
    assert scheduler.next_deadline() is None
    queued(scheduler, sequence(deadline=5.0), sequence(), sequence(deadline=3.0))
    scheduler.admit()
    assert scheduler.next_deadline() == 3.0


@given(st.lists(st.sampled_from(["join", "leave", "admit"]), max_size=60), st.integers(1, 4))
def test_no_slot_has_two_owners_and_none_is_lost(moves: list[str], slots: int) -> None:
    scheduler = Scheduler(slots, max_waiting=99, prefill_tokens=8)
    for move in moves:
        if move == "join":
            scheduler.enqueue(sequence())
        elif move == "admit":
            scheduler.admit()
        elif scheduler.reading or scheduler.waiting:
            scheduler.remove((scheduler.reading or scheduler.waiting)[-1])
        owned = [s.slot for s in scheduler.reading]
        assert len(set(owned)) == len(owned) == slots - scheduler.free_slots
