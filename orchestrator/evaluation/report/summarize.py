"""Records to the summary of a job."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from operator import attrgetter

from orchestrator.evaluation.actions import is_actions
from orchestrator.evaluation.data.datasets import DatasetContent
from orchestrator.evaluation.judge.verdicts import JobGrades
from orchestrator.evaluation.metrics.action import ActionMetric, score_action_parts
from orchestrator.evaluation.metrics.episodes import score_episodes
from orchestrator.evaluation.metrics.legacy import LegacyMetric
from orchestrator.evaluation.metrics.retrieval import confusion, score_retrieval
from orchestrator.evaluation.metrics.text import mean_score, score_texts
from orchestrator.evaluation.metrics.uncertainty import UNSCORED
from orchestrator.evaluation.records import Record
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
from orchestrator.evaluation.scoring import answered_episodes, judge_scores, ranked_adapters, whole_answers
from orchestrator.evaluation.spec import EvaluationSpec

MAX_BAD_ROWS = 200
MAX_FAILURES_OF_A_REASON = 5


def dataset_files(contents: Iterable[DatasetContent]) -> tuple[DatasetFile, ...]:
    """Return how each dataset was read, without its episodes."""
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
    """Return the numbers of a job.

    The order of strategies and datasets is that of the job's spec. `bad_row_count` is given where `facts.bad_rows` are
    but the first of them, `judged` where a judge has graded the answers.
    """
    options = options or ScoringOptions()
    grades = judged.grades if judged is not None else None
    kept, repeated = drop_repeated(records)
    strategies = tuple(strategy.label for strategy in facts.spec.strategies)
    datasets = tuple(dataset.name for dataset in facts.spec.datasets)
    groups = _groups(facts.spec)
    by_cell: defaultdict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in kept:
        by_cell[record.sample.strategy.label, record.sample.dataset].append(record)

    def cells(members_of: dict[str, tuple[str, ...]]) -> tuple[Cell, ...]:
        pooled = (
            (strategy, name, [record for member in members for record in by_cell[strategy, member]])
            for strategy in strategies
            for name, members in members_of.items()
        )
        return tuple(
            _cell(strategy, name, found, facts, options=options, grades=grades)
            for strategy, name, found in pooled
            if found
        )

    def difference(strategy: str, reference: str, group: str) -> Difference:
        first, second = (
            [record for name in groups[group] for record in by_cell[label, name]] for label in (strategy, reference)
        )
        return strategy_difference(
            strategy,
            reference,
            group,
            first,
            second,
            point_tolerance_px=options.point_tolerance_px,
            grades=grades or {},
        )

    failures = [_failure(record) for record in kept if record.error is not None]
    return Summary(
        facts=_bounded(facts),
        scoring=options,
        strategies=strategies,
        group_names=tuple(groups),
        dataset_names=datasets,
        recorded_samples=len(kept),
        failed_samples=len(failures),
        repeated_records=repeated,
        bad_row_count=len(facts.bad_rows) if bad_row_count is None else bad_row_count,
        catalogue_revisions=tuple(sorted({record.catalogue_revision for record in kept if record.catalogue_revision})),
        groups=cells(groups),
        datasets=cells({name: (name,) for name in datasets}),
        failure_reasons=dict(Counter(failure.reason for failure in failures).most_common()),
        failures=_some_of_each_reason(failures),
        changed_datasets=tuple(sorted({record.sample.dataset for record in kept if record.dataset_changed})),
        stale_samples=sum(record.catalogue_stale for record in kept),
        judge=judged.facts if judged is not None else None,
        differences=tuple(
            difference(strategy, reference, group)
            for strategy, reference in reference_pairs(facts.spec.strategies)
            for group in groups
        ),
    )


def drop_repeated(records: Iterable[Record]) -> tuple[list[Record], int]:
    """Return the first record of each key, and how many others there were."""
    first_of: dict[str, Record] = {}
    repeated = 0
    for record in records:
        if record.sample.key in first_of:
            repeated += 1
        else:
            first_of[record.sample.key] = record
    return list(first_of.values()), repeated


def _groups(spec: EvaluationSpec) -> dict[str, tuple[str, ...]]:
    """Return the datasets of each kind, and all of them; kinds only where there is more than one."""
    everything = tuple(dataset.name for dataset in spec.datasets)
    of_kind: defaultdict[str, tuple[str, ...]] = defaultdict(tuple)
    for dataset in spec.datasets:
        of_kind[dataset.kind] += (dataset.name,)
    if len(of_kind) == 1:
        return {ALL: everything}
    return {**{kind: names for kind, names in of_kind.items() if kind}, ALL: everything}


def _cell(
    strategy: str,
    data: str,
    records: Sequence[Record],
    facts: JobFacts,
    *,
    options: ScoringOptions,
    grades: Mapping[str, float] | None,
) -> Cell:
    episodes = answered_episodes(records)
    texts = [record for record in records if not is_actions(record.sample.truth)]
    graded = judge_scores(records, grades or {})
    return Cell(
        strategy=strategy,
        data=data,
        samples=len(records),
        failed=sum(record.error is not None for record in records),
        action=score_episodes(episodes, ActionMetric(options.point_tolerance_px)),
        legacy=score_episodes(episodes, LegacyMetric(options.legacy_threshold)),
        retrieval=score_retrieval(ranked_adapters(records), facts.spec.retrieval.top_k),
        timings=_mean_timings(records),
        action_parts=score_action_parts(episodes, options.point_tolerance_px),
        confusion=confusion(ranked_adapters(records)),
        failure=_most_common_failure(records),
        texts=score_texts(whole_answers(records)),
        judge=mean_score(graded) if grades is not None else UNSCORED,
        judge_unscored=len(records) - len(graded) if grades is not None else 0,
        text_samples=len(texts),
        text_failed=sum(record.error is not None for record in texts),
    )


def _most_common_failure(records: Sequence[Record]) -> str:
    messages = Counter(record.error.message for record in records if record.error is not None)
    return messages.most_common(1)[0][0] if messages else ""


def _mean_timings(records: Sequence[Record]) -> MeanTimings:
    timings = [record.timings for record in records if record.timings is not None and record.error is None]

    def mean(phase: str) -> float | None:
        measured = [seconds for seconds in map(attrgetter(phase), timings) if seconds is not None]
        return sum(measured) / len(measured) if measured else None

    return MeanTimings(**{phase.name: mean(phase.name) for phase in fields(MeanTimings)})


def _failure(record: Record) -> Failure:
    assert record.error is not None
    sample = record.sample
    return Failure(sample.key, sample.strategy.label, sample.dataset, record.error.reason, record.error.message)


def _some_of_each_reason(failures: Iterable[Failure]) -> tuple[Failure, ...]:
    by_reason: defaultdict[str, list[Failure]] = defaultdict(list)
    for failure in failures:
        by_reason[failure.reason].append(failure)
    return tuple(failure for some in by_reason.values() for failure in some[:MAX_FAILURES_OF_A_REASON])


def _bounded(facts: JobFacts) -> JobFacts:
    return replace(facts, bad_rows=facts.bad_rows[:MAX_BAD_ROWS])
