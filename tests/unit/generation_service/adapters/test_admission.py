"""Which compositions admission refuses, with which field, without reading weights."""

from __future__ import annotations

import queue

import pytest

from generation_service.adapters.admission import AdmittedComposition
from generation_service.adapters.load import Outcome
from generation_service.adapters.source import AdapterSource
from infra.contract.composition import Base, Composition, Fusion, FusionMethod, Mixture, WeightedAdapter
from infra.contract.errors import (
    BaseModelMismatchError,
    CapacityError,
    CheckpointError,
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    LoraRetrieverError,
    NotFoundError,
)
from tests.support.harness.residency_harness import ResidencyHarness, fusion, mixture


@pytest.fixture
def harness() -> ResidencyHarness:
    return ResidencyHarness(ranks=16)


def refused(harness: ResidencyHarness, composition: Composition) -> LoraRetrieverError:
    """Return the error of `admit`; assert that it read no weights and left the bank alone."""
    with pytest.raises(LoraRetrieverError) as caught:
        harness.admission.admit(composition)
    assert not harness.disk.read
    assert harness.bank.free == harness.bank.ranks
    return caught.value


def test_admitted_composition_has_resolved_revisions_and_sources(harness: ResidencyHarness) -> None:
    assert harness.admission.admit(Base()) == AdmittedComposition(Base())
    asked = Mixture((WeightedAdapter("r4-a", 0.7), WeightedAdapter("r12-b", 0.3, "0")))
    resolved = Mixture((WeightedAdapter("r4-a", 0.7, "1"), WeightedAdapter("r12-b", 0.3, "0")))
    admitted = harness.admission.admit(asked)
    assert admitted.composition == resolved
    assert [(adapter.source.adapter_id, adapter.source.revision) for adapter in admitted.adapters] == [
        ("r4-a", "1"),
        ("r12-b", "0"),
    ]
    assert harness.admission.admit(fusion("r4-a", "r8-b", method=FusionMethod.SVD)).composition == Fusion(
        (WeightedAdapter("r4-a", 0.5, "1"), WeightedAdapter("r8-b", 0.5, "1")), FusionMethod.SVD
    )
    assert not harness.disk.read


def test_admitted_revision_is_loaded_although_newer_one_came(harness: ResidencyHarness) -> None:
    admitted = harness.admission.admit(mixture("r4-a"))
    harness.disk.revision = "2"
    assert [share.revision for share in harness.lease(admitted.composition).applied] == ["1"]


def test_loading_admitted_composition_looks_nothing_up(harness: ResidencyHarness) -> None:
    harness.lease(mixture("r4-a", "r4-b")).release()
    assert harness.disk.lookups == ["r4-a", "r4-b"]
    assert harness.disk.configs_read == ["r4-a", "r4-b"]


def test_revision_that_vanished_after_admission_is_looked_up_again(
    harness: ResidencyHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = harness.admission.admit(mixture("r4-a")), harness.admission.admit(mixture("r4-a"))

    def gone(adapter_id: str, revision: str) -> AdapterSource:
        raise NotFoundError(f"adapter {adapter_id!r} has no revision {revision!r}", revision=revision)

    harness.disk.read_error = ConflictError("the folder changed before it was loaded")
    monkeypatch.setattr(harness.disk, "resolve", gone)
    outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    harness.residency.request(first, outcomes.put)
    assert isinstance(outcomes.get(timeout=20), ConflictError)
    harness.residency.request(second, outcomes.put)
    error = outcomes.get(timeout=20)
    assert isinstance(error, NotFoundError)
    assert error.metadata["field"] == "composition.mixture.adapters[0].revision"


def test_too_many_adapters_are_refused(harness: ResidencyHarness) -> None:
    for composition in (mixture(*(f"r1-{n}" for n in range(5))), fusion(*(f"r1-{n}" for n in range(5)))):
        error = refused(harness, composition)
        assert isinstance(error, InvalidArgumentError)
        assert error.field == f"composition.{type(composition).__name__.lower()}.adapters"
        assert "5 adapters are too many; at most 4" in error.message
    assert not harness.disk.lookups


def test_error_of_admit_adapter_names_field_adapter_id(harness: ResidencyHarness) -> None:
    with pytest.raises(NotFoundError) as caught:
        harness.admission.admit_adapter("unknown")
    assert caught.value.metadata["field"] == "adapter_id"


def test_unknown_adapter_is_named_by_its_field(harness: ResidencyHarness) -> None:
    error = refused(harness, mixture("r4-a", "r4-b", "unknown"))
    assert isinstance(error, NotFoundError)
    assert error.metadata["field"] == "composition.mixture.adapters[2].adapter_id"
    error = refused(harness, fusion("unknown"))
    assert error.metadata["field"] == "composition.fusion.adapters[0].adapter_id"


def test_adapter_of_another_base_model_is_named_by_its_field(harness: ResidencyHarness) -> None:
    harness.disk.base_model = "OpenGVLab/InternVL2-2B"
    error = refused(harness, mixture("r4-a"))
    assert isinstance(error, BaseModelMismatchError)
    assert error.message.startswith("adapter 'r4-a' was trained on InternVL2-2B; this server runs tiny")
    assert error.metadata == {
        "adapter_id": "r4-a",
        "adapter_base_model": "InternVL2-2B",
        "server_base_model": "tiny",
        "field": "composition.mixture.adapters[0].adapter_id",
    }


def test_rank_beyond_bank_reports_rank_and_limit(harness: ResidencyHarness) -> None:
    error = refused(harness, mixture("r4-a", "r17-b"))
    assert isinstance(error, CapacityError)
    assert error.metadata == {
        "adapter_id": "r17-b",
        "rank": "17",
        "limit": "16",
        "field": "composition.mixture.adapters[1].adapter_id",
    }
    assert "--bank-ranks" in error.message


@pytest.mark.parametrize("composition", [mixture("r8-a", "r5-b", "r4-c"), fusion("r8-a", "r5-b", "r4-c")])
def test_composition_beyond_bank_reports_ranks_it_needs(
    harness: ResidencyHarness, composition: Mixture | Fusion
) -> None:
    error = refused(harness, composition)
    assert isinstance(error, CapacityError)
    kind = type(composition).__name__.lower()
    assert error.metadata == {
        "need": "17",
        "limit": "16",
        "pinned": "0",
        "field": f"composition.{kind}.adapters",
    }


def test_pinned_adapters_reduce_capacity_unless_they_are_in_composition(harness: ResidencyHarness) -> None:
    harness.pin("r8-p")
    harness.admission.admit(mixture("r8-p", "r8-a"))
    for composition in (mixture("r8-a", "r4-b"), fusion("r8-p", "r4-b")):
        with pytest.raises(CapacityError) as caught:
            harness.admission.admit(composition)
        assert caught.value.metadata["pinned"] == "8"


def test_fusion_members_of_weight_zero_need_no_ranks(harness: ResidencyHarness) -> None:
    shares = (WeightedAdapter("r8-a", 1.0), WeightedAdapter("r12-b", 0.0))
    for method in (FusionMethod.CONCAT, FusionMethod.LINEAR):
        harness.admission.admit(Fusion(shares, method))
        harness.lease(Fusion(shares, method)).release()


def test_concat_counts_only_members_that_adapt_the_same_module(harness: ResidencyHarness) -> None:
    harness.disk.targets = {"r10-a": frozenset({"q_proj"}), "r12-b": frozenset({"up_proj"})}
    harness.admission.admit(fusion("r10-a", "r12-b"))
    harness.disk.targets = {"r11-a": frozenset({"q_proj"}), "r13-b": frozenset({"q_proj", "up_proj"})}
    assert refused(harness, fusion("r11-a", "r13-b")).metadata["need"] == "24"


def test_linear_fusion_of_unequal_ranks_is_refused_naming_them(harness: ResidencyHarness) -> None:
    error = refused(harness, fusion("r4-a", "r8-b", method=FusionMethod.LINEAR))
    assert type(error) is FailedPreconditionError
    assert error.metadata == {"field": "composition.fusion.method", "ranks": "r4-a has 4, r8-b has 8"}
    assert "use concat, svd" in error.message
    harness.admission.admit(fusion("r4-a", "r4-b", method=FusionMethod.LINEAR))
    harness.disk.targets = {"r5-a": frozenset({"q_proj"}), "r6-b": frozenset({"up_proj"})}
    harness.admission.admit(fusion("r5-a", "r6-b", method=FusionMethod.LINEAR))


def test_fusion_rank_beyond_bank_is_named_by_its_field(harness: ResidencyHarness) -> None:
    shares = (WeightedAdapter("r4-a", 1.0), WeightedAdapter("r8-b", 1.0))
    error = refused(harness, Fusion(shares, FusionMethod.TIES, rank=17))
    assert isinstance(error, CapacityError)
    assert error.metadata == {"rank": "17", "limit": "16", "field": "composition.fusion.rank"}
    harness.admission.admit(Fusion(shares, FusionMethod.TIES, rank=16))


def test_resolved_revision_is_looked_up_once(harness: ResidencyHarness) -> None:
    admitted = harness.admission.admit(mixture("r4-a", "r4-b"))
    for _ in range(3):
        assert harness.admission.admit(admitted.composition).composition == admitted.composition
    assert harness.disk.lookups == harness.disk.configs_read == ["r4-a", "r4-b"]


def test_broken_config_is_refused_and_read_again_when_repaired(harness: ResidencyHarness) -> None:
    harness.disk.config_error = CheckpointError("adapter_config.json is not valid JSON")
    error = refused(harness, mixture("r4-a"))
    assert isinstance(error, CheckpointError)
    assert error.metadata["field"] == "composition.mixture.adapters[0].adapter_id"
    harness.disk.config_error = None
    harness.admission.admit(mixture("r4-a"))


@pytest.mark.parametrize(
    ("adapters", "applied"),
    [(("r4-a", "r4-b"), FusionMethod.LINEAR), (("r4-a", "r8-b"), FusionMethod.SVD), (("r8-b",), FusionMethod.LINEAR)],
)
def test_auto_fusion_is_linear_only_where_ranks_agree(
    harness: ResidencyHarness, adapters: tuple[str, ...], applied: FusionMethod
) -> None:
    admitted = harness.admission.admit(fusion(*adapters, method=FusionMethod.AUTO))
    assert isinstance(admitted.composition, Fusion)
    assert admitted.composition.method is applied
    assert harness.lease(admitted.composition).fusion_method is applied


def test_auto_fusion_ignores_rank_of_zero_weight_adapter(harness: ResidencyHarness) -> None:
    shares = WeightedAdapter("r4-a", 1.0), WeightedAdapter("r8-b", 0.0)
    admitted = harness.admission.admit(Fusion(shares, FusionMethod.AUTO))
    assert isinstance(admitted.composition, Fusion)
    assert admitted.composition.method is FusionMethod.LINEAR
