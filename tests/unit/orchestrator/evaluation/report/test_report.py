"""From records to summary and report: completeness, repeated records, and unscored values."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from infra.contract.composition import WeightedAdapter
from infra.contract.errors import InvalidArgumentError
from infra.contract.generation import FinishReason, Usage
from infra.contract.retrieval import RetrievalOptions
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.evaluation.data.datasets import BadRow
from orchestrator.evaluation.metrics.action import ActionMetric
from orchestrator.evaluation.metrics.legacy import LegacyMetric
from orchestrator.evaluation.metrics.uncertainty import UNSCORED
from orchestrator.evaluation.records import (
    Record,
    RetrievedAdapter,
    SampleError,
    SampleTimings,
    read_records,
)
from orchestrator.evaluation.report.headline_tables import FLOOR_NAME, headline_tables
from orchestrator.evaluation.report.html.page import render_html
from orchestrator.evaluation.report.markdown_report import caveats, first_headline, render_markdown
from orchestrator.evaluation.report.summarize import summarize
from orchestrator.evaluation.report.summary import DatasetFile, JobFacts, Summary
from orchestrator.evaluation.scoring import answered_episodes, step_scores
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec, PromptProtocol
from tests.support.harness.evaluation_data import answered, failure, sample, write_records

OPEN, TAP, UP, DONE = (
    "Open App: Clock",
    'Click on button with the text "Timer"',
    "Scroll up",
    "Check status: successful",
)
BASE, MIXTURE = EvaluatedStrategy(AnswerStrategy.BASE), EvaluatedStrategy(AnswerStrategy.MIXTURE)
HIDDEN = EvaluatedStrategy(AnswerStrategy.MIXTURE, exclude_own_adapter=True)
SPEC = EvaluationSpec(
    (DatasetSpec("clock", "clock.jsonl", "clock", "app"), DatasetSpec("office", "office.jsonl", "office", "category")),
    (BASE, MIXTURE, HIDDEN),
)


def steps(strategy: EvaluatedStrategy, dataset: str, episode: str, answers: list[str | None]) -> list[Record]:
    """Return the records of an episode OPEN, DONE; an answer of None failed."""
    retrieved = ["calendar", dataset, "gmail"] if strategy.strategy.retrieves else None
    records = []
    for step, (truth, answer) in enumerate(zip([OPEN, DONE], answers, strict=True)):
        kind = "app" if dataset == "clock" else "category"
        asked = sample(
            truth, episode=episode, step=step, step_count=2, dataset=dataset, kind=kind, strategy=strategy,
            adapter_id=dataset, cluster=episode,
        )  # fmt: skip
        records.append(failure(asked) if answer is None else answered(asked, answer, retrieved))
    return records


RECORDS = [
    *steps(BASE, "clock", "e1", [OPEN, UP]),
    *steps(BASE, "clock", "e2", [UP, UP]),
    *steps(BASE, "office", "e1", [UP, DONE]),
    *steps(MIXTURE, "clock", "e1", [OPEN, DONE]),
    *steps(MIXTURE, "clock", "e2", [OPEN, None]),
    *steps(MIXTURE, "office", "e1", [OPEN, DONE]),
    *steps(HIDDEN, "clock", "e1", [UP, UP]),
]


def test_summary_has_cell_for_each_strategy_dataset_and_group() -> None:
    summary = summarize(RECORDS, JobFacts(SPEC))
    assert summary.group_names == ("app", "category", "all")
    cell = summary.dataset("base", "clock")
    assert cell is not None
    assert (cell.samples, cell.failed) == (4, 0)
    assert (cell.action.steps.value, cell.action.steps.count, cell.action.steps.clusters) == (0.25, 4, 2)
    assert cell.action.steps.standard_error == pytest.approx((2 * 2 * 0.5**2) ** 0.5 / 4)
    assert (cell.action.episodes.value, cell.action.step_floor) == (0, 1)
    everything = summary.group("base", "all")
    assert everything is not None
    assert everything.action.steps.value == pytest.approx(2 / 6)
    assert everything.action.steps.clusters == 2
    assert summary.dataset("mixture-out-of-domain", "office") is None


def test_failed_sample_is_unscored_and_reported_separately() -> None:
    summary = summarize(RECORDS, JobFacts(SPEC))
    cell = summary.dataset("mixture", "clock")
    assert cell is not None
    assert (cell.samples, cell.failed) == (4, 1)
    assert (cell.action.steps.value, cell.action.steps.count) == (1, 3)
    assert (cell.action.episodes.value, cell.action.episodes.count) == (1, 1)
    assert summary.failed_samples == 1
    assert summary.failure_reasons == {"UNAVAILABLE": 1}
    assert summary.failures[0].message == "connection refused"


def test_retrieval_is_scored_if_true_adapter_is_known_and_not_hidden() -> None:
    summary = summarize(RECORDS, JobFacts(SPEC))
    scores = {
        strategy: cell.retrieval
        for strategy in summary.strategies
        if (cell := summary.group(strategy, "all")) is not None
    }
    assert (scores["mixture"].at_1.value, scores["mixture"].at_1.count) == (0, 5)
    assert scores["mixture"].at_3.value == 1
    assert scores["mixture"].mean_reciprocal_rank.value == 0.5
    assert scores["base"].at_1 == UNSCORED
    assert scores["mixture-out-of-domain"].at_1 == UNSCORED


def test_empty_retrieval_is_wrong_and_failed_retrieval_is_unscored() -> None:
    found_nothing = answered(sample(OPEN, episode="e1"), OPEN, [])
    failed_before = failure(sample(OPEN, episode="e2"))
    spec = EvaluationSpec((DatasetSpec("clock", "c"),), (MIXTURE,), retrieval=RetrievalOptions(top_k=5))
    cell = summarize([found_nothing, failed_before], JobFacts(spec)).group("mixture", "all")
    assert cell is not None
    assert (cell.retrieval.at_1.value, cell.retrieval.at_1.count) == (0, 1)


def test_repeated_record_is_counted_once_and_reported() -> None:
    summary = summarize([*RECORDS, RECORDS[0], RECORDS[3]], JobFacts(SPEC))
    assert summary.repeated_records == 2
    assert summary.recorded_samples == len(RECORDS)
    assert summary.groups == summarize(RECORDS, JobFacts(SPEC)).groups


def test_order_of_records_does_not_matter() -> None:
    assert summarize(RECORDS[::-1], JobFacts(SPEC)).groups == summarize(RECORDS, JobFacts(SPEC)).groups


def test_missing_step_leaves_only_episode_unscored() -> None:
    (episode,) = answered_episodes(RECORDS[:1])
    assert episode.answers == (OPEN, None)
    assert not episode.is_complete


def test_sequence_answer_is_split_into_actions() -> None:
    truth = f'{OPEN}\nClick on button with the text "a\nb"\n{DONE}'
    asked = sample(truth, step_count=3, protocol=PromptProtocol.SEQUENCE)
    record = answered(asked, f'{OPEN}\nClick on button with the text "a\nb"')
    (episode,) = answered_episodes([record])
    assert len(episode.truths) == 3
    assert len(episode.answers) == 2
    assert step_scores(record, [ActionMetric(), LegacyMetric()]) == {
        "action": [True, True, False],
        "legacy": [True, True, False],
    }
    failed = answered_episodes([failure(asked)])[0]
    assert not failed.is_complete
    assert not any(failed.is_scored(step) for step in range(3))
    assert step_scores(failure(asked), [ActionMetric()]) is None


def test_timings_are_means_of_measured_values() -> None:
    records = [
        answered(sample(OPEN, episode=str(number)), OPEN, total_s=total_s) for number, total_s in enumerate([0.1, 0.3])
    ]
    cell = summarize(records, JobFacts(SPEC)).group("mixture", "all")
    assert cell is not None
    assert (cell.timings.total_s, cell.timings.decode_s) == pytest.approx((0.2, 0.1))
    assert cell.timings.retrieval_s is None


def test_summary_round_trips_through_json() -> None:
    facts = JobFacts(
        SPEC, "ev-1", "cancelled", 20, (DatasetFile("clock", "app", "c", "f" * 64, 2, 1),), (BadRow("c", 3, "x"),)
    )
    summary = summarize(RECORDS, facts)
    data = json.loads(json.dumps(summary.to_json()))
    assert data["schema_version"] == 1
    assert Summary.from_json(data) == summary


def test_headline_shows_strategies_floor_and_failures() -> None:
    table = first_headline(summarize(RECORDS, JobFacts(SPEC)))
    assert table.columns == ("strategy", "apps", "categories", "all")
    assert table.rows == (
        ("base", "25.0 ± 25.0", "50.0", "33.3 ± 22.2"),
        ("mixture (1 failed)", "100.0", "100.0", "100.0"),
        ("mixture-out-of-domain", "0.0", "—", "0.0"),
        (FLOOR_NAME, "100.0", "100.0", "100.0"),
    )
    assert "1 sample" in table.note


def test_datasets_of_one_kind_need_no_groups() -> None:
    spec = EvaluationSpec((DatasetSpec("clock", "clock.jsonl", "clock", "app"),), (BASE,))
    assert first_headline(summarize(RECORDS, JobFacts(spec))).columns == ("strategy", "all")


def test_report_has_caveats_and_methodology() -> None:
    facts = JobFacts(
        SPEC, "ev-1", "cancelled", 20, bad_rows=(BadRow("data/clock.jsonl", 7, "query is empty"),), base_model="tiny"
    )
    text = render_markdown(summarize(RECORDS, facts))
    for line in (
        "# Evaluation ev-1",
        "**Incomplete (cancelled): 14 of 20 planned samples have a record.**",
        "| mixture (1 failed) | 100.0 [34.2, 100.0] | 100.0 | 100.0 [34.2, 100.0] |",
        "| clock | 4 | 25.0 ± 25.0 | 100.0 | 0.0 | 100.0 |",
        "| office | 2 | 50.0 | 100.0 | — | 100.0 |",
        "| mixture | all | 5 | 0.0 | 100.0 | 0.500 |",
        "| mixture | 6 | 1 | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 |",
        "upper bound",
        "| mixture/clock/e2/1 | UNAVAILABLE | connection refused |",
        "- data/clock.jsonl:7: query is empty",
    ):
        assert line in text
    prose = " ".join(text.split())
    assert "is above 0.6." in prose
    assert "points may differ by 63 pixels." in prose
    assert "mixture-out-of-domain: the retrieved adapters" in text


def test_report_shows_intervals_and_paired_differences() -> None:
    selection = EvaluatedStrategy(AnswerStrategy.SELECTION)
    spec = EvaluationSpec((DatasetSpec("clock", "clock.jsonl", "clock", "app"),), (BASE, selection))
    pairs = [(BASE, "e1", [OPEN, UP]), (BASE, "e2", [UP, DONE]), (BASE, "e3", [UP, UP])]
    records: list[Record] = []
    for strategy, episode, answers in pairs:
        records += steps(strategy, "clock", episode, [*answers])
    for episode in ("e1", "e2", "e3"):
        records += steps(selection, "clock", episode, [OPEN, DONE])
    text = render_markdown(summarize(records, JobFacts(spec)))
    assert "| base | 33.3 [0.0, 100.0] |" in text
    assert "| selection | 100.0 [43.9, 100.0] |" in text
    assert "| base | selection | -66.7 [-100.0, +5.0] |" in text
    assert "an interval that contains zero does not show a difference" in text


def test_report_shows_no_score_if_most_samples_failed() -> None:
    selection = EvaluatedStrategy(AnswerStrategy.SELECTION)
    spec = EvaluationSpec((DatasetSpec("clock", "clock.jsonl", "clock", "app"),), (BASE, selection))
    records = [
        *steps(BASE, "clock", "e1", [OPEN, None]),
        *steps(BASE, "clock", "e2", [None, None]),
        *steps(selection, "clock", "e1", [OPEN, UP]),
        *steps(selection, "clock", "e2", [OPEN, DONE]),
    ]
    summary = summarize(records, JobFacts(spec))
    assert first_headline(summary).rows[0] == ("base (3 failed)", "3 of 4 failed")
    text = render_markdown(summary)
    for line in (
        "| base (3 failed) | 3 of 4 failed |",
        f"| base | 4 | 3 | 3 of 4 failed |{' — |' * 9}",
        "| clock | 4 | 3 of 4 failed | 75.0 ± 25.0 | 100.0 |",
    ):
        assert line in text
    page = render_html(summary, records)
    assert "Paired differences" not in text
    assert '<td class="short">3 of 4 failed</td>' in page
    assert "Strategies compared" not in page


def test_report_of_whole_answers_has_no_action_tables() -> None:
    spec = EvaluationSpec((DatasetSpec("clock", "chat.jsonl"),), (BASE, MIXTURE))
    records = [answered(sample("four", episode=str(n), strategy=BASE), "four" if n else "five") for n in range(2)]
    records += [failure(sample("four", episode=str(n))) for n in range(2)]
    summary = summarize(records, JobFacts(spec))
    assert first_headline(summary).rows == (
        ("base", "2", "50.0 ± 50.0", "50.0 ± 50.0", "50.0 ± 50.0"),
        ("mixture (2 failed)", "0", "2 of 2 failed", "—", "—"),
    )
    text, page = render_markdown(summary), render_html(summary, records)
    assert "| base | 2 | 50.0 [0.0, 100.0] |" in text
    assert "- **Whole answers**" in text
    assert "By dataset: exact match, %" in page
    for title in ("every metric", "Step accuracy"):
        assert title not in text
        assert title not in page


def test_report_lists_changed_datasets() -> None:
    text = render_markdown(replace(summarize(RECORDS, JobFacts(SPEC)), changed_datasets=("clock",)))
    assert "**These datasets changed while the job ran; their samples are the planned ones: clock.**" in text


def test_unreadable_rows_are_caveat_and_listed() -> None:
    bad = tuple(BadRow("clock.jsonl", line, f"query {line} is <empty>") for line in range(1, 19))
    summary = summarize(RECORDS, JobFacts(SPEC, bad_rows=bad), bad_row_count=40)
    caveat = "40 rows of the datasets could not be read, the first: clock.jsonl:1: query 1 is <empty>."
    assert caveats(summary) == [caveat]
    text, page = render_markdown(summary), render_html(summary, RECORDS)
    assert f"**{caveat}**".replace("<empty>", "&lt;empty&gt;") in text
    assert f"<p>{caveat}</p>".replace("<empty>", "&lt;empty&gt;") in page
    assert "<h2>Rows that could not be read: 40</h2>" in page
    assert page.count("is &lt;empty&gt;</td>") == 18
    assert "could not be read" not in render_markdown(summarize(RECORDS, JobFacts(SPEC)))


def test_report_headline_has_intervals() -> None:
    summary = summarize(RECORDS, JobFacts(SPEC))
    (table,), short = headline_tables(summary), first_headline(summary)
    assert table.rows[0] == ("base", "25.0 [0.0, 100.0]", "50.0", "33.3 [0.0, 100.0]")
    assert "with 95 % intervals" in table.note
    assert "± standard error" in short.note
    assert [row[0] for row in table.rows] == [row[0] for row in short.rows]


def test_foreign_text_cannot_break_report() -> None:
    asked = sample(OPEN, strategy=BASE)
    summary = summarize([failure(asked, message="a|b\n# <script>`x` " + "y" * 1000)], JobFacts(SPEC))
    (line,) = [line for line in render_markdown(summary).splitlines() if "base/clock/e1/0" in line]
    assert r"a\|b # &lt;script&gt;\`x\` yyy" in line
    assert len(line) < 450


def test_report_without_records_shows_dashes() -> None:
    table = first_headline(summarize([], JobFacts(SPEC)))
    assert {cell for row in table.rows for cell in row[1:]} == {"—"}
    assert "—" in render_markdown(summarize([], JobFacts(SPEC)))


def test_records_round_trip_through_file(tmp_path: Path) -> None:
    full = Record(
        sample("Type text: Zeile\u2028zwei\nü", strategy=HIDDEN),
        answer="",
        matches=(RetrievedAdapter("a", 0.9, 0.5, "r1"),),
        applied=(WeightedAdapter("a", 0.5, "r1"),),
        finish_reason=FinishReason.LENGTH,
        usage=Usage(10, 4, 2),
        timings=SampleTimings(1.0, 0.1, 0.2, 0.3, 0.4),
        catalogue_revision="c7",
    )
    records = [full, *RECORDS]
    write_records(tmp_path / "records.jsonl", records)
    assert read_records(tmp_path / "records.jsonl") == records
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write('\n{"sample": 1}\n')
    with pytest.raises(InvalidArgumentError, match=rf"records\.jsonl:{len(records) + 2}: not a record"):
        read_records(tmp_path / "records.jsonl")


def test_record_has_answer_or_error() -> None:
    with pytest.raises(InvalidArgumentError, match="an answer or an error"):
        Record(sample(OPEN))
    with pytest.raises(InvalidArgumentError, match="an answer or an error"):
        Record(sample(OPEN), answer=OPEN, error=SampleError("X", "x"))
