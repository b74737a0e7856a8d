"""`loraretriever demo`: the whole system on the demo world, on this machine, in a few minutes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from infra.contract.retrieval import Selection
from orchestrator.answering.question import Answer
from orchestrator.cli import output as console
from orchestrator.cli.commands.ask import applied_line, matches_table, tell
from orchestrator.cli.commands.up import left_in_order, tiers_shown
from orchestrator.cli.progress import headline_table, shown
from orchestrator.cli.screens import can_draw, draw
from orchestrator.cli.settings import child_environment
from orchestrator.cli.targets import DEMO_DIR, AsJson
from orchestrator.clients.answer import AnswerClient
from orchestrator.clients.evaluation import EvaluationClient
from orchestrator.devstack import demo as run
from orchestrator.devstack.demo_world import World, WorldDataset, check_work_dir, datasets, find_world, generate
from orchestrator.devstack.stack import LocalStack
from orchestrator.evaluation.job import Report
from orchestrator.evaluation.report.markdown_report import first_headline
from orchestrator.evaluation.report.summary import Summary

TRAIN_EPISODES, TEST_EPISODES = 20, 20
DEFAULT_EPISODES = 4


def demo(
    *,
    work_dir: Annotated[Path, typer.Option(help="Folder of data, logs and reports.")] = DEMO_DIR,
    world: Annotated[
        Path | None, typer.Option(help="Folder of examples/pocket_phone (default: this checkout's).")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--datasets", help="Evaluate only these; may be repeated, or parted by commas.")
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, max=TEST_EPISODES, help="Episodes a dataset.")] = DEFAULT_EPISODES,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the tiers running until Ctrl-C, to ask them more.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run everything on the demo world: register 19 adapters, answer three requests, compare five strategies.

    A synthetic phone with 14 apps of 5 categories; a tiny Qwen2-VL with an adapter for each app and category, and a
    tiny jina-v4 that finds the adapters that fit a screen and a request. No GPU, no download.
    """
    found = find_world(world)
    work_dir = work_dir.resolve()
    with left_in_order():
        outcome = _Outcome()
        data = work_dir / "world"
        check_work_dir(work_dir, data)
        with outcome.timed("generate the world"):
            _generate(found, data)
        every = datasets(found, data)
        chosen = datasets(found, data, [name for words in only or [] for name in words.split(",") if name])
        plan = run.stack_plan(found, work_dir, data, child_environment(own_settings=False))
        with tiers_shown() as on_tier:
            start = time.monotonic()
            with LocalStack(plan, on_tier) as stack:
                outcome.seconds["start the tiers"] = time.monotonic() - start
                asyncio.run(run.while_running(stack, _work(stack, every, chosen, episodes, outcome, quiet=as_json)))
                _print_outcome(outcome, as_json)
                if keep:
                    console.note(
                        "the tiers run on until Ctrl-C; try 'loraretriever ask' and 'loraretriever adapters list'"
                    )
                    stack.wait()


@dataclass
class _Outcome:
    """What came of the demo so far."""

    answers: list[dict[str, Any]] = field(default_factory=list)
    report: Report | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Note how long the block takes."""
        start = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - start


def _generate(world: World, data: Path) -> None:
    shown_progress = console.progress()
    with shown_progress.status("generating the demo world's screens"):
        written = generate(world, data, train=TRAIN_EPISODES, test=TEST_EPISODES)
    shown_progress.print(f"demo world {'written to' if written else 'found in'} {data}", style="dim", soft_wrap=True)


async def _work(
    stack: LocalStack,
    every: list[WorldDataset],
    chosen: list[WorldDataset],
    episodes: int,
    outcome: _Outcome,
    *,
    quiet: bool,
) -> None:
    with outcome.timed("register the adapters"):
        await _register(stack.addresses.retrieval, every)
    with outcome.timed("answer three requests"):
        async with AnswerClient(stack.addresses.orchestrator) as client:
            for number, request in enumerate(run.sample_requests(chosen), start=1):
                answer = await (_answer(client, request) if quiet else _show_answer(client, request, number))
                outcome.answers.append(_answer_json(request, answer))
    with outcome.timed("evaluate"):
        async with EvaluationClient(stack.addresses.orchestrator) as evaluations:
            outcome.report = await run.evaluate(evaluations, run.evaluation(chosen, episodes), shown)


async def _register(target: str, every: list[WorldDataset]) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    shown_progress = console.progress()
    with Progress(*columns, console=shown_progress, transient=True, disable=not shown_progress.is_terminal) as bar:
        task = bar.add_task("registering adapters", total=len(every))
        await run.register(target, every, lambda adapter: bar.update(task, advance=1, description=adapter.adapter_id))
    shown_progress.print(f"{len(every)} adapters registered, {run.EXAMPLES} training examples each", style="dim")


async def _answer(client: AnswerClient, request: run.Request) -> Answer:
    return await tell(run.ask(client, request), lambda _: None, lambda _: None)


async def _show_answer(client: AnswerClient, request: run.Request, number: int) -> Answer:
    out, sample = console.results(), request.sample
    screens = "\n".join(str(image) for image in sample.images)
    asked = Text(f"{sample.text}\n") + Text(f"screen: {screens}", style="dim")
    out.print()
    out.rule(Text(f"request {number}: held out, of {request.dataset.display_name}"))
    if can_draw(out):
        grid = Table.grid(padding=(0, 2))
        grid.add_row(draw(sample.images[-1]), Panel(asked, title="asked", title_align="left"))
        out.print(grid)
    else:
        out.print(asked, soft_wrap=True)

    def show_selection(found: Selection) -> None:
        out.print(matches_table(found))
        console.print_text("answer: ")

    answer = await tell(run.ask(client, request), show_selection)
    right = answer.generation.text.strip() == sample.truth
    out.print(f"truth:  {sample.truth}  ", Text("right", "green") if right else Text("wrong", "red"), soft_wrap=True)
    out.print(applied_line(answer), style="dim")
    return answer


def _answer_json(request: run.Request, answer: Answer) -> dict[str, Any]:
    return {
        "dataset": request.dataset.adapter_id,
        "text": request.sample.text,
        "screens": [str(image) for image in request.sample.images],
        "retrieved": [
            {"adapter_id": match.adapter.adapter_id, "similarity": match.similarity, "weight": match.weight}
            for match in answer.selection.matches
        ],
        "applied": [{"adapter_id": each.adapter_id, "weight": each.weight} for each in answer.generation.applied],
        "answer": answer.generation.text,
        "truth": request.sample.truth,
    }


def _print_outcome(outcome: _Outcome, as_json: bool) -> None:
    assert outcome.report is not None
    summary_json = json.loads(outcome.report.summary_json)
    report = f"{outcome.report.output_uri}/summary.md"
    if as_json:
        answers, seconds = outcome.answers, outcome.seconds
        console.print_json({"answers": answers, "seconds": seconds, "report": report, "summary": summary_json})
        return
    out = console.results()
    out.print()
    out.print(headline_table(first_headline(Summary.from_json(summary_json))))
    parts = ", ".join(f"{name} {seconds:.0f}" for name, seconds in outcome.seconds.items())
    out.print(f"report: {report}", soft_wrap=True)
    out.print(f"{sum(outcome.seconds.values()):.0f} seconds in all: {parts}", style="dim", soft_wrap=True)
