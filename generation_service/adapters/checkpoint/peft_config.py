"""`adapter_config.json` of a PEFT folder: ranks, alphas and scaling, and the options that are not supported."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from generation_service.adapters.checkpoint.pattern_cost import match_steps
from infra.contract.errors import CheckpointError

CONFIG_FILE = "adapter_config.json"

_REFUSED = {
    "use_dora": "DoRA (use_dora) scales the merged weight by a learnt magnitude",
    "modules_to_save": "modules_to_save holds whole layers of the base model",
    "trainable_token_indices": "trainable_token_indices replaces rows of the embedding",
    "fan_in_fan_out": "fan_in_fan_out stores weights transposed, for Conv1D layers",
    "lora_bias": "lora_bias adds a bias to B",
    "layer_replication": "layer_replication changes the layers of the base model",
    "target_parameters": "target_parameters adapts bare parameters (experts), not linear layers",
    "alora_invocation_tokens": "alora_invocation_tokens (aLoRA) applies only after certain tokens",
    "use_qalora": "QA-LoRA (use_qalora) pools the input",
    "use_bdlora": "BD-LoRA (use_bdlora) has block-diagonal factors",
    "arrow_config": "Arrow (arrow_config) routes between adapters by token",
    "kasa_config": "KaSA (kasa_config) has singular values between A and B",
    "monteclora_config": "MonteCLoRA (monteclora_config) samples its factors",
    "velora_config": "VeLoRA (velora_config) compresses activations",
    "megatron_config": "megatron_config shards layers across devices",
}
_KNOWN_USES = {"use_rslora", *_REFUSED}
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")
_MAX_RANK = 2**16
_MAX_ALPHA = 1e9
_MAX_PATTERNS = 4096
"""More than one for each adapted layer of the largest models."""
_MAX_PATTERN_LENGTH = 512
_MAX_STEPS = 2**24
"""Bound of the steps to match all patterns of a config against one name. Pathological patterns exceed it by far."""


@dataclass(frozen=True)
class PeftConfig:
    """Ranks and alphas of a LoRA, with their exceptions by module pattern, and its kind of scaling.

    `target_modules` are the module names, or the one pattern, that the config lists; empty if it lists none.
    """

    rank: int
    alpha: float
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    base_model: str = ""
    target_modules: frozenset[str] = frozenset()

    @property
    def largest_rank(self) -> int:
        """The largest rank that any module may have."""
        return max(self.rank, *self.rank_pattern.values(), 0)

    def rank_of(self, module: str) -> int:
        """Return the rank of `module`, a name as in the checkpoint."""
        return self.rank_pattern.get(_pattern_of(self.rank_pattern, module), self.rank)

    def scaling_of(self, module: str) -> float:
        """Return alpha / r of `module`, or alpha / sqrt(r) with rsLoRA."""
        alpha = self.alpha_pattern.get(_pattern_of(self.alpha_pattern, module), self.alpha)
        rank = self.rank_of(module)
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
    """Return the ranks, alphas and scaling of a config. Raises CheckpointError for invalid values."""
    rank_pattern = content.get("rank_pattern") or {}
    alpha_pattern = content.get("alpha_pattern") or {}
    for name, pattern in (("rank_pattern", rank_pattern), ("alpha_pattern", alpha_pattern)):
        _check_pattern(pattern, f"{where}: {name}")
    return PeftConfig(
        rank=_rank(content.get("r"), f"{where}: r"),
        alpha=_alpha(content.get("lora_alpha"), f"{where}: lora_alpha"),
        use_rslora=bool(content.get("use_rslora")),
        rank_pattern={key: _rank(value, f"{where}: rank_pattern[{key!r}]") for key, value in rank_pattern.items()},
        alpha_pattern={key: _alpha(value, f"{where}: alpha_pattern[{key!r}]") for key, value in alpha_pattern.items()},
        base_model=str(content.get("base_model_name_or_path") or ""),
        target_modules=_targets(content.get("target_modules")),
    )


def refusals(content: Mapping[str, Any]) -> list[str]:
    """Return a clause for each option of a config that would change the answer and is not supported."""
    kind = content.get("peft_type")
    if kind != "LORA":
        return [f"peft_type is {kind!r}; this server applies LORA only"]
    refused = [f"{reason}, which this server does not apply" for name, reason in _REFUSED.items() if content.get(name)]
    if content.get("bias", "none") not in ("none", None):
        refused.append(f"bias is {content['bias']!r}: trained biases of the base model are not applied")
    init = content.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_BASE_CHANGING_INITS):
        refused.append(
            f"init_lora_weights is {init!r}, which also changed the base model's weights: save the adapter again with "
            "PEFT's path_initial_model_for_weight_conversion"
        )
    unknown = [name for name, value in content.items() if name.startswith("use_") and value and name not in _KNOWN_USES]
    return [*refused, *(f"{name} is set, a LoRA option that this server does not know" for name in unknown)]


def _targets(value: object) -> frozenset[str]:
    names = value if isinstance(value, list) else [value]
    return frozenset(name for name in names if isinstance(name, str))


def _check_pattern(pattern: object, where: str) -> None:
    if not isinstance(pattern, dict):
        raise CheckpointError(f"{where} must be an object of module patterns, it is a {type(pattern).__name__}")
    if len(pattern) > _MAX_PATTERNS:
        raise CheckpointError(f"{where} has {len(pattern)} patterns; the limit is {_MAX_PATTERNS}")
    steps = 0
    for key in pattern:
        steps += _steps(key, where)
        if steps > _MAX_STEPS:
            raise CheckpointError(
                f"{where} has a pattern that may take too long to match: {key!r}; write it without a repeat within a "
                "repeat, and with fewer repeats and alternatives, such as 'layers.[0-9]+.self_attn.q_proj'"
            )


def _steps(key: str, where: str) -> int:
    """Return a bound of the steps to match a pattern. Raises CheckpointError if it is not a regular expression."""
    if len(key) > _MAX_PATTERN_LENGTH:
        raise CheckpointError(
            f"{where} has a pattern of {len(key)} characters, {key[:40]!r}...; the limit is {_MAX_PATTERN_LENGTH}"
        )
    try:
        re.compile(key)
        _matcher(key)
        return match_steps(key)
    except (re.error, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{where} has a pattern that is not a regular expression: {key!r} ({error})") from error


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
    return next((key for key in patterns if _matcher(key).match(module)), module)


@lru_cache(_MAX_PATTERNS)
def _matcher(key: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({key})$")
