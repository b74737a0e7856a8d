"""Bind each tensor of a LoRA checkpoint to a module of the base model, or list what does not bind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

import torch
from torch import Tensor

from generation_service.adapters.checkpoint.keys import FactorKey, parse_key
from generation_service.adapters.checkpoint.peft_config import PeftConfig
from generation_service.lora.weights import LoraPair, Shapes, all_finite
from infra.contract.errors import CheckpointError

_WITHOUT_ADAPTER = {"lm_head": "the output head", "embed_tokens": "the embedding"}
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
    keys = {key: parse_key(key) for key in tensors}
    names = {parsed.adapter for parsed in keys.values() if isinstance(parsed, FactorKey)}
    if len(names) > 1:
        raise CheckpointError(
            f"{where} holds several adapters, {', '.join(sorted(names))}: save each in a folder of its own"
        )
    factors, problems = _factors(tensors, keys)
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


def _factors(
    tensors: Mapping[str, Tensor], keys: Mapping[str, FactorKey | str]
) -> tuple[dict[str, _Factors], list[_Problem]]:
    by_module: dict[str, _Factors] = {}
    problems: list[_Problem] = []
    for key, tensor in sorted(tensors.items()):
        parsed = keys[key]
        if isinstance(parsed, str):
            problems.append(_Problem(f"{key}: {parsed}"))
            continue
        factors = by_module.setdefault(parsed.module, _Factors())
        if parsed.factor in factors.tensors:
            problems.append(_Problem(f"{key}: {factors.keys[parsed.factor]} is the same factor of the same module"))
            continue
        factors.tensors[parsed.factor] = tensor
        factors.keys[parsed.factor] = key
    return by_module, problems


def _bound(
    module: str, factors: _Factors, config: PeftConfig, targets: Shapes, rename: Rename, *, dtype: torch.dtype
) -> Iterator[tuple[str, LoraPair]]:
    if factors.tensors.keys() != {"A", "B"}:
        raise _UnboundError(f"its counterpart lora_{'B' if 'A' in factors.tensors else 'A'} is missing")
    a, b = factors.tensors["A"], factors.tensors["B"]
    renamed = rename(module)
    paths = [renamed] if isinstance(renamed, str) else [part.module for part in renamed]
    for path in paths:
        _check_layer(path, targets)
    # Under either name: tools rename the keys of a file for newer models, and leave its config as it was.
    if not any(name in config.selection for name in (module, *paths)):
        raise _UnboundError(
            "the config's target_modules and exclude_modules leave its module out, so PEFT would not apply it: name it "
            "there if it was trained, else remove the tensor"
        )
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
    """Raise if the base model has no such layer."""
    if path not in targets:
        part = _WITHOUT_ADAPTER.get(path.rpartition(".")[2])
        why = f" ({part} takes no adapter: train with target_modules that leave it out)" if part else ""
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
