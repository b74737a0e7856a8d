"""`loraretriever ask`: one question through the whole pipeline."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from infra.contract.composition import FusionMethod
from infra.contract.errors import InternalError
from infra.contract.generation import Decoding
from infra.contract.prompt import Prompt
from infra.contract.retrieval import RetrievalOptions, Selection, Weighting
from orchestrator.answering.question import Answer, Question
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.cli import output as console
from orchestrator.cli.connect import reach
from orchestrator.cli.targets import AsJson, OrchestratorTarget, target
from orchestrator.clients.answer import AnswerClient
from orchestrator.registration.training_examples import load_image

ALL_KINDS = "all"


class MergeMethod(StrEnum):
    """How retrieved adapters answer together."""

    MIXTURE = "mixture"
    FUSION = "fusion"
    SELECTION = "selection"
    BASE = "base"


TopK = Annotated[int | None, typer.Option("--top-k", help="Adapters to retrieve (default: the server's, 3).")]
LoraType = Annotated[str, typer.Option("--lora-type", "--kind", help="Only adapters of a kind: app, category, ...")]
Weigh = Annotated[Weighting | None, typer.Option(help="How similarities become weights (default: the server's).")]
WeightingTemperature = Annotated[float | None, typer.Option(help="Temperature of the softmax weighting.")]
MinSimilarity = Annotated[float | None, typer.Option(help="Leave out adapters below this cosine similarity.")]
MaxNewTokens = Annotated[int | None, typer.Option(help="Most tokens of an answer (default: the server's).")]
Temperature = Annotated[float, typer.Option(help="Divides the logits before sampling; 0 is greedy.")]


def ask(
    *,
    text: Annotated[str, typer.Argument(help="The question; - reads standard input.")],
    image: Annotated[list[Path] | None, typer.Option(help="Image file, in reading order; may be repeated.")] = None,
    top_k: TopK = None,
    merge_method: Annotated[
        MergeMethod, typer.Option("--merge-method", "--strategy", help="How the adapters answer.")
    ] = MergeMethod.MIXTURE,
    fusion_method: Annotated[FusionMethod, typer.Option(help="How fusion merges.")] = FusionMethod.LINEAR,
    lora_type: LoraType = ALL_KINDS,
    include: Annotated[list[str] | None, typer.Option(help="Only this adapter; may be repeated.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Never this adapter; may be repeated.")] = None,
    weighting: Weigh = None,
    weighting_temperature: WeightingTemperature = None,
    min_similarity: MinSimilarity = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from the tokens that hold this much probability.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    show_similarities: Annotated[
        bool, typer.Option("--show-similarities", help="Print the retrieved adapters before the answer.")
    ] = False,
    orchestrator_target: OrchestratorTarget = "",
    as_json: AsJson = False,
) -> None:
    """Answer a question with the adapters that fit it; say which they were, and with what weights."""
    question = Question(
        prompt=Prompt.of(sys.stdin.read() if text == "-" else text, [load_image(file) for file in image or []]),
        strategy=AnswerStrategy(merge_method.value),
        retrieval=RetrievalOptions(
            top_k=top_k,
            kind=kind_of(lora_type),
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            weighting=weighting,
            temperature=weighting_temperature,
            min_similarity=min_similarity,
        ),
        fusion_method=fusion_method,
        decoding=Decoding(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed),
    )

    async def stream() -> Answer:
        async with reach(AnswerClient, target("orchestrator", orchestrator_target)) as client:
            if as_json:
                return await client.answer(question)
            out = console.results()
            show = (lambda found: out.print(matches_table(found))) if show_similarities else _nothing
            return await tell(client.stream(question), on_selection=show)

    answer = asyncio.run(stream())
    if as_json:
        console.print_json(answer)
    else:
        console.results().print(applied_line(answer), style="dim")
    if answer.stale:
        console.note("the catalogue could not be reached: adapters were looked up in the last one known")


async def tell(
    events: AsyncIterator[Selection | str | Answer],
    on_selection: Callable[[Selection], None],
    on_text: Callable[[str], None] = console.print_text,
) -> Answer:
    """Show a streamed answer while it comes, the selection first, and return the whole of it."""
    answer: Answer | None = None
    async for event in events:
        match event:
            case Selection():
                on_selection(event)
            case str():
                on_text(event)
            case Answer():
                answer = event
    if answer is None:
        raise InternalError("the answer broke off before its end")
    on_text("\n")
    return answer


def kind_of(lora_type: str) -> str:
    """Return the kind to filter by: empty for "all"."""
    return "" if lora_type == ALL_KINDS else lora_type


def matches_table(selection: Selection) -> Table:
    """Return the retrieved adapters with similarities and weights."""
    table = Table("retrieved adapter", "kind", "similarity", "weight")
    for match in selection.matches:
        table.add_row(match.adapter.adapter_id, match.adapter.kind, f"{match.similarity:.3f}", f"{match.weight:.3f}")
    if not selection.matches:
        table.add_row("none: the base model answers", "", "", "")
    return table


def applied_line(answer: Answer) -> str:
    """Return a sentence with the adapters that made an answer, and how long it took."""
    applied = ", ".join(f"{each.adapter_id} {each.weight:.3f}" for each in answer.generation.applied)
    return f"adapters: {applied or 'none, the base model alone'} ({answer.total_s:.2f} s)"


def _nothing(_: Selection) -> None:
    pass
