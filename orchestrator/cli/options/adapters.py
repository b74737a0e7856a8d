"""Options of adapters: which to list, and how one is registered."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from infra.contract.adapter import Adapter, base_model_name
from infra.contract.errors import InvalidArgumentError
from infra.contract.prompt import Prompt
from orchestrator.cli.options.answering import kind_filter
from orchestrator.clients.retrieval import RetrievalClient
from orchestrator.evaluation.spec import PromptProtocol
from orchestrator.registration.peft_folder import read_adapter
from orchestrator.registration.training_examples import example_prompts, read_vectors


@dataclass(frozen=True)
class CatalogueFilter:
    """The adapters of the catalogue that a command is about."""

    kind: Annotated[str, typer.Option("--kind", "--lora-type", help="Only adapters of this kind.")] = ""
    tag: Annotated[list[str] | None, typer.Option(help="Only adapters with this tag; may be repeated.")] = None
    base_model: Annotated[str, typer.Option(help="Only adapters of this base model.")] = ""

    @property
    def is_set(self) -> bool:
        """Whether it leaves any adapter out."""
        return bool(self.kind or self.tag or self.base_model)

    async def fetch(self, retrieval: RetrievalClient) -> list[Adapter]:
        """Return the adapters, ordered by id."""
        return await retrieval.list_adapters(base_model_name(self.base_model), kind_filter(self.kind), self.tag or ())


@dataclass(frozen=True)
class AdapterOptions:
    """The description of an adapter that is registered."""

    checkpoint: Annotated[
        Path | None, typer.Option(help="PEFT folder below the generation service's adapter roots.")
    ] = None
    kind: Annotated[
        str, typer.Option("--kind", "--lora-type", help="What the adapter specialises in: app, category, ...")
    ] = ""
    tag: Annotated[list[str] | None, typer.Option(help="Label to filter by; may be repeated.")] = None
    base_model: Annotated[str, typer.Option(help="Default: the one in its adapter_config.json.")] = ""
    display_name: Annotated[str, typer.Option(help="Name to show to people.")] = ""
    description: Annotated[str, typer.Option(help="What the adapter was trained to do.")] = ""

    def adapter(self, name: str, checkpoint: Path) -> Adapter:
        """Return the adapter, with what its PEFT folder records. Raises CheckpointError."""
        return read_adapter(
            name,
            checkpoint,
            base_model=self.base_model,
            kind=self.kind,
            tags=tuple(self.tag or ()),
            display_name=self.display_name,
            description=self.description,
        )


@dataclass(frozen=True)
class ExampleOptions:
    """What the embedding of an adapter is made of: training examples, or vectors."""

    examples: Annotated[
        Path | None,
        typer.Option(help="Training data, JSONL; a sample of it is embedded. For a folder of adapters, their folder."),
    ] = None
    vectors: Annotated[Path | None, typer.Option(help="Existing embeddings to use instead, .npy; one per row.")] = None
    count: Annotated[int, typer.Option(help="Number of examples to embed.")] = 20
    seed: Annotated[int, typer.Option(help="Chooses the examples.")] = 0
    protocol: Annotated[PromptProtocol, typer.Option(help="How a row becomes examples.")] = PromptProtocol.STEP

    def check(self) -> None:
        """Raise InvalidArgumentError unless exactly one source is given."""
        if (self.examples is None) == (self.vectors is None):
            raise InvalidArgumentError("", "give either --examples train.jsonl or --vectors embeddings.npy")

    def prompts(self) -> list[Prompt]:
        """Return the prompts of the examples; empty where vectors are given."""
        return [] if self.examples is None else self.prompts_in(self.examples)

    def prompts_in(self, file: Path) -> list[Prompt]:
        """Return the prompts of the examples in a file."""
        return example_prompts(file, count=self.count, seed=self.seed, protocol=self.protocol)

    def embeddings(self) -> list[bytes]:
        """Return the given vectors; empty where examples are given."""
        return read_vectors(self.vectors) if self.vectors else []


@dataclass(frozen=True)
class AdapterChanges:
    """Changes to a registered adapter. None: unchanged."""

    checkpoint: Annotated[Path | None, typer.Option(help="New PEFT folder; the next request uses it.")] = None
    kind: Annotated[str | None, typer.Option("--kind", "--lora-type", help="New kind.")] = None
    tag: Annotated[list[str] | None, typer.Option(help="Label; may be repeated. Replaces all labels.")] = None
    display_name: Annotated[str | None, typer.Option(help="New name to show to people.")] = None
    description: Annotated[str | None, typer.Option(help="New description.")] = None
    examples: Annotated[Path | None, typer.Option(help="New training data, JSONL; a sample of it is embedded.")] = None
    count: Annotated[int, typer.Option(help="Number of examples to embed.")] = 20
    seed: Annotated[int, typer.Option(help="Chooses the examples.")] = 0
    protocol: Annotated[PromptProtocol, typer.Option(help="How a row becomes examples.")] = PromptProtocol.STEP

    def check(self) -> None:
        """Raise InvalidArgumentError if nothing is changed."""
        if not self._described() and self.checkpoint is None and self.examples is None:
            raise InvalidArgumentError("", "nothing to change; give --description, --kind, --tag, --examples, ...")

    def applied_to(self, adapter: Adapter) -> tuple[Adapter, list[str]]:
        """Return the changed adapter and the names of the changed fields. Raises CheckpointError."""
        described = self._described()
        if self.checkpoint is not None:
            new = read_adapter(adapter.adapter_id, self.checkpoint, base_model=adapter.base_model)
            described |= {"checkpoint_uri": new.checkpoint_uri, "rank": new.rank, "targets": new.targets}
        return replace(adapter, **described), list(described)

    def prompts(self) -> list[Prompt]:
        """Return the prompts of the new examples; empty if the embedding stays."""
        if self.examples is None:
            return []
        return example_prompts(self.examples, count=self.count, seed=self.seed, protocol=self.protocol)

    def _described(self) -> dict[str, Any]:
        values = {"kind": self.kind, "display_name": self.display_name, "description": self.description}
        tags = {} if self.tag is None else {"tags": tuple(self.tag)}
        return {name: value for name, value in values.items() if value is not None} | tags
