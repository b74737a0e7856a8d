"""The methodology section of a report, for readers who do not know this project."""

from __future__ import annotations

from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.evaluation.report.summary import Summary
from orchestrator.evaluation.spec import EvaluatedStrategy, PromptProtocol

_STRATEGIES = {
    AnswerStrategy.BASE: "the base model alone",
    AnswerStrategy.SELECTION: "the most similar adapter alone",
    AnswerStrategy.MIXTURE: "the retrieved adapters, weighted at the output of every adapted layer",
    AnswerStrategy.FUSION: "the retrieved adapters, merged in their parameters before decoding",
    AnswerStrategy.ORACLE: "the adapter trained for the dataset, known in advance",
    AnswerStrategy.UNIFORM_ALL: "every adapter of the catalogue with equal weight, regardless of the question",
    AnswerStrategy.RANDOM_K: "top_k adapters drawn at random for each sample, with equal weight",
}
_PROTOCOLS = {
    PromptProtocol.STEP: "Each step is one sample: the instruction, the true actions so far, and the current screen.",
    PromptProtocol.SEQUENCE: (
        "Each episode is one sample: the instruction and all screens; a single answer holds all actions."
    ),
    PromptProtocol.EPISODE: (
        "Each step is one sample: the instruction, the model's own earlier answers, and the current screen."
    ),
}
_UNCERTAINTY = """- **Intervals** are 95 % intervals by Student's t, with one degree of freedom fewer than episodes.
  Where there is no room for an interval, **±** is one standard error. Both are clustered by episode, since the steps of
  an episode depend on each other; an episode in two datasets counts as one. With S_g the sum of the n_g scores of
  episode g, N scores and G episodes, the standard error is sqrt(G/(G-1) · Σ (S_g − mean · n_g)²) / N. If all episodes
  score alike, no spread was observed and there is no ±; the interval is then Wilson's, with one trial per episode."""


def methodology_section(summary: Summary) -> str:
    """Return the section that explains what was compared and how it was scored."""
    strategies = "\n".join(f"- {strategy.label}: {_describe(strategy)}." for strategy in summary.facts.spec.strategies)
    return f"""## How it was measured

Strategies:

{strategies}

{_PROTOCOLS[summary.facts.spec.protocol]}

{_of_actions(summary)}{_of_texts(summary)}{_UNCERTAINTY}
- If more than half of the samples of a strategy failed, reports show their number in place of its scores: a score of
  the remaining samples would be biased.
- **—** means unscored: not measured, or no answer. It never counts as zero."""


def _of_actions(summary: Summary) -> str:
    if summary.only_texts:
        return ""
    options = summary.scoring
    return f"""- **Correct step** (`action`): the answer is exactly the true action, with type and argument correct.
  Text is compared without regard to letter case and runs of spaces; points may differ by
  {options.point_tolerance_px:g} pixels.
- **Correct episode**: all its steps are correct, and it has as many answers as true actions.
- **`legacy`**: a step is correct if the TF-IDF cosine similarity of answer and truth, fitted on the two alone, is above
  {options.legacy_threshold:g}. It is kept for comparison with published numbers and accepts many wrong answers, as its
  floor shows.
- **Floor**: the score of the best fixed list of actions on the same samples, one list per dataset, chosen with
  knowledge of the truth. It depends on dataset and step number, but on neither query nor screen, and is an upper bound
  of what can be reached without looking. It overfits small data (the floor of a dataset with one episode is 100 %), so
  read it together with the number of episodes. Several strategies share the floor of the one with the most scored
  steps.
"""


def _of_texts(summary: Summary) -> str:
    if not summary.has_texts:
        return ""
    return """- **Whole answers**: answers whose truth is not in the action language; no score of steps includes
  them. Exact match ignores letter case and runs of spaces; ROUGE-L is the F-measure of the longest common subsequence
  of words, where each Chinese or Japanese character is a word; BLEU is computed for each answer.
"""


def _describe(strategy: EvaluatedStrategy) -> str:
    method = f" ({strategy.fusion_method.value})" if strategy.strategy is AnswerStrategy.FUSION else ""
    domain = "; the dataset's own adapter is hidden (out of domain)" if strategy.exclude_own_adapter else ""
    return f"{_STRATEGIES[strategy.strategy]}{method}{domain}"
