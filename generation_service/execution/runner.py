"""The engine's forward passes: base model, adapter bank and KV cache together."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from generation_service.execution.cuda_graph import CapturedDecode, CaptureError, CudaGraphCapture
from generation_service.execution.inputs import DecodeRow, Prefill
from generation_service.execution.kv_cache import SlotKVCache
from generation_service.execution.static_decode import StaticDecode
from generation_service.lora.bank import AdapterBank
from generation_service.lora.kernels.capturable_ops import capturable_ops_for
from generation_service.lora.packed import PackedLinear, can_pack
from generation_service.models.base import BaseModel
from infra.runtime.logs import get_logger

log = get_logger(__name__)


class Runner:
    """Runs the model on its device. Called on: the engine thread.

    With `graphs` on a GPU, decode steps are captured and replayed by `captured`; otherwise that is None and they run
    eagerly. With `pack`, linear layers keep a packed copy of their weight where that makes decoding faster on a CPU.
    """

    def __init__(
        self, model: BaseModel, bank: AdapterBank, cache: SlotKVCache, graphs: bool = True, pack: bool = False
    ) -> None:
        self._model = model
        self._bank = bank
        self._cache = cache
        self._device = model.description.device
        bank.install(model.module, pack)
        if pack:
            _pack_head(model.module)
        use_graphs = graphs and self._device.type == "cuda"
        self.captured = _captured_decode(model, bank, cache) if use_graphs else None

    @torch.inference_mode()
    def prefill(self, prefill: Prefill, tokens: int) -> Tensor | None:
        """Run the next `tokens` of a prompt; return the logits [1, vocab] after its last token, None before that.

        The images go through the vision tower with the first chunk.
        """
        chunk = slice(prefill.offset, prefill.offset + min(tokens, prefill.remaining))
        view = self._cache.prefill_view(prefill.slot, chunk.start)
        with self._bank.routing.step([prefill.ranges]):
            embeddings = prefill.embeddings(self._model.embed)[:, chunk]
            positions = prefill.prompt.positions[:, None, chunk].to(self._device)
            mask = view.mask(chunk.stop - chunk.start, self._device)
            hidden = self._model.forward(embeddings, positions, mask, view)
            prefill.advance(chunk.stop - chunk.start)
            return None if prefill.remaining else self._model.logits(hidden[:, -1])

    @torch.inference_mode()
    def prefill_together(self, prefills: Sequence[Prefill]) -> Tensor | None:
        """Run whole prompts in one forward pass; return the logits [N, vocab] after each.

        Returns None, with every prompt as it was, if the logits of one are not finite: masked products carry a NaN
        into the other prompts, so they must run alone.
        """
        lengths = [prefill.prompt.length for prefill in prefills]
        view = self._cache.packed_view([prefill.slot for prefill in prefills], lengths)
        tokens = torch.cat([prefill.prompt.tokens for prefill in prefills]).to(self._device)
        positions = torch.cat([prefill.prompt.positions for prefill in prefills], dim=1)[:, None].to(self._device)
        with self._bank.routing.step([prefill.ranges for prefill in prefills], lengths=lengths):
            embeddings = self._model.embed_tokens(tokens)[None]
            hidden = self._model.forward(embeddings, positions, view.mask(self._device), view)
            ends = torch.tensor(lengths, device=self._device).cumsum(0) - 1
            logits = self._model.logits(hidden[0, ends])
        if not bool(torch.isfinite(logits).all()):
            return None
        for prefill, length in zip(prefills, lengths, strict=True):
            prefill.advance(length)
        return logits

    @torch.inference_mode()
    def decode(self, rows: Sequence[DecodeRow]) -> Tensor:
        """Run the newest token of every row; return the logits [N, vocab] after each."""
        if self.captured is not None:
            try:
                with _current_device(self._device):
                    return self.captured.decode(rows)
            except CaptureError as error:
                log.warning("decode_not_captured", reason=str(error), lasting=error.lasting)
                if error.lasting:
                    self.captured = None
        return self._decode_eagerly(rows)

    def clear(self, slot: int) -> None:
        """Zero a slot's KV cache after a sequence that failed."""
        self._cache.clear(slot)

    def _decode_eagerly(self, rows: Sequence[DecodeRow]) -> Tensor:
        view = self._cache.decode_view([row.slot for row in rows], [row.length for row in rows])
        tokens = torch.tensor([[row.token] for row in rows], device=self._device)
        positions = torch.tensor([[row.length + row.position_delta] for row in rows], device=self._device)
        axes = self._model.description.position_axes
        with self._bank.routing.step([row.ranges for row in rows]):
            embeddings = self._model.embed_tokens(tokens)
            hidden = self._model.forward(embeddings, positions.expand(axes, -1, -1), view.mask(), view)
            return self._model.logits(hidden[:, -1])


def _pack_head(module: nn.Module) -> None:
    head = getattr(module, "lm_head", None)
    if type(head) is nn.Linear and can_pack(head.weight):
        module.lm_head = PackedLinear(head)


def _current_device(device: torch.device) -> AbstractContextManager[object]:
    """Make a GPU the thread's current device, on which kernels are launched and captured."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _captured_decode(model: BaseModel, bank: AdapterBank, cache: SlotKVCache) -> CapturedDecode:
    static = StaticDecode(model, bank, cache, capturable_ops_for(model.description.device))
    return CapturedDecode(static, CudaGraphCapture(model.description.device))
