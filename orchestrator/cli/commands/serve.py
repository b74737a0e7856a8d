"""`loraretriever serve TIER` and `loraretriever worker`: replace this process by one tier, flags passed through."""

from __future__ import annotations

import importlib.util
import os
import sys

import typer

from infra.contract.errors import ConfigurationError
from infra.runtime.layout import module_name
from orchestrator.cli.settings import environment

PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
_PACKAGES = {
    "retrieval": ("torch", "transformers", "qdrant_client"),
    "generation": ("torch", "transformers", "safetensors"),
    "orchestrator": ("celery", "fastapi", "redis", "uvicorn"),
}

app = typer.Typer(no_args_is_help=True, help="Serve one tier in this process; flags pass through to it.")


@app.command("retrieval", context_settings=PASS_THROUGH)
def retrieval(context: typer.Context) -> None:
    """Serve the retrieval tier: embedder and adapter catalogue. 'serve retrieval --help' lists its settings."""
    _exec("retrieval", module_name("retrieval_service"), context.args)


@app.command("generation", context_settings=PASS_THROUGH)
def generation(context: typer.Context) -> None:
    """Serve the generation tier: base model and adapters. 'serve generation --help' lists its settings.

    --gpu-id N sets CUDA_VISIBLE_DEVICES.
    """
    _exec("generation", module_name("generation_service"), context.args)


@app.command("orchestrator", context_settings=PASS_THROUGH)
def orchestrator(context: typer.Context) -> None:
    """Serve the orchestrator: answers, jobs and the HTTP gateway. 'serve orchestrator --help' lists its settings."""
    _exec("orchestrator", module_name("orchestrator"), context.args)


def worker(context: typer.Context) -> None:
    """Run one worker of evaluation jobs. It takes the orchestrator's settings; 'worker --help' lists them."""
    _exec("orchestrator", module_name("orchestrator.jobs.worker"), context.args)


def _exec(extra: str, module: str, arguments: list[str]) -> None:
    missing = [name for name in _PACKAGES[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"the {extra} tier needs {', '.join(missing)}, which is not installed: pip install 'loraretriever[{extra}]'"
        )
    flags, gpus = without_gpu_id(arguments)
    variables = dict(environment().variables) | ({"CUDA_VISIBLE_DEVICES": gpus} if gpus is not None else {})
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, "-m", module, *flags], variables)


def without_gpu_id(arguments: list[str]) -> tuple[list[str], str | None]:
    """Return the arguments without the study's `--gpu_id N`, and N: a tier has no setting for the GPUs it may see."""
    flags, gpus = list(arguments), None
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in ("--gpu-id", "--gpu_id"):
            if not equals and index + 1 == len(arguments):
                raise ConfigurationError(f"{name} needs a value: the GPU to use, such as 0")
            gpus = value if equals else arguments[index + 1]
            flags = arguments[:index] + arguments[index + (1 if equals else 2) :]
    return flags, gpus
