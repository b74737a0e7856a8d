"""Who runs, in which slot."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation_service.adapters.leases import BankLease
from generation_service.sampler import TokenChooser
from generation_service.scheduler import Scheduler
from generation_service.sequence import Request, Sequence
from generation_service.text_stream import TextStream
from infra.contract.composition import Base
from infra.contract.errors import OverloadedError
from infra.contract.generation import Decoding
from tests.fakes.engine import scripted_prompt


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


def test_one_step_reads_a_bounded_number_of_prompt_tokens() -> None:
    scheduler = Scheduler(slots=9, max_waiting=9, prefill_tokens=10)
    queued(scheduler, *(sequence(length) for length in (20, 6, 4, 1)))
    assert [s.prompt_length for s in scheduler.admit()] == [20]
    assert [s.prompt_length for s in scheduler.admit()] == [6, 4]
    assert [s.prompt_length for s in scheduler.admit()] == [1]


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
        elif scheduler.running or scheduler.waiting:
            scheduler.remove((scheduler.running or scheduler.waiting)[-1])
        owned = [s.slot for s in scheduler.running]
        assert len(set(owned)) == len(owned) == slots - scheduler.free_slots
