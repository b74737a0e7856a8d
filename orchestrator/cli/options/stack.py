"""Options of a local stack: models, addresses and settings of every tier."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from infra.contract.errors import ConfigurationError
from orchestrator.cli import output as console
from orchestrator.cli.options.targets import DEFAULTS
from orchestrator.cli.settings import environment
from orchestrator.devstack.demo_world import find_world

_FREE_PORT = "127.0.0.1:0"

Address = Annotated[str, typer.Option(help="host:port to listen on.")]
Settings = Annotated[
    list[str] | None, typer.Option(metavar="NAME=VALUE", help="Any other setting of that tier; may be repeated.")
]


@dataclass(frozen=True)
class ModelSettings:
    """Model settings of both services, by name."""

    retrieval: dict[str, object]
    generation: dict[str, object]


@dataclass(frozen=True)
class ModelOptions:
    """The models that a stack serves, and where they run."""

    model_path: Annotated[Path | None, typer.Option(help="Folder of the base model (default: the demo's).")] = None
    embedder_path: Annotated[Path | None, typer.Option(help="Folder of jina-v4 (default: the demo's).")] = None
    adapter_roots: Annotated[
        list[Path] | None, typer.Option(help="Folder below which adapters may be loaded; may be repeated.")
    ] = None
    device: Annotated[str, typer.Option(help="Where models run: auto, cpu, cuda, cuda:1.")] = "auto"
    gpu_id: Annotated[str, typer.Option(help="The GPUs to use, such as 0 or 0,1 (CUDA_VISIBLE_DEVICES).")] = ""

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables that choose the GPUs."""
        return {"CUDA_VISIBLE_DEVICES": self.gpu_id} if self.gpu_id else {}

    def settings(self) -> ModelSettings:
        """Return the model settings: as given, else those of the environment, else the demo's.

        Raises ConfigurationError where only one model is given, or a folder does not exist.
        """
        if self._has_model != self._has_embedder:
            missing = "--embedder-path" if self._has_model else "--model-path"
            raise ConfigurationError(f"{missing} is missing; give both model folders, or neither to serve the demo's")
        if self.are_demo:
            return self._demo_settings()
        for flag, folder in (("--model-path", self.model_path), ("--embedder-path", self.embedder_path)):
            if folder is not None and not folder.is_dir() and not (folder.is_file() and folder.suffix == ".gguf"):
                raise ConfigurationError(
                    f"{flag} {folder} is not a folder; give the folder of the checkpoint or a .gguf file"
                )
        return self._settings(self.model_path, self.embedder_path, self._roots, None)

    @property
    def are_demo(self) -> bool:
        """Whether no model folder is given, so that the demo's models are served."""
        return not self._has_model and not self._has_embedder

    @property
    def _has_model(self) -> bool:
        return self.model_path is not None or environment().sets("generation", "model_path")

    @property
    def _has_embedder(self) -> bool:
        return self.embedder_path is not None or environment().sets("retrieval", "embedder_path")

    @property
    def _roots(self) -> list[str]:
        return [str(root.resolve()) for root in self.adapter_roots or []]

    def _demo_settings(self) -> ModelSettings:
        world = find_world(remedy="give --model-path and --embedder-path")
        console.note(f"no model folders given: serving the demo's tiny checkpoints in {world.folder / 'checkpoints'}")
        return self._settings(world.base, world.embedder, [*self._roots, str(world.adapters)], world.kind.model_name)

    def _settings(self, model: Path | None, embedder: Path | None, roots: list[str], name: str | None) -> ModelSettings:
        return ModelSettings(
            {"device": self.device, "embedder_path": embedder.resolve() if embedder else None},
            {
                "device": self.device,
                "model_path": model.resolve() if model else None,
                "model_name": name,
                "adapter_roots": roots or None,
            },
        )


@dataclass(frozen=True)
class AddressOptions:
    """The addresses that the tiers listen on."""

    retrieval_address: Address = DEFAULTS["retrieval"]
    generation_address: Address = DEFAULTS["generation"]
    orchestrator_address: Address = DEFAULTS["orchestrator"]
    gateway_address: Address = DEFAULTS["gateway"]
    free_ports: Annotated[bool, typer.Option("--free-ports", help="Listen on free loopback ports instead.")] = False

    @property
    def retrieval(self) -> str:
        """The retrieval service's address."""
        return _FREE_PORT if self.free_ports else self.retrieval_address

    @property
    def generation(self) -> str:
        """The generation service's address."""
        return _FREE_PORT if self.free_ports else self.generation_address

    @property
    def orchestrator(self) -> str:
        """The orchestrator's address."""
        return _FREE_PORT if self.free_ports else self.orchestrator_address

    @property
    def gateway(self) -> str:
        """The address of the orchestrator's HTTP gateway."""
        return _FREE_PORT if self.free_ports else self.gateway_address


@dataclass(frozen=True)
class TierSettings:
    """Any other setting of each tier."""

    retrieval_setting: Settings = None
    generation_setting: Settings = None
    orchestrator_setting: Settings = None

    @property
    def retrieval(self) -> dict[str, object]:
        """The retrieval service's settings by name. Raises ConfigurationError."""
        return _parse_settings(self.retrieval_setting, "retrieval")

    @property
    def generation(self) -> dict[str, object]:
        """The generation service's settings by name. Raises ConfigurationError."""
        return _parse_settings(self.generation_setting, "generation")

    @property
    def orchestrator(self) -> dict[str, object]:
        """The orchestrator's settings by name. Raises ConfigurationError."""
        return _parse_settings(self.orchestrator_setting, "orchestrator")


def _parse_settings(pairs: list[str] | None, tier: str) -> dict[str, object]:
    settings: dict[str, object] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigurationError(f"--{tier}-setting {pair!r} is not NAME=VALUE, such as log-level=debug")
        settings[name.replace("-", "_")] = value
    return settings
