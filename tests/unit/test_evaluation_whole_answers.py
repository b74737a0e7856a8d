"""Questions that no actions answer: how their rows are read, and where their scores are reported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.evaluation.data.datasets import DatasetContent, read_dataset
from orchestrator.evaluation.metrics.action import ActionMetric
from orchestrator.evaluation.metrics.uncertainty import UNSCORED
from orchestrator.evaluation.records import Record
from orchestrator.evaluation.report.html.page import render_html
from orchestrator.evaluation.report.report import headline, render_markdown
from orchestrator.evaluation.report.summarize import summarize
from orchestrator.evaluation.report.summary import JobFacts, Summary
from orchestrator.evaluation.scoring import scores_of
from orchestrator.evaluation.spec import AnswerStrategy, DatasetSpec, EvaluatedStrategy, EvaluationSpec, Protocol
from tests.fakes.evaluation import answered, failure, row, sample, write_dataset

BASE, MIXTURE = EvaluatedStrategy(AnswerStrategy.BASE), EvaluatedStrategy(AnswerStrategy.MIXTURE)
SPEC = EvaluationSpec((DatasetSpec("facts", "facts.jsonl"),), (BASE, MIXTURE), Protocol.SEQUENCE)
TRUTHS = ("Paris is the capital.", "It rains\nin April.")
ACTIONS = 'Scroll up\nClick on button with the text "Mail"'


def read(folder: Path, response: str, images: list[str], protocol: Protocol = Protocol.SEQUENCE) -> DatasetContent:
    file = write_dataset(folder, "facts", [row("e1", "Where is it?", [response], images)])
    return read_dataset(DatasetSpec("facts", str(file)), protocol=protocol, roots=[folder])


def told(truth: str, answer: str | None, episode: str, strategy: EvaluatedStrategy = MIXTURE) -> Record:
    asked = sample(truth, episode=episode, dataset="facts", strategy=strategy, protocol=Protocol.SEQUENCE)
    return failure(asked) if answer is None else answered(asked, answer)


def summary_of(*records: Record) -> Summary:
    return summarize(records, JobFacts(SPEC))


WHOLE = (
    told(TRUTHS[0], "paris is  the capital.", "e1"),
    told(TRUTHS[1], "It snows in April.", "e2"),
    told(TRUTHS[0], "Paris", "e1", BASE),
    told(TRUTHS[1], None, "e2", BASE),
)


@pytest.mark.parametrize(("response", "actions"), [("Paris", 1), ("It rains\nin April.", 2), (ACTIONS, 2)])
def test_a_row_without_images_is_a_question_of_the_sequence_protocol(
    tmp_path: Path, response: str, actions: int
) -> None:
    (episode,) = read(tmp_path, response, []).episodes
    assert (episode.images, episode.response, len(episode.actions)) == ((), response, actions)


@pytest.mark.parametrize("images", [[], ["1.png", "2.png"]])
def test_a_whole_answer_needs_no_action_for_each_image(tmp_path: Path, images: list[str]) -> None:
    assert read(tmp_path, "Paris", images).bad_rows == ()


@pytest.mark.parametrize("protocol", [Protocol.STEP, Protocol.EPISODE])
def test_a_row_without_images_is_refused_step_by_step_with_the_way_out(tmp_path: Path, protocol: Protocol) -> None:
    (bad,) = read(tmp_path, "Paris", [], protocol).bad_rows
    assert f"1 actions for 0 images; the {protocol.value} protocol needs one each" in bad.problem
    assert "the sequence protocol asks for a whole answer at once, with any number of images" in bad.problem


def test_a_row_may_leave_images_out(tmp_path: Path) -> None:
    file = tmp_path / "facts.jsonl"
    file.write_text('{"query": "Where?", "response": "Paris", "episode_id": 1}')
    content = read_dataset(DatasetSpec("facts", str(file)), protocol=Protocol.SEQUENCE, roots=[tmp_path])
    assert content.episodes[0].images == ()


def test_whole_answers_are_scored_as_texts_and_actions_as_actions() -> None:
    metrics = [ActionMetric()]
    whole = scores_of(WHOLE[0], metrics)
    assert whole is not None
    assert (list(whole), whole["exact_match"]) == (["exact_match", "rouge_l", "bleu"], 1)
    actions = told(ACTIONS, ACTIONS, "e3")
    assert scores_of(actions, metrics) == {"action": [True, True]}
    assert scores_of(WHOLE[3], metrics) is None


def test_the_scores_of_whole_answers_are_those_of_the_samples_without_actions() -> None:
    cell = summary_of(*WHOLE, told(ACTIONS, ACTIONS, "e3")).group("mixture", "all")
    assert cell is not None
    assert (cell.texts.exact_match.value, cell.texts.exact_match.count) == (0.5, 2)
    assert cell.texts.rouge_l.value == pytest.approx((1 + 3 / 4) / 2)
    base = summary_of(*WHOLE).group("base", "all")
    assert base is not None
    assert (base.failed, base.texts.exact_match.count) == (1, 1)
    actions = summary_of(told(ACTIONS, ACTIONS, "e3")).group("mixture", "all")
    assert actions is not None
    assert actions.texts.exact_match == UNSCORED


def test_the_headline_of_whole_answers_is_their_scores() -> None:
    summary = summary_of(*WHOLE)
    assert summary.answers_are_texts
    table = headline(summary)
    assert (table.title, table.columns) == ("Whole answers, %", ("strategy", "exact match", "ROUGE-L", "BLEU"))
    assert [cells[0] for cells in table.rows] == ["base (1 failed)", "mixture"]
    assert table.rows[1][1:3] == ("50.0 ± 50.0", "87.5 ± 12.5")
    assert "Failed, and so unscored: 1 sample." in table.note


def test_a_job_with_actions_keeps_the_headline_of_steps_and_shows_whole_answers_apart() -> None:
    summary = summary_of(*WHOLE, told(ACTIONS, ACTIONS, "e3"))
    assert not summary.answers_are_texts
    assert headline(summary).title == "Step accuracy, %"
    assert "## Whole answers, %" in render_markdown(summary)
    assert "## Whole answers, %" not in render_markdown(summary_of(told(ACTIONS, ACTIONS, "e3")))


def test_the_page_shows_whole_answers_in_place_of_steps_that_there_are_none_of() -> None:
    page = render_html(summary_of(*WHOLE), WHOLE)
    assert "Whole answers, %" in page
    assert "Step accuracy" not in page


def test_another_catalogue_than_at_the_start_is_a_caveat_and_the_same_is_none() -> None:
    def said(at_start: str, *answered_by: str) -> bool:
        records = [
            replace(told("a", "a", f"e{number}"), catalogue_revision=revision)
            for number, revision in enumerate(answered_by)
        ]
        summary = summarize(records, JobFacts(SPEC, catalogue_revision=at_start))
        assert summary.catalogue_changed == ("The catalogue of adapters changed" in render_markdown(summary))
        return summary.catalogue_changed

    assert said("c1", "c1", "c2")
    assert said("c1", "c2")
    assert not said("c1", "c1")
    assert not said("c1", "")
    assert not said("", "c1")
