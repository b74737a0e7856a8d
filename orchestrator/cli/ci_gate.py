"""Exit statuses for continuous integration: low scores, or scores of too few samples, fail the command."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

import typer

from infra.contract.errors import InvalidArgumentError
from orchestrator.cli import output as console
from orchestrator.evaluation.metrics.uncertainty import UNSCORED, Estimate
from orchestrator.evaluation.report.summary import ALL, Cell, Summary

#: Largest share of unscored samples that --fail-under accepts: a score of less than half the samples means little.
DEFAULT_MAX_FAILED = 0.5


class JobMetric(StrEnum):
    """The metrics that a job's summary holds."""

    ACTION = "action"
    ACTION_TYPE = "action_type"
    LEGACY = "legacy"
    EXACT_MATCH = "exact_match"
    ROUGE_L = "rouge_l"
    BLEU = "bleu"


@dataclass(frozen=True)
class GatedScore:
    """A score in [0, 1], None where there is none, and how many of its samples are unscored."""

    value: float | None
    unscored: int
    samples: int


@dataclass(frozen=True)
class Gate:
    """What scores must reach: at least `fail_under`, in all strategies or those labelled `only`.

    At most the share `max_failed` of the samples may be unscored. Both are in [0, 1]; None: no requirement, except that
    `fail_under` implies DEFAULT_MAX_FAILED. `metric` None: the headline's.
    """

    metric: JobMetric | None = None
    fail_under: float | None = None
    max_failed: float | None = None
    only: Sequence[str] = ()

    def __post_init__(self) -> None:
        _check_share("fail_under", self.fail_under)
        _check_share("max_failed", self.max_failed)

    @property
    def is_set(self) -> bool:
        """Whether there is a requirement."""
        return self.fail_under is not None or self.max_failed is not None

    def check_labels(self, labels: Sequence[str]) -> None:
        """Raise InvalidArgumentError for a strategy that the job does not have."""
        unknown = [label for label in self.only if label not in labels]
        if unknown and self.is_set:
            raise InvalidArgumentError(
                "fail_on", f"{', '.join(unknown)} is none of the job's strategies: {', '.join(labels)}"
            )

    def check(self, summary: Summary) -> None:
        """Exit with status 1, naming what failed, unless the job passes. Raises InvalidArgumentError."""
        self.check_labels(summary.strategies)
        headline = JobMetric.EXACT_MATCH if summary.only_texts else JobMetric.ACTION
        metric = self.metric or headline
        self.check_scores(gated_scores(summary, lambda cell: _score(cell, metric), self.only, _coverage(metric)))

    def check_scores(self, scores: Mapping[str, GatedScore]) -> None:
        """Exit with status 1, naming what failed, unless the scores pass."""
        if not self.is_set:
            return
        failures = [*self._low_scores(scores), *self._low_coverage(scores)] if scores else ["nothing was scored"]
        for failure in failures:
            console.note(failure)
        if failures:
            raise typer.Exit(console.FAILED)

    def _low_scores(self, scores: Mapping[str, GatedScore]) -> Iterator[str]:
        if self.fail_under is not None:
            low = [
                f"{name} {'unscored' if score.value is None else f'{score.value:.4f}'}"
                for name, score in scores.items()
                if score.value is None or score.value < self.fail_under
            ]
            if low:
                yield f"below {self.fail_under:g}: {', '.join(low)}"

    def _low_coverage(self, scores: Mapping[str, GatedScore]) -> Iterator[str]:
        limit = DEFAULT_MAX_FAILED if self.max_failed is None else self.max_failed
        for name, score in scores.items():
            if score.samples and score.unscored / score.samples > limit:
                yield (
                    f"{name}: {score.unscored} of {score.samples} samples are unscored; "
                    f"--max-failed allows {100 * limit:g} %"
                )


@dataclass(frozen=True)
class Coverage:
    """The samples that a score is of, and how many of them are unscored."""

    samples: int
    unscored: int


def gated_scores(
    summary: Summary, score: Callable[[Cell], Estimate], only: Sequence[str], coverage: Callable[[Cell], Coverage]
) -> dict[str, GatedScore]:
    """Return the score of each strategy over all datasets, or of those labelled `only`.

    Planned samples without a record count as unscored.
    """
    planned = (summary.facts.planned_samples or 0) // max(1, len(summary.strategies))
    scores = {}
    for strategy in only or summary.strategies:
        cell = summary.group(strategy, ALL)
        covered, missing = (
            (Coverage(0, 0), planned) if cell is None else (coverage(cell), max(0, planned - cell.samples))
        )
        estimate = UNSCORED if cell is None else score(cell)
        scores[strategy] = GatedScore(estimate.value, covered.unscored + missing, covered.samples + missing)
    return scores


def _coverage(metric: JobMetric) -> Callable[[Cell], Coverage]:
    if metric in (JobMetric.EXACT_MATCH, JobMetric.ROUGE_L, JobMetric.BLEU):
        return lambda cell: Coverage(cell.text_samples, cell.text_failed)
    return lambda cell: Coverage(cell.samples - cell.text_samples, cell.failed - cell.text_failed)


def _check_share(option: str, share: float | None) -> None:
    if share is not None and not 0 <= share <= 1:
        raise InvalidArgumentError(option, f"must be a share in 0..1, got {share:g}; 80 % is 0.8")


def _score(cell: Cell, metric: JobMetric) -> Estimate:
    match metric:
        case JobMetric.ACTION:
            return cell.action.steps
        case JobMetric.ACTION_TYPE:
            return cell.action_parts.action_type if cell.action_parts is not None else UNSCORED
        case JobMetric.LEGACY:
            return cell.legacy.steps
        case JobMetric.EXACT_MATCH:
            return cell.texts.exact_match
        case JobMetric.ROUGE_L:
            return cell.texts.rouge_l
        case JobMetric.BLEU:
            return cell.texts.bleu
        case _:
            assert_never(metric)
