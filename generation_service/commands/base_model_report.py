"""What the folder of a base model holds, and whether this version serves it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from generation_service.models.base import InputFormat, LoadOptions, ModelOutline
from generation_service.models.folder import default_model_name, read_config, stored_tensors
from generation_service.models.registry import family_of
from infra.contract.errors import CheckpointError

BF16_BYTES = 2
BANK_RANKS = 512
CACHE_TOKENS = 1000


@dataclass
class BaseModelReport:
    """A base model by its files. None where a file did not tell; the keys are those of the JSON document.

    `parameters` are those that config.json describes, `stored_parameters` those in the files. `memory_bytes` is what
    serving in bfloat16 takes for weights, an adapter bank of 512 ranks, and 1,000 tokens of KV cache.
    """

    kind: ClassVar[str] = "base_model"
    path: str
    name: str = ""
    model_type: str = ""
    family: str | None = None
    supported: bool = False
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    parameters: int | None = None
    stored_parameters: int | None = None
    stored_tensors: int | None = None
    weight_files: int | None = None
    weight_file_bytes: int | None = None
    dtype: str | None = None
    hidden_size: int | None = None
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int | None = None
    max_positions: int | None = None
    adaptable_modules: int | None = None
    adaptable_image_modules: int | None = None
    image_limits: Mapping[str, int] | None = None
    tokenizer: str | None = None
    tokenizer_tokens: int | None = None
    chat_template: str | None = None
    memory_bytes: Mapping[str, int] | None = None


def inspect_base_model(folder: Path) -> BaseModelReport:
    """Return what config.json, the files beside the weights and the headers of the weights say of `folder`."""
    report = BaseModelReport(str(folder))
    try:
        report.name = default_model_name(folder)
        report.model_type = str(read_config(folder).get("model_type"))
        family = family_of(folder)
        outline = family.describe(folder)
    except CheckpointError as error:
        report.problems.append(error.message)
        return report
    _add_outline(report, outline)
    try:
        _add_inputs(report, family.inputs(folder, LoadOptions()))
    except CheckpointError as error:
        report.problems.append(error.message)
    try:
        _add_stored(report, folder, outline)
    except CheckpointError as error:
        report.problems.append(error.message)
    report.supported = not report.problems
    return report


def _add_outline(report: BaseModelReport, outline: ModelOutline) -> None:
    report.family = outline.title
    report.parameters = outline.parameters
    report.hidden_size = outline.hidden
    report.layers = outline.layers
    report.heads, report.kv_heads, report.head_dim = outline.heads, outline.kv_heads, outline.head_dim
    report.vocab_size = outline.vocab_size
    report.max_positions = outline.max_positions
    report.adaptable_modules = len(outline.targets)
    report.adaptable_image_modules = sum(path.startswith(outline.by_image) for path in outline.targets)
    report.memory_bytes = {
        "weights": outline.parameters * BF16_BYTES,
        f"bank_{BANK_RANKS}_ranks": outline.bank_values(BANK_RANKS) * BF16_BYTES,
        f"kv_cache_{CACHE_TOKENS}_tokens": outline.cache_values(CACHE_TOKENS) * BF16_BYTES,
    }
    if outline.dtype is not None:
        report.dtype = str(outline.dtype).removeprefix("torch.")


def _add_inputs(report: BaseModelReport, inputs: InputFormat) -> None:
    report.image_limits = dict(inputs.image_limits)
    report.tokenizer = inputs.tokenizer
    report.tokenizer_tokens = inputs.tokens
    report.chat_template = inputs.template


def _add_stored(report: BaseModelReport, folder: Path, outline: ModelOutline) -> None:
    stored = stored_tensors(folder)
    files = {tensor.file for tensor in stored.values()}
    report.stored_tensors = len(stored)
    report.stored_parameters = sum(tensor.header.values for tensor in stored.values())
    report.weight_files = len(files)
    report.weight_file_bytes = sum(os.path.getsize(file) for file in files)
    dtypes = sorted({tensor.header.dtype for tensor in stored.values()})
    report.dtype = ", ".join(dtypes)
    if "float32" in dtypes:
        report.warnings.append(
            "stored in float32, and served so on a GPU unless --dtype bfloat16 is given; the memory given is bfloat16's"
        )
    surplus = report.stored_parameters - outline.parameters
    if surplus < 0:
        report.problems.append(
            f"the files hold {report.stored_parameters:,} values, and config.json describes {outline.parameters:,}: "
            "they are not whole, or config.json is another model's; download the folder again"
        )
    if (
        surplus > 0 and surplus != outline.vocab_size * outline.hidden
    ):  # A copy of the tied head is left out in silence.
        report.problems.append(
            f"the files hold {surplus:,} values more than config.json describes: loading fails, and names the tensors "
            "without a place; download the folder again"
        )
