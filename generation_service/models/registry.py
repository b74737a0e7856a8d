"""The base models that can be served, and the registry that recognises them."""

from __future__ import annotations

from pathlib import Path

from generation_service.models.base import BaseModel, Family, LoadOptions
from generation_service.models.folder import read_config
from generation_service.models.qwen2_vl import Qwen2VLFamily
from infra.contract.errors import CheckpointError

FAMILIES: tuple[Family, ...] = (Qwen2VLFamily(),)


def load_base_model(folder: Path, options: LoadOptions) -> BaseModel:
    """Load the base model in `folder`. Raises CheckpointError when it is not whole or its family is not supported."""
    model_type = read_config(folder).get("model_type")
    for family in FAMILIES:
        if family.model_type == model_type:
            return family.load(folder, options)
    supported = ", ".join(sorted(family.model_type for family in FAMILIES))
    raise CheckpointError(
        f"{folder} is a model of type {model_type!r}, which this version does not serve; it serves: {supported}",
        model_type=str(model_type),
    )
