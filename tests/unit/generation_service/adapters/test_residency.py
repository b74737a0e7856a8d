"""Who is in the bank, and who has to leave it."""

from __future__ import annotations

import queue
import time
import weakref
from contextlib import suppress

import pytest
import torch

from generation_service.adapters.host_cache import WeightStore
from generation_service.adapters.leases import BankLease, Outcome
from generation_service.adapters.residency import READ_AHEAD, Residency
from generation_service.lora.weights import AdapterWeights
from infra.contract.composition import Base, Composition, Fusion, FusionMethod, Mixture, WeightedAdapter
from infra.contract.errors import (
    BaseModelMismatchError,
    CapacityError,
    CheckpointError,
    LoraRetrieverError,
    NotFoundError,
    UnavailableError,
)
from tests.support.harness.residency_harness import House, fusion, mixture

TWO = (WeightedAdapter("r2-a", 0.5), WeightedAdapter("r2-b", 0.25))


class Heard:
    """Stands for what a receiver holds on to, such as pixels."""

    def hear(self, outcome: Outcome) -> None:
        raise AssertionError(outcome)


@pytest.fixture
def house() -> House:
    return House()


def test_the_base_model_needs_nothing(house: House) -> None:
    lease = house.lease(Base())
    assert (lease.ranges, lease.applied) == ({}, ())


def test_a_mixture_leases_one_range_an_adapter_with_its_weight(house: House) -> None:
    lease = house.lease(Mixture((WeightedAdapter("r4-a", 0.7), WeightedAdapter("r8-b", 0.0))))
    assert {owned.rank: weight for owned, weight in lease.ranges.items()} == {4: 0.7, 8: 0.0}
    assert lease.applied == (WeightedAdapter("r4-a", 0.7, "1"), WeightedAdapter("r8-b", 0.0, "1"))
    assert house.residency.leased_ranks == 12
    lease.release()
    lease.release()
    assert house.residency.leased_ranks == 0
    assert house.names == {"r4-a", "r8-b"}


def test_equal_adapters_share_a_range(house: House) -> None:
    first, second = house.lease(mixture("r4-a", "r4-b")), house.lease(mixture("r4-b", weight=0.1))
    assert set(second.ranges) < set(first.ranges)
    assert house.bank.free == 8


def test_equal_fusions_share_a_range_whatever_the_order(house: House) -> None:
    first, second = house.lease(fusion("r2-a", "r3-b")), house.lease(fusion("r3-b", "r2-a"))
    assert first.ranges == second.ranges
    assert list(first.ranges.values()) == [1.0]
    other = house.lease(fusion("r2-a", "r3-b", weight=0.4))
    assert other.ranges != first.ranges
    assert house.bank.free == 16 - 5 - 5


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
def test_fusions_are_shared_when_every_option_is_equal(
    house: House, one: Composition, other: Composition, shared: bool
) -> None:
    assert (house.lease(one).ranges == house.lease(other).ranges) is shared


def test_fusing_for_each_new_request_keeps_nothing_of_the_ones_before(house: House) -> None:
    for number in range(200):
        shares = (WeightedAdapter("r2-a", 1 / (1 + number)), WeightedAdapter("r3-b", 0.5))
        house.lease(Fusion(shares, FusionMethod.CONCAT)).release()
    assert house.residency.ranks == 15
    assert house.bank.free == 1
    assert house.disk.read == ["r2-a", "r3-b"]


def test_a_fusion_is_the_weighted_sum_of_its_members(house: House) -> None:
    x = torch.randn(1, 3, 6)
    for method, density in ((FusionMethod.CONCAT, None), (FusionMethod.SVD, None), (FusionMethod.DARE, 1.0)):
        rank = None if method is FusionMethod.CONCAT else 5
        asked = Fusion(fusion("r2-a", "r3-b").adapters, method, rank, density)
        lease = house.lease(asked)
        assert list(lease.ranges.values()) == [1.0]
        torch.testing.assert_close(house.applied(lease, x), house.expected(asked, {"r2-a": "1", "r3-b": "1"}, x))
        lease.release()


def test_an_adapter_asked_for_by_ten_is_read_once(house: House) -> None:
    house.disk.open.clear()
    asked = [house.ask(mixture("r4-a"))[1] for _ in range(5)] + [house.ask(fusion("r4-a"))[1] for _ in range(5)]
    house.disk.open.set()
    assert all(isinstance(answers.get(timeout=20), BankLease) for answers in asked)
    assert house.disk.read == ["r4-a"]


def test_residents_named_with_their_revision_do_not_wait_for_the_disk() -> None:
    house = House(ranks=32)
    applied = house.lease(mixture("r4-a", "r4-b")).applied
    house.disk.open.clear()
    loading = [house.ask(mixture(f"r2-{index}"))[1] for index in range(8)]
    house.lease(Mixture(applied)).release()
    house.disk.open.set()
    for answers in loading:
        outcome = answers.get(timeout=20)
        assert isinstance(outcome, BankLease)
        outcome.release()


def test_a_failed_load_fails_those_who_asked_and_is_tried_again(house: House) -> None:
    house.disk.broken = {"r4-a"}
    assert isinstance(house.refused(mixture("r4-b", "r4-a")), CheckpointError)
    assert house.residency.leased_ranks == 0
    house.disk.broken = set()
    house.lease(mixture("r4-b", "r4-a")).release()


@pytest.mark.parametrize(
    ("composition", "place"),
    [(mixture("r4-b", "r4-a"), "mixture.adapters[1]"), (fusion("r4-b", "r4-a"), "fusion.adapters[1]")],
)
def test_an_adapter_that_cannot_be_read_is_named_with_its_field(
    house: House, composition: Composition, place: str
) -> None:
    house.disk.broken = {"r4-a"}
    error = house.refused(composition)
    assert isinstance(error, CheckpointError)
    assert error.message == "adapter 'r4-a': r4-a is half a file"
    assert error.metadata == {"adapter_id": "r4-a", "field": f"composition.{place}.adapter_id"}


def test_a_fusion_whose_values_the_bank_cannot_hold_names_its_members_and_their_field(house: House) -> None:
    def overflowing(weights: AdapterWeights) -> AdapterWeights:
        if not weights.revision:
            raise CheckpointError("layer: values of the adapter are not finite in torch.float16")
        return weights

    house.store = WeightStore(
        house.disk, house.disk.weights, ["tiny"], 2**20, config_of=house.disk.config, host_form=overflowing
    )
    house.residency = Residency(house.bank, house.store)
    error = house.refused(fusion("r4-b", "r4-a"))
    assert isinstance(error, CheckpointError)
    assert error.message.startswith("fusing 'r4-a', 'r4-b': layer: values of the adapter are not finite")
    assert error.metadata == {"field": "composition.fusion.adapters"}


def test_a_pin_of_what_cannot_be_read_names_the_adapter_and_its_own_field(house: House) -> None:
    house.disk.broken = {"r4-a"}
    with pytest.raises(CheckpointError, match="adapter 'r4-a'") as caught:
        house.residency.pin("r4-a").result(timeout=20)
    assert caught.value.metadata == {"adapter_id": "r4-a", "field": "adapter_id"}


def test_an_unknown_adapter_is_not_found(house: House) -> None:
    assert isinstance(house.refused(mixture("r4-a", "nobody")), NotFoundError)
    assert house.residency.leased_ranks == 0


def test_an_adapter_of_another_base_model_is_refused_by_both_names(house: House) -> None:
    house.disk.base_model = "OpenGVLab/InternVL2-2B"
    error = house.refused(mixture("r4-a"))
    assert isinstance(error, BaseModelMismatchError)
    assert error.message == "adapter 'r4-a' was trained on InternVL2-2B; this server runs tiny"


def test_the_least_recently_used_idle_adapter_leaves_first(house: House) -> None:
    for name in ("r8-a", "r8-b"):
        house.lease(mixture(name)).release()
    house.lease(mixture("r8-a")).release()
    house.lease(mixture("r8-c")).release()
    assert house.names == {"r8-a", "r8-c"}


def test_a_leased_adapter_never_leaves(house: House) -> None:
    held = house.lease(mixture("r8-a"))
    for name in ("r8-b", "r8-c", "r8-d"):
        house.lease(mixture(name)).release()
    assert "r8-a" in house.names
    held.release()


def test_who_does_not_fit_now_waits_for_a_release(house: House) -> None:
    held = house.lease(mixture("r8-a", "r8-b"))
    _, answers = house.ask(mixture("r8-c"))
    with pytest.raises(queue.Empty):
        answers.get(timeout=0.05)
    held.release()
    assert isinstance(answers.get(timeout=20), BankLease)


def test_two_who_need_each_others_place_do_not_wait_for_ever(house: House) -> None:
    outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    for index in range(4):
        house.residency.request(mixture(f"r8-{index}", f"r8-{(index + 1) % 4}"), outcomes.put)
    for _ in range(4):
        outcome = outcomes.get(timeout=20)
        assert isinstance(outcome, BankLease)
        outcome.release()
    assert house.residency.leased_ranks == 0


def test_what_never_fits_is_refused_at_once(house: House) -> None:
    held = house.lease(mixture("r8-a"))
    error = house.refused(mixture("r8-b", "r8-c", "r8-d"))
    assert isinstance(error, CapacityError)
    assert error.metadata == {"need": "24", "limit": "16", "pinned": "0", "field": "composition.mixture.adapters"}
    held.release()
    house.lease(mixture("r8-b", "r8-c")).release()


def test_what_fits_the_bank_fits_wherever_idle_adapters_lie() -> None:
    house = House(ranks=64)
    first, second = house.lease(mixture("r24-x")), house.lease(mixture("r16-a"))
    first.release()
    second.release()
    house.lease(mixture("r16-a", "r32-b")).release()
    house.lease(mixture("r24-x", "r8-y", "r32-z")).release()
    assert house.residency.leased_ranks == 0


def test_an_adapter_pinned_in_the_middle_leaves_no_room_in_one_piece() -> None:
    house = House(ranks=64)
    first = house.lease(mixture("r24-x"))
    house.residency.pin("r16-a").result(timeout=20)
    first.release()
    error = house.refused(mixture("r16-a", "r32-b"))
    assert isinstance(error, CapacityError)
    assert "no room in one piece" in error.message
    assert house.residency.leased_ranks == 0
    house.lease(mixture("r16-a", "r24-b", "r24-c")).release()


def test_pinned_adapters_stay_and_count_against_what_fits(house: House) -> None:
    pinned = house.residency.pin("r8-a").result(timeout=20)
    assert (pinned.adapter_id, pinned.revision, pinned.rank, pinned.pinned) == ("r8-a", "1", 8, True)
    assert pinned.byte_size == 8 * (6 + 5) * 4
    assert isinstance(house.refused(mixture("r8-b", "r8-c")), CapacityError)
    house.residency.unpin("r8-a")
    house.lease(mixture("r8-b", "r8-c")).release()
    assert house.names == {"r8-b", "r8-c"}


def test_pinned_adapters_hold_half_of_the_bank_at_most(house: House) -> None:
    house.residency.pin("r5-a").result(timeout=20)
    with pytest.raises(CapacityError) as caught:
        house.residency.pin("r4-b").result(timeout=20)
    assert caught.value.metadata == {"rank": "4", "pinned": "5", "limit": "8"}
    assert "unload some" in caught.value.message
    house.residency.pin("r3-c").result(timeout=20)
    house.residency.unpin("r5-a")
    house.residency.pin("r4-b").result(timeout=20)
    assert {r.adapter_id: r.pinned for r in house.residency.residents()} == {
        "r5-a": False,
        "r4-b": True,
        "r3-c": True,
    }
    assert house.residency.leased_ranks == 0


def test_a_pinned_adapter_gives_way_to_its_own_new_revision(house: House) -> None:
    house.residency.pin("r8-a").result(timeout=20)
    house.disk.revision = "2"
    assert house.residency.pin("r8-a").result(timeout=20).revision == "2"


def test_a_pin_of_what_is_not_there_names_the_field_of_its_own_request(house: House) -> None:
    with pytest.raises(NotFoundError) as caught:
        house.residency.pin("nobody").result(timeout=20)
    assert caught.value.metadata["field"] == "adapter_id"


def test_a_caller_that_goes_away_or_fails_holds_up_no_other(house: House) -> None:
    def broken(_: Outcome) -> None:
        raise RuntimeError("the loop is closed")

    house.residency.pin("r8-a").cancel()
    house.residency.request(mixture("r8-b"), broken)
    house.lease(mixture("r8-c")).release()
    assert house.residency.pin("r8-a").result(timeout=20).pinned
    assert house.residency.leased_ranks == 0


def test_pinning_what_cannot_be_loaded_fails(house: House) -> None:
    with pytest.raises(NotFoundError):
        house.residency.pin("nobody").result(timeout=20)
    with pytest.raises(NotFoundError, match="'r4-a' is not loaded"):
        house.residency.unpin("r4-a")


def test_a_new_revision_stands_beside_the_old_one_in_use(house: House) -> None:
    old = house.lease(mixture("r4-a"))
    house.disk.revision = "2"
    new = house.lease(mixture("r4-a"))
    assert set(old.ranges).isdisjoint(new.ranges)
    assert [share.revision for share in (*old.applied, *new.applied)] == ["1", "2"]
    again = house.lease(Mixture((WeightedAdapter("r4-a", 1.0, "1"),)))
    assert set(again.ranges) == set(old.ranges)


def test_pinning_a_new_revision_lets_the_old_one_go(house: House) -> None:
    house.residency.pin("r8-a").result(timeout=20)
    house.disk.revision = "2"
    house.residency.pin("r8-a").result(timeout=20)
    assert {r.revision: r.pinned for r in house.residency.residents()} == {"1": False, "2": True}


def test_a_cancelled_wait_is_skipped(house: House) -> None:
    held = house.lease(mixture("r8-a", "r8-b"))
    ticket, cancelled = house.ask(mixture("r8-c", "r8-d"))
    _, next_one = house.ask(mixture("r8-e"))
    ticket.cancel()
    held.release()
    assert isinstance(next_one.get(timeout=20), BankLease)
    assert cancelled.empty()


def test_cancelling_the_one_in_front_lets_those_behind_it_go_on_at_once(house: House) -> None:
    held = house.lease(mixture("r8-a"))
    large, _ = house.ask(mixture("r16-big"))
    while not house.residency._blocked:
        time.sleep(0.001)
    _, behind = house.ask(Mixture(held.applied))
    with pytest.raises(queue.Empty):
        behind.get(timeout=0.05)
    large.cancel()
    assert isinstance(behind.get(timeout=20), BankLease)


@pytest.mark.parametrize("resident", [False, True])
def test_cancelled_waits_keep_neither_a_place_nor_their_receivers(house: House, resident: bool) -> None:
    held = house.lease(mixture("r4-a"))
    _, large = house.ask(mixture("r16-big"))
    while not house.residency._blocked:
        time.sleep(0.001)
    alive: list[weakref.ref[Heard]] = []
    for number in range(5 * READ_AHEAD):
        heard = Heard()
        alive.append(weakref.ref(heard))
        composition = Mixture(held.applied) if resident else mixture(f"r4-{number}")
        house.residency.request(composition, heard.hear).cancel()
        del heard
    deadline = time.monotonic() + 20
    while (house.residency._unread or len(house.residency._blocked) > 1) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not house.residency._unread
    assert len(house.residency._blocked) == 1
    assert not any(heard() for heard in alive)
    held.release()
    assert isinstance(large.get(timeout=20), BankLease)


def test_a_lease_that_comes_after_the_cancelling_is_given_back(house: House) -> None:
    house.disk.open.clear()
    ticket, answers = house.ask(mixture("r8-a"))
    ticket.cancel()
    house.disk.open.set()
    house.lease(mixture("r8-b")).release()
    ticket.tell(house.lease(mixture("r8-c")))
    assert answers.empty()
    assert house.residency.leased_ranks == 0


def test_adapters_read_before_are_kept_on_the_host(house: House) -> None:
    for name in ("r8-a", "r8-b", "r8-c", "r8-a"):
        house.lease(mixture(name)).release()
    assert house.disk.read == ["r8-a", "r8-b", "r8-c"]
    small = House(host_bytes=0)
    for name in ("r8-a", "r8-b", "r8-c", "r8-a"):
        small.lease(mixture(name)).release()
    assert small.disk.read == ["r8-a", "r8-b", "r8-c", "r8-a"]


def test_closing_answers_everyone(house: House) -> None:
    house.lease(mixture("r8-a", "r8-b"))
    _, blocked = house.ask(mixture("r8-c"))
    house.residency.close()
    assert isinstance(blocked.get(timeout=20), LoraRetrieverError)


def test_who_waits_longest_is_served_first_however_large(house: House) -> None:
    held = [house.lease(mixture(f"r4-{index}")) for index in range(4)]
    _, large = house.ask(mixture("r16-big"))
    with pytest.raises(queue.Empty):
        large.get(timeout=0.05)
    later = [house.ask(Mixture(held[index % 4].applied))[1] for index in range(8)]
    for lease in held[:3]:
        lease.release()
        with pytest.raises(queue.Empty):
            later[0].get(timeout=0.02)
    held[3].release()
    served = large.get(timeout=20)
    assert isinstance(served, BankLease)
    assert all(answers.empty() for answers in later)
    served.release()
    for answers in later:
        outcome = answers.get(timeout=20)
        assert isinstance(outcome, BankLease)
        outcome.release()


def test_few_of_those_who_wait_hold_weights(house: House) -> None:
    held = house.lease(mixture("r16-big"))
    waiting = [house.ask(mixture(f"r2-{index}")) for index in range(5 * READ_AHEAD)]
    waiting[3][0].cancel()
    deadline = time.monotonic() + 20
    while len(house.disk.read) < 1 + READ_AHEAD and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    assert len(house.disk.read) <= 2 + READ_AHEAD
    held.release()
    waiting.pop(3)
    deadline = time.monotonic() + 20
    while waiting and time.monotonic() < deadline:  # They come in the order in which they were read, not asked for.
        for ticket, answers in list(waiting):
            with suppress(queue.Empty):
                outcome = answers.get(timeout=0.001)
                assert isinstance(outcome, BankLease)
                outcome.release()
                assert not ticket.wanted
                waiting.remove((ticket, answers))
    assert not waiting
    assert house.residency.leased_ranks == 0


def test_what_left_the_bank_before_its_turn_is_read_again_by_a_reader(house: House) -> None:
    house.lease(mixture("r8-a")).release()
    held = house.lease(mixture("r8-b"))
    _, first = house.ask(mixture("r16-big"))
    while not house.residency._blocked:
        time.sleep(0.001)
    _, second = house.ask(house.residency.check(mixture("r8-a")))
    held.release()
    big = first.get(timeout=20)
    assert isinstance(big, BankLease)
    big.release()
    again = second.get(timeout=20)
    assert isinstance(again, BankLease)
    x = torch.randn(1, 2, 6)
    torch.testing.assert_close(house.applied(again, x), house.expected(mixture("r8-a"), {"r8-a": "1"}, x))


def test_who_asks_after_closing_is_told(house: House) -> None:
    applied = house.lease(mixture("r8-a")).applied
    house.residency.close()
    assert isinstance(house.refused(mixture("r8-b")), UnavailableError)
    assert isinstance(house.refused(Mixture(applied)), UnavailableError)
