"""Report on the folder of a base model: its contents, and whether this version serves it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from generation_service.commands.server_options import BANK_RANKS
from generation_service.models.base import InputFormat, LoadOptions, ModelArchitecture
from generation_service.models.folder import default_model_name, read_config
from generation_service.models.quantised.gguf_folder import model_folder
from generation_service.models.quantised.methods import quantisation_of, served_tensors
from generation_service.models.registry import family_of
from generation_service.models.validation import check_base_model
from infra.contract.errors import CheckpointError

BF16_BYTES = 2
_CACHE_TOKENS = 1000  # A round number to multiply by the expected sequence length.


@dataclass
class BaseModelReport:
    """A base model according to its files. A field is None if no file states it; names are keys of the JSON output.

    `parameters` are those that config.json describes, `stored_parameters` those in the files. `memory_bytes` is the
    memory for serving in bfloat16: the weights, an adapter bank of 512 ranks, and 1,000 tokens of KV cache.
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
    quantisation: str | None = None
    memory_bytes: Mapping[str, int] | None = None


def inspect_base_model(path: Path, options: LoadOptions) -> BaseModelReport:
    """Report on a folder or GGUF file: what the server's own check of it finds, then what its files state."""
    report = BaseModelReport(str(path))
    try:
        folder = model_folder(path)
    except CheckpointError as error:
        report.problems.append(error.message)
        return report
    try:
        report.name = default_model_name(folder)
        report.model_type = str(read_config(folder).get("model_type"))
        family = family_of(folder)
        checked = check_base_model(family, folder, options)
        report.warnings += checked.warnings
    except CheckpointError as error:
        report.problems.append(error.message)
    with suppress(Exception):  # The facts of a folder that is not served are shown as far as they can be read.
        family = family_of(folder)
        _add_architecture(report, family.describe(folder))
    with suppress(Exception):
        _add_input_format(report, family.input_format(folder, options))
    with suppress(Exception):
        _add_stored(report, folder)
    report.supported = not report.problems
    return report


def _add_architecture(report: BaseModelReport, architecture: ModelArchitecture) -> None:
    report.family = architecture.title
    report.parameters = architecture.parameters
    report.hidden_size = architecture.hidden
    report.layers = architecture.layers
    report.heads, report.kv_heads, report.head_dim = architecture.heads, architecture.kv_heads, architecture.head_dim
    report.vocab_size = architecture.vocab_size
    report.max_positions = architecture.max_positions
    report.adaptable_modules = len(architecture.targets)
    report.adaptable_image_modules = sum(path.startswith(architecture.by_image) for path in architecture.targets)
    report.memory_bytes = {
        "weights": architecture.parameters * BF16_BYTES,
        f"bank_{BANK_RANKS}_ranks": architecture.bank_values(BANK_RANKS) * BF16_BYTES,
        f"kv_cache_{_CACHE_TOKENS}_tokens": architecture.cache_values(_CACHE_TOKENS) * BF16_BYTES,
    }
    if architecture.dtype is not None:
        report.dtype = str(architecture.dtype).removeprefix("torch.")


def _add_input_format(report: BaseModelReport, input_format: InputFormat) -> None:
    report.image_limits = dict(input_format.image_limits)
    report.tokenizer = input_format.tokenizer
    report.tokenizer_tokens = input_format.tokens
    report.chat_template = input_format.template


def _add_stored(report: BaseModelReport, folder: Path) -> None:
    report.quantisation = quantisation_of(folder)
    stored = served_tensors(folder)
    files = {tensor.file for tensor in stored.values()}
    report.stored_tensors = len(stored)
    report.stored_parameters = sum(tensor.header.values for tensor in stored.values())
    report.weight_files = len(files)
    report.weight_file_bytes = sum(os.path.getsize(file) for file in files)
    dtypes = sorted({tensor.header.dtype for tensor in stored.values()})
    report.dtype = ", ".join(dtypes)
    if "float32" in dtypes and report.quantisation:
        report.warnings.append(
            "dequantised on load: served in float32 unless --dtype bfloat16 is given; the memory is for bfloat16"
        )
    elif "float32" in dtypes:
        report.warnings.append(
            "stored in float32, and served so on a GPU unless --dtype bfloat16 is given; the memory is for bfloat16"
        )
