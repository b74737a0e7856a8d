"""How the device's memory is shared out between weights, adapters and running answers."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from generation_service.execution.kv_cache import CacheShape
from generation_service.models.base import ModelDescription
from infra.contract.errors import ConfigurationError

HOST_CACHE_BYTES = 2 * 2**30
DEVICE_RESERVE = 0.15
SHORTEST_DEFAULT = 256
LONGEST_DEFAULT = 32768


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of weights, adapter bank and KV cache, and the shape of that cache."""

    weight_bytes: int
    bank_bytes: int
    cache: CacheShape
    cache_bytes: int


def bank_bytes(model: ModelDescription, ranks: int) -> int:
    """Return the memory of an adapter bank: A and B of every adaptable layer."""
    return ranks * model.dtype.itemsize * sum(inputs + outputs for inputs, outputs in model.targets.values())


def plan_memory(
    model: ModelDescription, *, ranks: int, slots: int, sequence_tokens: int | None, available: int
) -> MemoryPlan:
    """Return the plan for `slots` running sequences when `available` bytes are left beside weights and bank.

    Unset, `sequence_tokens` is what the model and that memory allow; a CPU may be told to use more than that default.
    Raises ConfigurationError when it does not fit.
    """
    if sequence_tokens is not None and sequence_tokens > model.max_positions:
        raise ConfigurationError(
            f"max_sequence_tokens is {sequence_tokens}; this model was made for {model.max_positions} at most"
        )
    per_token = CacheShape(model.layers, slots, model.kv_heads, 0, model.head_dim).bytes(model.dtype)
    fits = max(0, available // per_token - 1)
    length = sequence_tokens or min(model.max_positions, LONGEST_DEFAULT, fits)
    if sequence_tokens is None and length < min(SHORTEST_DEFAULT, model.max_positions):
        raise ConfigurationError(
            f"{available} bytes are left for the KV cache, room for {fits} tokens in each of {slots} slots: set a "
            "smaller max_running or bank_ranks, or say max_sequence_tokens"
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
    """Return the bytes the KV cache may take by default, weights being loaded and the bank not.

    On a GPU what is free less the bank and a reserve for activations; on a CPU a quarter of the memory, 2 GiB at most.
    """
    if model.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(model.device)
        return max(0, free - bank_bytes(model, ranks) - round(DEVICE_RESERVE * total))
    return min(HOST_CACHE_BYTES, _physical_bytes() // 4)


def _physical_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
