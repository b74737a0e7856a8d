"""The two sides of bench_batching: our engine, and `generate` of transformers over static batches."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from open_loop import LoadRequest, Served
from random_models import RandomBaseModel
from torch import Tensor
from transformers import GenerationConfig

from generation_service.adapters.admission import AdmittedComposition
from generation_service.adapters.host_cache import HostCache
from generation_service.adapters.residency import Residency
from generation_service.adapters.source import AdapterRoots, FolderResolver
from generation_service.engine.engine import Engine
from generation_service.engine.limits import EngineLimits
from generation_service.engine.sequence import Delta, Event, Request
from generation_service.execution.kv_cache import CacheShape, SlotKVCache
from generation_service.execution.runner import Runner
from generation_service.lora.bank import AdapterBank
from infra.contract.composition import Base
from infra.contract.generation import Decoding

SPARE_RANKS = 16  # A bank cannot be empty; this benchmark uses no adapters.


class EngineServer:
    """Our engine with `slots` concurrent answers over `model`, whose linear layers it replaces."""

    def __init__(self, model: RandomBaseModel, slots: int, longest: int, waiting: int, prefill_tokens: int) -> None:
        about = model.description
        bank = AdapterBank(about.targets, SPARE_RANKS, about.dtype, about.device)
        cache = CacheShape(about.layers, slots, about.kv_heads, longest, about.head_dim)
        self._residency = Residency(bank, HostCache(FolderResolver(AdapterRoots(())), _no_adapters, ("random",), 0))
        self._engine = Engine(
            model,
            Runner(model, bank, SlotKVCache(cache, about.dtype, about.device)),
            self._residency,
            EngineLimits(
                max_running=slots,
                max_waiting=waiting,
                max_sequence_tokens=longest,
                default_max_new_tokens=1,
                prefill_tokens=prefill_tokens,
            ),
        )

    def __enter__(self) -> EngineServer:
        self._engine.start()
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._engine.close()
        self._residency.close()

    def serve(self, requests: Sequence[LoadRequest], arrivals_s: Sequence[float]) -> Served:
        """Submit each request at its arrival, and wait for all answers."""
        ends = _Ends(len(requests))
        start = time.perf_counter()
        sequences = []
        for number, (request, arrival) in enumerate(zip(requests, arrivals_s, strict=True)):
            _sleep_until(start + arrival)
            engine_request = Request(
                request.prompt, AdmittedComposition(Base()), Decoding(max_new_tokens=request.answer_tokens)
            )
            sequences.append(self._engine.submit(engine_request, ends.listener(number)))
        finished = ends.wait()
        return Served(
            tuple(end - start - arrival for end, arrival in zip(finished, arrivals_s, strict=True)),
            tuple(tuple(sequence.tokens) for sequence in sequences),
            max(finished) - start - arrivals_s[0],
        )


class StaticBatches:
    """`generate` over batches of up to `size` requests that have arrived, padded to the longest, one after another.

    A request's answer is complete when its batch ends: `generate` returns all rows together, after as many tokens as
    the longest row needs.
    """

    def __init__(self, module: Any, size: int, axes: int) -> None:
        self._module, self._size, self._axes = module, size, axes
        self._device = next(module.parameters()).device

    def serve(self, requests: Sequence[LoadRequest], arrivals_s: Sequence[float]) -> Served:
        """Answer the requests in the order of their arrival."""
        start = time.perf_counter()
        latencies: list[float] = []
        answers: list[tuple[int, ...]] = []
        while len(answers) < len(requests):
            first = len(answers)
            _sleep_until(start + arrivals_s[first])
            now = time.perf_counter() - start
            batch = [n for n in range(first, min(first + self._size, len(requests))) if arrivals_s[n] <= now]
            answers += self.generate([requests[number] for number in batch])
            now = time.perf_counter() - start
            latencies += [now - arrivals_s[number] for number in batch]
        return Served(tuple(latencies), tuple(answers), time.perf_counter() - start - arrivals_s[0])

    @torch.inference_mode()
    def generate(self, requests: Sequence[LoadRequest]) -> list[tuple[int, ...]]:
        """Answer one batch; each row is cut to its own answer length."""
        longest = max(request.prompt.length for request in requests)
        tokens = torch.zeros(len(requests), longest, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, request in enumerate(requests):
            tokens[row, longest - request.prompt.length :] = request.prompt.tokens
            mask[row, longest - request.prompt.length :] = 1
        extra = {"mm_token_type_ids": torch.zeros_like(tokens).to(self._device)} if self._axes > 1 else {}
        output = self._module.generate(
            input_ids=tokens.to(self._device),
            attention_mask=mask.to(self._device),
            generation_config=GenerationConfig(
                do_sample=False, max_new_tokens=max(request.answer_tokens for request in requests), pad_token_id=0
            ),
            **extra,
        )
        rows = output[:, longest:].tolist()
        return [tuple(row[: request.answer_tokens]) for row, request in zip(rows, requests, strict=True)]

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int]) -> Tensor:
        """Return the logits [vocab] after `tokens`, in one forward pass."""
        ids = torch.tensor([tokens], device=self._device)
        positions = torch.arange(len(tokens), device=self._device)[None]
        logits: Tensor = self._module(
            input_ids=ids,
            position_ids=positions.expand(self._axes, -1, -1) if self._axes > 1 else positions,
            logits_to_keep=1,
            use_cache=False,
        ).logits[0, -1]
        return logits


class _Ends:
    """Records the end of each request."""

    def __init__(self, count: int) -> None:
        self._finished = [0.0] * count
        self._left = count
        self._errors: list[Exception] = []
        self._changed = threading.Condition()

    def listener(self, number: int) -> Any:
        """Return the listener of request `number`. It is called on the engine thread."""

        def on_event(event: Event) -> None:
            if isinstance(event, Delta):
                return
            with self._changed:
                self._finished[number] = time.perf_counter()
                self._left -= 1
                if isinstance(event, Exception):
                    self._errors.append(event)
                if not self._left:
                    self._changed.notify()

        return on_event

    def wait(self) -> list[float]:
        """Wait for all requests to end; return the times, as of `time.perf_counter`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._left)
        if self._errors:
            raise self._errors[0]
        return self._finished


def _no_adapters(source: object) -> Any:
    raise AssertionError("this benchmark uses no adapters")


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.perf_counter()))
