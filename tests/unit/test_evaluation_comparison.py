"""Intervals, paired differences, and the table of strategies and domains."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t

from infra.contract.composition import FusionMethod
from infra.contract.errors import InvalidArgumentError
from orchestrator.evaluation.compare import compare
from orchestrator.evaluation.matrix import matrix_of, matrix_strategies, render_matrix, rows_of
from orchestrator.evaluation.metrics.intervals import interval_of_share, student_t
from orchestrator.evaluation.metrics.paired import Graded, paired_difference
from orchestrator.evaluation.metrics.retrieval import RankedAdapters, confusion
from orchestrator.evaluation.metrics.uncertainty import UNSCORED, clustered_mean
from orchestrator.evaluation.records import Record
from orchestrator.evaluation.result_files import MetricName, read_results
from orchestrator.evaluation.spec import AnswerStrategy, DatasetSpec, EvaluatedStrategy, EvaluationSpec
from orchestrator.evaluation.summarize import summarize
from orchestrator.evaluation.summary import JobFacts, Summary
from tests.fakes.evaluation import answered, failure, sample, write_records

RIGHT, WRONG = "Scroll up", "Scroll down"
SELECTION = EvaluatedStrategy(AnswerStrategy.SELECTION)
MIXTURE = EvaluatedStrategy(AnswerStrategy.MIXTURE)


@pytest.mark.parametrize("degrees", [1, 2, 3, 5, 10, 30, 1000])
def test_students_t_is_scipys(degrees: int) -> None:
    assert student_t(degrees) == pytest.approx(t.ppf(0.975, degrees), rel=2e-3)


def test_interval_of_a_share_is_cut_and_sure_of_nothing_at_its_ends() -> None:
    assert interval_of_share(0.9, 0.1, 4) == (pytest.approx(0.9 - 0.1 * t.ppf(0.975, 3), rel=1e-2), 1.0)
    low, high = interval_of_share(1.0, 0.0, 10)
    assert (low, high) == (pytest.approx(0.722, abs=1e-3), 1.0)
    assert interval_of_share(0.0, 0.0, 10) == (0.0, pytest.approx(1 - low))
    assert interval_of_share(0.5, 0.0, 10) == (0.5, 0.5)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        chance = np.clip(random.normal(0.6, 0.15, 25), 0, 1)
        values = [float(random.random() < each) for each in chance for _ in range(4)]
        found = clustered_mean(values, [str(index) for index in range(25) for _ in range(4)])
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.6 <= found.high
    assert 0.92 <= covered / 1000 <= 0.97


def test_paired_difference_is_of_common_questions_and_less_spread_than_either() -> None:
    first = {key: Graded(f"e{key // 2}", float(key % 3 > 0)) for key in range(20)}
    second = {key: Graded(f"e{key // 2}", float(key % 3 > 1)) for key in range(1, 22)}
    found = paired_difference(first, second)
    values = [first[key].score - second[key].score for key in range(1, 20)]
    assert (found.value, found.count, found.clusters) == (pytest.approx(np.mean(values)), 19, 10)
    same = paired_difference(first, first)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert paired_difference(first, {}) == UNSCORED


def test_confusion_counts_what_came_first() -> None:
    ranked = [
        RankedAdapters("a", "clock", ("clock", "mail")),
        RankedAdapters("b", "clock", ("mail",)),
        RankedAdapters("c", "clock", ("mail",)),
        RankedAdapters("d", "mail", ()),
    ]
    assert confusion(ranked) == {"clock": {"clock": 1, "mail": 2}, "mail": {"(none)": 1}}


def records(strategy: EvaluatedStrategy, right: list[bool]) -> list[Record]:
    return [
        answered(
            sample(RIGHT, episode=str(index // 2), step=index % 2, step_count=2, strategy=strategy),
            RIGHT if each else WRONG,
        )
        for index, each in enumerate(right)
    ]


def summary_of(*found: Record, strategies: tuple[EvaluatedStrategy, ...]) -> Summary:
    spec = EvaluationSpec((DatasetSpec("clock", "clock.jsonl", "clock"),), strategies)
    return summarize(found, JobFacts(spec))


def test_the_matrix_holds_every_strategy_in_and_out_of_domain() -> None:
    labels = [strategy.label for strategy in matrix_strategies()]
    inside = ["selection", "mixture", "fusion-linear", "fusion-concat", "fusion-svd", "uniform-all", "random-k"]
    assert labels == ["base", "oracle", *inside, *(f"{label}-out-of-domain" for label in inside)]


def test_a_row_has_both_domains_and_the_difference_to_the_selection_of_its_own() -> None:
    base = EvaluatedStrategy(AnswerStrategy.BASE)
    hidden = [EvaluatedStrategy(each.strategy, exclude_own_adapter=True) for each in (SELECTION, MIXTURE)]
    strategies = (base, SELECTION, MIXTURE, *hidden)
    made = matrix_of(
        summary_of(
            *records(base, [False, False, True, False]),
            *records(SELECTION, [True, True, True, False]),
            *records(MIXTURE, [True, True, True, True]),
            *records(hidden[0], [True, False, False, False]),
            *records(hidden[1], [True, True, False, True]),
            strategies=strategies,
        )
    )
    shares = {
        row.strategy: [
            (cell.steps.value, cell.to_selection.value)
            for cell in (row.in_domain, row.out_of_domain)
            if cell is not None
        ]
        for row in made.rows
    }
    assert shares == {
        "base": [(0.25, -0.5), (0.25, 0.0)],
        "selection": [(0.75, None), (0.25, None)],
        "mixture": [(1.0, 0.25), (0.75, 0.5)],
    }
    assert made.floor == 1
    text = render_matrix(made)
    assert "| base | 25.0 \\[0.0, 100.0\\] | -50.0 \\[" in text
    assert "| constant template (floor) | 100.0 |  | 100.0 |  |" in text


def test_a_strategy_that_cannot_run_says_why_in_its_cell() -> None:
    linear = EvaluatedStrategy(AnswerStrategy.FUSION, FusionMethod.LINEAR)
    broken = [
        failure(sample(RIGHT, episode=str(n), strategy=linear), "INVALID_ARGUMENT", "linear fusion needs equal ranks")
        for n in range(3)
    ]
    base = EvaluatedStrategy(AnswerStrategy.BASE)
    most = [*records(base, [True]), *(failure(sample(RIGHT, episode=str(n), strategy=base)) for n in (8, 9))]
    some = [*records(MIXTURE, [True, True]), failure(sample(RIGHT, episode="9", strategy=MIXTURE))]
    made = matrix_of(
        summary_of(*records(SELECTION, [True]), *broken, *most, *some, strategies=(SELECTION, linear, base, MIXTURE))
    )
    rows = {row[0]: row for row in rows_of(made)}
    assert rows["fusion-linear"][1:] == ("cannot run: linear fusion needs equal ranks", "", "—", "")
    assert rows["base"][1] == "2 of 3 failed: nobody listens"
    assert rows["mixture"][1].endswith("(1 of 3 failed: nobody listens)")


def test_a_summary_with_differences_survives_json() -> None:
    summary = summary_of(*records(SELECTION, [True]), *records(MIXTURE, [False]), strategies=(SELECTION, MIXTURE))
    assert summary.differences[0].steps.value == -1
    assert summary.groups[0].action_parts is not None
    assert Summary.from_json(json.loads(json.dumps(summary.to_json()))) == summary


def test_two_files_are_compared_on_their_common_questions(tmp_path: Path) -> None:
    write_records(tmp_path / "a.jsonl", [*records(SELECTION, [True, False, False, False])])
    write_records(tmp_path / "b.jsonl", [*records(MIXTURE, [True, True, False]), *records(SELECTION, [True] * 4)])
    first, second = (read_results(tmp_path / f"{name}.jsonl") for name in "ab")
    (found,) = compare(first, second, strategy="selection", against="mixture")
    assert (found.first_score.value, found.second_score.value) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert (found.difference.value, found.difference.count) == (pytest.approx(1 / 3), 3)
    (common,) = compare(first, second)
    assert (common.first, common.second, common.difference.value) == ("selection", "selection", 0.75)
    assert compare(first, second, MetricName.EXACT_MATCH)[0].difference.value == 0.75
    with pytest.raises(InvalidArgumentError, match="has no 'oracle'"):
        compare(first, second, strategy="oracle")


def test_files_without_a_common_question_or_strategy_are_refused(tmp_path: Path) -> None:
    write_records(tmp_path / "a.jsonl", records(SELECTION, [True]))
    write_records(tmp_path / "b.jsonl", [answered(sample(RIGHT, dataset="other", strategy=SELECTION), RIGHT)])
    write_records(
        tmp_path / "c.jsonl", [*records(MIXTURE, [True]), *records(EvaluatedStrategy(AnswerStrategy.BASE), [True])]
    )
    first, second, third = (read_results(tmp_path / f"{name}.jsonl") for name in "abc")
    with pytest.raises(InvalidArgumentError, match="no scored question in common"):
        compare(first, second)
    with pytest.raises(InvalidArgumentError, match="name one of each with --strategy and --against"):
        compare(first, third)
