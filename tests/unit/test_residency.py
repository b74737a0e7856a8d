"""Who is in the bank, and who has to leave it."""

from __future__ import annotations

import queue

import pytest
import torch

from generation_service.adapters.leases import BankLease, Outcome
from infra.contract.composition import Base, Composition, Fusion, FusionMethod, Mixture, WeightedAdapter
from infra.contract.errors import (
    BaseModelMismatchError,
    CapacityError,
    CheckpointError,
    LoraRetrieverError,
    NotFoundError,
)
from tests.fakes.house import House, fusion, mixture

TWO = (WeightedAdapter("r2-a", 0.5), WeightedAdapter("r2-b", 0.25))


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
    (owned,) = house.lease(fusion("r2-a", "r3-b")).ranges
    members = [house.disk.weights(house.disk.resolve(name, "1")).modules["layer"] for name in ("r2-a", "r3-b")]
    linear = torch.nn.Linear(6, 5, bias=False)
    model = torch.nn.ModuleDict({"layer": linear})
    house.bank.install(model)
    x = torch.randn(1, 3, 6)
    with torch.no_grad(), house.bank.routing.step([{owned: 1.0}]):
        changed = model["layer"](x) - linear(x)
    expected = sum(0.5 * x @ pair.a.T @ pair.b.T for pair in members)
    torch.testing.assert_close(changed, expected)


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
