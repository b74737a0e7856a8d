"""`loraretriever ask`: one question through the whole pipeline."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from infra.contract.errors import InternalError, InvalidArgumentError
from infra.contract.prompt import Prompt
from infra.contract.retrieval import Selection, SelectionReason
from orchestrator.answering.question import Answer, Question
from orchestrator.cli import output as console
from orchestrator.cli.options.answering import RetrievalFlags, SamplingFlags, StrategyFlags
from orchestrator.cli.options.binding import Sets, with_options
from orchestrator.cli.options.targets import OrchestratorTier
from orchestrator.clients.answer import AnswerClient
from orchestrator.registration.training_examples import load_image

_REASONS = {
    SelectionReason.EMPTY_CATALOGUE: "the catalogue is empty; register one with 'loraretriever adapters add'",
    SelectionReason.NO_ADAPTERS_OF_MODEL: "the catalogue holds none for the base model that runs",
    SelectionReason.NO_ADAPTERS_ALLOWED: "--kind, --include and --exclude leave none",
    SelectionReason.BELOW_MINIMUM_SIMILARITY: "none reaches --min-similarity",
    SelectionReason.NOTHING_FITS: "the question fits none of them (--min-log-odds)",
}


@with_options
def ask(
    *,
    text: Annotated[str, typer.Argument(help="The question; - reads it from standard input."), Sets("parts")],
    image: Annotated[list[Path] | None, typer.Option(help="Image file, in reading order; may be repeated.")] = None,
    strategy: StrategyFlags,
    retrieval: RetrievalFlags,
    include: Annotated[list[str] | None, typer.Option(help="Use only this adapter; may be repeated.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Never use this adapter; may be repeated.")] = None,
    decoding: SamplingFlags,
    show_similarities: Annotated[
        bool, typer.Option("--show-similarities", help="Print the retrieved adapters before the answer.")
    ] = False,
    orchestrator: OrchestratorTier,
) -> None:
    """Answer a question with the adapters that fit it, and show which they were and their weights."""
    chosen = strategy.strategy()
    excluded = [*(exclude or ()), *([strategy.adapter] if chosen.exclude_own_adapter else [])]
    question = Question(
        prompt=Prompt.of(_standard_input() if text == "-" else text, [load_image(file) for file in image or []]),
        strategy=chosen.strategy,
        retrieval=retrieval.options(tuple(include or ()), tuple(excluded)),
        fusion_method=chosen.fusion_method,
        decoding=decoding.decoding(),
        oracle=strategy.adapter,
    )
    answer = _answer(question, orchestrator, show_similarities)
    if orchestrator.as_json:
        console.print_json(answer)
    else:
        console.results().print(applied_line(answer), style="dim")
    if answer.selection.reason is not None:
        console.note(f"no adapter was retrieved: {_REASONS[answer.selection.reason]}")
    if answer.stale:
        console.note("the catalogue could not be reached: its last known state was searched")


def _standard_input() -> str:
    """Return the text on standard input. Raises InvalidArgumentError if it is not UTF-8, whatever the locale."""
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(
            "text", f"standard input is not UTF-8 (byte {error.start + 1}); convert it first, such as with iconv"
        ) from error


def _answer(question: Question, orchestrator: OrchestratorTier, show_similarities: bool) -> Answer:
    """Return the answer; without --json it is printed while it is streamed."""

    def show_selection(selection: Selection) -> None:
        if show_similarities and question.strategy.retrieves:
            console.results().print(matches_table(selection))
        elif show_similarities:
            console.note(f"{question.strategy.value} retrieves no adapters: there are no similarities")

    async def stream(client: AnswerClient) -> Answer:
        return await print_stream(client.stream(question), show_selection)

    if orchestrator.as_json:
        return orchestrator.call_answers(lambda client: client.answer(question))
    return orchestrator.call_answers(stream)


async def print_stream(
    events: AsyncIterator[Selection | str | Answer],
    on_selection: Callable[[Selection], None],
    on_text: Callable[[str], None] = console.print_text,
) -> Answer:
    """Print a streamed answer as it arrives, the selection first, and return the complete answer."""
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
        raise InternalError("the stream of the answer ended before its end")
    on_text("\n")
    return answer


def matches_table(selection: Selection) -> Table:
    """Return the retrieved adapters with their similarities and weights."""
    table = Table("retrieved adapter", "kind", "similarity", "weight")
    for match in selection.matches:
        table.add_row(match.adapter.adapter_id, match.adapter.kind, f"{match.similarity:.3f}", f"{match.weight:.3f}")
    if not selection.matches:
        table.add_row("none: the base model answers", "", "", "")
    return table


def applied_line(answer: Answer) -> str:
    """Return a line with the adapters that were applied, and how long the answer took."""
    applied = ", ".join(f"{share.adapter_id} {share.weight:.3f}" for share in answer.generation.applied)
    fused = f", fused by {answer.generation.fusion_method}" if answer.generation.fusion_method else ""
    return f"adapters: {applied or 'none, the base model alone'}{fused} ({answer.total_s:.2f} s)"
