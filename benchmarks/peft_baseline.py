"""PEFT with many adapters: a mixed batch of one adapter per row, or one request at a time with a merged adapter.

Both run without padding and without the overhead of `generate`, which favours PEFT over its everyday use. Import
`harness` first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel
from random_adapters import write_peft_folder
from torch import Tensor, nn
from transformers import DynamicCache

from generation_service.lora.weights import AdapterWeights

_MERGED = "merged"


class PeftBaseline:
    """`adapters` loaded by PEFT into `module`, which is modified in place; adapter number n is named str(n)."""

    def __init__(self, module: nn.Module, adapters: Sequence[AdapterWeights], axes: int) -> None:
        self._device = next(module.parameters()).device
        self._axes = axes
        self._model = _loaded(module, adapters)

    def mixed_batch(self, adapters: Sequence[int]) -> PeftBatch:
        """Return a batch whose row n uses adapter number `adapters[n]`."""
        return PeftBatch(self._model, self._device, self._axes, {"adapter_names": [str(number) for number in adapters]})

    @contextmanager
    def merged(self, composition: Mapping[int, float]) -> Iterator[PeftBatch]:
        """Merge weighted adapters exactly (`cat`) for one request, yield its batch, and delete the merged adapter."""
        names = [str(number) for number in composition]
        self._model.add_weighted_adapter(names, list(composition.values()), _MERGED, combination_type="cat")
        self._model.set_adapter(_MERGED)
        try:
            yield PeftBatch(self._model, self._device, self._axes, {})
        finally:
            self._model.set_adapter("0")
            self._model.delete_adapter(_MERGED)


class PeftBatch:
    """Sequences of equal length that are prefilled and decoded together."""

    def __init__(self, model: Any, device: torch.device, axes: int, extra: Mapping[str, Any]) -> None:
        self._model, self._device, self._axes, self._extra = model, device, axes, extra
        self._cache = DynamicCache()
        self._length = 0

    @torch.inference_mode()
    def forward(self, tokens: Tensor) -> Tensor:
        """Run tokens [N, T] after the cached ones; return the logits [N, vocab] after the last."""
        length = self._length + tokens.shape[1]
        positions = torch.arange(self._length, length, device=self._device).expand(tokens.shape[0], -1)
        output = self._model(
            input_ids=tokens.to(self._device),
            position_ids=positions.expand(3, -1, -1) if self._axes == 3 else positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            **self._extra,
        )
        self._length = length
        logits: Tensor = output.logits[:, -1]
        return logits

    def stretch(self, length: int) -> None:
        """Repeat the cached tokens up to `length`, which simulates a long prompt without its prefill."""
        for layer in self._cache.layers:
            for name in ("keys", "values"):
                cached = getattr(layer, name)[:, :, : self._length]
                longer = cached.repeat(1, 1, -(-length // self._length), 1)[:, :, :length]
                setattr(layer, name, longer.contiguous())
        self._length = length

    def truncate(self, length: int) -> None:
        """Truncate the cache to the first `length` tokens."""
        if length < self._length:
            self._cache.crop(length - self._length)
        self._length = length


def _loaded(module: nn.Module, adapters: Sequence[AdapterWeights]) -> Any:
    device = next(module.parameters()).device
    options = {"autocast_adapter_dtype": False, "low_cpu_mem_usage": True, "torch_device": str(device)}
    with TemporaryDirectory() as folder:
        first, *others = (write_peft_folder(Path(folder, str(n)), weights) for n, weights in enumerate(adapters))
        model = PeftModel.from_pretrained(module, first, adapter_name="0", **options)
        for number, other in enumerate(others, start=1):
            model.load_adapter(other, str(number), **options)
    return model.eval()
