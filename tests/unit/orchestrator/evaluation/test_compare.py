"""Intervals, paired differences, and the table of strategies and domains."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm, t

from infra.contract.composition import FusionMethod
from infra.contract.errors import InvalidArgumentError
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.cli.dataset_args import strategies_of
from orchestrator.evaluation.compare import compare
from orchestrator.evaluation.metrics.paired import QuestionScore, paired_difference
from orchestrator.evaluation.metrics.retrieval import RankedAdapters, confusion
from orchestrator.evaluation.metrics.uncertainty import (
    UNSCORED,
    clustered_mean,
    interval_of_difference,
    interval_of_share,
    student_t,
)
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
from orchestrator.evaluation.result_files import MetricName, Results, read_results
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec, PromptProtocol
from tests.support.harness.evaluation_data import answered, failure, sample, write_records

RIGHT, WRONG = "Scroll up", "Scroll down"
SELECTION = EvaluatedStrategy(AnswerStrategy.SELECTION)
MIXTURE = EvaluatedStrategy(AnswerStrategy.MIXTURE)


@pytest.mark.parametrize("degrees", [1, 2, 3, 5, 10, 30, 1000])
def test_students_t_matches_scipy(degrees: int) -> None:
    assert student_t(degrees) == pytest.approx(t.ppf(0.975, degrees), rel=2e-3)


def test_share_interval_is_clipped_and_never_degenerate() -> None:
    assert interval_of_share(0.9, 0.1, 4) == (pytest.approx(0.9 - 0.1 * t.ppf(0.975, 3), rel=1e-2), 1.0)
    low, high = interval_of_share(1.0, 0.0, 10)
    assert (low, high) == (pytest.approx(0.722, abs=1e-3), 1.0)
    assert interval_of_share(0.0, 0.0, 10) == (0.0, pytest.approx(1 - low))


@pytest.mark.parametrize(("clusters", "share"), [(2, 0.5), (10, 0.5), (10, 1 / 3), (500, 0.9)])
def test_share_without_spread_has_wilsons_interval(clusters: int, share: float) -> None:
    low, high = interval_of_share(share, 0.0, clusters)
    for end in (low, high):
        assert abs(end - share) == pytest.approx(norm.ppf(0.975) * (end * (1 - end) / clusters) ** 0.5)


def test_difference_interval_without_spread_is_wide_and_within_scale() -> None:
    low, high = interval_of_difference(0.0, 0.0, 20)
    assert (low, high) == (pytest.approx(-0.161, abs=1e-3), pytest.approx(0.161, abs=1e-3))
    assert interval_of_difference(1.0, 0.0, 20) == (pytest.approx(1 + low), 1.0)
    assert interval_of_difference(-2 / 3, 1 / 3, 3) == (-1.0, pytest.approx(-2 / 3 + t.ppf(0.975, 2) / 3, rel=1e-2))


def test_rounding_noise_is_not_spread() -> None:
    found = clustered_mean([0.1, 0.2, 0.3] * 7, [str(index // 3) for index in range(21)])
    assert found.standard_error == 0
    assert found.high is not None
    assert found.high > 0.3


def test_interval_has_nominal_coverage() -> None:
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


def test_paired_difference_covers_common_questions_with_less_spread() -> None:
    first = {key: QuestionScore(f"e{key // 2}", float(key % 3 > 0)) for key in range(20)}
    second = {key: QuestionScore(f"e{key // 2}", float(key % 3 > 1)) for key in range(1, 22)}
    found = paired_difference(first, second)
    values = [first[key].score - second[key].score for key in range(1, 20)]
    assert (found.value, found.count, found.clusters) == (pytest.approx(np.mean(values)), 19, 10)
    same = paired_difference(first, first)
    assert same.low is not None
    assert (same.value, same.standard_error, same.low < 0) == (0, 0, True)
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


def test_matrix_has_every_strategy_in_and_out_of_domain() -> None:
    labels = [strategy.label for strategy in matrix_strategies()]
    inside = ["selection", "mixture", "fusion-linear", "fusion-concat", "fusion-svd", "uniform-all", "random-k"]
    assert labels == ["base", "oracle", *inside, *(f"{label}-out-of-domain" for label in inside)]


def test_matrix_row_has_both_domains_and_their_differences_to_selection() -> None:
    base = EvaluatedStrategy(AnswerStrategy.BASE)
    hidden = [EvaluatedStrategy(each.strategy, exclude_own_adapter=True) for each in (SELECTION, MIXTURE)]
    strategies = (base, SELECTION, MIXTURE, *hidden)
    made = build_matrix(
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
    assert dict(reference_pairs(strategies_of([labels]))) == pairs


def test_matrix_without_selection_has_no_empty_columns() -> None:
    base = EvaluatedStrategy(AnswerStrategy.BASE)
    hidden = EvaluatedStrategy(AnswerStrategy.MIXTURE, exclude_own_adapter=True)
    summary = summary_of(*records(base, [True, False]), *records(hidden, [True, True]), strategies=(base, hidden))
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
    most = [*records(base, [True]), *(failure(sample(RIGHT, episode=str(n), strategy=base)) for n in (8, 9))]
    some = [*records(MIXTURE, [True, True]), failure(sample(RIGHT, episode="9", strategy=MIXTURE))]
    made = build_matrix(
        summary_of(*records(SELECTION, [True]), *broken, *most, *some, strategies=(SELECTION, linear, base, MIXTURE))
    )
    rows = {row[0]: row for row in matrix_rows(made)}
    assert rows["fusion-linear"][1:] == ("cannot run: linear fusion needs equal ranks", "", "—", "")
    assert rows["base"][1] == "2 of 3 failed: nobody listens"
    assert rows["mixture"][1].endswith("(1 of 3 failed: nobody listens)")


def test_difference_to_mostly_failed_selection_is_not_shown() -> None:
    failed = [failure(sample(RIGHT, episode=str(n), strategy=SELECTION)) for n in (8, 9)]
    summary = summary_of(
        *records(SELECTION, [True]), *failed, *records(MIXTURE, [False, True]), strategies=(SELECTION, MIXTURE)
    )
    rows = {row[0]: row for row in matrix_rows(build_matrix(summary))}
    assert rows["mixture"][1:3] == ("50.0", "")


def test_shared_floor_is_that_of_fullest_cell() -> None:
    actions = ["Scroll up", "Scroll down", "Scroll left", "Scroll right"]
    full = [answered(sample(one, episode=one, strategy=SELECTION), one) for one in actions]
    rest = [failure(sample(one, episode=one, strategy=MIXTURE)) for one in actions[1:]]
    few = [answered(sample(actions[0], episode=actions[0], strategy=MIXTURE), actions[0]), *rest]
    summary = summary_of(*few, *full, strategies=(MIXTURE, SELECTION))
    assert build_matrix(summary).floor == 0.25
    assert first_headline(summary).rows[-1][1:] == ("25.0",)
    assert '<td class="short">25.0</td>' in render_html(summary, [])
    assert [cell.action.step_floor for cell in summary.groups] == [1.0, 0.25]


def test_summary_with_differences_round_trips_through_json() -> None:
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


def test_files_without_common_question_or_strategy_are_refused(tmp_path: Path) -> None:
    write_records(tmp_path / "a.jsonl", records(SELECTION, [True]))
    write_records(tmp_path / "b.jsonl", [answered(sample(RIGHT, dataset="other", strategy=SELECTION), RIGHT)])
    write_records(
        tmp_path / "c.jsonl", [*records(MIXTURE, [True]), *records(EvaluatedStrategy(AnswerStrategy.BASE), [True])]
    )
    first, second, third = (read_results(tmp_path / f"{name}.jsonl") for name in "abc")
    with pytest.raises(InvalidArgumentError, match="no scored question in common"):
        compare(first, second)
    with pytest.raises(InvalidArgumentError, match="choose one of each with --strategy and --against"):
        compare(first, third)


def rows_file(file: Path, *rows: tuple[str | None, list[str]]) -> Results:
    """Write rows of the study, each answered right; an episode id of None is left out."""
    written = [
        {"ground_truths": truths, "predictions": truths, **({} if name is None else {"episode_id": name})}
        for name, truths in rows
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in written))
    return read_results(file)


@pytest.mark.parametrize("metric", [MetricName.ACTION, MetricName.EXACT_MATCH])
def test_questions_with_different_truths_never_pair(tmp_path: Path, metric: MetricName) -> None:
    first = rows_file(tmp_path / "a.jsonl", ("1", ["Scroll up", "Wait for response"]), ("2", ["Scroll up"]))
    second = rows_file(tmp_path / "b.jsonl", ("1", ["Scroll up", "Scroll left"]), ("2", ["Scroll up"]))
    (found,) = compare(first, second, metric)
    assert (found.difference.count, found.left_out) == (1, 2)
    assert "whose content differs" in found.notes[0]
    assert found.notes[1] == "Scores cover only the questions that both have a score for."
    (same,) = compare(first, first, metric)
    assert (same.difference.count, same.left_out, same.notes) == (3, 0, [])
    other = rows_file(tmp_path / "c.jsonl", ("1", ["Scroll down"]), ("2", ["Scroll left"]))
    with pytest.raises(InvalidArgumentError, match="no scored question in common"):
        compare(first, other, metric)


def test_rows_without_id_pair_by_order_and_truths(tmp_path: Path) -> None:
    start, end = "Open App: Clock", "Check status: successful"
    one, two, three = ([start, middle, end] for middle in ("Scroll up", "Scroll down", "Scroll left"))
    first = rows_file(tmp_path / "a.jsonl", (None, one), (None, two), (None, three))
    shifted = rows_file(tmp_path / "b.jsonl", (None, one), (None, three))
    (found,) = compare(first, shifted)
    assert (found.difference.count, found.left_out) == (3, 3)


def test_records_of_different_data_with_same_name_do_not_pair(tmp_path: Path) -> None:
    asked = [sample(RIGHT, episode="1", cluster="1-aa"), sample(RIGHT, episode="2", cluster="2-bb")]
    again = [asked[0], replace(asked[1], cluster="2-cc")]
    for name, samples in (("a", asked), ("b", again)):
        write_records(tmp_path / f"{name}.jsonl", [answered(each, RIGHT) for each in samples])
    (found,) = compare(read_results(tmp_path / "a.jsonl"), read_results(tmp_path / "b.jsonl"))
    assert (found.difference.count, found.left_out) == (1, 1)


def test_questions_of_one_side_are_counted(tmp_path: Path) -> None:
    first = rows_file(tmp_path / "a.jsonl", ("1", ["Scroll up"] * 3), ("2", ["Scroll up"]), ("3", ["Scroll up"]))
    second = rows_file(tmp_path / "b.jsonl", ("2", ["Scroll up"]), ("3", ["Scroll down"]), ("4", ["Scroll up"] * 2))
    (found,) = compare(first, second)
    assert (found.difference.count, found.left_out, found.only_first, found.only_second) == (1, 1, 3, 2)


def test_modes_of_study_rows_are_protocols(tmp_path: Path) -> None:
    found = []
    for mode in ("step", "episode", None):
        row = {"ground_truths": [RIGHT], "predictions": [RIGHT], "episode_id": "1", "mode": mode}
        (tmp_path / f"{mode}.jsonl").write_text(json.dumps(row) + "\n")
        found.append(read_results(tmp_path / f"{mode}.jsonl"))
    step, episode, unknown = found
    assert [each.protocols for each in found] == [("step",), ("episode",), ()]
    assert compare(step, episode)[0].notes == [
        "Answered under different protocols, so with different prompts: step, episode."
    ]
    assert compare(step, step)[0].notes == compare(step, unknown)[0].notes == []


def test_comparison_of_different_protocols_has_note(tmp_path: Path) -> None:
    for name, protocol in (("a", PromptProtocol.STEP), ("b", PromptProtocol.SEQUENCE)):
        write_records(tmp_path / f"{name}.jsonl", [answered(sample(RIGHT, protocol=protocol), RIGHT)])
    (found,) = compare(read_results(tmp_path / "a.jsonl"), read_results(tmp_path / "b.jsonl"))
    assert found.protocols == ("step", "sequence")
    assert found.notes == ["Answered under different protocols, so with different prompts: step, sequence."]
