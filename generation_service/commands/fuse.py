"""`loraretriever fuse`: several weighted adapters as one PEFT folder, for this server, PEFT or vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infra.contract.composition import DEFAULT_DENSITY, FusionMethod
from infra.contract.errors import InvalidArgumentError


def fuse(
    *,
    folder: Annotated[Path, typer.Argument(help="Folder to write, which must be new or empty.")],
    adapters: Annotated[list[str], typer.Argument(help="PEFT folders, each with its weight: PATH or PATH=0.5.")],
    base_model: Annotated[Path, typer.Option(help="Folder of the base model that the adapters were trained on.")],
    method: Annotated[FusionMethod, typer.Option(help="How they are merged; concat is exact.")] = FusionMethod.CONCAT,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of the result (svd, ties, dare).")] = None,
    density: Annotated[float, typer.Option(help="Share of each delta that is kept (ties, dare).")] = DEFAULT_DENSITY,
    seed: Annotated[int, typer.Option(min=0, help="Selects the elements that are kept (dare).")] = 0,
) -> None:
    """Merge weighted adapters into one and write it as a PEFT folder."""
    from generation_service.adapters.checkpoint.reader import read_checkpoint
    from generation_service.adapters.checkpoint.writer import write_checkpoint
    from generation_service.lora.fusion.fuse import FusionMember
    from generation_service.lora.fusion.fuse import fuse as merge
    from generation_service.models.base import LoadOptions
    from generation_service.models.folder import default_model_name
    from generation_service.models.registry import family_of
    from generation_service.models.validation import check_base_model

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidArgumentError("FOLDER", f"{folder} is not an empty folder: give another name")
    if not 0 < density <= 1:
        raise InvalidArgumentError("--density", f"must be above 0 and at most 1, got {density}")
    model = check_base_model(family_of(base_model), base_model, LoadOptions()).model
    members = []
    for given in adapters:
        path, weight = _weighted(given)
        weights = read_checkpoint(path, model.description.targets, model.canonical)
        members.append(FusionMember(weights, weight, path.name))
    merged = merge(members, method, rank=rank, density=density, seed=seed)
    write_checkpoint(folder, merged, default_model_name(base_model))
    typer.echo(f"{folder}: rank {merged.rank}, {len(merged.modules)} layers, {method} of {len(members)} adapters")


def _weighted(given: str) -> tuple[Path, float]:
    """Return the path and weight in PATH or PATH=WEIGHT. A path that exists as it is has weight 1."""
    path, mark, weight = given.rpartition("=")
    if not mark or Path(given).exists():
        return Path(given), 1.0
    try:
        return Path(path), float(weight)
    except ValueError as error:
        raise InvalidArgumentError("ADAPTERS", f"{given}: {weight!r} is not a weight; give PATH=0.5") from error
