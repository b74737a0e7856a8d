"""Convert records to the inputs of the metrics: answered episodes, whole answers and ranked adapters."""

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
    """Return the episodes answered by the records of one strategy, in order of appearance.

    Failed samples and steps without a record are unscored. Questions whose truth is not in the action language are
    left out; they are scored as whole answers (see `whole_answers`). In the sequence protocol the answer is split
    into actions by the parser of the action language, and a failed sample leaves its whole episode unscored.
    """
    by_episode: defaultdict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in filter(expects_actions, records):
        by_episode[record.sample.dataset, record.sample.episode_id].append(record)
    return [_episode(episode_records) for episode_records in by_episode.values()]


def expects_actions(record: Record) -> bool:
    """Whether the true answer is in the action language."""
    return _is_actions(record.sample.truth)


def whole_answers(records: Iterable[Record]) -> list[AnsweredText]:
    """Return the answers to questions whose truth is not in the action language."""
    return answered_texts(record for record in records if not expects_actions(record))


def judge_scores(records: Iterable[Record], grades: Mapping[str, float]) -> dict[Question, QuestionScore]:
    """Return the judge's grade of every graded question; `grades` is keyed by sample key."""
    return {
        _question(sample): QuestionScore(sample.cluster, grades[sample.key])
        for sample in (record.sample for record in records)
        if sample.key in grades
    }


def answered_texts(records: Iterable[Record]) -> list[AnsweredText]:
    """Return answers as texts, for the text metrics and for a judge."""
    return [
        AnsweredText(
            _question(record.sample), record.sample.cluster, record.sample.truth, record.answer, record.sample.text
        )
        for record in records
    ]


def ranked_adapters(records: Iterable[Record]) -> list[RankedAdapters]:
    """Return the ranking that each sample retrieved.

    Leaves out samples without a retrieval result, and samples whose true adapter is unknown or hidden.
    """
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
    """Return the scores of one sample by metric; None: unscored.

    These are `step_scores` if the truth is in the action language, otherwise `text_scores`.
    """
    return step_scores(record, metrics) if expects_actions(record) else text_scores(record)


def text_scores(record: Record) -> dict[str, float] | None:
    """Return the scores of a whole answer by metric, each in [0, 1]; None: unscored."""
    if record.answer is None:
        return None
    return {name: score(record.sample.truth, record.answer) for name, score in TEXT_SCORES.items()}


def step_scores(record: Record, metrics: Sequence[Metric]) -> dict[str, list[bool]] | None:
    """Return by metric whether each true action of the sample was answered correctly; None: unscored."""
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


def _question(sample: Sample) -> Question:
    return Question(sample.dataset, sample.episode_id, sample.step, content_digest(sample.cluster, sample.truth))


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
