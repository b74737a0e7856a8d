"""How device memory is divided between weights, the adapter bank and the KV cache."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from generation_service.execution.kv_cache import CacheShape
from generation_service.models.base import ModelDescription
from infra.contract.errors import ConfigurationError

_CPU_CACHE_BYTES = 2 * 2**30
"""Default bound of the KV cache on a CPU, so that a server on a developer's machine leaves memory to other programs."""
_DEVICE_RESERVE = 0.15
"""Fraction of a GPU's memory kept free for activations, images and fragmentation. An estimate, not measured."""
_SHORTEST_DEFAULT = 256
"""Below this many tokens a slot cannot hold a screen and an answer; start-up fails rather than each request."""
_LONGEST_DEFAULT = 32768
"""Longest sequence chosen by default. Models trained for more must be configured to use it: it costs slots."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of weights, adapter bank and KV cache, and the shape of that cache."""

    weight_bytes: int
    bank_bytes: int
    cache: CacheShape
    cache_bytes: int


def bank_bytes(model: ModelDescription, ranks: int) -> int:
    """Return the bytes of an adapter bank: A and B of every adaptable layer, for `ranks` ranks."""
    return ranks * model.dtype.itemsize * sum(inputs + outputs for inputs, outputs in model.targets.values())


def check_sequence_tokens(sequence_tokens: int | None, max_positions: int) -> None:
    """Raise ConfigurationError if the setting exceeds what a model of `max_positions` tokens supports."""
    if sequence_tokens is not None and sequence_tokens > max_positions:
        raise ConfigurationError(
            f"max_sequence_tokens is {sequence_tokens}; this model supports at most {max_positions}"
        )


def plan_memory(
    model: ModelDescription, *, ranks: int, slots: int, sequence_tokens: int | None, available: int
) -> MemoryPlan:
    """Return the plan for `slots` running sequences, with `available` bytes left after weights and bank.

    `sequence_tokens` None means as many as the model and `available` allow. On a CPU an explicit value may exceed
    `available`, which is only a default there. Raises ConfigurationError if it does not fit.
    """
    check_sequence_tokens(sequence_tokens, model.max_positions)
    per_token = CacheShape(model.layers, slots, model.kv_heads, 0, model.head_dim).bytes(model.dtype)
    fits = max(0, available // per_token - 1)
    length = sequence_tokens or min(model.max_positions, _LONGEST_DEFAULT, fits)
    if sequence_tokens is None and length < min(_SHORTEST_DEFAULT, model.max_positions):
        raise ConfigurationError(
            f"{available} bytes are left for the KV cache, room for {fits} tokens in each of {slots} slots: set a "
            "smaller max_running or bank_ranks, or set max_sequence_tokens"
        )
    shape = CacheShape(model.layers, slots, model.kv_heads, length, model.head_dim)
    cache_bytes = shape.bytes(model.dtype)
    most = available if model.device.type == "cuda" else _physical_bytes()
    if cache_bytes > most:
        raise ConfigurationError(
            f"max_sequence_tokens is {length}: the KV cache of {slots} slots would take {cache_bytes} bytes, and "
            f"{most} are available, room for {max(0, most // per_token - 1)} tokens in each slot: set a smaller "
            "max_sequence_tokens, max_running or bank_ranks"
        )
    return MemoryPlan(model.weight_bytes, bank_bytes(model, ranks), shape, cache_bytes)


def available_bytes(model: ModelDescription, ranks: int) -> int:
    """Return the bytes that the KV cache may take by default, after the weights are loaded and before the bank is.

    On a GPU the free memory less the bank and a reserve for activations; on a CPU a quarter of the memory, at most
    2 GiB.
    """
    if model.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(model.device)
        return max(0, free - bank_bytes(model, ranks) - round(_DEVICE_RESERVE * total))
    return min(_CPU_CACHE_BYTES, _physical_bytes() // 4)


def packed_copy_fits(model: ModelDescription) -> bool:
    """Return whether the weights and a packed copy of them leave half of a CPU's memory to everything else."""
    return 2 * model.weight_bytes <= _physical_bytes() // 2


def _physical_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
