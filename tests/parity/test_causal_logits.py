"""Logits of text-only families, of prompts read in chunks and of decode steps, against transformers without a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from generation_service.execution.cuda_graph import CapturedDecode, Forward
from generation_service.execution.inputs import DecodeRow, Prefill
from generation_service.execution.kv_cache import CacheShape, SlotKVCache
from generation_service.execution.runner import Runner
from generation_service.execution.static_decode import StaticDecode
from generation_service.lora.bank import AdapterBank
from generation_service.lora.kernels.capturable_ops import TorchCapturableOps
from generation_service.models.base import LoadOptions
from generation_service.models.registry import load_base_model
from infra.contract.prompt import Prompt
from tests.support.checkpoints.causal import SPECIAL_CASES, WINDOW, write_causal
from tests.support.harness.recorded_graph import record

QUESTIONS = ("Why?", "Open the calendar and wait. " * 8, "Scroll down, then go back. " * 3)
CHUNK, STEPS, LENGTH = 16, 3, 280
"""The chunks are shorter than the windows. A step's span is 64 tokens or more, which no short row fills."""
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module", params=SPECIAL_CASES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model_type, fields = SPECIAL_CASES[request.param]
    return write_causal(tmp_path_factory.mktemp("causal") / "tiny", model_type, fields)


def _recorded(forward: Forward) -> Forward:
    with torch.inference_mode():
        return record(forward)


def test_logits_of_chunks_and_steps_equal_those_of_transformers(folder: Path) -> None:
    model = load_base_model(folder, LoadOptions(torch.device("cpu"), torch.float32))
    reference: Any = AutoModelForCausalLM.from_pretrained(folder)
    about = model.description
    bank = AdapterBank(about.targets, 8, torch.float32, "cpu", by_image=about.by_image)
    shape = CacheShape(about.layers, len(QUESTIONS), about.kv_heads, LENGTH, about.head_dim)
    cache = SlotKVCache(shape, torch.float32, torch.device("cpu"))
    runner = Runner(model, bank, cache)
    captured = CapturedDecode(StaticDecode(model, bank, cache, TorchCapturableOps()), _recorded)

    def expected(tokens: list[int]) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = reference(input_ids=torch.tensor([tokens])).logits[:, -1]
        return logits

    read: list[list[int]] = []
    for slot, text in enumerate(QUESTIONS):
        prompt = model.encode(Prompt.of(text), [])
        read.append(prompt.tokens.tolist())
        prefill, logits = Prefill(slot, prompt, {}), None
        while logits is None:
            logits = runner.prefill(prefill, CHUNK)
        torch.testing.assert_close(logits, expected(read[slot]), **CLOSE)
    assert max(map(len, read)) > 2 * WINDOW > CHUNK
    for step in range(STEPS):
        rows = [DecodeRow(slot, 20 + 7 * slot + step, len(tokens), 0, {}) for slot, tokens in enumerate(read)]
        for row in rows:
            read[row.slot].append(row.token)
        wanted = torch.cat([expected(tokens) for tokens in read])
        torch.testing.assert_close(captured.decode(rows), wanted, **CLOSE)
        torch.testing.assert_close(runner.decode(rows), wanted, **CLOSE)
