"""`loraretriever retrieval evaluate`: measures how well adapters are told apart, before any GPU time is spent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infra.contract.errors import InvalidArgumentError, UnavailableError, UnreachableError
from infra.contract.retrieval import RetrievalOptions, RetrievalStrategy, Weighting

if TYPE_CHECKING:
    from retrieval_service.clients import RetrievalClient
    from retrieval_service.commands.report import StrategyReport
    from retrieval_service.evaluation.labelled_prompts import LabelledPrompts
    from retrieval_service.evaluation.outcomes import Outcome
    from retrieval_service.strategies.examples import ExampleSet

_ALL = "all"
_RANKS = 64  # the service's default max_top_k: ranks beyond are not seen
_PROMPTS_PER_CALL = 16  # keeps a call with two images per prompt far below the size limit of a message
_DEFAULT_TARGET = "127.0.0.1:50051"


def evaluate(
    *,
    context: typer.Context,
    vectors: Annotated[
        Path | None,
        typer.Option(help="Vectors instead of the catalogue's: .npz, one array per adapter, named NAME or KIND/NAME."),
    ] = None,
    kinds: Annotated[
        Path | None, typer.Option(help='Kinds of the adapters in --vectors: JSON, {"adapter": "kind"}.')
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Prompts to send to the service instead: JSONL whose rows name their adapter, or ADAPTER=FILE."
        ),
    ] = None,
    strategy: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(RetrievalStrategy)}, or {_ALL}; may be repeated.")
    ] = None,
    weighting: Annotated[list[Weighting] | None, typer.Option(help="Weighting; may be repeated.")] = None,
    temperature: Annotated[float, typer.Option(min=1e-6, help="Temperature of softmax weights.")] = 0.05,
    top_k: Annotated[int, typer.Option(min=1, max=_RANKS, help="Adapters that share the weights.")] = 3,
    kind: Annotated[str, typer.Option("--kind", "--lora-type", help="Only adapters of this kind.")] = "",
    base_model: Annotated[str, typer.Option(help="Only adapters of this base model.")] = "",
    few: Annotated[
        int | None,
        typer.Option(help="Store only this many examples per adapter, in ten random draws, and query with the others."),
    ] = None,
    examples: Annotated[
        str,
        typer.Option(metavar="N,N,...", help="Measure also with so many examples per adapter, as --few does: a curve."),
    ] = "",
    open_set: Annotated[
        bool,
        typer.Option(
            "--open-set", help="Measure also how well requests of an adapter that is not registered are recognised."
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the draws of --few and --examples.")] = 0,
    max_images: Annotated[int, typer.Option(min=0, help="Images sent per row of --data.")] = 2,
    confusion: Annotated[
        Path | None, typer.Option(help="Draw the confusion matrix of the first strategy to this .svg or .png.")
    ] = None,
    retrieval_target: Annotated[
        str, typer.Option(help="host:port of the retrieval service, if it is needed.", show_default=False)
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Measure retrieval on examples whose adapter is known.

    By default, leave-one-out over the examples in the catalogue, or in a file of vectors: each example queries for its
    adapter, which is built from the others. A vector that two adapters share is left out of both. With --data, prompts
    of a labelled dataset are sent to the running service. Intervals are 95 %, clustered by adapter.
    """
    _check_options(vectors, data, kinds, base_model, few)
    counts = _counts(examples)
    if data and (counts or open_set):
        raise InvalidArgumentError("", "--examples and --open-set do not go with --data; omit them")
    from retrieval_service.commands.output import stderr_console
    from retrieval_service.commands.report import StrategyReport, print_reports

    plan = _Plan(_strategies(strategy or []), weighting or [Weighting.SOFTMAX], temperature, top_k)
    reports: list[StrategyReport]
    if data:
        from retrieval_service.evaluation.labelled_prompts import read_labelled_prompts

        prompts = read_labelled_prompts(data, max_images)
        for problem in prompts.problems:
            stderr_console().print(f"left out {problem}", soft_wrap=True)
        options = RetrievalOptions(top_k, base_model, kind, temperature=temperature)
        with _connected(context, retrieval_target) as service, stderr_console().status("asking the service"):
            outcomes = _query_service(service, prompts, plan, options)
        reports = [StrategyReport.of(name, by_weighting, temperature) for name, by_weighting in outcomes.items()]
    else:
        stored = _examples(context, retrieval_target, vectors, kinds, base_model)
        if kind and kind not in stored.kinds:
            known = ", ".join(sorted(set(stored.kinds) - {""})) or "none"
            raise InvalidArgumentError("kind", f"no adapter has kind {kind!r}; kinds: {known}")
        reports = _evaluate_examples(stored, plan, kind, few, seed)
        reports = [_with_curve(report, stored, kind, counts, seed) for report in reports]
        if open_set:
            reports = [_with_open_set(report, stored, kind) for report in reports]
    if confusion is not None:
        from retrieval_service.evaluation.confusion_matrix import draw_confusion_matrix

        draw_confusion_matrix(reports[0].scores, confusion)
    print_reports(reports, as_json=as_json)


def _check_options(
    vectors: Path | None, data: list[str] | None, kinds: Path | None, base_model: str, few: int | None
) -> None:
    if vectors is not None and data:
        raise InvalidArgumentError("", "give --vectors or --data, not both")
    if vectors is None and kinds is not None:
        raise InvalidArgumentError("kinds", "goes with --vectors; the catalogue knows its adapters' kinds")
    if vectors is not None and base_model:
        raise InvalidArgumentError(
            "",
            "--base-model filters the catalogue's examples or --data; a file of --vectors does not contain it; omit it",
        )
    if data and few is not None:
        raise InvalidArgumentError(
            "", "--few goes with the catalogue's examples or --vectors; with --data the service decides; omit it"
        )


def _strategies(names: list[str]) -> list[RetrievalStrategy]:
    if _ALL in names:
        return list(RetrievalStrategy)
    try:
        return list(dict.fromkeys(RetrievalStrategy(name.replace("-", "_")) for name in names or ["centroid"]))
    except ValueError as error:
        raise InvalidArgumentError("strategy", f"{error}; choose from {', '.join(RetrievalStrategy)}, {_ALL}") from None


def _counts(examples: str) -> list[int]:
    try:
        counts = [int(word) for word in examples.split(",") if word.strip()]
    except ValueError:
        raise InvalidArgumentError("examples", f"{examples!r} is not a list of numbers, such as 3,5,10") from None
    if any(count < 1 for count in counts):
        raise InvalidArgumentError("examples", f"must be 1 or more each, got {examples}")
    return counts


def _examples(
    context: typer.Context, target: str, vectors: Path | None, kinds: Path | None, base_model: str
) -> ExampleSet:
    from retrieval_service.evaluation.vector_files import read_kinds, read_npz
    from retrieval_service.strategies.examples import ExampleSet

    if vectors is not None:
        return read_npz(vectors, read_kinds(kinds) if kinds is not None else None)
    with _connected(context, target) as service:
        stored = list(service.stored(base_model, ""))
    base_models = sorted({entry.adapter.base_model for entry in stored})
    if len(base_models) > 1:
        raise InvalidArgumentError("base_model", f"choose one with --base-model: {', '.join(base_models)}")
    if not stored:
        raise InvalidArgumentError("", "no matching adapter in the catalogue; see 'loraretriever adapters list'")
    return ExampleSet.of(
        {entry.adapter.adapter_id: entry.vectors for entry in stored},
        {entry.adapter.adapter_id: entry.adapter.kind for entry in stored},
    )


@dataclass(frozen=True)
class _Plan:
    """The strategies to compare, and how their weights are computed."""

    strategies: list[RetrievalStrategy]
    weightings: list[Weighting]
    temperature: float
    top_k: int


def _evaluate_examples(
    examples: ExampleSet, plan: _Plan, kind: str, few: int | None, seed: int
) -> list[StrategyReport]:
    from retrieval_service.commands.report import StrategyReport
    from retrieval_service.evaluation.leave_one_out import few_examples, leave_one_out
    from retrieval_service.evaluation.outcomes import compute_scores

    if few is None:
        trials = {strategy: leave_one_out(strategy, examples, kind) for strategy in plan.strategies}
    else:
        trials = few_examples(plan.strategies, examples, few, seed, kind)
    single = tuple(name for name, count in zip(examples.ids, examples.counts, strict=True) if count < 2)
    reports: list[StrategyReport] = []
    first = trials[plan.strategies[0]]
    for strategy, trial in trials.items():
        outcomes = {weighting: trial.outcomes(plan.top_k, weighting, plan.temperature) for weighting in plan.weightings}
        best = trial.best_temperature()
        best_ece = compute_scores(trial.outcomes(plan.top_k, Weighting.SOFTMAX, best)).ece
        reports.append(
            StrategyReport.of(
                strategy,
                outcomes,
                plan.temperature,
                best_temperature=best,
                best_ece=best_ece,
                single=single,
                probability=compute_scores(trial.outcomes(len(trial.ids), Weighting.PROBABILITY, 1.0)),
                twins=trial.twins,
            )
        )
        if trial is not first:
            reports[-1] = replace(reports[-1], difference=trial.compared_with(first))
    return reports


def _with_curve(
    report: StrategyReport, examples: ExampleSet, kind: str, counts: list[int], seed: int
) -> StrategyReport:
    """Return the report with the scores at each number of examples per adapter."""
    from retrieval_service.evaluation.leave_one_out import few_examples
    from retrieval_service.evaluation.outcomes import compute_scores

    curve = {}
    for count in counts:
        trial = few_examples([report.strategy], examples, count, seed, kind)[report.strategy]
        curve[count] = compute_scores(trial.outcomes(len(trial.ids), Weighting.PROBABILITY, 1.0))
    return replace(report, curve=curve)


def _with_open_set(report: StrategyReport, examples: ExampleSet, kind: str) -> StrategyReport:
    """Return the report with how well unknown requests are recognised."""
    from retrieval_service.evaluation.open_set import open_set_auroc

    return replace(report, open_set_auroc=open_set_auroc(report.strategy, examples, kind))


def _query_service(
    service: RetrievalClient, prompts: LabelledPrompts, plan: _Plan, options: RetrievalOptions
) -> dict[RetrievalStrategy, dict[Weighting, list[Outcome]]]:
    """Send every prompt twice: once for the rank among as many adapters as allowed, once for the weights of `top_k`."""
    from retrieval_service.evaluation.labelled_prompts import outcome_of

    outcomes: dict[RetrievalStrategy, dict[Weighting, list[Outcome]]] = {name: {} for name in plan.strategies}
    for strategy, weighting in product(plan.strategies, plan.weightings):
        weighted = replace(options, strategy=strategy, weighting=weighting)
        collected = outcomes[strategy].setdefault(weighting, [])
        for start in range(0, len(prompts.rows), _PROMPTS_PER_CALL):
            rows = prompts.rows[start : start + _PROMPTS_PER_CALL]
            batch = [row.prompt for row in rows]
            ranked = service.retrieve(batch, replace(weighted, top_k=_RANKS))
            weighed = service.retrieve(batch, weighted)
            collected += [outcome_of(row.truth, *both) for row, *both in zip(rows, ranked, weighed, strict=True)]
    return outcomes


@contextmanager
def _connected(context: typer.Context, flag: str) -> Iterator[RetrievalClient]:
    """Yield a client of the service at `flag`, or at the address that the enclosing command line resolves.

    The command line stores a function `(tier, flag) -> Target` in the root context. If nothing listens at the target,
    the error says how to start the service.
    """
    from infra.runtime.channel import ChannelOptions
    from retrieval_service.clients import retrieval_client

    resolve = context.find_root().obj
    if resolve is None:
        with retrieval_client(ChannelOptions(flag or _DEFAULT_TARGET)) as service:
            yield service
        return
    target = resolve("retrieval", flag)
    try:
        with retrieval_client(target.channel) as service:
            yield service
    except UnreachableError as error:
        if error.target == target.address:
            raise UnavailableError(target.remedy) from error
        raise
