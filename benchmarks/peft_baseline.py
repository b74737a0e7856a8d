"""PEFT as it serves many adapters: a mixed batch of one adapter a row, or one request at a time with a merged adapter.

Both run without padding and without `generate`'s own overhead, which is more than PEFT's users get. Import `harness`
first.
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
    """`adapters` loaded by PEFT around `module`, which it changes in place; adapter number n is called str(n)."""

    def __init__(self, module: nn.Module, adapters: Sequence[AdapterWeights], axes: int) -> None:
        self._device = next(module.parameters()).device
        self._axes = axes
        self._model = _loaded(module, adapters)

    def mixed_batch(self, adapters: Sequence[int]) -> PeftBatch:
        """Return a batch whose row n is answered with adapter number `adapters[n]`."""
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
    """Sequences of equal length that are read and decoded together."""

    def __init__(self, model: Any, device: torch.device, axes: int, extra: Mapping[str, Any]) -> None:
        self._model, self._device, self._axes, self._extra = model, device, axes, extra
        self._cache = DynamicCache()
        self._length = 0

    @torch.inference_mode()
    def read(self, tokens: Tensor) -> Tensor:
        """Read tokens [N, T] after those read before; return the logits [N, vocab] after the last."""
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
        """Repeat what was read until it is `length` tokens long: a long prompt without its reading."""
        for layer in self._cache.layers:
            for name in ("keys", "values"):
                read = getattr(layer, name)[:, :, : self._length]
                longer = read.repeat(1, 1, -(-length // self._length), 1)[:, :, :length]
                setattr(layer, name, longer.contiguous())
        self._length = length

    def forget(self, length: int) -> None:
        """Go back to the first `length` tokens."""
        if length < self._length:
            self._cache.crop(length - self._length)
        self._length = length


def _loaded(module: nn.Module, adapters: Sequence[AdapterWeights]) -> Any:
    device = next(module.parameters()).device
    given = {"autocast_adapter_dtype": False, "low_cpu_mem_usage": True, "torch_device": str(device)}
    with TemporaryDirectory() as folder:
        first, *others = (write_peft_folder(Path(folder, str(n)), weights) for n, weights in enumerate(adapters))
        model = PeftModel.from_pretrained(module, first, adapter_name="0", **given)
        for number, other in enumerate(others, start=1):
            model.load_adapter(other, str(number), **given)
    return model.eval()
