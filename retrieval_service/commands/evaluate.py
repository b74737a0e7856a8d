"""`loraretriever retrieval evaluate`: which adapters are told apart, before any GPU is spent on answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infra.contract.errors import InvalidArgumentError
from infra.contract.retrieval import RetrievalOptions, RetrievalStrategy, Weighting

if TYPE_CHECKING:
    from retrieval_service.clients import Client
    from retrieval_service.commands.report import Measured
    from retrieval_service.evaluation.labelled_prompts import LabelledRows
    from retrieval_service.evaluation.outcomes import Outcome
    from retrieval_service.strategies.examples import ExampleSet

ALL = "all"
_RANKS = 64
_PROMPTS_A_CALL = 16


def evaluate(
    *,
    context: typer.Context,
    vectors: Annotated[
        Path | None, typer.Option(help="Vectors instead of the catalogue's: .npz, one array [n, dim] an adapter.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Prompts to ask the service instead: JSONL whose rows name their adapter, or ADAPTER=FILE."),
    ] = None,
    strategy: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(RetrievalStrategy)}, or {ALL}; may be repeated.")
    ] = None,
    weighting: Annotated[list[Weighting] | None, typer.Option(help="How to weigh; may be repeated.")] = None,
    temperature: Annotated[float, typer.Option(min=1e-6, help="Of softmax weights.")] = 0.05,
    top_k: Annotated[int, typer.Option(min=1, max=_RANKS, help="Adapters that share the weights.")] = 3,
    kind: Annotated[str, typer.Option("--kind", "--lora-type", help="Only adapters of this kind.")] = "",
    base_model: Annotated[str, typer.Option(help="Only adapters of this base model.")] = "",
    few: Annotated[
        int | None, typer.Option(help="Store only so many examples an adapter, ten random draws, and ask the others.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draws of --few.")] = 0,
    max_images: Annotated[int, typer.Option(min=0, help="Images of a row of --data that are sent.")] = 2,
    confusion: Annotated[
        Path | None, typer.Option(help="Draw the confusion matrix of the first strategy into this .svg or .png.")
    ] = None,
    retrieval_target: Annotated[
        str, typer.Option(help="host:port of the retrieval service, where it is needed.", show_default=False)
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Measure retrieval on examples whose adapter is known.

    Leave-one-out over the examples in the catalogue (the default) or in a file of vectors: each example is asked for
    its adapter, which is built from the others. Or prompts of a labelled dataset, asked of the running service.
    """
    _check_together(vectors, data, kind, base_model, few)
    from retrieval_service.commands.output import errors
    from retrieval_service.commands.report import Measured, show

    plan = _Plan(_strategies(strategy or []), weighting or [Weighting.SOFTMAX], temperature, top_k)
    measured: list[Measured]
    if data:
        from retrieval_service.commands.service import connected
        from retrieval_service.evaluation.labelled_prompts import read_labelled

        content = read_labelled(data, max_images)
        for problem in content.problems:
            errors().print(f"left out {problem}", soft_wrap=True)
        options = RetrievalOptions(top_k, base_model, kind, temperature=temperature)
        with connected(context, retrieval_target) as service, errors().status("asking the service"):
            asked = _ask(service, content, plan, options)
        measured = [Measured.of(name, outcomes, temperature) for name, outcomes in asked.items()]
    else:
        examples = _examples(context, retrieval_target, vectors, base_model, kind)
        measured = _tried(examples, plan, kind, few, seed)
    if confusion is not None:
        from retrieval_service.evaluation.confusion_matrix import draw

        draw(measured[0].figures, confusion)
    show(measured, as_json=as_json)


def _check_together(vectors: Path | None, data: list[str] | None, kind: str, base_model: str, few: int | None) -> None:
    if vectors is not None and data:
        raise InvalidArgumentError("", "give --vectors or --data, not both")
    for flag, value in (("--kind", kind), ("--base-model", base_model)):
        if vectors is not None and value:
            raise InvalidArgumentError(
                "",
                f"{flag} goes with the catalogue's examples or --data: a file of --vectors does not say it; leave it",
            )
    if data and few is not None:
        raise InvalidArgumentError(
            "", "--few goes with the catalogue's examples or --vectors: for --data the service decides; leave it"
        )


def _strategies(given: list[str]) -> list[RetrievalStrategy]:
    if ALL in given:
        return list(RetrievalStrategy)
    try:
        return list(dict.fromkeys(RetrievalStrategy(one.replace("-", "_")) for one in given or ["centroid"]))
    except ValueError as error:
        raise InvalidArgumentError("strategy", f"{error}; there are {', '.join(RetrievalStrategy)}, {ALL}") from None


def _examples(context: typer.Context, target: str, vectors: Path | None, base_model: str, kind: str) -> ExampleSet:
    from retrieval_service.evaluation.vector_files import read_npz
    from retrieval_service.strategies.examples import ExampleSet

    if vectors is not None:
        return read_npz(vectors)
    from retrieval_service.commands.service import connected

    with connected(context, target) as service:
        stored = list(service.stored(base_model, kind))
    base_models = sorted({one.adapter.base_model for one in stored})
    if len(base_models) > 1:
        raise InvalidArgumentError("base_model", f"choose one with --base-model: {', '.join(base_models)}")
    if not stored:
        raise InvalidArgumentError("", "no such adapter in the catalogue; see 'loraretriever adapters list'")
    return ExampleSet.of(
        {one.adapter.adapter_id: one.vectors for one in stored},
        {one.adapter.adapter_id: one.adapter.kind for one in stored},
    )


@dataclass(frozen=True)
class _Plan:
    """What to compare, and how its weights are made."""

    strategies: list[RetrievalStrategy]
    weightings: list[Weighting]
    temperature: float
    top_k: int


def _tried(examples: ExampleSet, plan: _Plan, kind: str, few: int | None, seed: int) -> list[Measured]:
    from retrieval_service.commands.report import Measured
    from retrieval_service.evaluation.leave_one_out import few_examples, leave_one_out
    from retrieval_service.evaluation.outcomes import figures

    if few is None:
        trials = {one: leave_one_out(one, examples, kind) for one in plan.strategies}
    else:
        trials = few_examples(plan.strategies, examples, few, seed)
    single = tuple(one for one, count in zip(examples.ids, examples.counts, strict=True) if count < 2)
    measured = []
    for name, trial in trials.items():
        outcomes = {each: trial.outcomes(plan.top_k, each, plan.temperature) for each in plan.weightings}
        best = trial.best_temperature()
        best_ece = figures(trial.outcomes(plan.top_k, Weighting.SOFTMAX, best)).ece
        measured.append(
            Measured.of(name, outcomes, plan.temperature, best_temperature=best, best_ece=best_ece, single=single)
        )
    return measured


def _ask(
    service: Client, content: LabelledRows, plan: _Plan, options: RetrievalOptions
) -> dict[RetrievalStrategy, dict[Weighting, list[Outcome]]]:
    """Ask twice: for a rank among as many adapters as may be asked for, and for the weights of `top_k`."""
    from retrieval_service.evaluation.labelled_prompts import outcome

    found: dict[RetrievalStrategy, dict[Weighting, list[Outcome]]] = {one: {} for one in plan.strategies}
    for name, each in product(plan.strategies, plan.weightings):
        wanted = replace(options, strategy=name, weighting=each)
        outcomes = found[name].setdefault(each, [])
        for start in range(0, len(content.rows), _PROMPTS_A_CALL):
            rows = content.rows[start : start + _PROMPTS_A_CALL]
            prompts = [one.prompt for one in rows]
            ranked = service.retrieve(prompts, replace(wanted, top_k=_RANKS))
            weighed = service.retrieve(prompts, wanted)
            outcomes += [outcome(row.truth, *both) for row, *both in zip(rows, ranked, weighed, strict=True)]
    return found
