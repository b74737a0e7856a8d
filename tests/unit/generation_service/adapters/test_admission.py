"""What is refused before anything is read or queued, and by which field."""

from __future__ import annotations

import pytest

from infra.contract.composition import Base, Composition, Fusion, FusionMethod, Mixture, WeightedAdapter
from infra.contract.errors import (
    BaseModelMismatchError,
    CapacityError,
    CheckpointError,
    FailedPreconditionError,
    LoraRetrieverError,
    NotFoundError,
)
from tests.support.harness.residency_harness import House, fusion, mixture


@pytest.fixture
def house() -> House:
    return House(ranks=16)


def refused(house: House, composition: Composition) -> LoraRetrieverError:
    """Return what `check` says, and see that it said it without reading weights or touching the bank."""
    with pytest.raises(LoraRetrieverError) as caught:
        house.residency.check(composition)
    assert not house.disk.read
    assert house.bank.free == house.bank.ranks
    return caught.value


def test_what_is_good_comes_back_with_its_revisions_named(house: House) -> None:
    assert house.residency.check(Base()) == Base()
    asked = Mixture((WeightedAdapter("r4-a", 0.7), WeightedAdapter("r12-b", 0.3, "0")))
    named = Mixture((WeightedAdapter("r4-a", 0.7, "1"), WeightedAdapter("r12-b", 0.3, "0")))
    assert house.residency.check(asked) == named
    assert house.residency.check(fusion("r4-a", "r8-b", method=FusionMethod.SVD)) == Fusion(
        (WeightedAdapter("r4-a", 0.5, "1"), WeightedAdapter("r8-b", 0.5, "1")), FusionMethod.SVD
    )
    assert not house.disk.read


def test_what_was_checked_is_what_is_loaded_though_a_newer_revision_came(house: House) -> None:
    checked = house.residency.check(mixture("r4-a"))
    house.disk.revision = "2"
    assert [share.revision for share in house.lease(checked).applied] == ["1"]


def test_an_unknown_adapter_is_named_by_its_field(house: House) -> None:
    error = refused(house, mixture("r4-a", "r4-b", "nobody"))
    assert isinstance(error, NotFoundError)
    assert error.metadata["field"] == "composition.mixture.adapters[2].adapter_id"
    error = refused(house, fusion("nobody"))
    assert error.metadata["field"] == "composition.fusion.adapters[0].adapter_id"


def test_an_adapter_of_another_base_model_is_named_by_its_field(house: House) -> None:
    house.disk.base_model = "OpenGVLab/InternVL2-2B"
    error = refused(house, mixture("r4-a"))
    assert isinstance(error, BaseModelMismatchError)
    assert error.metadata == {
        "adapter_id": "r4-a",
        "adapter_base_model": "InternVL2-2B",
        "server_base_model": "tiny",
        "field": "composition.mixture.adapters[0].adapter_id",
    }


def test_a_rank_beyond_the_bank_is_told_with_both(house: House) -> None:
    error = refused(house, mixture("r4-a", "r17-b"))
    assert isinstance(error, CapacityError)
    assert error.metadata == {
        "adapter_id": "r17-b",
        "rank": "17",
        "limit": "16",
        "field": "composition.mixture.adapters[1].adapter_id",
    }
    assert "--bank-ranks" in error.message


@pytest.mark.parametrize("composition", [mixture("r8-a", "r5-b", "r4-c"), fusion("r8-a", "r5-b", "r4-c")])
def test_a_composition_beyond_the_bank_is_told_what_it_needs(house: House, composition: Mixture | Fusion) -> None:
    error = refused(house, composition)
    assert isinstance(error, CapacityError)
    kind = type(composition).__name__.lower()
    assert error.metadata == {
        "need": "17",
        "limit": "16",
        "pinned": "0",
        "field": f"composition.{kind}.adapters",
    }


def test_pinned_adapters_leave_less_room_unless_they_are_asked_for(house: House) -> None:
    house.residency.pin("r8-p").result(timeout=20)
    house.residency.check(mixture("r8-p", "r8-a"))
    for composition in (mixture("r8-a", "r4-b"), fusion("r8-p", "r4-b")):
        with pytest.raises(CapacityError) as caught:
            house.residency.check(composition)
        assert caught.value.metadata["pinned"] == "8"


def test_members_of_a_fusion_that_weigh_nothing_need_no_room(house: House) -> None:
    shares = (WeightedAdapter("r8-a", 1.0), WeightedAdapter("r12-b", 0.0))
    for method in (FusionMethod.CONCAT, FusionMethod.LINEAR):
        house.residency.check(Fusion(shares, method))
        house.lease(Fusion(shares, method)).release()


def test_concat_counts_only_members_that_meet_in_a_module(house: House) -> None:
    house.disk.targets = {"r10-a": frozenset({"q_proj"}), "r12-b": frozenset({"up_proj"})}
    house.residency.check(fusion("r10-a", "r12-b"))
    house.disk.targets = {"r11-a": frozenset({"q_proj"}), "r13-b": frozenset({"q_proj", "up_proj"})}
    assert refused(house, fusion("r11-a", "r13-b")).metadata["need"] == "24"


def test_linear_fusion_of_unequal_ranks_is_refused_naming_them(house: House) -> None:
    error = refused(house, fusion("r4-a", "r8-b", method=FusionMethod.LINEAR))
    assert type(error) is FailedPreconditionError
    assert error.metadata == {"field": "composition.fusion.method", "ranks": "r4-a has 4, r8-b has 8"}
    assert "use concat, svd" in error.message
    house.residency.check(fusion("r4-a", "r4-b", method=FusionMethod.LINEAR))
    house.disk.targets = {"r5-a": frozenset({"q_proj"}), "r6-b": frozenset({"up_proj"})}
    house.residency.check(fusion("r5-a", "r6-b", method=FusionMethod.LINEAR))


def test_a_fused_rank_beyond_the_bank_is_named_by_its_field(house: House) -> None:
    shares = (WeightedAdapter("r4-a", 1.0), WeightedAdapter("r8-b", 1.0))
    error = refused(house, Fusion(shares, FusionMethod.TIES, rank=17))
    assert isinstance(error, CapacityError)
    assert error.metadata == {"rank": "17", "limit": "16", "field": "composition.fusion.rank"}
    house.residency.check(Fusion(shares, FusionMethod.TIES, rank=16))


def test_a_named_revision_is_looked_up_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = house.residency.check(mixture("r4-a", "r4-b"))
    monkeypatch.setattr(house.disk, "resolve", None)
    for _ in range(3):
        assert house.residency.check(asked) == asked
    assert house.disk.configs_read == ["r4-a", "r4-b"]


def test_a_broken_config_is_refused_and_read_again_when_repaired(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    good = house.disk.config

    def broken(source: object) -> None:
        raise CheckpointError("adapter_config.json is not valid JSON")

    monkeypatch.setattr(house.residency._store, "_config_of", broken)
    error = refused(house, mixture("r4-a"))
    assert isinstance(error, CheckpointError)
    assert error.metadata["field"] == "composition.mixture.adapters[0].adapter_id"
    monkeypatch.setattr(house.residency._store, "_config_of", good)
    house.residency.check(mixture("r4-a"))
