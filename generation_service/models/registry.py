"""The registry of base model families that can be served."""

from __future__ import annotations

from pathlib import Path

from generation_service.models.base import BaseModel, Family, LoadOptions
from generation_service.models.causal.family import CAUSAL_FAMILIES
from generation_service.models.folder import read_config
from generation_service.models.internvl.family import InternVLChatFamily, InternVLFamily
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
    quantised = config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else "unknown"
        raise CheckpointError(
            f"{folder} is quantised ({method}); this version serves weights in bfloat16, float16 or float32: "
            "download the model without quantisation",
            model_type=str(model_type),
        )
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    known = UNSERVED.get(str(model_type))
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
