"""Options of what a job evaluates: its datasets and their adapters, its samples, and how it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from infra.contract.errors import InvalidArgumentError
from orchestrator.cli import output as console
from orchestrator.cli.dataset_args import AdapterLabels, dataset_specs, local_path, read_adapter_map
from orchestrator.cli.options.binding import Sets
from orchestrator.evaluation.spec import DatasetSpec, PromptProtocol


@dataclass(frozen=True)
class DatasetOptions:
    """The datasets, and the adapter trained for each."""

    data: Annotated[
        list[str] | None,
        typer.Argument(
            help="JSONL files, folders of them, or patterns such as 'apps/*.jsonl'; each may be NAME=FILE.",
            show_default=False,
        ),
    ] = None
    test_data: Annotated[list[str] | None, typer.Option(help="The same as the argument, under the study's name.")] = (
        None
    )
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            help="The adapter trained for a dataset, as DATASET=ADAPTER, or for all as 'app_lora_{}' with {} for the "
            "dataset's name (in a folder or a pattern the file's); may be repeated.",
        ),
        Sets("adapter_id"),
    ] = None
    adapters_by_name: Annotated[bool, typer.Option("--adapters-by-name", help="The same as --adapter '{}'.")] = False
    adapter_field: Annotated[str, typer.Option(help="The field of a row that names the adapter trained for it.")] = ""
    adapter_map: Annotated[
        Path | None,
        typer.Option(help="JSON file: dataset (with --adapter-field: value of that field) to adapter id."),
    ] = None
    gpu_id: Annotated[str, typer.Option(help="Has no effect here: pass it to 'up' or 'serve generation' instead.")] = ""

    def files(self) -> list[str]:
        """Return the given files, folders and patterns. Raises InvalidArgumentError when there are none."""
        files = [*(self.data or []), *(self.test_data or [])]
        if not files:
            raise InvalidArgumentError("", "name at least one JSONL file to evaluate on")
        if self.gpu_id:
            console.note(
                "--gpu-id has no effect on a job: the GPU is chosen where the model runs ('up', 'serve generation')"
            )
        return files

    @property
    def is_empty(self) -> bool:
        """Whether no data is given."""
        return not self.data and not self.test_data

    def specs(self, kind: str, *, default_by_name: bool = False) -> tuple[DatasetSpec, ...]:
        """Return the datasets. `default_by_name`: without any other label, adapters have their datasets' names.

        Raises:
            InvalidArgumentError: nothing is given, or a label fits no dataset.
        """
        unlabelled = not (self.adapter or self.adapter_field or self.adapter_map)
        by_name = self.adapters_by_name or (default_by_name and unlabelled)
        mapping = read_adapter_map(self.adapter_map)
        labels = AdapterLabels(self.adapter or (), by_name, self.adapter_field, mapping)
        return dataset_specs(self.files(), labels, kind)


@dataclass(frozen=True)
class SampleOptions:
    """Which samples of the datasets a job answers, and how they are split."""

    num_samples: Annotated[
        int | None,
        typer.Option(help="Maximum number of episodes of each dataset (default: all)."),
        Sets("max_episodes"),
    ] = None
    protocol: Annotated[PromptProtocol, typer.Option("--protocol", help="How an episode becomes samples.")] = (
        PromptProtocol.STEP
    )
    seed: Annotated[
        int, typer.Option(help="Chooses the episodes when there are more, and the adapters of random-k.")
    ] = 0
    image_root: Annotated[
        str,
        typer.Option(
            help="Folder that image paths may also be relative to: on this machine, else on the orchestrator's."
        ),
    ] = ""
    shard_size: Annotated[int | None, typer.Option(help="Samples of a shard (default: the server's).")] = None

    @property
    def image_folder(self) -> str:
        """The absolute path of a local image root; another one is left to the orchestrator."""
        return local_path(self.image_root)


@dataclass(frozen=True)
class SubmitOptions:
    """How a job is submitted."""

    request_id: Annotated[
        str, typer.Option(help="Submitting the same job under the same id again returns the existing job.")
    ] = ""
    watch: Annotated[bool, typer.Option(help="Show progress, and the report at the end.")] = True
