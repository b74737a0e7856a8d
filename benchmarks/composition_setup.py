"""One base model with a bank of random adapters in our runner, and the same model and adapters in PEFT.

Import `harness` first.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence

import torch
from harness import say
from peft_baseline import PeftBaseline, PeftBatch
from random_adapters import random_adapters
from random_models import SHAPES, RandomBaseModel, copy_sharing_weights
from torch import Tensor, nn

from generation_service.execution.cuda_graph import CapturedDecode, CudaGraphCapture
from generation_service.execution.inputs import DecodeRow, Prefill
from generation_service.execution.kv_cache import CacheShape, SlotKVCache
from generation_service.execution.runner import Runner
from generation_service.execution.static_decode import StaticDecode
from generation_service.lora.bank import AdapterBank
from generation_service.lora.kernels.capturable_ops import CapturableOps
from generation_service.lora.ranks import RankRange

SHARES = (0.5, 0.3, 0.2)

Composition = Mapping[int, float]
"""Adapter number -> weight; empty: the base model alone."""


class CompositionSetup:
    """The two systems that bench_composition compares. Row n is slot n."""

    def __init__(self, options: argparse.Namespace) -> None:
        say(f"making {options.shape} in {options.dtype} on {options.device} with {options.adapters} adapters")
        self.options = options
        self.model = RandomBaseModel(SHAPES[options.shape], options.device, options.dtype)
        self._reference: nn.Module = copy_sharing_weights(self.model.module)
        about = self.model.description
        ranks = [options.rank] * options.adapters
        adapters = random_adapters(about.targets, ranks, dtype=options.dtype, device=options.device)
        self.peft = PeftBaseline(copy_sharing_weights(self.model.module), adapters, about.position_axes)
        self._bank = AdapterBank(about.targets, max(sum(ranks), options.bank_ranks), about.dtype, about.device)
        self._ranges = []
        for weights in adapters:
            self._ranges.append(self._bank.acquire(weights.rank))
            self._bank.write(self._ranges[-1], weights)
        slots = max(*options.rows, options.requests, options.prefill_rows)
        lengths = (options.context + options.answer_tokens, options.cached + options.steps, options.prefill_tokens)
        shape = CacheShape(about.layers, slots, about.kv_heads, max(lengths) + 1, about.head_dim)
        self._cache = SlotKVCache(shape, about.dtype, about.device)
        self._runner = Runner(self.model, self._bank, self._cache)

    def prompts(self, rows: int, tokens: int) -> Tensor:
        """Return random prompts [rows, tokens], the same in every call."""
        return torch.stack([self.model.random_prompt(tokens, seed).tokens for seed in range(rows)])

    def compositions(self, rows: int) -> list[Composition]:
        """Return three weighted adapters per row, drawn at random, a different set for each row."""
        draw = random.Random(0)
        by_set: dict[frozenset[int], Composition] = {}
        while len(by_set) < rows:
            chosen = draw.sample(range(self.options.adapters), len(SHARES))
            by_set.setdefault(frozenset(chosen), dict(zip(chosen, SHARES, strict=True)))
        return list(by_set.values())

    def reference_batch(self) -> PeftBatch:
        """Return a batch of the base model in transformers."""
        return PeftBatch(self._reference, self.options.device, self.model.description.position_axes, {})

    def captured(self, ops: CapturableOps) -> CapturedDecode:
        """Return captured decode steps with `ops` over the same model, bank and slots. On a GPU only."""
        static = StaticDecode(self.model, self._bank, self._cache, ops)
        return CapturedDecode(static, CudaGraphCapture(self.options.device))

    def prefill(self, prompts: Tensor, compositions: Sequence[Composition]) -> Tensor:
        """Prefill prompt n into slot n with its adapters; return the logits [N, vocab] after each."""
        logits = []
        for slot, (tokens, composition) in enumerate(zip(prompts, compositions, strict=True)):
            prompt = self.model.prompt_of(tokens.tolist())
            after = self._runner.prefill(Prefill(slot, prompt, self._routed(composition)), prompt.length)
            assert after is not None
            logits.append(after)
        return torch.cat(logits)

    def stretch(self, rows: int) -> None:
        """Repeat the cached tokens of the first `rows` slots up to `cached`, which simulates long prompts."""
        context, cached = self.options.context, self.options.cached
        for store in (*self._cache.keys, *self._cache.values):
            store[:rows, :, :cached] = store[:rows, :, :context].repeat(1, 1, -(-cached // context), 1)[:, :, :cached]

    def rows(self, tokens: Sequence[int], length: int, compositions: Sequence[Composition]) -> list[DecodeRow]:
        """Return the rows of a step that runs `tokens` after `length` cached ones."""
        return [
            DecodeRow(slot, token, length, 0, self._routed(composition))
            for slot, (token, composition) in enumerate(zip(tokens, compositions, strict=True))
        ]

    def decode(self, rows: Sequence[DecodeRow]) -> Tensor:
        """Return the logits [N, vocab] of one engine step."""
        return self._runner.decode(rows)

    def _routed(self, composition: Composition) -> dict[RankRange, float]:
        return {self._ranges[number]: weight for number, weight in composition.items()}
