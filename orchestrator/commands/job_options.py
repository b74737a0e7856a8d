"""Options that commands which start, score or compare evaluation jobs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.evaluation.result_files import MetricName
from orchestrator.evaluation.spec import Protocol

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
        "dataset's name; may be repeated.",
    ),
]
AdaptersByName = Annotated[
    bool, typer.Option("--adapters-by-name", help="Each dataset's adapter has the dataset's name.")
]
AdapterField = Annotated[str, typer.Option(help="The field of a row that names the adapter trained for it.")]
AdapterMap = Annotated[
    Path | None,
    typer.Option(help="JSON file: dataset (with --adapter-field: value of that field) to adapter id."),
]
NumSamples = Annotated[int | None, typer.Option(help="Episodes a dataset at most (default: all).")]
ProtocolOption = Annotated[Protocol, typer.Option("--protocol", help="How an episode becomes samples.")]
Seed = Annotated[int, typer.Option(help="Chooses the episodes when there are more, and the adapters of random-k.")]
ImageRoot = Annotated[str, typer.Option(help="Folder that image paths may also be relative to.")]
ShardSize = Annotated[int | None, typer.Option(help="Samples a shard (default: the server's).")]
RequestId = Annotated[str, typer.Option(help="The same id and job again return the job that runs already.")]
Watch = Annotated[bool, typer.Option(help="Show progress, and the report at the end.")]
Threshold = Annotated[float, typer.Option(help="Above which the legacy metric calls a step right.")]
MetricOption = Annotated[
    MetricName,
    typer.Option(
        help="action: type and argument right; action_type: the type alone; legacy: TF-IDF cosine; exact_match, "
        "rouge_l, bleu: whole answers, for tasks without actions."
    ),
]
FailUnder = Annotated[
    float | None, typer.Option(help="Exit with status 1 when a score, in 0..1, is below this or unscored.")
]
GpuId = Annotated[str, typer.Option(help="Of no effect here: say it to 'up' or 'serve generation'.")]
