"""Report on a PEFT adapter folder: its contents, and whether it can be served on its base model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from generation_service.adapters.checking import CheckpointReader, check_adapter
from generation_service.adapters.checkpoint.folder_files import check_files, ignored_files
from generation_service.adapters.checkpoint.keys import module_of
from generation_service.adapters.checkpoint.peft_config import ALL_LINEAR, CONFIG_FILE, PeftConfig, arithmetic
from generation_service.adapters.checkpoint.peft_options import refusals, unknown_settings
from generation_service.adapters.checkpoint.reader import (
    content_revision,
    read_config_content,
    tensor_headers,
)
from generation_service.adapters.source import REVISION_LENGTH
from generation_service.commands.base_model_report import BF16_BYTES
from generation_service.commands.server_options import ServerOptions
from generation_service.models.folder import default_model_name
from generation_service.models.quantised.gguf_folder import model_folder
from generation_service.models.registry import family_of
from generation_service.models.validation import check_base_model
from infra.contract.errors import CheckpointError, LoraRetrieverError

_TRAINING_ONLY = ("lora_dropout", "lorap_lr_ratio")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_SHOWN = 6


@dataclass
class AdapterReport:
    """An adapter according to its files. A field is None if no file states it; names are the keys of the JSON output.

    `rank` and `alpha` are those of the config; the ranges are over its modules. `bound_tensors` is None without a base
    model to check against. `rank_columns` are the bank columns the adapter takes, `bytes` the size of its factors in
    bfloat16, `bank_bytes` the size of those columns over all modules of the base model. `short_revision` appears in the
    answers of a server that finds adapters by folder.
    """

    kind: ClassVar[str] = "adapter"
    path: str
    supported: bool = False
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    peft_type: str | None = None
    base_model: str | None = None
    rank: int | None = None
    rank_range: tuple[int, int] | None = None
    alpha: float | None = None
    use_rslora: bool | None = None
    scaling_range: tuple[float, float] | None = None
    target_modules: Any = None
    tensors: int | None = None
    dtype: str | None = None
    checked_against: str | None = None
    bound_tensors: int | None = None
    adapted_modules: int | None = None
    rank_columns: int | None = None
    bytes: int | None = None
    bank_bytes: int | None = None
    revision: str | None = None
    short_revision: str | None = None


def inspect_adapter(folder: Path, base_model: Path | None, options: ServerOptions) -> AdapterReport:
    """Report on the config and weights of `folder`, and whether a server of the model in `base_model` serves it.

    None: the folder that the config names as its base model, if it exists.
    """
    report = AdapterReport(str(folder))
    config = _add_config(report, folder)
    _add_headers(report, folder, config)
    _add_files(report, folder)
    base = base_model or _named_folder(report.base_model)
    if base is None:
        report.warnings.append(
            "whether its tensors bind is unknown: give the folder of its base model with --base-model PATH"
        )
    else:
        _add_binding(report, folder, base, options, config)
    report.supported = not report.problems
    return report


def _add_config(report: AdapterReport, folder: Path) -> PeftConfig | None:
    try:
        content = read_config_content(folder)
        report.peft_type = str(content.get("peft_type") or "")
        report.base_model = str(content.get("base_model_name_or_path") or "")
        report.target_modules = content.get("target_modules")
        report.problems += refusals(content)
        config = arithmetic(content, str(folder / CONFIG_FILE))
    except CheckpointError as error:
        if not report.problems:
            report.problems.append(error.message)
        return None
    report.rank, report.alpha, report.use_rslora = config.rank, config.alpha, config.use_rslora
    ignored = [f"{name} {content[name]}" for name in _TRAINING_ONLY if content.get(name)]
    if ignored:
        report.warnings.append(f"ignored, since it matters in training only: {', '.join(ignored)}")
    if unknown := unknown_settings(content):
        report.warnings.append(f"ignored, options that this version of PEFT does not know: {_listed(unknown)}")
    if config.selection.unverified:
        report.warnings.append(f"its tensors alone say which layers it adapts, since {config.selection.unverified}")
    if not report.base_model:
        report.warnings.append("its config names no base model: any server accepts it if its tensors bind")
    return config


def _add_headers(report: AdapterReport, folder: Path, config: PeftConfig | None) -> None:
    try:
        headers = tensor_headers(folder)
        if config is not None:
            report.revision = content_revision(folder)
            report.short_revision = report.revision[:REVISION_LENGTH]
    except CheckpointError as error:
        report.problems.append(error.message)
        return
    report.tensors = len(headers)
    report.dtype = ", ".join(sorted({header.dtype for header in headers.values()}))
    report.bytes = sum(header.values for header in headers.values()) * BF16_BYTES
    ranks = {module_of(key): header.shape[0] for key, header in headers.items() if ".lora_A." in key and header.shape}
    if ranks:
        report.adapted_modules = len(ranks)
        report.rank_range = (min(ranks.values()), max(ranks.values()))
        report.rank_columns = max(ranks.values())
    if ranks and config is not None:
        scalings = [config.scaling_of(module) for module in ranks]
        report.scaling_range = (min(scalings), max(scalings))


def _add_binding(
    report: AdapterReport, folder: Path, base: Path, options: ServerOptions, config: PeftConfig | None
) -> None:
    """Check the adapter as the server does; its message replaces what was found without the base model."""
    report.checked_against = str(base)
    try:
        base = model_folder(base)
        model = check_base_model(family_of(base), base, options.load).model
    except LoraRetrieverError as error:
        report.problems.append(f"its base model: {error.message}")
        return
    description = model.description
    columns = report.rank_columns or 0
    report.bank_bytes = columns * sum(map(sum, description.targets.values())) * BF16_BYTES
    reader = CheckpointReader(description.targets, model.canonical, options.bank_ranks, description.dtype)
    try:
        weights = check_adapter(folder, reader, (default_model_name(base), *options.model_aliases))
        report.bound_tensors, report.problems = report.tensors, []
    except LoraRetrieverError as error:
        report.problems = [error.message]
        if "unbound" in error.metadata and report.tensors is not None:
            report.bound_tensors = report.tensors - int(error.metadata["unbound"])
        return
    if config is not None:
        _warn_about_untrained(report, config, description.targets.keys() - weights.modules.keys())


def _named_folder(name: str | None) -> Path | None:
    with suppress(OSError, ValueError):  # Not a path (too long, or with a NUL), or not readable.
        if name and Path(name).is_dir():
            return Path(name)
    return None


def _warn_about_untrained(report: AdapterReport, config: PeftConfig, without: Iterable[str]) -> None:
    """Note layers that the config selects and that have no tensors: they stay unchanged, as in PEFT."""
    if config.selection.unverified or not config.target_modules or ALL_LINEAR in config.target_modules:
        return
    if untrained := sorted(layer for layer in without if layer in config.selection):
        report.warnings.append(
            f"its config also selects {len(untrained)} layers without tensors, which stay unchanged: "
            f"{_listed(untrained)}"
        )


def _add_files(report: AdapterReport, folder: Path) -> None:
    try:
        check_files(folder)
    except CheckpointError as error:
        report.problems.append(error.message)
    others = ignored_files(folder)
    pickles = [name for name in others if name.endswith(_PICKLES)]
    plain = [name for name in others if name not in pickles]
    if pickles:
        report.warnings.append(f"pickles, which are never opened: {_listed(pickles)}")
    if plain:
        report.warnings.append(f"ignored files: {_listed(plain)}")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
