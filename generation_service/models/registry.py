"""The registry of base model families that can be served."""

from __future__ import annotations

from pathlib import Path

from generation_service.models.base import BaseModel, Family, LoadOptions
from generation_service.models.causal.family import CAUSAL_FAMILIES
from generation_service.models.folder import CONFIG, read_config
from generation_service.models.internvl.family import InternVLChatFamily, InternVLFamily
from generation_service.models.quantised.methods import check_method
from generation_service.models.qwen2_5_vl import Qwen25VLFamily
from generation_service.models.qwen2_vl import Qwen2VLFamily
from generation_service.models.qwen3_vl import Qwen3VLFamily
from generation_service.models.unserved import UNSERVED
from generation_service.models.validation import check_base_model
from infra.contract.errors import CheckpointError
from infra.runtime.logs import get_logger

log = get_logger(__name__)

FAMILIES: tuple[Family, ...] = (
    InternVLChatFamily(),
    InternVLFamily(),
    Qwen2VLFamily(),
    Qwen25VLFamily(),
    Qwen3VLFamily(),
    *CAUSAL_FAMILIES,
)


def family_of(folder: Path) -> Family:
    """Return the family of the base model in `folder`. Raises CheckpointError if none serves it."""
    config = read_config(folder)
    model_type = config.get("model_type")
    check_method(folder)
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    if not model_type or not isinstance(model_type, str):
        raise CheckpointError(
            f"{folder / CONFIG} has no model_type, by which a model is recognised: take the config.json of the base "
            "model",
            model_type=str(model_type),
        )
    known = UNSERVED.get(model_type)
    if known is not None:
        raise CheckpointError(
            f"{folder} (model_type {model_type!r}) is not served by this version. It is {known}",
            model_type=str(model_type),
        )
    supported = ", ".join(sorted(family.model_type for family in FAMILIES))
    raise CheckpointError(
        f"{folder} is a model of type {model_type!r}, which this version does not serve; it serves: {supported}",
        model_type=str(model_type),
    )


def load_base_model(folder: Path, options: LoadOptions) -> BaseModel:
    """Check the base model in `folder`, then load it.

    Raises CheckpointError if it is incomplete or its family is not supported, before any weights are read.
    """
    family = family_of(folder)
    for warning in check_base_model(family, folder, options).warnings:
        log.warning("base_model", folder=str(folder), warning=warning)
    return family.load(folder, options)
