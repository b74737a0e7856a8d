"""What the numbers of a report mean, in sentences for a reader who knows nothing of this project."""

from __future__ import annotations

from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.evaluation.report.summary import Summary
from orchestrator.evaluation.spec import EvaluatedStrategy, PromptProtocol

_STRATEGIES = {
    AnswerStrategy.BASE: "the base model alone",
    AnswerStrategy.SELECTION: "the most similar adapter alone",
    AnswerStrategy.MIXTURE: "the retrieved adapters, weighted at the output of every adapted layer",
    AnswerStrategy.FUSION: "the retrieved adapters, merged in their parameters before decoding",
    AnswerStrategy.ORACLE: "the adapter trained for the dataset, known beforehand",
    AnswerStrategy.UNIFORM_ALL: "every adapter of the catalogue with the same weight, whatever the question is",
    AnswerStrategy.RANDOM_K: "as many adapters as are retrieved elsewhere, drawn at random for each sample",
}
_PROTOCOLS = {
    PromptProtocol.STEP: "Each step is one sample: instruction, the true actions so far, the current screen.",
    PromptProtocol.SEQUENCE: "Each episode is one sample: all screens and the instruction; one answer holds all steps.",
    PromptProtocol.EPISODE: "Each step of an episode is asked with the model's own earlier actions.",
}
_UNCERTAINTY = """- **Intervals** are of 95 %, by Student's t with one degree of freedom fewer than there are episodes.
  Where there is no room for one, **±** is one standard error, clustered by episode: steps of an episode depend on each
  other, and an episode in two datasets counts as one. With S_g the sum of the n_g scores of episode g, N scores and G
  episodes, it is sqrt(G/(G-1) · Σ (S_g − mean · n_g)²) / N. Where all episodes score alike no spread was seen, and
  there is no ±; the interval is then Wilson's, with as many trials as episodes."""


def methodology_section(summary: Summary) -> str:
    """Return the section of the report that says what was compared, and how it was scored."""
    strategies = "\n".join(f"- {strategy.label}: {_describe(strategy)}." for strategy in summary.facts.spec.strategies)
    return f"""## How it was measured

Strategies:

{strategies}

{_PROTOCOLS[summary.facts.spec.protocol]}

{_of_actions(summary)}{_of_texts(summary)}{_UNCERTAINTY}
- Where more than half of the samples of a strategy failed, their number stands in place of its scores: what is left is
  a selection.
- **—** means unscored: not measured, or no answer. It is never counted as zero."""


def _of_actions(summary: Summary) -> str:
    if summary.only_texts:
        return ""
    options = summary.scoring
    return f"""- **Right step** (`action`): the answer is that one action, with type and argument both right. Texts are
  compared without regard to letter case and blanks, points may be {options.point_tolerance_px:g} pixels apart.
- **Right episode**: all its steps are right, and there are as many as there should be.
- **`legacy`**: a step is right when the TF-IDF cosine of answer and truth, fitted on the two alone,
  is above {options.legacy_threshold:g}. Kept for comparison with published numbers; it accepts much that is wrong, as
  its floor shows.
- **Floor**: what the best fixed list of actions would score on the same samples, one list a dataset, chosen with the
  truth in hand: it knows dataset and step number, but sees neither query nor screen. It is an upper bound of what can
  be reached without looking, and it fits small data too well (the floor of a dataset of one episode is 100 %): read it
  together with the number of episodes. Beside several strategies stands the floor of the one with most scored steps.
"""


def _of_texts(summary: Summary) -> str:
    if not summary.has_texts:
        return ""
    return """- **Whole answers**, where the truth is not in the action language, and in no score of steps: exact match
  (letter case and blanks aside); ROUGE-L, the F-measure of the longest common subsequence of words, Chinese and
  Japanese characters counted one by one; BLEU of each answer.
"""


def _describe(strategy: EvaluatedStrategy) -> str:
    method = f" ({strategy.fusion_method.value})" if strategy.strategy is AnswerStrategy.FUSION else ""
    domain = "; the dataset's own adapter is hidden (out of domain)" if strategy.exclude_own_adapter else ""
    return f"{_STRATEGIES[strategy.strategy]}{method}{domain}"
