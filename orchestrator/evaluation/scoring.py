"""Records to what the metrics take: answered episodes and ranked adapters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from orchestrator.evaluation.actions import is_actions, split_actions
from orchestrator.evaluation.metrics.episodes import AnsweredEpisode
from orchestrator.evaluation.metrics.floor import Metric
from orchestrator.evaluation.metrics.paired import Question, QuestionScore, content_digest
from orchestrator.evaluation.metrics.retrieval import RankedAdapters
from orchestrator.evaluation.metrics.text import TEXT_SCORES, AnsweredText
from orchestrator.evaluation.records import Record, Sample
from orchestrator.evaluation.spec import PromptProtocol


def answered_episodes(records: Iterable[Record]) -> list[AnsweredEpisode]:
    """Return the episodes that records of one strategy answer, in order of appearance.

    A failed sample, and a step without a record, is unscored; so is a question whose truth is not in the action
    language, which is scored as a text (see `whole_answers`). In the sequence protocol the answer is cut into actions
    by the parser of the action language, and a failed sample leaves nothing of its episode to score.
    """
    by_episode: defaultdict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in filter(expects_actions, records):
        by_episode[record.sample.dataset, record.sample.episode_id].append(record)
    return [_episode(together) for together in by_episode.values()]


def expects_actions(record: Record) -> bool:
    """Whether the true answer is in the action language, and not any text."""
    return _is_actions(record.sample.truth)


def whole_answers(records: Iterable[Record]) -> list[AnsweredText]:
    """Return the answers to questions whose truth is not in the action language."""
    return answered_texts(record for record in records if not expects_actions(record))


def judge_scores(records: Iterable[Record], grades: Mapping[str, float]) -> dict[Question, QuestionScore]:
    """Return the grade of every question that a judge has graded; `grades` are by sample key."""
    return {
        _question(asked): QuestionScore(asked.cluster, grades[asked.key])
        for record in records
        for asked in (record.sample,)
        if asked.key in grades
    }


def answered_texts(records: Iterable[Record]) -> list[AnsweredText]:
    """Return whole answers and their truths, for the metrics of texts and for a judge."""
    return [
        AnsweredText(_question(asked), asked.cluster, asked.truth, record.answer, asked.text)
        for record in records
        for asked in (record.sample,)
    ]


def ranked_adapters(records: Iterable[Record]) -> list[RankedAdapters]:
    """Return what was retrieved, where retrieval answered and the true adapter is known and not hidden from it."""
    return [
        RankedAdapters(
            record.sample.cluster, record.sample.adapter_id, tuple(match.adapter_id for match in record.matches)
        )
        for record in records
        if record.matches is not None
        and record.sample.adapter_id is not None
        and record.sample.strategy.strategy.retrieves
        and not record.sample.strategy.exclude_own_adapter
        and (record.error is None or record.matches)
    ]


def record_scores(record: Record, metrics: Sequence[Metric]) -> Mapping[str, list[bool] | float] | None:
    """Return the scores of one sample by metric, None where it has no answer: those of `step_scores`, or where the
    truth is not in the action language those of the whole answer, each in [0, 1].
    """
    return step_scores(record, metrics) if expects_actions(record) else text_scores(record)


def text_scores(record: Record) -> dict[str, float] | None:
    """Return the scores of a whole answer by their names, each in [0, 1]; None where unscored."""
    if record.answer is None:
        return None
    return {name: score(record.sample.truth, record.answer) for name, score in TEXT_SCORES.items()}


def step_scores(record: Record, metrics: Sequence[Metric]) -> dict[str, list[bool]] | None:
    """Return by metric, for each true action of the sample, whether it was answered right; None where unscored."""
    if record.answer is None:
        return None
    is_sequence = record.sample.protocol is PromptProtocol.SEQUENCE
    truths, answers = (split_actions(text) if is_sequence else [text] for text in (record.sample.truth, record.answer))
    return {
        metric.name: [
            position < len(answers) and metric.accepts(truth, answers[position])
            for position, truth in enumerate(truths)
        ]
        for metric in metrics
    }


def _question(asked: Sample) -> Question:
    return Question(asked.dataset, asked.episode_id, asked.step, content_digest(asked.cluster, asked.truth))


def _episode(records: Sequence[Record]) -> AnsweredEpisode:
    sample = records[0].sample
    truths = [""] * sample.step_count
    answers: list[str | None] = [None] * sample.step_count
    if sample.protocol is PromptProtocol.SEQUENCE:
        truths = split_actions(sample.truth)
        answer = records[0].answer
        answers = [None] * len(truths) if answer is None else [*split_actions(answer)]
    else:
        for record in records:
            truths[record.sample.step] = record.sample.truth
            answers[record.sample.step] = record.answer
    return AnsweredEpisode(sample.dataset, sample.cluster, tuple(truths), tuple(answers), sample.episode_id)


@lru_cache(maxsize=1 << 14)
def _is_actions(text: str) -> bool:
    return is_actions(text)
