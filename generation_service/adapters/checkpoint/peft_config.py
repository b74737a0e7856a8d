"""`adapter_config.json` of a PEFT folder: ranks, alphas, scaling, and the modules that it adapts."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists

from generation_service.adapters.checkpoint.patterns import (
    PatternError,
    check_full,
    check_suffix,
    is_full_match,
    is_suffix_match,
)
from generation_service.adapters.checkpoint.peft_options import refusals
from infra.contract.errors import CheckpointError

CONFIG_FILE = "adapter_config.json"
ALL_LINEAR = "all-linear"

_MAX_RANK = 2**16
_MAX_ALPHA = 1e9
_MAX_PATTERNS = 4096
"""More than one for each adapted layer of the largest models."""
_MAX_PATTERN_LENGTH = 512
_LAYERS_NAME = re.compile(r"[\w.]*")
_SELECTING = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


@dataclass(frozen=True)
class Selection:
    """Which modules a config adapts. Names and layer indices are matched by PEFT, expressions over whole names by RE2.

    `pattern` and `excluded` are the expressions, empty if there are none; `library` is PEFT's config without them.
    `unverified` says why membership is unknown; every module counts as selected then.
    """

    pattern: str = ""
    excluded: str = ""
    library: Any = None
    unverified: str = ""

    def __contains__(self, module: str) -> bool:
        if self.excluded and is_full_match(self.excluded, module):
            return False
        if self.library is not None and not check_target_module_exists(self.library, module):
            return False
        return not self.pattern or is_full_match(self.pattern, module)


@dataclass(frozen=True)
class PeftConfig:
    """Ranks and alphas of a LoRA, with their exceptions by module pattern, and its kind of scaling.

    `target_modules` are the module names, or the one pattern, that the config lists; empty if it lists none.
    `selection` decides whether the config adapts a module.
    """

    rank: int
    alpha: float
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    base_model: str = ""
    target_modules: frozenset[str] = frozenset()
    selection: Selection = field(default_factory=Selection, compare=False)

    @property
    def largest_rank(self) -> int:
        """The largest rank that any module may have."""
        return max(self.rank, *self.rank_pattern.values(), 0)

    def rank_of(self, module: str) -> int:
        """Return the rank of `module`, a name as in the checkpoint."""
        return self.rank_pattern.get(_pattern_of(self.rank_pattern, module), self.rank)

    def scaling_of(self, module: str) -> float:
        """Return alpha/r of `module`, a name as in the checkpoint, or alpha/sqrt(r) for rsLoRA."""
        rank = self.rank_of(module)
        alpha = self.alpha_pattern.get(_pattern_of(self.alpha_pattern, module), self.alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def parse_config(data: bytes | bytearray, where: str) -> PeftConfig:
    """Return the config of the PEFT file at `where`. Raises CheckpointError if it is broken or not supported."""
    content = read_content(data, where)
    refused = refusals(content)
    if refused:
        raise CheckpointError(f"{where}: {'; '.join(refused)}")
    return arithmetic(content, where)


def read_content(data: bytes | bytearray, where: str) -> dict[str, Any]:
    """Return the JSON object in the file at `where`. Raises CheckpointError if it is not a JSON object."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not valid JSON ({error}): was it written to the end?") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{where} must hold a JSON object, it holds a {type(content).__name__}")
    return content


def arithmetic(content: Mapping[str, Any], where: str) -> PeftConfig:
    """Return the ranks, alphas, scaling and modules of a config. Raises CheckpointError for invalid values."""
    rank_pattern = content.get("rank_pattern") or {}
    alpha_pattern = content.get("alpha_pattern") or {}
    for name, pattern in (("rank_pattern", rank_pattern), ("alpha_pattern", alpha_pattern)):
        _check_patterns(pattern, f"{where}: {name}")
    return PeftConfig(
        rank=_rank(content.get("r"), f"{where}: r"),
        alpha=_alpha(content.get("lora_alpha"), f"{where}: lora_alpha"),
        use_rslora=bool(content.get("use_rslora")),
        rank_pattern={key: _rank(value, f"{where}: rank_pattern[{key!r}]") for key, value in rank_pattern.items()},
        alpha_pattern={key: _alpha(value, f"{where}: alpha_pattern[{key!r}]") for key, value in alpha_pattern.items()},
        base_model=str(content.get("base_model_name_or_path") or ""),
        target_modules=frozenset(_names(content.get("target_modules"), f"{where}: target_modules")),
        selection=_selection(content, where),
    )


def _selection(content: Mapping[str, Any], where: str) -> Selection:
    library = _library_config(content, where)
    expressions = {name: getattr(library, name) for name in ("target_modules", "exclude_modules")}
    expressions = {name: value for name, value in expressions.items() if isinstance(value, str) and value != ALL_LINEAR}
    for name, expression in expressions.items():
        try:
            check_full(expression)
        except PatternError as error:
            if not error.valid:
                raise CheckpointError(f"{where}: {name} is {expression[:40]!r}: {error}") from error
            return Selection(unverified=f"{name} is {expression[:60]!r}: {error}")
    if not isinstance(library.target_modules, set):
        library.target_modules = ".*"  # Every module, as far as the library is concerned.
    if "exclude_modules" in expressions:
        library.exclude_modules = None
    return Selection(expressions.get("target_modules", ""), expressions.get("exclude_modules", ""), library)


def _library_config(content: Mapping[str, Any], where: str) -> Any:
    """Return PEFT's own config of the selecting options, which checks how they go together."""
    for name in ("target_modules", "exclude_modules", "layers_pattern"):
        _names(content.get(name), f"{where}: {name}")
    for name in _names(content.get("layers_pattern"), f"{where}: layers_pattern"):
        if not _LAYERS_NAME.fullmatch(name):
            raise CheckpointError(
                f"{where}: layers_pattern must name lists of layers, such as 'layers', got {name!r:.40}"
            )
    if not _are_indices(content.get("layers_to_transform")):
        raise CheckpointError(f"{where}: layers_to_transform must be a whole number or an array of them")
    # Older versions write [] for an option that is not set. An empty `target_modules` selects nothing.
    unset = {name for name in _SELECTING[1:] if content.get(name) in (None, [], "")}
    options = {name: content.get(name) for name in _SELECTING if name not in unset}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return LoraConfig(**options)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: {error}") from error


def _names(value: object, where: str) -> list[str]:
    names: list[Any] = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{where} must be a string or an array of strings, got {str(value)[:40]!r}")
    return names


def _are_indices(value: object) -> bool:
    indices = value if isinstance(value, list) else [0 if value is None else value]
    return all(type(index) is int for index in indices)


def _check_patterns(pattern: object, where: str) -> None:
    if not isinstance(pattern, dict):
        raise CheckpointError(f"{where} must be an object of module patterns, it is a {type(pattern).__name__}")
    if len(pattern) > _MAX_PATTERNS:
        raise CheckpointError(f"{where} has {len(pattern)} patterns; the limit is {_MAX_PATTERNS}")
    for key in pattern:
        if len(key) > _MAX_PATTERN_LENGTH:
            raise CheckpointError(
                f"{where} has a pattern of {len(key)} characters, {key[:40]!r}...; the limit is {_MAX_PATTERN_LENGTH}"
            )
        try:
            check_suffix(key)
        except PatternError as error:
            raise CheckpointError(
                f"{where} has the pattern {key!r}, and {error}: write it with names, [], |, * and +, such as "
                "'layers.[0-9]+.self_attn.q_proj'"
            ) from error


def _rank(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_RANK:
        raise CheckpointError(f"{where} must be a whole number from 1 to {_MAX_RANK}, got {str(value)[:40]!r}")
    return value


def _alpha(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _MAX_ALPHA:
        raise CheckpointError(f"{where} must be a finite number, got {str(value)[:40]}")
    return float(value)


def _pattern_of(patterns: Mapping[str, object], module: str) -> str:
    """Return the first pattern that matches the end of `module`, as PEFT's `get_pattern_key` does, else `module`."""
    return next((key for key in patterns if is_suffix_match(key, module)), module)
