"""Exit codes for continuous integration: a score that is too low, or of too few samples, fails the command."""

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

MAX_FAILED = 0.5


class JobMetric(StrEnum):
    """The metrics that a job's summary holds."""

    ACTION = "action"
    ACTION_TYPE = "action_type"
    LEGACY = "legacy"
    EXACT_MATCH = "exact_match"
    ROUGE_L = "rouge_l"
    BLEU = "bleu"


@dataclass(frozen=True)
class Measured:
    """A score in [0, 1], None where there is none, and how many of the `samples` it is of have none."""

    share: float | None
    unscored: int
    samples: int


@dataclass(frozen=True)
class Gate:
    """What scores have to reach: of all strategies, or of those labelled `only`, at least `fail_under`.

    No more than the share `max_failed` of the samples may be unscored: a score of the few that are left says nothing.
    Both are in [0, 1]; None: not asked for, but that `fail_under` brings a `max_failed` of MAX_FAILED. `metric` None:
    that of the headline.
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
        """Whether anything is asked for."""
        return self.fail_under is not None or self.max_failed is not None

    def check_labels(self, labels: Sequence[str]) -> None:
        """Raise InvalidArgumentError for a strategy that is none of the job's."""
        unknown = [label for label in self.only if label not in labels]
        if unknown and self.is_set:
            raise InvalidArgumentError(
                "fail_on", f"{', '.join(unknown)} is none of the job's strategies: {', '.join(labels)}"
            )

    def check(self, summary: Summary) -> None:
        """Exit with status 1, naming what is too low, when the job does not pass. Raises InvalidArgumentError."""
        self.check_labels(summary.strategies)
        headline = JobMetric.EXACT_MATCH if summary.only_texts else JobMetric.ACTION
        metric = self.metric or headline
        self.check_scores(measured(summary, lambda cell: _score(cell, metric), self.only, _covered_by(metric)))

    def check_scores(self, found: Mapping[str, Measured]) -> None:
        """Exit with status 1, naming what is too low, when scores do not pass."""
        if not self.is_set:
            return
        said = [*self._too_low(found), *self._too_few(found)] if found else ["nothing was scored"]
        for problem in said:
            console.note(problem)
        if said:
            raise typer.Exit(console.FAILED)

    def _too_low(self, found: Mapping[str, Measured]) -> Iterator[str]:
        if self.fail_under is not None:
            low = [
                f"{name} {'unscored' if each.share is None else f'{each.share:.4f}'}"
                for name, each in found.items()
                if each.share is None or each.share < self.fail_under
            ]
            if low:
                yield f"below {self.fail_under:g}: {', '.join(low)}"

    def _too_few(self, found: Mapping[str, Measured]) -> Iterator[str]:
        most = MAX_FAILED if self.max_failed is None else self.max_failed
        for name, each in found.items():
            if each.samples and each.unscored / each.samples > most:
                yield (
                    f"{name}: {each.unscored} of {each.samples} samples are unscored; "
                    f"--max-failed allows {100 * most:g} %"
                )


def gate_of(
    fail_under: float | None,
    max_failed: float | None,
    fail_on: Sequence[str] | None = None,
    *,
    metric: JobMetric | None = None,
    default: Sequence[str] = (),
    watch: bool = True,
) -> Gate:
    """Return the gate that options ask for; `default` are the labels it looks at where none is said.

    Raises InvalidArgumentError for shares outside 0..1, for labels where nothing is to be reached, and for a gate where
    nobody waits for the scores (`watch`).
    """
    made = Gate(metric, fail_under, max_failed, fail_on or default)
    if fail_on and not made.is_set:
        raise InvalidArgumentError("fail_on", "says what --fail-under looks at; give --fail-under too")
    if made.is_set and not watch:
        raise InvalidArgumentError("fail_under", "looks at a job that has ended; leave --no-watch out")
    return made


@dataclass(frozen=True)
class Covered:
    """The samples that a score is of, and how many of them it has no value for."""

    samples: int
    unscored: int


def measured(
    summary: Summary, score: Callable[[Cell], Estimate], only: Sequence[str], covered: Callable[[Cell], Covered]
) -> dict[str, Measured]:
    """Return the score of each strategy over all datasets, or of those labelled `only`.

    Samples that were planned and have no record are unscored, whatever they are of.
    """
    planned = (summary.facts.planned_samples or 0) // max(1, len(summary.strategies))
    found = {}
    for strategy in only or summary.strategies:
        cell = summary.group(strategy, ALL)
        of, missing = (Covered(0, 0), planned) if cell is None else (covered(cell), max(0, planned - cell.samples))
        estimate = UNSCORED if cell is None else score(cell)
        found[strategy] = Measured(estimate.value, of.unscored + missing, of.samples + missing)
    return found


def _covered_by(metric: JobMetric) -> Callable[[Cell], Covered]:
    if metric in (JobMetric.EXACT_MATCH, JobMetric.ROUGE_L, JobMetric.BLEU):
        return lambda cell: Covered(cell.text_samples, cell.text_failed)
    return lambda cell: Covered(cell.samples - cell.text_samples, cell.failed - cell.text_failed)


def _check_share(option: str, share: float | None) -> None:
    if share is not None and not 0 <= share <= 1:
        raise InvalidArgumentError(option, f"a share in 0..1, got {share:g}; 80 % is 0.8")


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
