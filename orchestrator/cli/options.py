"""Options that commands which start, score or compare evaluation jobs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.ci_gate import MAX_FAILED
from orchestrator.cli.dataset_args import complete_strategies
from orchestrator.evaluation.actions import POINT_TOLERANCE_PX
from orchestrator.evaluation.metrics.legacy import LEGACY_THRESHOLD
from orchestrator.evaluation.result_files import MetricName
from orchestrator.evaluation.spec import PromptProtocol

Data = Annotated[
    list[str] | None,
    typer.Argument(
        help="JSONL files, folders of them, or patterns such as 'apps/*.jsonl'; each may be NAME=FILE.",
        show_default=False,
    ),
]
TestData = Annotated[list[str] | None, typer.Option(help="The same, as the study named it.")]
AdapterOf = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        help="The adapter trained for a dataset, as DATASET=ADAPTER, or for all as 'app_lora_{}' with {} for the "
        "dataset's name (in a folder or a pattern the file's); may be repeated.",
    ),
]
AdaptersByName = Annotated[bool, typer.Option("--adapters-by-name", help="The same as --adapter '{}'.")]
AdapterField = Annotated[str, typer.Option(help="The field of a row that names the adapter trained for it.")]
AdapterMap = Annotated[
    Path | None,
    typer.Option(help="JSON file: dataset (with --adapter-field: value of that field) to adapter id."),
]
NumSamples = Annotated[int | None, typer.Option(help="Episodes a dataset at most (default: all).")]
ProtocolOption = Annotated[PromptProtocol, typer.Option("--protocol", help="How an episode becomes samples.")]
Seed = Annotated[int, typer.Option(help="Chooses the episodes when there are more, and the adapters of random-k.")]
ImageRoot = Annotated[
    str, typer.Option(help="Folder that image paths may also be relative to: one of this machine, else the server's.")
]
ShardSize = Annotated[int | None, typer.Option(help="Samples a shard (default: the server's).")]
RequestId = Annotated[str, typer.Option(help="The same id and job again return the job that runs already.")]
Watch = Annotated[bool, typer.Option(help="Show progress, and the report at the end.")]
Strategy = Annotated[
    str | None,
    typer.Option(help="Of records: which strategy, by its label (default: each).", autocompletion=complete_strategies),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        help=f"Similarity above which the legacy metric calls a step right (default: {LEGACY_THRESHOLD:g}).",
        show_default=False,
    ),
]
PointTolerance = Annotated[
    float | None,
    typer.Option(
        help=f"Pixels that points may be apart under the action metric (default: {POINT_TOLERANCE_PX:g}).",
        show_default=False,
    ),
]
MetricOption = Annotated[
    MetricName | None,
    typer.Option(
        help="action: type and argument right; action_type: the type alone; legacy: TF-IDF cosine; exact_match, "
        "rouge_l, bleu: whole answers, for tasks without actions (default: action, or exact_match where no true "
        "answer is an action).",
        show_default=False,
    ),
]
FailUnder = Annotated[
    float | None, typer.Option(help="Exit with status 1 when a score, in 0..1, is below this or unscored.")
]
MaxFailed = Annotated[
    float | None,
    typer.Option(
        help="Exit with status 1 when a larger share of the samples, in 0..1, has no score (default: "
        f"{MAX_FAILED:g} with --fail-under, else never).",
        show_default=False,
    ),
]
FailOn = Annotated[
    list[str] | None,
    typer.Option(
        help="The strategy that --fail-under looks at, by its label; may be repeated (default: every one).",
        autocompletion=complete_strategies,
    ),
]
GpuId = Annotated[str, typer.Option(help="Of no effect here: say it to 'up' or 'serve generation'.")]
