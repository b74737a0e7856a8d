"""Summarize the records of a job: scores, differences and failures."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from operator import attrgetter

from orchestrator.evaluation.data.datasets import DatasetContent
from orchestrator.evaluation.judge.verdicts import JobGrades
from orchestrator.evaluation.metrics.action import ActionMetric, score_action_parts
from orchestrator.evaluation.metrics.episodes import score_episodes
from orchestrator.evaluation.metrics.legacy import LegacyMetric
from orchestrator.evaluation.metrics.retrieval import confusion, score_retrieval
from orchestrator.evaluation.metrics.text import mean_score, score_texts
from orchestrator.evaluation.metrics.uncertainty import UNSCORED
from orchestrator.evaluation.records import Record, SampleError
from orchestrator.evaluation.report.strategy_differences import reference_pairs, strategy_difference
from orchestrator.evaluation.report.summary import (
    ALL,
    Cell,
    DatasetFile,
    Difference,
    Failure,
    JobFacts,
    MeanTimings,
    ScoringOptions,
    Summary,
)
from orchestrator.evaluation.scoring import (
    answered_episodes,
    expects_actions,
    judge_scores,
    ranked_adapters,
    whole_answers,
)
from orchestrator.evaluation.spec import EvaluationSpec

MAX_BAD_ROWS = 200
"""Bad rows listed in summary.json; a file that is not a dataset has very many."""

_MAX_FAILURES_PER_REASON = 5


def dataset_files(contents: Iterable[DatasetContent]) -> tuple[DatasetFile, ...]:
    """Return the file, hash and row counts of each dataset."""
    return tuple(
        DatasetFile(
            content.dataset.name,
            content.dataset.kind,
            str(content.file),
            content.sha256,
            len(content.episodes),
            len(content.bad_rows),
        )
        for content in contents
    )


def summarize(
    records: Iterable[Record],
    facts: JobFacts,
    options: ScoringOptions | None = None,
    *,
    bad_row_count: int | None = None,
    judged: JobGrades | None = None,
) -> Summary:
    """Return the summary of a job, with strategies and datasets in the order of its spec.

    `bad_row_count` is given if `facts.bad_rows` is truncated, `judged` if a judge has graded the answers.
    """
    options = options or ScoringOptions()
    unique, repeated = drop_repeated(records)
    scorer = _Scorer(unique, facts.spec, options, judged.grades if judged is not None else None)
    groups = _groups(facts.spec)
    datasets = tuple(dataset.name for dataset in facts.spec.datasets)
    failures = [_failure(record, record.error) for record in unique if record.error is not None]
    return Summary(
        facts=replace(facts, bad_rows=facts.bad_rows[:MAX_BAD_ROWS]),
        scoring=options,
        strategies=tuple(strategy.label for strategy in facts.spec.strategies),
        group_names=tuple(groups),
        dataset_names=datasets,
        recorded_samples=len(unique),
        failed_samples=len(failures),
        repeated_records=repeated,
        bad_row_count=len(facts.bad_rows) if bad_row_count is None else bad_row_count,
        catalogue_revisions=tuple(
            sorted({record.catalogue_revision for record in unique if record.catalogue_revision})
        ),
        groups=scorer.cells(groups),
        datasets=scorer.cells({name: (name,) for name in datasets}),
        failure_reasons=dict(Counter(failure.reason for failure in failures).most_common()),
        failures=_some_of_each_reason(failures),
        changed_datasets=tuple(sorted({record.sample.dataset for record in unique if record.dataset_changed})),
        stale_samples=sum(record.catalogue_stale for record in unique),
        judge=judged.facts if judged is not None else None,
        differences=scorer.differences(groups),
    )


def drop_repeated(records: Iterable[Record]) -> tuple[list[Record], int]:
    """Return the first record of each key, and the number of repeated records that were dropped."""
    first_of: dict[str, Record] = {}
    repeated = 0
    for record in records:
        if record.sample.key in first_of:
            repeated += 1
        else:
            first_of[record.sample.key] = record
    return list(first_of.values()), repeated


class _Scorer:
    """Scores the records of a job by strategy and dataset. `grades` of a judge are by sample key; None: not judged."""

    def __init__(
        self,
        records: Iterable[Record],
        spec: EvaluationSpec,
        options: ScoringOptions,
        grades: Mapping[str, float] | None,
    ) -> None:
        self._spec = spec
        self._options = options
        self._grades = grades
        self._records: defaultdict[tuple[str, str], list[Record]] = defaultdict(list)
        for record in records:
            self._records[record.sample.strategy.label, record.sample.dataset].append(record)

    def cells(self, groups: Mapping[str, tuple[str, ...]]) -> tuple[Cell, ...]:
        """Return a cell for each strategy and group of datasets that has records."""
        return tuple(
            self._cell(strategy.label, name, records)
            for strategy in self._spec.strategies
            for name, datasets in groups.items()
            if (records := self._pooled(strategy.label, datasets))
        )

    def differences(self, groups: Mapping[str, tuple[str, ...]]) -> tuple[Difference, ...]:
        """Return the paired difference of each strategy to its reference, for each group of datasets."""
        return tuple(
            strategy_difference(
                strategy,
                reference,
                name,
                self._pooled(strategy, datasets),
                self._pooled(reference, datasets),
                point_tolerance_px=self._options.point_tolerance_px,
                grades=self._grades or {},
            )
            for strategy, reference in reference_pairs(self._spec.strategies)
            for name, datasets in groups.items()
        )

    def _pooled(self, strategy: str, datasets: Iterable[str]) -> list[Record]:
        return [record for dataset in datasets for record in self._records[strategy, dataset]]

    def _cell(self, strategy: str, data: str, records: Sequence[Record]) -> Cell:
        options = self._options
        episodes = answered_episodes(records)
        ranked = ranked_adapters(records)
        texts = [record for record in records if not expects_actions(record)]
        grades = judge_scores(records, self._grades or {})
        is_judged = self._grades is not None
        return Cell(
            strategy=strategy,
            data=data,
            samples=len(records),
            failed=sum(record.error is not None for record in records),
            action=score_episodes(episodes, ActionMetric(options.point_tolerance_px)),
            legacy=score_episodes(episodes, LegacyMetric(options.legacy_threshold)),
            retrieval=score_retrieval(ranked, self._spec.retrieval.top_k),
            timings=_mean_timings(records),
            action_parts=score_action_parts(episodes, options.point_tolerance_px),
            confusion=confusion(ranked),
            failure=_most_common_failure(records),
            texts=score_texts(whole_answers(records)),
            judge=mean_score(grades) if is_judged else UNSCORED,
            judge_unscored=len(records) - len(grades) if is_judged else 0,
            text_samples=len(texts),
            text_failed=sum(record.error is not None for record in texts),
        )


def _groups(spec: EvaluationSpec) -> dict[str, tuple[str, ...]]:
    """Return the datasets of each kind, and all datasets as ALL; a single kind has no group of its own."""
    everything = tuple(dataset.name for dataset in spec.datasets)
    of_kind: defaultdict[str, tuple[str, ...]] = defaultdict(tuple)
    for dataset in spec.datasets:
        of_kind[dataset.kind] += (dataset.name,)
    if len(of_kind) == 1:
        return {ALL: everything}
    return {**{kind: names for kind, names in of_kind.items() if kind}, ALL: everything}


def _most_common_failure(records: Sequence[Record]) -> str:
    messages = Counter(record.error.message for record in records if record.error is not None)
    return messages.most_common(1)[0][0] if messages else ""


def _mean_timings(records: Sequence[Record]) -> MeanTimings:
    timings = [record.timings for record in records if record.timings is not None and record.error is None]

    def mean(phase: str) -> float | None:
        measured = [seconds for seconds in map(attrgetter(phase), timings) if seconds is not None]
        return sum(measured) / len(measured) if measured else None

    return MeanTimings(**{phase.name: mean(phase.name) for phase in fields(MeanTimings)})


def _failure(record: Record, error: SampleError) -> Failure:
    sample = record.sample
    return Failure(sample.key, sample.strategy.label, sample.dataset, error.reason, error.message)


def _some_of_each_reason(failures: Iterable[Failure]) -> tuple[Failure, ...]:
    by_reason: defaultdict[str, list[Failure]] = defaultdict(list)
    for failure in failures:
        by_reason[failure.reason].append(failure)
    return tuple(failure for alike in by_reason.values() for failure in alike[:_MAX_FAILURES_PER_REASON])
