"""Trials over stored examples."""

from __future__ import annotations

import numpy as np
import pytest

from infra.contract.errors import InvalidArgumentError
from infra.contract.retrieval import RetrievalStrategy, Weighting
from retrieval_service.evaluation.leave_one_out import Trial, few_examples, leave_one_out
from tests.support.harness.example_sets import clouds


def test_equal_similarities_are_ranked_by_id() -> None:
    trial = Trial(("a", "b", "c"), np.array([[0.5, 0.5, 0.5], [0.1, 0.9, 0.9]]), np.array([1, 2]))
    found = trial.outcomes(2, Weighting.UNIFORM, 1.0)
    assert [match.rank for match in found] == [2, 2]
    assert [match.retrieved for match in found] == [("a", "b"), ("b", "c")]


def test_best_temperature_recovers_temperature_of_samples() -> None:
    generator = np.random.default_rng(0)
    similarities = generator.uniform(-1, 1, (4000, 5))
    noise = generator.gumbel(size=similarities.shape)
    truth = (similarities / 0.2 + noise).argmax(axis=1)  # drawn from softmax(s / 0.2)
    assert Trial(tuple("abcde"), similarities, truth).best_temperature() == pytest.approx(0.2, rel=0.1)


def test_leave_one_out_queries_with_every_example_that_has_others() -> None:
    examples = clouds({"a": 1, "b": 4, "c": 5})
    for strategy in RetrievalStrategy:
        trial = leave_one_out(strategy, examples)
        assert trial.similarities.shape == (9, 3)
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
    np.testing.assert_array_equal(again.similarities, trials[RetrievalStrategy.CALIBRATED].similarities)
    with pytest.raises(InvalidArgumentError, match="below 7, the most examples"):
        few_examples([RetrievalStrategy.CENTROID], examples, 7, seed=1)
