"""Which adapters are in the bank, which are evicted, and which compositions wait."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from contextlib import suppress

import pytest
import torch

from generation_service.adapters.leases import AdapterKey, BankLease, ResidentAdapter
from generation_service.adapters.load import CompositionLoad, LoadState, Outcome
from generation_service.adapters.placement import Placement
from generation_service.adapters.residency import READ_AHEAD
from generation_service.lora.ranks import RankRange
from generation_service.lora.weights import AdapterWeights
from infra.contract.composition import Base, Composition, Fusion, FusionMethod, Mixture, WeightedAdapter
from infra.contract.errors import (
    CapacityError,
    CheckpointError,
    LoraRetrieverError,
    NotFoundError,
    UnavailableError,
)
from tests.support.harness.residency_harness import ResidencyHarness, fusion, mixture, wait_until

TWO = (WeightedAdapter("r2-a", 0.5), WeightedAdapter("r2-b", 0.25))


class Receiver:
    """An object that a callback keeps alive, as a request's pixels would be."""

    def on_ready(self, outcome: Outcome) -> None:
        raise AssertionError(outcome)


@pytest.fixture
def harness() -> ResidencyHarness:
    return ResidencyHarness()


def test_base_model_needs_no_ranges(harness: ResidencyHarness) -> None:
    lease = harness.lease(Base())
    assert (lease.ranges, lease.applied) == ({}, ())


def test_mixture_leases_one_range_per_adapter_with_its_weight(harness: ResidencyHarness) -> None:
    lease = harness.lease(Mixture((WeightedAdapter("r4-a", 0.7), WeightedAdapter("r8-b", 0.0))))
    assert {owned.rank: weight for owned, weight in lease.ranges.items()} == {4: 0.7, 8: 0.0}
    assert lease.applied == (WeightedAdapter("r4-a", 0.7, "1"), WeightedAdapter("r8-b", 0.0, "1"))
    assert harness.residency.leased_ranks == 12
    lease.release()
    lease.release()
    assert harness.residency.leased_ranks == 0
    assert harness.names == {"r4-a", "r8-b"}


def test_equal_adapters_share_range(harness: ResidencyHarness) -> None:
    first, second = harness.lease(mixture("r4-a", "r4-b")), harness.lease(mixture("r4-b", weight=0.1))
    assert set(second.ranges) < set(first.ranges)
    assert harness.bank.free == 8


def test_equal_fusions_share_range_in_any_order(harness: ResidencyHarness) -> None:
    first, second = harness.lease(fusion("r2-a", "r3-b")), harness.lease(fusion("r3-b", "r2-a"))
    assert first.ranges == second.ranges
    assert list(first.ranges.values()) == [1.0]
    other = harness.lease(fusion("r2-a", "r3-b", weight=0.4))
    assert other.ranges != first.ranges
    assert harness.bank.free == 16 - 5 - 5


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        (Fusion(TWO, FusionMethod.SVD), Fusion(TWO, FusionMethod.CONCAT), False),
        (Fusion(TWO, FusionMethod.SVD, rank=2), Fusion(TWO[::-1], FusionMethod.SVD, rank=2), True),
        (Fusion(TWO, FusionMethod.SVD, rank=2), Fusion(TWO, FusionMethod.SVD, rank=1), False),
        (Fusion(TWO, FusionMethod.TIES), Fusion(TWO[::-1], FusionMethod.TIES, density=0.5), True),
        (Fusion(TWO, FusionMethod.TIES), Fusion(TWO, FusionMethod.TIES, density=0.4), False),
        (Fusion(TWO, FusionMethod.DARE), Fusion(TWO[::-1], FusionMethod.DARE), True),
        (Fusion(TWO, FusionMethod.DARE, seed=1), Fusion(TWO, FusionMethod.DARE, seed=2), False),
        (Fusion(TWO, FusionMethod.DARE, seed=1), Fusion(TWO[::-1], FusionMethod.DARE, seed=1), True),
        (Fusion(TWO, FusionMethod.DARE), Fusion((TWO[0], WeightedAdapter("r2-b", 0.1)), FusionMethod.DARE), False),
    ],
)
def test_fusions_share_range_only_if_every_option_is_equal(
    harness: ResidencyHarness, one: Composition, other: Composition, shared: bool
) -> None:
    assert (harness.lease(one).ranges == harness.lease(other).ranges) is shared


def test_distinct_fusions_are_evicted_and_their_members_read_once(harness: ResidencyHarness) -> None:
    for number in range(200):
        shares = (WeightedAdapter("r2-a", 1 / (1 + number)), WeightedAdapter("r3-b", 0.5))
        harness.lease(Fusion(shares, FusionMethod.CONCAT)).release()
    assert harness.residency.ranks == 15
    assert harness.bank.free == 1
    assert harness.disk.read == ["r2-a", "r3-b"]


def test_fusion_is_weighted_sum_of_its_members(harness: ResidencyHarness) -> None:
    x = torch.randn(1, 3, 6)
    for method, density in ((FusionMethod.CONCAT, None), (FusionMethod.SVD, None), (FusionMethod.DARE, 1.0)):
        rank = None if method is FusionMethod.CONCAT else 5
        asked = Fusion(fusion("r2-a", "r3-b").adapters, method, rank, density)
        lease = harness.lease(asked)
        assert list(lease.ranges.values()) == [1.0]
        torch.testing.assert_close(harness.applied(lease, x), harness.expected(asked, {"r2-a": "1", "r3-b": "1"}, x))
        lease.release()


def test_adapter_requested_ten_times_at_once_is_read_once(harness: ResidencyHarness) -> None:
    harness.disk.unblocked.clear()
    asked = [harness.request(mixture("r4-a"))[1] for _ in range(5)] + [
        harness.request(fusion("r4-a"))[1] for _ in range(5)
    ]
    harness.disk.unblocked.set()
    assert all(isinstance(outcomes.get(timeout=20), BankLease) for outcomes in asked)
    assert harness.disk.read == ["r4-a"]


def test_resident_adapters_do_not_wait_for_blocked_readers() -> None:
    harness = ResidencyHarness(ranks=32)
    applied = harness.lease(mixture("r4-a", "r4-b")).applied
    harness.disk.unblocked.clear()
    loading = [harness.request(mixture(f"r2-{index}"))[1] for index in range(8)]
    harness.lease(Mixture(applied)).release()
    harness.disk.unblocked.set()
    for outcomes in loading:
        outcome = outcomes.get(timeout=20)
        assert isinstance(outcome, BankLease)
        outcome.release()


def test_failed_load_is_retried_by_next_request(harness: ResidencyHarness) -> None:
    harness.disk.broken = {"r4-a"}
    assert isinstance(harness.refused(mixture("r4-b", "r4-a")), CheckpointError)
    assert harness.residency.leased_ranks == 0
    harness.disk.broken = set()
    harness.lease(mixture("r4-b", "r4-a")).release()


@pytest.mark.parametrize(
    ("composition", "place"),
    [(mixture("r4-b", "r4-a"), "mixture.adapters[1]"), (fusion("r4-b", "r4-a"), "fusion.adapters[1]")],
)
def test_unreadable_adapter_is_named_with_its_field(
    harness: ResidencyHarness, composition: Composition, place: str
) -> None:
    harness.disk.broken = {"r4-a"}
    error = harness.refused(composition)
    assert isinstance(error, CheckpointError)
    assert error.message == "adapter 'r4-a': r4-a is half a file"
    assert error.metadata == {"adapter_id": "r4-a", "field": f"composition.{place}.adapter_id"}


def test_fusion_beyond_dtype_names_its_members_and_their_field() -> None:
    def overflowing(weights: AdapterWeights) -> AdapterWeights:
        if not weights.revision:
            raise CheckpointError("layer: values of the adapter are not finite in torch.float16")
        return weights

    harness = ResidencyHarness(host_form=overflowing)
    error = harness.refused(fusion("r4-b", "r4-a"))
    assert isinstance(error, CheckpointError)
    assert error.message.startswith("fusing 'r4-a', 'r4-b': layer: values of the adapter are not finite")
    assert error.metadata == {"field": "composition.fusion.adapters"}


def test_pin_of_unreadable_adapter_names_its_own_field(harness: ResidencyHarness) -> None:
    harness.disk.broken = {"r4-a"}
    with pytest.raises(CheckpointError, match="adapter 'r4-a'") as caught:
        harness.pin("r4-a")
    assert caught.value.metadata == {"adapter_id": "r4-a", "field": "adapter_id"}


def test_least_recently_used_idle_adapter_is_evicted_first(harness: ResidencyHarness) -> None:
    for name in ("r8-a", "r8-b"):
        harness.lease(mixture(name)).release()
    harness.lease(mixture("r8-a")).release()
    harness.lease(mixture("r8-c")).release()
    assert harness.names == {"r8-a", "r8-c"}


def test_leased_adapter_is_never_evicted(harness: ResidencyHarness) -> None:
    held = harness.lease(mixture("r8-a"))
    for name in ("r8-b", "r8-c", "r8-d"):
        harness.lease(mixture(name)).release()
    assert "r8-a" in harness.names
    held.release()


def test_composition_that_does_not_fit_waits_for_release(harness: ResidencyHarness) -> None:
    held = harness.lease(mixture("r8-a", "r8-b"))
    _, outcomes = harness.request(mixture("r8-c"))
    wait_until(lambda: harness.residency.waiting_for_room == 1)
    assert outcomes.empty()
    held.release()
    assert isinstance(outcomes.get(timeout=20), BankLease)


def test_compositions_that_need_each_others_ranges_do_not_deadlock(harness: ResidencyHarness) -> None:
    outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    for index in range(4):
        admitted = harness.admission.admit(mixture(f"r8-{index}", f"r8-{(index + 1) % 4}"))
        harness.residency.request(admitted, outcomes.put)
    for _ in range(4):
        outcome = outcomes.get(timeout=20)
        assert isinstance(outcome, BankLease)
        outcome.release()
    assert harness.residency.leased_ranks == 0


def test_composition_that_pins_left_no_room_for_since_its_admission_is_refused(harness: ResidencyHarness) -> None:
    admitted = harness.admission.admit(mixture("r8-b", "r8-c"))
    harness.pin("r8-a")
    outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    harness.residency.request(admitted, outcomes.put)
    error = outcomes.get(timeout=20)
    assert isinstance(error, CapacityError)
    assert error.metadata == {"need": "16", "limit": "16", "pinned": "8", "field": "composition.mixture.adapters"}
    harness.lease(mixture("r8-a", "r8-c")).release()


def test_composition_that_fits_bank_fits_despite_fragmentation() -> None:
    harness = ResidencyHarness(ranks=64)
    first, second = harness.lease(mixture("r24-x")), harness.lease(mixture("r16-a"))
    first.release()
    second.release()
    harness.lease(mixture("r16-a", "r32-b")).release()
    harness.lease(mixture("r24-x", "r8-y", "r32-z")).release()
    assert harness.residency.leased_ranks == 0


def test_pinned_adapter_that_fragments_bank_is_reported() -> None:
    harness = ResidencyHarness(ranks=64)
    first = harness.lease(mixture("r24-x"))
    harness.pin("r16-a")
    first.release()
    error = harness.refused(mixture("r16-a", "r32-b"))
    assert isinstance(error, CapacityError)
    assert "no room in one piece" in error.message
    assert harness.residency.leased_ranks == 0
    harness.lease(mixture("r16-a", "r24-b", "r24-c")).release()


def test_pinned_adapters_stay_and_reduce_capacity(harness: ResidencyHarness) -> None:
    pinned = harness.pin("r8-a")
    assert (pinned.adapter_id, pinned.revision, pinned.rank, pinned.pinned) == ("r8-a", "1", 8, True)
    assert pinned.byte_size == 8 * (6 + 5) * 4
    with pytest.raises(CapacityError):
        harness.admission.admit(mixture("r8-b", "r8-c"))
    harness.residency.unpin("r8-a")
    harness.lease(mixture("r8-b", "r8-c")).release()
    assert harness.names == {"r8-b", "r8-c"}


def test_pinned_adapters_hold_at_most_half_of_bank(harness: ResidencyHarness) -> None:
    harness.pin("r5-a")
    with pytest.raises(CapacityError) as caught:
        harness.pin("r4-b")
    assert caught.value.metadata == {"rank": "4", "pinned": "5", "limit": "8"}
    assert "unload some" in caught.value.message
    harness.pin("r3-c")
    harness.residency.unpin("r5-a")
    harness.pin("r4-b")
    assert {r.adapter_id: r.pinned for r in harness.residency.residents()} == {
        "r5-a": False,
        "r4-b": True,
        "r3-c": True,
    }
    assert harness.residency.leased_ranks == 0


def test_pinning_new_revision_that_fits_only_without_the_old_one_succeeds(harness: ResidencyHarness) -> None:
    harness.pin("r8-a")
    harness.disk.revision = "2"
    assert harness.pin("r8-a").revision == "2"


def test_cancelled_or_failing_receiver_does_not_affect_others(harness: ResidencyHarness) -> None:
    def broken(_: Outcome) -> None:
        raise RuntimeError("the loop is closed")

    harness.residency.pin(harness.admission.admit_adapter("r8-a")).cancel()
    harness.residency.request(harness.admission.admit(mixture("r8-b")), broken)
    harness.lease(mixture("r8-c")).release()
    assert harness.pin("r8-a").pinned
    assert harness.residency.leased_ranks == 0


def test_only_single_adapter_can_be_pinned(harness: ResidencyHarness) -> None:
    with pytest.raises(ValueError, match="unpack"):
        harness.residency.pin(harness.admission.admit(mixture("r4-a", "r4-b")))
    assert harness.residency.leased_ranks == 0


def test_pin_that_fails_unexpectedly_reports_error(harness: ResidencyHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(placement: Placement, key: AdapterKey) -> ResidentAdapter:
        raise KeyError(key)

    monkeypatch.setattr(Placement, "pin", failing)
    with pytest.raises(KeyError):
        harness.pin("r4-a")
    assert harness.residency.leased_ranks == 0


def test_unpinning_adapter_that_is_not_resident_is_not_found(harness: ResidencyHarness) -> None:
    with pytest.raises(NotFoundError, match="'r4-a' is not loaded"):
        harness.residency.unpin("r4-a")


def test_new_revision_is_resident_together_with_the_old_one_in_use(harness: ResidencyHarness) -> None:
    old = harness.lease(mixture("r4-a"))
    harness.disk.revision = "2"
    new = harness.lease(mixture("r4-a"))
    assert set(old.ranges).isdisjoint(new.ranges)
    assert [share.revision for share in (*old.applied, *new.applied)] == ["1", "2"]
    again = harness.lease(Mixture((WeightedAdapter("r4-a", 1.0, "1"),)))
    assert set(again.ranges) == set(old.ranges)


def test_pinning_new_revision_unpins_the_old_one(harness: ResidencyHarness) -> None:
    harness.pin("r8-a")
    harness.disk.revision = "2"
    harness.pin("r8-a")
    assert {r.revision: r.pinned for r in harness.residency.residents()} == {"1": False, "2": True}


def test_cancelled_load_is_skipped(harness: ResidencyHarness) -> None:
    held = harness.lease(mixture("r8-a", "r8-b"))
    load, cancelled = harness.request(mixture("r8-c", "r8-d"))
    _, next_one = harness.request(mixture("r8-e"))
    load.cancel()
    held.release()
    assert isinstance(next_one.get(timeout=20), BankLease)
    assert cancelled.empty()


def test_cancelling_blocking_load_places_the_ones_behind_it(harness: ResidencyHarness) -> None:
    held = harness.lease(mixture("r8-a"))
    large, _ = harness.request(mixture("r16-big"))
    wait_until(lambda: harness.residency.waiting_for_room == 1)
    _, behind = harness.request(Mixture(held.applied))
    wait_until(lambda: harness.residency.waiting_for_room == 2)
    assert behind.empty()
    large.cancel()
    assert isinstance(behind.get(timeout=20), BankLease)


@pytest.mark.parametrize("resident", [False, True])
def test_cancelled_loads_keep_neither_their_place_nor_their_receivers(
    harness: ResidencyHarness, resident: bool
) -> None:
    held = harness.lease(mixture("r4-a"))
    _, large = harness.request(mixture("r16-big"))
    wait_until(lambda: harness.residency.waiting_for_room == 1)
    alive: list[weakref.ref[Receiver]] = []
    for number in range(5 * READ_AHEAD):
        receiver = Receiver()
        alive.append(weakref.ref(receiver))
        admitted = harness.admission.admit(Mixture(held.applied) if resident else mixture(f"r4-{number}"))
        harness.residency.request(admitted, receiver.on_ready).cancel()
        del receiver
    wait_until(lambda: harness.residency.queued == 0 and harness.residency.waiting_for_room == 1)
    assert not any(receiver() for receiver in alive)
    held.release()
    assert isinstance(large.get(timeout=20), BankLease)


def test_load_cancelled_while_it_is_read_is_never_leased(harness: ResidencyHarness) -> None:
    harness.disk.unblocked.clear()
    load, outcomes = harness.request(mixture("r8-a"))
    wait_until(lambda: load.state is LoadState.READING)
    load.cancel()
    harness.disk.unblocked.set()
    harness.lease(mixture("r8-b")).release()
    assert load.state is LoadState.CANCELLED
    assert outcomes.empty()
    assert harness.residency.leased_ranks == 0


def test_load_cancelled_while_it_is_written_releases_its_lease(
    harness: ResidencyHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[CompositionLoad] = []
    write = harness.bank.write

    def cancel_and_write(owned: RankRange, weights: AdapterWeights) -> None:
        wait_until(lambda: bool(loads))
        loads[0].cancel()
        write(owned, weights)

    monkeypatch.setattr(harness.bank, "write", cancel_and_write)
    load, outcomes = harness.request(mixture("r8-a"))
    loads.append(load)
    harness.lease(mixture("r8-b")).release()
    assert outcomes.empty()
    assert (load.state, harness.residency.leased_ranks) == (LoadState.CANCELLED, 0)


def test_cancelling_load_that_has_ended_does_nothing(harness: ResidencyHarness) -> None:
    load, outcomes = harness.request(mixture("r8-a"))
    lease = outcomes.get(timeout=20)
    wait_until(lambda: load.state is LoadState.LEASED)
    load.cancel()
    assert (load.state, harness.residency.leased_ranks) == (LoadState.LEASED, 8)
    assert isinstance(lease, BankLease)
    lease.release()


def test_adapters_are_cached_on_host(harness: ResidencyHarness) -> None:
    for name in ("r8-a", "r8-b", "r8-c", "r8-a"):
        harness.lease(mixture(name)).release()
    assert harness.disk.read == ["r8-a", "r8-b", "r8-c"]
    small = ResidencyHarness(host_bytes=0)
    for name in ("r8-a", "r8-b", "r8-c", "r8-a"):
        small.lease(mixture(name)).release()
    assert small.disk.read == ["r8-a", "r8-b", "r8-c", "r8-a"]


def test_close_resolves_loads_that_are_being_read(harness: ResidencyHarness) -> None:
    harness.disk.unblocked.clear()
    requests = [harness.request(mixture(f"r2-{index}")) for index in range(2 * READ_AHEAD)]
    wait_until(lambda: requests[0][0].state is LoadState.READING)
    closing = threading.Thread(target=harness.residency.close)
    closing.start()
    assert isinstance(requests[READ_AHEAD - 1][1].get(timeout=20), UnavailableError)
    harness.disk.unblocked.set()
    closing.join(timeout=20)
    assert not closing.is_alive()
    assert harness.residency.queued == harness.residency.waiting_for_room == 0
    for load, outcomes in requests[: READ_AHEAD - 1] + requests[READ_AHEAD:]:
        outcome = outcomes.get(timeout=20)
        assert not load.ranges
        if isinstance(outcome, BankLease):
            outcome.release()
        else:
            assert isinstance(outcome, UnavailableError)
    assert harness.residency.leased_ranks == 0


def test_close_fails_loads_that_wait(harness: ResidencyHarness) -> None:
    harness.lease(mixture("r8-a", "r8-b"))
    _, blocked = harness.request(mixture("r8-c"))
    harness.residency.close()
    assert isinstance(blocked.get(timeout=20), LoraRetrieverError)


def test_oldest_load_is_placed_first_even_if_large(harness: ResidencyHarness) -> None:
    held = [harness.lease(mixture(f"r4-{index}")) for index in range(4)]
    _, large = harness.request(mixture("r16-big"))
    wait_until(lambda: harness.residency.waiting_for_room == 1)
    later = [harness.request(Mixture(held[index % 4].applied))[1] for index in range(8)]
    wait_until(lambda: harness.residency.waiting_for_room == 9)
    for lease in held:
        assert large.empty()
        assert all(outcomes.empty() for outcomes in later)
        lease.release()
    served = large.get(timeout=20)
    assert isinstance(served, BankLease)
    assert all(outcomes.empty() for outcomes in later)
    served.release()
    for outcomes in later:
        outcome = outcomes.get(timeout=20)
        assert isinstance(outcome, BankLease)
        outcome.release()


def test_at_most_read_ahead_waiting_loads_hold_weights(harness: ResidencyHarness) -> None:
    held = harness.lease(mixture("r16-big"))
    waiting = [harness.request(mixture(f"r2-{index}")) for index in range(5 * READ_AHEAD)]
    waiting[3][0].cancel()
    wait_until(lambda: len(harness.disk.read) >= 1 + READ_AHEAD)
    assert len(harness.disk.read) <= 2 + READ_AHEAD  # The cancelled one may have been read before it was cancelled.
    held.release()
    waiting.pop(3)
    deadline = time.monotonic() + 20
    while waiting and time.monotonic() < deadline:  # Leases come in the order of the reads, not of the requests.
        for load, outcomes in list(waiting):
            with suppress(queue.Empty):
                outcome = outcomes.get(timeout=0.001)
                assert isinstance(outcome, BankLease)
                outcome.release()
                assert not load.ranges
                waiting.remove((load, outcomes))
    assert not waiting
    assert harness.residency.leased_ranks == 0


def test_adapter_evicted_before_its_load_is_placed_is_read_again(harness: ResidencyHarness) -> None:
    harness.lease(mixture("r8-a")).release()
    held = harness.lease(mixture("r8-b"))
    _, first = harness.request(mixture("r16-big"))
    wait_until(lambda: harness.residency.waiting_for_room == 1)
    _, second = harness.request(mixture("r8-a"))
    held.release()
    big = first.get(timeout=20)
    assert isinstance(big, BankLease)
    big.release()
    again = second.get(timeout=20)
    assert isinstance(again, BankLease)
    x = torch.randn(1, 2, 6)
    torch.testing.assert_close(harness.applied(again, x), harness.expected(mixture("r8-a"), {"r8-a": "1"}, x))


def test_requests_after_close_are_unavailable(harness: ResidencyHarness) -> None:
    applied = harness.lease(mixture("r8-a")).applied
    harness.residency.close()
    assert isinstance(harness.refused(mixture("r8-b")), UnavailableError)
    assert isinstance(harness.refused(Mixture(applied)), UnavailableError)
