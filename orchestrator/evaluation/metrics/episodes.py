"""Score answered episodes: steps, whole episodes, and the floor of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.evaluation.metrics.floor import Floor, Metric, floor_of
from orchestrator.evaluation.metrics.paired import Question, QuestionScore, content_digest
from orchestrator.evaluation.metrics.uncertainty import Estimate, clustered_mean


@dataclass(frozen=True)
class AnsweredEpisode:
    """The true actions of an episode and the answers, in order.

    There may be fewer or more answers than truths. A truth without an answer is wrong, and so is an episode with
    another number of answers than truths.

    Attributes:
        dataset: episodes of one dataset share a floor.
        cluster: episodes of one cluster are not independent.
        truths: the true actions.
        answers: the answers; None: unscored.
        name: the episode's name in its file; empty: the cluster's.
    """

    dataset: str
    cluster: str
    truths: tuple[str, ...]
    answers: tuple[str | None, ...]
    name: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether every answer can be scored, and therefore the episode as a whole."""
        return None not in self.answers

    def is_scored(self, step: int) -> bool:
        """Whether the answer to `step` can be scored. A missing answer can: it is wrong."""
        return step >= len(self.answers) or self.answers[step] is not None

    def question(self, step: int) -> Question:
        """Return the identity of the question at `step`."""
        content = content_digest(self.cluster, self.truths[step])
        return Question(self.dataset, self.name or self.cluster, step, content)


@dataclass(frozen=True)
class Score:
    """Shares of correct steps and episodes in [0, 1], and the same shares of the best constant template (see Floor)."""

    steps: Estimate
    episodes: Estimate
    step_floor: float | None
    episode_floor: float | None


def score_episodes(episodes: Sequence[AnsweredEpisode], metric: Metric) -> Score:
    """Score episodes. A step is correct if the metric accepts the answer at its position.

    An episode is correct if all its steps are and it has as many answers as truths. Unscored steps (without an answer,
    or with a truth that the metric does not apply to) are left out of both shares, together with their episodes.
    Standard errors are clustered by episode. The floor is computed per dataset and then pooled: a constant template
    may depend on the dataset and on nothing else.
    """
    step_values: list[float] = []
    step_clusters: list[str] = []
    episode_values: list[float] = []
    episode_clusters: list[str] = []
    for episode in episodes:
        correct = correct_steps(episode, metric)
        step_values += map(float, correct.values())
        step_clusters += [episode.cluster] * len(correct)
        if episode.is_complete and len(correct) == len(episode.truths):
            episode_values.append(float(all(correct.values()) and len(episode.answers) == len(episode.truths)))
            episode_clusters.append(episode.cluster)
    floor = _pooled_floor(episodes, metric)
    return Score(
        clustered_mean(step_values, step_clusters),
        clustered_mean(episode_values, episode_clusters),
        floor.step_share,
        floor.episode_share,
    )


def correct_steps(episode: AnsweredEpisode, metric: Metric) -> dict[int, bool]:
    """Return by position whether each scored step is correct."""
    return {
        position: position < len(episode.answers) and _accepts(metric, truth, episode.answers[position])
        for position, truth in enumerate(episode.truths)
        if episode.is_scored(position) and metric.applies_to(truth)
    }


def answer_at(episode: AnsweredEpisode, position: int) -> str:
    """Return the answer to a scored step; a missing answer is empty."""
    return (episode.answers[position] or "") if position < len(episode.answers) else ""


def score_steps(episodes: Sequence[AnsweredEpisode], metric: Metric) -> dict[Question, QuestionScore]:
    """Return the score of every scored step."""
    return {
        episode.question(position): QuestionScore(episode.cluster, float(correct))
        for episode in episodes
        for position, correct in correct_steps(episode, metric).items()
    }


def _accepts(metric: Metric, truth: str, answer: str | None) -> bool:
    return answer is not None and metric.accepts(truth, answer)


def _pooled_floor(episodes: Sequence[AnsweredEpisode], metric: Metric) -> Floor:
    floor = Floor(0, 0, 0, 0)
    for dataset in dict.fromkeys(episode.dataset for episode in episodes):
        members = [episode for episode in episodes if episode.dataset == dataset]
        scored = tuple(
            tuple(
                truth if episode.is_scored(step) and metric.applies_to(truth) else None
                for step, truth in enumerate(episode.truths)
            )
            for episode in members
        )
        floor += floor_of(scored, metric)
    return floor
