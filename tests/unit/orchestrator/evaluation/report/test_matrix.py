"""The table of strategies and domains, and the references of paired differences."""

from __future__ import annotations

import json

import pytest

from infra.contract.composition import FusionMethod
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.cli.strategies import parse_strategies
from orchestrator.evaluation.records import Record
from orchestrator.evaluation.report.html.page import render_html
from orchestrator.evaluation.report.markdown_report import first_headline, render_markdown
from orchestrator.evaluation.report.matrix import (
    build_matrix,
    domain_table,
    matrix_rows,
    matrix_strategies,
    render_matrix,
)
from orchestrator.evaluation.report.strategy_differences import reference_pairs
from orchestrator.evaluation.report.summarize import summarize
from orchestrator.evaluation.report.summary import JobFacts, Summary
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec
from tests.support.harness.evaluation_data import answered, failure, sample
from tests.support.harness.report_records import strategy_records

RIGHT, WRONG = "Scroll up", "Scroll down"
SELECTION = EvaluatedStrategy(AnswerStrategy.SELECTION)
MIXTURE = EvaluatedStrategy(AnswerStrategy.MIXTURE)


def summary_of(*records: Record, strategies: tuple[EvaluatedStrategy, ...]) -> Summary:
    spec = EvaluationSpec((DatasetSpec("clock", "clock.jsonl", "clock"),), strategies)
    return summarize(records, JobFacts(spec))


def test_matrix_has_every_strategy_in_and_out_of_domain() -> None:
    labels = [strategy.label for strategy in matrix_strategies()]
    inside = ["selection", "mixture", "fusion-linear", "fusion-concat", "fusion-svd", "uniform-all", "random-k"]
    assert labels == ["base", "oracle", *inside, *(f"{label}-out-of-domain" for label in inside)]


def test_matrix_row_has_both_domains_and_their_differences_to_selection() -> None:
    base = EvaluatedStrategy(AnswerStrategy.BASE)
    hidden = [EvaluatedStrategy(strategy.strategy, exclude_own_adapter=True) for strategy in (SELECTION, MIXTURE)]
    strategies = (base, SELECTION, MIXTURE, *hidden)
    made = build_matrix(
        summary_of(
            *strategy_records(base, [False, False, True, False]),
            *strategy_records(SELECTION, [True, True, True, False]),
            *strategy_records(MIXTURE, [True, True, True, True]),
            *strategy_records(hidden[0], [True, False, False, False]),
            *strategy_records(hidden[1], [True, True, False, True]),
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


@pytest.mark.parametrize(
    ("labels", "pairs"),
    [
        ("mixture,base,selection", {"mixture": "selection", "base": "selection"}),
        ("mixture,base,oracle", {"mixture": "base", "oracle": "base"}),
        ("mixture,oracle,random-k", {"oracle": "mixture", "random-k": "mixture"}),
        ("base", {}),
        ("base,mixture-out-of-domain", {"mixture-out-of-domain": "base"}),
        (
            "oracle,selection,mixture-out-of-domain,random-k-out-of-domain",
            {"oracle": "selection", "random-k-out-of-domain": "mixture-out-of-domain"},
        ),
    ],
)
def test_strategies_are_compared_with_selection_else_base_else_first_of_their_domain(
    labels: str, pairs: dict[str, str]
) -> None:
    assert dict(reference_pairs(parse_strategies([labels]))) == pairs


def test_matrix_without_selection_has_no_empty_columns() -> None:
    base = EvaluatedStrategy(AnswerStrategy.BASE)
    hidden = EvaluatedStrategy(AnswerStrategy.MIXTURE, exclude_own_adapter=True)
    summary = summary_of(
        *strategy_records(base, [True, False]), *strategy_records(hidden, [True, True]), strategies=(base, hidden)
    )
    drawn = domain_table(build_matrix(summary))
    assert drawn.columns == ("strategy", "in domain", "out of domain")
    assert "to selection" not in drawn.note + render_matrix(build_matrix(summary))
    assert "| mixture-out-of-domain | base | +50.0 |" in render_markdown(summary)


def test_failed_strategy_shows_reason_in_cell() -> None:
    linear = EvaluatedStrategy(AnswerStrategy.FUSION, FusionMethod.LINEAR)
    broken = [
        failure(sample(RIGHT, episode=str(n), strategy=linear), "INVALID_ARGUMENT", "linear fusion needs equal ranks")
        for n in range(3)
    ]
    base = EvaluatedStrategy(AnswerStrategy.BASE)
    most = [*strategy_records(base, [True]), *(failure(sample(RIGHT, episode=str(n), strategy=base)) for n in (8, 9))]
    some = [*strategy_records(MIXTURE, [True, True]), failure(sample(RIGHT, episode="9", strategy=MIXTURE))]
    made = build_matrix(
        summary_of(
            *strategy_records(SELECTION, [True]), *broken, *most, *some, strategies=(SELECTION, linear, base, MIXTURE)
        )
    )
    rows = {row[0]: row for row in matrix_rows(made)}
    assert rows["fusion-linear"][1:] == ("cannot run: linear fusion needs equal ranks", "", "—", "")
    assert rows["base"][1] == "2 of 3 failed: connection refused"
    assert rows["mixture"][1].endswith("(1 of 3 failed: connection refused)")


def test_difference_to_mostly_failed_selection_is_not_shown() -> None:
    failed = [failure(sample(RIGHT, episode=str(n), strategy=SELECTION)) for n in (8, 9)]
    summary = summary_of(
        *strategy_records(SELECTION, [True]),
        *failed,
        *strategy_records(MIXTURE, [False, True]),
        strategies=(SELECTION, MIXTURE),
    )
    rows = {row[0]: row for row in matrix_rows(build_matrix(summary))}
    assert rows["mixture"][1:3] == ("50.0", "")


def test_shared_floor_is_that_of_fullest_cell() -> None:
    actions = ["Scroll up", "Scroll down", "Scroll left", "Scroll right"]
    full = [answered(sample(action, episode=action, strategy=SELECTION), action) for action in actions]
    rest = [failure(sample(action, episode=action, strategy=MIXTURE)) for action in actions[1:]]
    few = [answered(sample(actions[0], episode=actions[0], strategy=MIXTURE), actions[0]), *rest]
    summary = summary_of(*few, *full, strategies=(MIXTURE, SELECTION))
    assert build_matrix(summary).floor == 0.25
    assert first_headline(summary).rows[-1][1:] == ("25.0",)
    assert '<td class="short">25.0</td>' in render_html(summary, [])
    assert [cell.action.step_floor for cell in summary.groups] == [1.0, 0.25]


def test_summary_with_differences_round_trips_through_json() -> None:
    summary = summary_of(
        *strategy_records(SELECTION, [True]), *strategy_records(MIXTURE, [False]), strategies=(SELECTION, MIXTURE)
    )
    assert summary.differences[0].steps.value == -1
    assert summary.groups[0].action_parts is not None
    assert Summary.from_json(json.loads(json.dumps(summary.to_json()))) == summary
