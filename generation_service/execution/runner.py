"""The forward passes of the engine: base model, adapter bank and KV cache together."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from generation_service.execution.cuda_graph import CaptureError, CudaCapture, DecodeGraphs
from generation_service.execution.decode_row import DecodeRow
from generation_service.execution.kv_cache import SlotKVCache
from generation_service.execution.prefill import Prefill
from generation_service.execution.static_inputs import FixedDecode
from generation_service.lora.bank import AdapterBank
from generation_service.lora.kernels.choice import fixed_kernels
from generation_service.models.base import BaseModel
from infra.runtime.logs import get_logger

log = get_logger(__name__)


class Runner:
    """Runs the model on its device. For the engine's thread only.

    On a GPU, `graphs` replays decode steps that were captured before; elsewhere and without, they run as written.
    """

    def __init__(self, model: BaseModel, bank: AdapterBank, cache: SlotKVCache, graphs: bool = True) -> None:
        self._model = model
        self._bank = bank
        self._cache = cache
        self._device = model.description.device
        bank.install(model.module)
        captured = graphs and self._device.type == "cuda"
        self._graphs = _graphs(model, bank, cache) if captured else None

    @torch.inference_mode()
    def read(self, prefill: Prefill, tokens: int) -> Tensor | None:
        """Read the next `tokens` of a prompt into its slot; return the logits [1, vocab] after it once it is complete.

        The images go through the vision tower with the first chunk.
        """
        chunk = slice(prefill.place, prefill.place + min(tokens, prefill.unread))
        view = self._cache.prefill_view(prefill.slot, chunk.start)
        with self._bank.routing.step([prefill.ranges]):
            embeddings = prefill.embeddings(self._model.embed)[:, chunk]
            positions = prefill.prompt.positions[:, None, chunk].to(self._device)
            mask = view.mask(chunk.stop - chunk.start, self._device)
            hidden = self._model.forward(embeddings, positions, mask, view)
            prefill.advance(chunk.stop - chunk.start)
            return None if prefill.unread else self._model.logits(hidden[:, -1])

    @torch.inference_mode()
    def decode(self, rows: Sequence[DecodeRow]) -> Tensor:
        """Read the newest token of every row; return the logits [N, vocab] after each."""
        if self._graphs is not None:
            try:
                with _current(self._device):
                    return self._graphs.decode(rows)
            except CaptureError as error:
                log.warning("decode_not_captured", reason=str(error), for_good=error.lasting)
                if error.lasting:
                    self._graphs = None
        lengths = [row.length for row in rows]
        view = self._cache.decode_view([row.slot for row in rows], lengths)
        tokens = torch.tensor([[row.token] for row in rows], device=self._device)
        positions = torch.tensor([[row.length + row.position_delta] for row in rows], device=self._device)
        with self._bank.routing.step([row.ranges for row in rows]):
            embeddings = self._model.embed_tokens(tokens)
            hidden = self._model.forward(embeddings, positions.expand(self._axes, -1, -1), view.mask(), view)
            return self._model.logits(hidden[:, -1])

    def clear(self, slot: int) -> None:
        """Make a slot as new, after a sequence that failed."""
        self._cache.clear(slot)

    @property
    def _axes(self) -> int:
        return self._model.description.position_axes


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Make a GPU the thread's current device: that is where kernels are launched and captured."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _graphs(model: BaseModel, bank: AdapterBank, cache: SlotKVCache) -> DecodeGraphs:
    fixed = FixedDecode(model, bank, cache, fixed_kernels(model.description.device))
    return DecodeGraphs(fixed, CudaCapture(model.description.device))
