"""Bind each tensor of a LoRA checkpoint to a module of the base model, or list what does not bind."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

import torch
from torch import Tensor

from generation_service.adapters.checkpoint.peft_config import PeftConfig
from generation_service.lora.weights import LoraPair, Shapes, all_finite
from infra.contract.errors import CheckpointError

_FACTOR_KEY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.(?P<name>[^.]+))?\.weight")
_REFUSED_KEYS = (
    ("lora_embedding_", "embedding LoRA is not applied"),
    ("lora_magnitude_vector", "DoRA is not applied"),
    ("modules_to_save", "modules_to_save are not applied"),
    ("trainable_tokens", "trained tokens are not applied"),
    (".bias", "trained biases are not applied"),
)
_HEAD = "lm_head"
_SHOWN = 8
"""Problems listed in an error message: enough to see the pattern in a checkpoint of another model."""


@dataclass(frozen=True)
class FusedSlice:
    """The part of a checkpoint's fused module that belongs to one canonical module.

    `rows` [out features of the canonical module] index the fused module's outputs. The slices of a fused module
    together cover each row once.
    """

    module: str
    rows: Tensor


Rename = Callable[[str], str | Sequence[FusedSlice]]
"""A module name as in the checkpoint -> its canonical path, or the slices of a fused module."""


def bind(
    tensors: Mapping[str, Tensor],
    config: PeftConfig,
    targets: Shapes,
    rename: Rename,
    *,
    where: str,
    dtype: torch.dtype,
) -> dict[str, LoraPair]:
    """Return the factors of `tensors` by canonical module, with the scaling folded into b.

    Raises CheckpointError unless every tensor binds exactly once, with the shape of its module and the rank in the
    config.
    """
    names = {match["name"] or "default" for match in map(_FACTOR_KEY.fullmatch, tensors) if match}
    if len(names) > 1:
        raise CheckpointError(
            f"{where} holds several adapters, {', '.join(sorted(names))}: save each in a folder of its own"
        )
    factors, problems = _factors(tensors)
    pairs: dict[str, LoraPair] = {}
    bound_by: dict[str, str] = {}
    for module, pair in factors.items():
        try:
            for path, bound in _bound(module, pair, config, targets, rename, dtype=dtype):
                if path in pairs:
                    raise _UnboundError(f"{path} is bound by another tensor already, of the module {bound_by[path]}")
                pairs[path], bound_by[path] = bound, module
        except _UnboundError as error:
            problems.extend(_Problem(f"{key}: {error}", error.sought) for key in pair.keys.values())
    if problems:
        shown = "".join(f"\n  {problem.text}{_nearest(problem.sought, targets)}" for problem in problems[:_SHOWN])
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise CheckpointError(
            f"{where}: {len(problems)} of {len(tensors)} tensors do not bind to this base model:{shown}{more}",
            unbound=str(len(problems)),
        )
    if not pairs:
        raise CheckpointError(f"{where} holds no LoRA tensors")
    return pairs


def module_of(key: str) -> str:
    """Return the module in a LoRA tensor's key, without "base_model.model."; other keys are returned as they are."""
    match = _FACTOR_KEY.fullmatch(key)
    return match["module"] if match else key


class _UnboundError(Exception):
    """Why the tensors of one module do not bind. `sought` is the layer that the base model lacks, if that is why."""

    def __init__(self, message: str, sought: str = "") -> None:
        super().__init__(message)
        self.sought = sought


@dataclass(frozen=True)
class _Problem:
    text: str
    sought: str = ""


@dataclass
class _Factors:
    """The tensors of one module of the checkpoint and their keys, by "A" or "B"."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)


def _factors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, _Factors], list[_Problem]]:
    by_module: dict[str, _Factors] = {}
    problems: list[_Problem] = []
    for key, tensor in sorted(tensors.items()):
        match = _FACTOR_KEY.fullmatch(key)
        refused = next((reason for part, reason in _REFUSED_KEYS if part in key), None)
        if match is None or refused:
            problems.append(_Problem(f"{key}: {refused or 'it is not a lora_A or lora_B weight'}"))
            continue
        factors = by_module.setdefault(match["module"], _Factors())
        if match["factor"] in factors.tensors:
            problems.append(_Problem(f"{key}: {factors.keys[match['factor']]} is the same factor of the same module"))
            continue
        factors.tensors[match["factor"]] = tensor
        factors.keys[match["factor"]] = key
    return by_module, problems


def _bound(
    module: str, factors: _Factors, config: PeftConfig, targets: Shapes, rename: Rename, *, dtype: torch.dtype
) -> Iterator[tuple[str, LoraPair]]:
    if factors.tensors.keys() != {"A", "B"}:
        raise _UnboundError(f"its counterpart lora_{'B' if 'A' in factors.tensors else 'A'} is missing")
    a, b = factors.tensors["A"], factors.tensors["B"]
    renamed = rename(module)
    for path in (renamed,) if isinstance(renamed, str) else (part.module for part in renamed):
        _check_layer(path, targets)
    rank = config.rank_of(module)
    if isinstance(renamed, str):
        _check(renamed, a, b, targets, rank)
        yield renamed, _pair(a, b, config.scaling_of(module), dtype)
        return
    _check_split(renamed, b)
    for part in renamed:
        rows = b.index_select(0, part.rows)
        _check(part.module, a, rows, targets, rank)
        yield part.module, _pair(a, rows, config.scaling_of(module), dtype)


def _check_split(parts: Sequence[FusedSlice], b: Tensor) -> None:
    rows = torch.cat([part.rows for part in parts]).sort().values
    if b.dim() != 2 or not torch.equal(rows, torch.arange(b.shape[0])):
        raise _UnboundError(f"lora_B is {list(b.shape)}, its module has {len(rows)} outputs")


def _check_layer(path: str, targets: Shapes) -> None:
    """Raise if the base model has no such layer.

    Checked before the config's patterns are matched against the name, whose length only real layers bound.
    """
    if path not in targets:
        head = " (the output head takes no adapter: train with target_modules that leave it out)"
        why = head if path == _HEAD else ""
        raise _UnboundError(f"the base model has no adaptable layer {path}{why}", sought=path)


def _check(path: str, a: Tensor, b: Tensor, targets: Shapes, rank: int) -> None:
    inputs, outputs = targets[path]
    if a.shape != (rank, inputs) or b.shape != (outputs, rank):
        raise _UnboundError(
            f"lora_A {list(a.shape)} and lora_B {list(b.shape)} are not [{rank}, {inputs}] and [{outputs}, {rank}], "
            f"rank {rank} of the config on {path}"
        )
    if not (a.is_floating_point() and b.is_floating_point()):
        raise _UnboundError(f"{a.dtype} and {b.dtype} are not floating point types")


def _nearest(path: str, targets: Shapes) -> str:
    """Return the layers with names closest to `path`. Slow, so only called for the problems that are shown."""
    nearest = get_close_matches(path, targets, n=3) if path else []
    return f"; nearest are {', '.join(nearest)}" if nearest else ""


def _pair(a: Tensor, b: Tensor, scaling: float, dtype: torch.dtype) -> LoraPair:
    exact = torch.promote_types(dtype, torch.float32)
    pair = LoraPair(a.to(dtype).contiguous(), (b.to(exact) * scaling).to(dtype).contiguous())
    if not (all_finite(pair.a) and all_finite(pair.b)):
        raise _UnboundError(f"it has values that are NaN or infinite (in {dtype}, scaled by {scaling:.3g})")
    return pair
