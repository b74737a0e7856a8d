"""Preallocated keys and values: one slot per running sequence, each with its own length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Eager decode steps read cached lengths rounded up to a multiple of this. Coarser steps compute more masked positions;
#: finer ones change the tensors' shapes more often. No measurement is recorded.
_SPAN_STEP = 64


@dataclass(frozen=True)
class CacheShape:
    """`slots` sequences of at most `length` tokens, for `layers` layers of `kv_heads` heads of size `head_dim`."""

    layers: int
    slots: int
    kv_heads: int
    length: int
    head_dim: int

    def bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes of keys and values together, each slot's spare position included."""
        return 2 * self.layers * self.slots * self.kv_heads * (self.length + 1) * self.head_dim * dtype.itemsize


class SlotKVCache:
    """Keys and values [slots, kv_heads, length + 1, head_dim] of every layer, at fixed addresses.

    The last position of a slot is spare: idle rows of a captured step write to it, and nothing reads it. Slots start as
    zeros, because a masked position has probability 0, and only 0 times a finite number is 0.
    """

    def __init__(self, shape: CacheShape, dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        size = (shape.slots, shape.kv_heads, shape.length + 1, shape.head_dim)
        self.keys = [torch.zeros(size, dtype=dtype, device=device) for _ in range(shape.layers)]
        self.values = [torch.zeros(size, dtype=dtype, device=device) for _ in range(shape.layers)]
        self.bytes = shape.bytes(dtype)
        self._device = device

    def clear(self, slot: int) -> None:
        """Zero a slot, since a sequence that failed may have left values that are not finite."""
        for store in (*self.keys, *self.values):
            store[slot].zero_()

    def prefill_view(self, slot: int, start: int) -> PrefillView:
        """Return the cache of a forward pass over the tokens from `start` on of one sequence."""
        return PrefillView(self, slot, start)

    def packed_view(self, slots: Sequence[int], lengths: Sequence[int]) -> PackedView:
        """Return the cache of a forward pass over whole prompts, packed into one sequence, one for each of `slots`."""
        return PackedView(self, slots, lengths)

    def decode_view(self, slots: Sequence[int], lengths: Sequence[int]) -> DecodeView:
        """Return the cache of a forward pass over one new token of each of `slots`, which hold `lengths` tokens."""
        span = min(-(-(max(lengths) + 1) // _SPAN_STEP) * _SPAN_STEP, self.shape.length)
        return DecodeView(
            self,
            torch.tensor(slots, device=self._device),
            torch.tensor(lengths, device=self._device),
            span,
            adjacent=list(slots) == list(range(len(slots))),
        )


class PrefillView:
    """A transformers cache over one slot: one row, whose new tokens start at position `start`."""

    def __init__(self, cache: SlotKVCache, slot: int, start: int) -> None:
        self._cache, self._slot, self._start = cache, slot, start

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store keys and values [1, kv_heads, T, head_dim] of `layer`; return those of all start + T tokens."""
        row, end = slice(self._slot, self._slot + 1), self._start + keys.shape[2]
        all_keys, all_values = self._cache.keys[layer][row], self._cache.values[layer][row]
        all_keys[:, :, self._start : end] = keys
        all_values[:, :, self._start : end] = values
        return all_keys[:, :, :end], all_values[:, :, :end]

    def mask(self, tokens: int, device: torch.device) -> Tensor | None:
        """Return the positions that each of T new tokens attends to, [1, 1, T, start + T]; None: plain causal."""
        if self._start == 0:
            return None
        end = self._start + tokens
        return torch.ones(1, 1, tokens, end, dtype=torch.bool, device=device).tril(diagonal=self._start)


class PackedView:
    """A transformers cache over several empty slots, whose prompts follow each other in one sequence."""

    def __init__(self, cache: SlotKVCache, slots: Sequence[int], lengths: Sequence[int]) -> None:
        self._cache, self._slots, self._lengths = cache, slots, lengths

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store keys and values [1, kv_heads, sum of lengths, head_dim] of `layer` by slot; return them as they are."""
        for store, new in ((self._cache.keys[layer], keys), (self._cache.values[layer], values)):
            for slot, part in zip(self._slots, torch.split(new[0], list(self._lengths), dim=1), strict=True):
                store[slot, :, : part.shape[1]] = part
        return keys, values

    def mask(self, device: torch.device) -> Tensor:
        """Return the positions that each token attends to, [1, 1, T, T]: the earlier ones of its own prompt."""
        owners = torch.repeat_interleave(torch.tensor(self._lengths)).to(device)
        return (owners[:, None] == owners).tril()[None, None]


class DecodeView:
    """A transformers cache over several slots, one new token each."""

    def __init__(self, cache: SlotKVCache, slots: Tensor, lengths: Tensor, span: int, adjacent: bool) -> None:
        self._cache, self._slots, self._lengths, self._span = cache, slots, lengths, span
        self._adjacent = adjacent

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store keys and values [N, kv_heads, 1, head_dim] of `layer`; return [N, kv_heads, span, head_dim]."""
        return self._write(self._cache.keys[layer], keys), self._write(self._cache.values[layer], values)

    def mask(self) -> Tensor:
        """Return the positions that each row attends to, [N, 1, 1, span]: its cached tokens and its new one."""
        return _attended(self._lengths, self._span)

    def _write(self, store: Tensor, new: Tensor) -> Tensor:
        store[self._slots, :, self._lengths] = new[:, :, 0]
        if self._adjacent:
            return store[: len(self._slots), :, : self._span]  # Slots 0 to N - 1: a view instead of a copy.
        return store[:, :, : self._span].index_select(0, self._slots)


class StaticDecodeView:
    """A transformers cache over slots 0 to N - 1, one new token each, whose lengths are read from a tensor.

    The token of slot n is written to write_positions[n] and attends to positions up to lengths[n], within `span`.
    """

    def __init__(self, cache: SlotKVCache, slots: Tensor, lengths: Tensor, write_positions: Tensor, span: int) -> None:
        self._cache, self._slots, self._lengths, self._span = cache, slots, lengths, span
        self._write_positions = write_positions

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store keys and values [N, kv_heads, 1, head_dim] of `layer`; return [N, kv_heads, span, head_dim]."""
        return self._write(self._cache.keys[layer], keys), self._write(self._cache.values[layer], values)

    def mask(self) -> Tensor:
        """Return the positions that each row attends to, [N, 1, 1, span]."""
        return _attended(self._lengths, self._span)

    def _write(self, store: Tensor, new: Tensor) -> Tensor:
        store[self._slots, :, self._write_positions] = new[:, :, 0]
        return store[: len(self._slots), :, : self._span]


def _attended(lengths: Tensor, span: int) -> Tensor:
    positions = torch.arange(span, device=lengths.device)
    return (positions <= lengths[:, None])[:, None, None, :]
