"""Prompts prefilled in one forward pass against the same prompts alone: equal logits, and equal tokens afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from generation_service.app import generation_stack
from generation_service.execution.inputs import DecodeRow, Prefill
from generation_service.execution.kv_cache import CacheShape, SlotKVCache
from generation_service.execution.runner import Runner
from generation_service.lora.bank import AdapterBank
from generation_service.lora.ranks import RankRange
from generation_service.lora.weights import AdapterWeights, LoraPair
from generation_service.models.base import BaseModel, EncodedPrompt, LoadOptions
from generation_service.models.registry import load_base_model
from infra.contract.composition import Base, Composition, Mixture, WeightedAdapter
from infra.contract.generation import Decoding
from infra.contract.prompt import Prompt
from tests.support.checkpoints.causal import SPECIAL_CASES, WINDOW, write_causal
from tests.support.checkpoints.qwen2_vl import TinyShape, write_qwen2_vl
from tests.support.harness.generation_stack import settings_for, write_model_fixture

LENGTHS = (WINDOW, 1, 3, WINDOW - 1)
TOLERANCE = 1e-4


class Device:
    """A model with two random adapters, and room for a set of prompts alone and packed."""

    def __init__(self, folder: Path) -> None:
        self.model: BaseModel = load_base_model(folder, LoadOptions(torch.device("cpu"), torch.float32))
        of = self.model.description
        self.bank = AdapterBank(of.targets, 16, of.dtype, of.device, by_image=of.by_image)
        shape = CacheShape(of.layers, 2 * len(LENGTHS), of.kv_heads, 64, of.head_dim)
        self.runner = Runner(self.model, self.bank, SlotKVCache(shape, of.dtype, of.device))
        self.adapters = [self._adapter(seed) for seed in (1, 2)]

    def _adapter(self, seed: int) -> RankRange:
        generator = torch.Generator().manual_seed(seed)
        language = {
            path: (inputs, outputs)
            for path, (inputs, outputs) in self.model.description.targets.items()
            if not path.startswith(tuple(self.model.description.by_image) or ("-",))
        }
        pairs = {
            path: LoraPair(torch.randn(4, size[0], generator=generator), torch.randn(size[1], 4, generator=generator))
            for path, size in language.items()
        }
        owned = self.bank.acquire(4)
        self.bank.write(owned, AdapterWeights.of(pairs))
        return owned

    def prefills(self, first_slot: int) -> list[Prefill]:
        first, second = self.adapters
        compositions = ({}, {first: 0.05}, {first: 0.02, second: 0.04}, {second: 0.1})
        return [
            Prefill(first_slot + number, self._prompt(number, length), ranges)
            for number, (length, ranges) in enumerate(zip(LENGTHS, compositions, strict=True))
        ]

    def _prompt(self, number: int, length: int) -> EncodedPrompt:
        generator = torch.Generator().manual_seed(number)
        tokens = torch.randint(0, self.model.description.vocab_size, (length,), generator=generator)
        positions = torch.arange(length).expand(self.model.description.position_axes, -1)
        return EncodedPrompt(tokens, positions, position_delta=0, image_tokens=0)

    def decode(self, prefills: Sequence[Prefill], logits: Tensor, steps: int) -> list[list[int]]:
        """Return the greedy tokens of all prompts, decoded together."""
        chosen = [[int(row.argmax())] for row in logits]
        for _ in range(steps):
            rows = [
                DecodeRow(prefill.slot, tokens[-1], prefill.prompt.length + len(tokens) - 1, 0, dict(prefill.ranges))
                for prefill, tokens in zip(prefills, chosen, strict=True)
            ]
            for tokens, row in zip(chosen, self.runner.decode(rows), strict=True):
                tokens.append(int(row.argmax()))
        return chosen


@pytest.fixture(scope="module", params=[*SPECIAL_CASES, "qwen2_vl"])
def device(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Device:
    folder = tmp_path_factory.mktemp("packed") / "tiny"
    if request.param == "qwen2_vl":
        return Device(write_qwen2_vl(folder, TinyShape()))
    model_type, fields = SPECIAL_CASES[request.param]
    return Device(write_causal(folder, model_type, fields))


def test_packed_prompts_equal_prompts_alone(device: Device) -> None:
    alone, packed = device.prefills(0), device.prefills(len(LENGTHS))
    expected = [device.runner.prefill(prefill, prefill.prompt.length) for prefill in alone]
    assert all(row is not None for row in expected)
    logits = device.runner.prefill_together(packed)
    assert logits is not None
    wanted = torch.cat([row for row in expected if row is not None])
    torch.testing.assert_close(logits, wanted, atol=TOLERANCE, rtol=TOLERANCE)
    assert [prefill.remaining for prefill in packed] == [0] * len(LENGTHS)
    assert device.decode(packed, logits, 6) == device.decode(alone, wanted, 6)
    base = Prefill(0, packed[1].prompt, {})
    plain = device.runner.prefill(base, base.prompt.length)
    assert plain is not None
    assert (plain - wanted[1]).abs().max() > 10 * TOLERANCE, "the adapters change what is compared"


def test_prompt_without_finite_logits_is_not_packed(device: Device) -> None:
    prefills = device.prefills(0)
    broken = Prefill(1, prefills[1].prompt, dict.fromkeys(device.adapters, 1e38))
    assert device.runner.prefill_together([prefills[0], broken]) is None
    assert [prefill.offset for prefill in (prefills[0], broken)] == [0, 0]


def test_one_broken_composition_does_not_fail_prompts_that_arrive_with_it(tmp_path: Path) -> None:
    world = write_model_fixture(tmp_path)
    good = Mixture((WeightedAdapter("a1", 0.7),))
    broken = Mixture((WeightedAdapter("a0", 1e38), WeightedAdapter("a2", 1e38)))
    compositions: list[Composition] = [Base(), good, broken, good, Base()]
    with generation_stack(settings_for(world.base, [world.roots])) as stack:

        async def answer(composition: Composition) -> str | Exception:
            try:
                answered = await stack.service.generate(Prompt.of("Where to?"), composition, Decoding(max_new_tokens=8))
            except Exception as error:
                return error
            return answered.text

        async def all_of(asked: list[Composition]) -> list[str | Exception]:
            return await asyncio.gather(*map(answer, asked))

        together = asyncio.run(all_of(compositions))
        alone = [asyncio.run(all_of([composition]))[0] for composition in compositions]
    assert "no finite logits" in str(together[2])
    assert together[:2] + together[3:] == alone[:2] + alone[3:]
    assert all(isinstance(text, str) for text in together[:2] + together[3:])
