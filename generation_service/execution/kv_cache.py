"""Preallocated keys and values: one slot a running sequence, each with its own length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SPAN_STEP = 64


@dataclass(frozen=True)
class CacheShape:
    """`slots` sequences of at most `length` tokens, for `layers` layers of `kv_heads` heads of size `head_dim`."""

    layers: int
    slots: int
    kv_heads: int
    length: int
    head_dim: int

    def bytes(self, dtype: torch.dtype) -> int:
        """Return the memory of keys and values together, one place a slot for what is not kept included."""
        return 2 * self.layers * self.slots * self.kv_heads * (self.length + 1) * self.head_dim * dtype.itemsize


class SlotKVCache:
    """Keys and values [slots, kv_heads, length + 1, head_dim] of every layer, at addresses that never change.

    The last place of a slot is written by rows that have nothing to keep, and never read. Slots start as zeros: a
    masked position has probability 0, and 0 times a finite number is 0.
    """

    def __init__(self, shape: CacheShape, dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        size = (shape.slots, shape.kv_heads, shape.length + 1, shape.head_dim)
        self.keys = [torch.zeros(size, dtype=dtype, device=device) for _ in range(shape.layers)]
        self.values = [torch.zeros(size, dtype=dtype, device=device) for _ in range(shape.layers)]
        self.bytes = shape.bytes(dtype)
        self._device = device

    def clear(self, slot: int) -> None:
        """Zero a slot: what a sequence that went wrong left there may not be finite."""
        for store in (*self.keys, *self.values):
            store[slot].zero_()

    def prefill_view(self, slot: int, start: int) -> PrefillView:
        """Return what a forward over the tokens from `start` on of one sequence writes to and reads from."""
        return PrefillView(self, slot, start)

    def decode_view(self, slots: Sequence[int], lengths: Sequence[int]) -> DecodeView:
        """Return the same for one new token of each sequence in `slots`, which hold `lengths` tokens already."""
        span = min(-(-(max(lengths) + 1) // SPAN_STEP) * SPAN_STEP, self.shape.length)
        return DecodeView(
            self,
            torch.tensor(slots, device=self._device),
            torch.tensor(lengths, device=self._device),
            span,
            adjacent=list(slots) == list(range(len(slots))),
        )


class PrefillView:
    """A transformers cache over one slot: rows are one sequence, tokens follow those from `start` on."""

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
        """Return which of the start + T positions each of T tokens sees, [1, 1, T, start + T]; None: plainly causal."""
        if self._start == 0:
            return None
        end = self._start + tokens
        return torch.ones(1, 1, tokens, end, dtype=torch.bool, device=device).tril(diagonal=self._start)


class DecodeView:
    """A transformers cache over several slots, one token each."""

    def __init__(self, cache: SlotKVCache, slots: Tensor, lengths: Tensor, span: int, adjacent: bool) -> None:
        self._cache, self._slots, self._lengths, self._span = cache, slots, lengths, span
        self._adjacent = adjacent

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store keys and values [N, kv_heads, 1, head_dim] of `layer`; return [N, kv_heads, span, head_dim]."""
        return self._write(self._cache.keys[layer], keys), self._write(self._cache.values[layer], values)

    def mask(self) -> Tensor:
        """Return which positions each row sees, [N, 1, 1, span]: those before its length, and its new token."""
        return _seen(self._lengths, self._span)

    def _write(self, store: Tensor, new: Tensor) -> Tensor:
        store[self._slots, :, self._lengths] = new[:, :, 0]
        if self._adjacent:
            return store[: len(self._slots), :, : self._span]
        return store[:, :, : self._span].index_select(0, self._slots)


class FixedDecodeView:
    """A transformers cache over slots 0 to N - 1, whose lengths are read from a tensor: one token each.

    The token of slot n is kept at places[n] and sees the positions up to lengths[n], of the first `span`.
    """

    def __init__(self, cache: SlotKVCache, slots: Tensor, lengths: Tensor, places: Tensor, span: int) -> None:
        self._cache, self._slots, self._lengths, self._places, self._span = cache, slots, lengths, places, span

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store keys and values [N, kv_heads, 1, head_dim] of `layer`; return [N, kv_heads, span, head_dim]."""
        return self._write(self._cache.keys[layer], keys), self._write(self._cache.values[layer], values)

    def mask(self) -> Tensor:
        """Return which positions each row sees, [N, 1, 1, span]."""
        return _seen(self._lengths, self._span)

    def _write(self, store: Tensor, new: Tensor) -> Tensor:
        store[self._slots, :, self._places] = new[:, :, 0]
        return store[: len(self._slots), :, : self._span]


def _seen(lengths: Tensor, span: int) -> Tensor:
    positions = torch.arange(span, device=lengths.device)
    return (positions <= lengths[:, None])[:, None, None, :]
