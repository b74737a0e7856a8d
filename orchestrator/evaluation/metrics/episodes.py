"""From answered episodes to a score: steps, whole episodes, and the floor under both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.evaluation.metrics.floor import Floor, Metric, floor_of
from orchestrator.evaluation.metrics.paired import Question, QuestionScore, content_digest
from orchestrator.evaluation.metrics.uncertainty import Estimate, clustered_mean


@dataclass(frozen=True)
class AnsweredEpisode:
    """The true actions of an episode and the answers, in order. An answer that is None is unscored.

    There may be fewer or more answers than truths: a truth without an answer is wrong, and so is an episode whose
    numbers do not agree. `dataset` says which episodes share a floor, `cluster` which depend on each other; `name` is
    what its file calls it (empty: as the cluster).
    """

    dataset: str
    cluster: str
    truths: tuple[str, ...]
    answers: tuple[str | None, ...]
    name: str = ""

    @property
    def complete(self) -> bool:
        """Whether every answer can be scored, so that the episode as a whole can."""
        return None not in self.answers

    def scored(self, step: int) -> bool:
        """Whether the answer to `step` can be scored (a missing one can: it is wrong)."""
        return step >= len(self.answers) or self.answers[step] is not None

    def question(self, step: int) -> Question:
        """What names the question of `step`."""
        content = content_digest(self.cluster, self.truths[step])
        return Question(self.dataset, self.name or self.cluster, step, content)


@dataclass(frozen=True)
class Score:
    """Shares of right steps and right episodes, in [0, 1], and what the best constant template reaches (see Floor)."""

    steps: Estimate
    episodes: Estimate
    step_floor: float | None
    episode_floor: float | None


def score_episodes(episodes: Sequence[AnsweredEpisode], metric: Metric) -> Score:
    """Score episodes. A step is right when the metric accepts the answer of the same position.

    An episode is right when all its steps are and there are as many answers as truths. Unscored steps (without an
    answer, or with a truth that the metric does not measure), and the episodes they are of, are left out of both
    shares. Standard errors are clustered by episode. The floor is found for each dataset apart, and then pooled: it may
    know which dataset it answers, and nothing else.
    """
    step_values: list[float] = []
    step_clusters: list[str] = []
    episode_values: list[float] = []
    episode_clusters: list[str] = []
    for episode in episodes:
        right = right_steps(episode, metric)
        step_values += map(float, right.values())
        step_clusters += [episode.cluster] * len(right)
        if episode.complete and len(right) == len(episode.truths):
            episode_values.append(float(all(right.values()) and len(episode.answers) == len(episode.truths)))
            episode_clusters.append(episode.cluster)
    floor = _pooled_floor(episodes, metric)
    return Score(
        clustered_mean(step_values, step_clusters),
        clustered_mean(episode_values, episode_clusters),
        floor.step_share,
        floor.episode_share,
    )


def right_steps(episode: AnsweredEpisode, metric: Metric) -> dict[int, bool]:
    """Return by position which of the steps that can be scored are right."""
    return {
        position: position < len(episode.answers) and _accepts(metric, truth, episode.answers[position])
        for position, truth in enumerate(episode.truths)
        if episode.scored(position) and metric.applies_to(truth)
    }


def answer_at(episode: AnsweredEpisode, position: int) -> str:
    """Return the answer to a step that can be scored; a missing one is empty."""
    return (episode.answers[position] or "") if position < len(episode.answers) else ""


def score_steps(episodes: Sequence[AnsweredEpisode], metric: Metric) -> dict[Question, QuestionScore]:
    """Return the scores of all steps that can be scored."""
    return {
        episode.question(position): QuestionScore(episode.cluster, float(right))
        for episode in episodes
        for position, right in right_steps(episode, metric).items()
    }


def _accepts(metric: Metric, truth: str, answer: str | None) -> bool:
    return answer is not None and metric.accepts(truth, answer)


def _pooled_floor(episodes: Sequence[AnsweredEpisode], metric: Metric) -> Floor:
    floor = Floor(0, 0, 0, 0)
    for dataset in dict.fromkeys(episode.dataset for episode in episodes):
        own = [episode for episode in episodes if episode.dataset == dataset]
        scored = tuple(
            tuple(
                truth if episode.scored(step) and metric.applies_to(truth) else None
                for step, truth in enumerate(episode.truths)
            )
            for episode in own
        )
        floor += floor_of(scored, metric)
    return floor
