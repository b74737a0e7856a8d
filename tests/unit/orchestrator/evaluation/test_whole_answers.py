"""Questions without a true action: how their rows are read and where their scores are reported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.evaluation.data.datasets import DatasetContent, read_dataset
from orchestrator.evaluation.metrics.action import ActionMetric
from orchestrator.evaluation.metrics.uncertainty import UNSCORED
from orchestrator.evaluation.records import Record
from orchestrator.evaluation.report.headline_tables import headline_tables
from orchestrator.evaluation.report.html.page import render_html
from orchestrator.evaluation.report.html.samples import ThumbnailBudget, samples_json
from orchestrator.evaluation.report.markdown_report import first_headline, render_markdown
from orchestrator.evaluation.report.metric_tables import STEPS, TEXTS, datasets_with_score
from orchestrator.evaluation.report.summarize import summarize
from orchestrator.evaluation.report.summary import JobFacts, Summary
from orchestrator.evaluation.sample_plan import plan_samples
from orchestrator.evaluation.scoring import answered_episodes, record_scores, whole_answers
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec, PromptProtocol
from tests.support.harness.evaluation_data import answered, failure, row, sample, write_dataset

BASE, MIXTURE = EvaluatedStrategy(AnswerStrategy.BASE), EvaluatedStrategy(AnswerStrategy.MIXTURE)
SPEC = EvaluationSpec((DatasetSpec("facts", "facts.jsonl"),), (BASE, MIXTURE), PromptProtocol.SEQUENCE)
TRUTHS = ("Paris is the capital.", "It rains\nin April.")
ACTIONS = 'Scroll up\nClick on button with the text "Mail"'


def read(
    folder: Path, response: str, images: list[str], protocol: PromptProtocol = PromptProtocol.SEQUENCE
) -> DatasetContent:
    file = write_dataset(folder, "facts", [row("e1", "Where is it?", [response], images)])
    return read_dataset(DatasetSpec("facts", str(file)), protocol=protocol, roots=[folder])


def record_of(truth: str, answer: str | None, episode: str, strategy: EvaluatedStrategy = MIXTURE) -> Record:
    asked = sample(truth, episode=episode, dataset="facts", strategy=strategy, protocol=PromptProtocol.SEQUENCE)
    return failure(asked) if answer is None else answered(asked, answer)


def summary_of(*records: Record) -> Summary:
    return summarize(records, JobFacts(SPEC))


WHOLE = (
    record_of(TRUTHS[0], "paris is  the capital.", "e1"),
    record_of(TRUTHS[1], "It snows in April.", "e2"),
    record_of(TRUTHS[0], "Paris", "e1", BASE),
    record_of(TRUTHS[1], None, "e2", BASE),
)


@pytest.mark.parametrize(("response", "actions"), [("Paris", 1), ("It rains\nin April.", 2), (ACTIONS, 2)])
def test_row_without_images_is_sequence_question(tmp_path: Path, response: str, actions: int) -> None:
    (episode,) = read(tmp_path, response, []).episodes
    assert (episode.images, episode.response, len(episode.actions)) == ((), response, actions)


@pytest.mark.parametrize("images", [[], ["1.png", "2.png"]])
def test_whole_answer_may_have_any_number_of_actions(tmp_path: Path, images: list[str]) -> None:
    assert read(tmp_path, "Paris", images).bad_rows == ()


@pytest.mark.parametrize("protocol", [PromptProtocol.STEP, PromptProtocol.EPISODE])
def test_row_without_images_is_whole_answer_in_every_protocol(tmp_path: Path, protocol: PromptProtocol) -> None:
    content = read(tmp_path, "It rains\nin April.", [], protocol)
    (planned,) = plan_samples(replace(SPEC, strategies=(BASE,), protocol=protocol), [content])
    assert (planned.protocol, planned.truth) == (PromptProtocol.SEQUENCE, "It rains\nin April.")
    assert (planned.text, planned.images, planned.step) == ("Where is it?", (), 0)


@pytest.mark.parametrize("protocol", [PromptProtocol.STEP, PromptProtocol.EPISODE])
def test_step_protocols_refuse_other_number_of_actions_with_remedy(tmp_path: Path, protocol: PromptProtocol) -> None:
    (bad,) = read(tmp_path, "Paris", ["1.png", "2.png"], protocol).bad_rows
    assert f"1 actions for 2 images; the {protocol.value} protocol needs one each" in bad.problem
    assert "the sequence protocol takes one whole answer with any number of images" in bad.problem


@pytest.mark.parametrize("protocol", list(PromptProtocol))
def test_rows_with_and_without_images_are_planned_together(tmp_path: Path, protocol: PromptProtocol) -> None:
    rows = [row("e1", "Where?", ["Paris"], []), row("e2", "Look.", ["Scroll up", "Scroll down"], ["1.png", "2.png"])]
    file = write_dataset(tmp_path, "facts", rows)
    content = read_dataset(DatasetSpec("facts", str(file)), protocol=protocol, roots=[tmp_path])
    planned = plan_samples(replace(SPEC, protocol=protocol), [content])
    assert [sample.protocol for sample in planned if sample.episode_id == "e1"] == [PromptProtocol.SEQUENCE] * 2
    assert {sample.protocol for sample in planned if sample.episode_id == "e2"} == {protocol}
    assert len({sample.key for sample in planned}) == len(planned)


def test_images_may_be_absent_from_row(tmp_path: Path) -> None:
    file = tmp_path / "facts.jsonl"
    file.write_text('{"query": "Where?", "response": "Paris", "episode_id": 1}')
    content = read_dataset(DatasetSpec("facts", str(file)), protocol=PromptProtocol.SEQUENCE, roots=[tmp_path])
    assert content.episodes[0].images == ()


def test_whole_answers_are_scored_as_texts_and_actions_as_actions() -> None:
    metrics = [ActionMetric()]
    whole = record_scores(WHOLE[0], metrics)
    assert whole is not None
    assert (list(whole), whole["exact_match"]) == (["exact_match", "rouge_l", "bleu"], 1)
    actions = record_of(ACTIONS, ACTIONS, "e3")
    assert record_scores(actions, metrics) == {"action": [True, True]}
    assert record_scores(WHOLE[3], metrics) is None


def test_whole_answer_scores_cover_samples_without_actions() -> None:
    cell = summary_of(*WHOLE, record_of(ACTIONS, ACTIONS, "e3")).group("mixture", "all")
    assert cell is not None
    assert (cell.texts.exact_match.value, cell.texts.exact_match.count) == (0.5, 2)
    assert cell.texts.rouge_l.value == pytest.approx((1 + 3 / 4) / 2)
    base = summary_of(*WHOLE).group("base", "all")
    assert base is not None
    assert (base.failed, base.texts.exact_match.count) == (1, 1)
    actions = summary_of(record_of(ACTIONS, ACTIONS, "e3")).group("mixture", "all")
    assert actions is not None
    assert actions.texts.exact_match == UNSCORED


def test_headline_of_whole_answers_has_their_scores() -> None:
    summary = summary_of(*WHOLE)
    assert summary.only_texts
    table = first_headline(summary)
    assert (table.title, table.columns) == (
        "Whole answers, %",
        ("strategy", "answers", "exact match", "ROUGE-L", "BLEU"),
    )
    assert [cells[0] for cells in table.rows] == ["base (1 failed)", "mixture"]
    assert table.rows[1][1:4] == ("2", "50.0 ± 50.0", "87.5 ± 12.5")
    assert "Failed and therefore unscored: 1 sample." in table.note


MIXED = (
    record_of(ACTIONS, ACTIONS, "e3"),
    record_of(ACTIONS, "Scroll up\nScroll up", "e3", BASE),
    *(record_of(truth, truth, truth[0], strategy) for strategy in (BASE, MIXTURE) for truth in TRUTHS),
)


def test_whole_answers_are_in_no_score_of_steps() -> None:
    cells = {cell.strategy: cell for cell in summary_of(*MIXED).groups}
    for strategy, share in (("base", 0.5), ("mixture", 1.0)):
        cell = cells[strategy]
        assert (cell.action.steps.value, cell.action.steps.count, cell.action.episodes.count) == (share, 2, 1)
        assert (cell.legacy.steps.count, cell.action.step_floor) == (2, 1)
        assert (cell.texts.exact_match.value, cell.texts.exact_match.count) == (1, 2)
    only = summary_of(*WHOLE).groups[0]
    assert (only.action.steps, only.legacy.episodes, only.action.step_floor) == (UNSCORED, UNSCORED, None)


def test_episode_with_text_truth_is_unscored() -> None:
    truths = ("Scroll up", "tap the thing")
    asked = [sample(truth, step=step, step_count=2) for step, truth in enumerate(truths)]
    (episode,) = answered_episodes(map(answered, asked, truths))
    assert episode.answers == ("Scroll up", None)
    assert not episode.is_complete
    assert answered_episodes([answered(sample("tap the thing"), "tap the thing")]) == []
    assert [answer.truth for answer in whole_answers(map(answered, asked, truths))] == ["tap the thing"]


def test_steps_and_whole_answers_are_compared_separately() -> None:
    (difference,) = summary_of(*MIXED).differences
    assert (difference.strategy, difference.reference) == ("mixture", "base")
    assert (difference.steps.value, difference.steps.count) == (0.5, 2)
    assert (difference.texts.value, difference.texts.count) == (0, 2)
    text = render_markdown(summary_of(*MIXED))
    assert "| strategy | compared with | steps right | exact match |" in text
    assert "| mixture | base | +50.0 | 0.0 [" in text.replace("+0.0 [", "0.0 [")


def test_job_of_both_kinds_has_two_headlines_without_all() -> None:
    summary = summary_of(*MIXED)
    assert [(table.title, table.columns[1]) for table in headline_tables(summary)] == [
        ("Step accuracy, %", "all steps"),
        ("Whole answers, %", "answers"),
    ]
    text, page = render_markdown(summary), render_html(summary, MIXED)
    assert text.index("## Step accuracy, %") < text.index("## Whole answers, %") < text.index("## Paired differences")
    assert "All datasets" not in text + page
    assert page.index("<h2>Step accuracy, %</h2>") < page.index("<h2>Whole answers, %</h2>")
    assert "By dataset: steps right" in page
    assert "By dataset: exact match" in page


def test_dataset_is_only_in_tables_of_its_kind() -> None:
    spec = EvaluationSpec((DatasetSpec("facts", "f"), DatasetSpec("clock", "c"), DatasetSpec("gone", "g")), (MIXTURE,))
    records = [
        answered(sample("Paris", dataset="facts"), "Paris"),
        answered(sample("Scroll up", dataset="clock"), "Scroll up"),
    ]
    summary = summarize(records, JobFacts(spec))
    assert datasets_with_score(summary, STEPS) == ["clock", "gone"]
    assert datasets_with_score(summary, TEXTS) == ["facts", "gone"]


def test_report_of_whole_answers_omits_actions_and_repetition() -> None:
    text = render_markdown(summary_of(*WHOLE))
    assert text.count("Whole answers, %") == 1
    for word in ("legacy**", "`legacy`", "Floor", "floor", "Right step", "Right episode", "Step accuracy"):
        assert word not in text
    assert "**Floor**" in render_markdown(summary_of(*MIXED))
    assert "## Whole answers" not in render_markdown(summary_of(record_of(ACTIONS, ACTIONS, "e3")))


def test_page_shows_whole_answers_in_place_of_absent_steps() -> None:
    page = render_html(summary_of(*WHOLE), WHOLE)
    assert "Whole answers, %" in page
    assert "Step accuracy" not in page


def test_page_shows_scores_of_whole_answer_without_verdict() -> None:
    asked = (WHOLE[1], WHOLE[3], MIXED[0])
    text, failed, actions = samples_json(asked, ThumbnailBudget(), 0, {WHOLE[1].sample.key: 0.25})["samples"]
    assert text["scores"] == {"exact match": 0, "ROUGE-L": 0.75, "BLEU": pytest.approx(0.54, abs=0.2)}
    assert (text["actions"], text["grade"]) == ([[TRUTHS[1], "It snows in April.", None]], 0.25)
    assert (failed["scores"], actions["scores"]) == (None, None)


def test_changed_catalogue_is_caveat() -> None:
    def is_reported(at_start: str, *answered_by: str) -> bool:
        records = [
            replace(record_of("a", "a", f"e{number}"), catalogue_revision=revision)
            for number, revision in enumerate(answered_by)
        ]
        summary = summarize(records, JobFacts(SPEC, catalogue_revision=at_start))
        assert summary.catalogue_changed == ("The catalogue of adapters changed" in render_markdown(summary))
        return summary.catalogue_changed

    assert is_reported("c1", "c1", "c2")
    assert is_reported("c1", "c2")
    assert not is_reported("c1", "c1")
    assert not is_reported("c1", "")
    assert not is_reported("", "c1")
