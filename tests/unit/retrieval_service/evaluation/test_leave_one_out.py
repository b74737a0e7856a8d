"""Trials over stored examples."""

from __future__ import annotations

import numpy as np
import pytest

from infra.contract.errors import InvalidArgumentError
from infra.contract.retrieval import RetrievalStrategy, Weighting
from retrieval_service.evaluation.leave_one_out import Trial, few_examples, leave_one_out
from retrieval_service.strategies.examples import ExampleSet, Float64Array, IntArray
from retrieval_service.strategies.scale import Scores, Similarities
from tests.support.harness.example_sets import clouds


def trial_of(similarities: Float64Array, truth: IntArray) -> Trial:
    return Trial(tuple("abcde"[: similarities.shape[1]]), Scores(similarities, 10 * similarities, False), truth)


def test_equal_similarities_are_ranked_by_id() -> None:
    trial = trial_of(np.array([[0.5, 0.5, 0.5], [0.1, 0.9, 0.9]]), np.array([1, 2]))
    found = trial.outcomes(2, Weighting.UNIFORM, 1.0)
    assert [match.rank for match in found] == [2, 2]
    assert [match.retrieved for match in found] == [("a", "b"), ("b", "c")]


def test_best_temperature_recovers_temperature_of_samples() -> None:
    generator = np.random.default_rng(0)
    similarities = generator.uniform(-1, 1, (4000, 5))
    noise = generator.gumbel(size=similarities.shape)
    truth = (similarities / 0.2 + noise).argmax(axis=1)  # drawn from softmax(s / 0.2)
    assert trial_of(similarities, truth).best_temperature() == pytest.approx(0.2, rel=0.1)


def test_leave_one_out_queries_with_every_example_that_has_others() -> None:
    examples = clouds({"a": 1, "b": 4, "c": 5})
    for strategy in RetrievalStrategy:
        trial = leave_one_out(strategy, examples)
        assert trial.scores.similarities.shape == (9, 3)
        assert trial.truth.tolist() == [1] * 4 + [2] * 5


@pytest.mark.parametrize("counts", [{"a": 9}, {"a": 1, "b": 1}])
def test_nothing_to_tell_apart_is_reported(counts: dict[str, int]) -> None:
    with pytest.raises(InvalidArgumentError, match="two adapters with two examples"):
        leave_one_out(RetrievalStrategy.CENTROID, clouds(counts))


def test_few_examples_use_same_draws_for_all_strategies() -> None:
    examples = clouds({"a": 5, "b": 7})
    trials = few_examples(list(RetrievalStrategy), examples, 3, seed=1)
    for trial in trials.values():
        np.testing.assert_array_equal(trial.truth, trials[RetrievalStrategy.CENTROID].truth)
        assert len(trial.truth) == 10 * (2 + 4)
    again = few_examples([RetrievalStrategy.CALIBRATED], examples, 3, seed=1)[RetrievalStrategy.CALIBRATED]
    np.testing.assert_array_equal(again.scores.similarities, trials[RetrievalStrategy.CALIBRATED].scores.similarities)
    with pytest.raises(InvalidArgumentError, match="below 7, the most examples"):
        few_examples([RetrievalStrategy.CENTROID], examples, 7, seed=1)


def test_loss_is_minus_log_of_probability_of_right_adapter() -> None:
    trial = trial_of(np.array([[0.1, 0.2], [0.3, 0.1]]), np.array([1, 1]))
    expected = [np.log(1 + np.exp(-1)), np.log(1 + np.exp(2))]
    np.testing.assert_allclose(trial.losses(), expected)


@pytest.mark.parametrize("strategy", RetrievalStrategy)
def test_vector_of_two_adapters_is_left_out_of_both(strategy: RetrievalStrategy) -> None:
    apart = clouds({"a": 4, "b": 5, "c": 3}, dim=6, seed=2)
    arrays = {name: apart.vectors[apart.rows_of(index)] for index, name in enumerate(apart.ids)}
    arrays["b"] = np.concatenate([arrays["b"], arrays["a"][1:2]])
    arrays["d"] = arrays["c"][:1]
    shared = ExampleSet.of(arrays)
    trial = leave_one_out(strategy, shared)
    assert trial.twins == 3, "one of a and b from each side, and that of c; d has no other example"
    row = 1
    rest = shared.without(np.append(shared.twins[row], row))
    expected = Similarities(strategy, rest).scores(shared.vectors[[row]])
    order = np.argsort(-expected.log_weights[0], kind="stable")
    np.testing.assert_array_equal(np.argsort(-trial.scores.log_weights[row], kind="stable"), order)
    assert trial.scores.similarities[10, 3] == -1, "d is unknown without its only example"


def test_kind_restricts_queries_and_candidates() -> None:
    kinds = {"a": "app", "b": "app", "c": "category"}
    trial = leave_one_out(RetrievalStrategy.TWO_COVARIANCE, clouds({"a": 3, "b": 4, "c": 5}, kinds=kinds), "app")
    assert trial.ids == ("a", "b")
    assert trial.truth.tolist() == [0] * 3 + [1] * 4
    few = few_examples([RetrievalStrategy.CENTROID], clouds({"a": 3, "b": 4, "c": 5}, kinds=kinds), 2, 0, "category")
    assert few[RetrievalStrategy.CENTROID].ids == ("c",)
