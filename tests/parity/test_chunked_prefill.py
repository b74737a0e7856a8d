"""Chunked prefill against whole prompts: the same logits and the same tokens afterwards."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from generation_service.adapters.checkpoint.reader import read_checkpoint
from generation_service.execution.inputs import DecodeRow, Prefill
from generation_service.execution.kv_cache import CacheShape, SlotKVCache
from generation_service.execution.runner import Runner
from generation_service.lora.bank import AdapterBank
from generation_service.lora.ranks import RankRange
from generation_service.models.base import BaseModel, EncodedPrompt, LoadOptions
from generation_service.models.registry import load_base_model
from infra.contract.prompt import ImagePart, Prompt
from tests.support.harness.generation_stack import ModelFixture, write_model_fixture
from tests.support.harness.images import picture, png

CHUNKS = (1, 7, 64)
ALL = 4096
SLOTS = 3
TOLERANCE = 1e-4
IMAGES = {"text": [], "one image": [(100, 150)], "three images": [(57, 200), (112, 112), (40, 40)]}
COMPOSITIONS = {"base": {}, "one": {"a2": 1.0}, "with the vision tower": {"a0": 0.5, "a3": 0.7, "a4": 0.4}}


@dataclass
class Device:
    """A model with five adapters in its bank, its KV cache and its runner."""

    model: BaseModel
    runner: Runner
    cache: SlotKVCache
    adapters: dict[str, RankRange]

    def prompt(self, sizes: list[tuple[int, int]], text: str = "What is on the screen? " * 5) -> EncodedPrompt:
        """Return a question about images of `sizes`, encoded."""
        images = [picture(width, height, seed) for seed, (width, height) in enumerate(sizes)]
        return self.model.encode(Prompt.of(text, [ImagePart(png(image)) for image in images]), images)

    def ranges(self, weights: dict[str, float]) -> dict[RankRange, float]:
        """Return a composition as bank ranges and weights."""
        return {self.adapters[name]: weight for name, weight in weights.items()}

    def prefill(self, prefill: Prefill, tokens: int) -> Tensor:
        """Prefill a whole prompt in chunks of `tokens`; return the logits after it."""
        while (logits := self.runner.prefill(prefill, tokens)) is None:
            pass
        return logits

    def decode(self, prefill: Prefill, logits: Tensor, tokens: int) -> list[int]:
        """Return the `tokens` greedy tokens that follow a prompt."""
        chosen = [int(logits.argmax())]
        while len(chosen) < tokens:
            chosen.append(int(self.runner.decode([row(prefill, chosen)]).argmax()))
        return chosen


def row(prefill: Prefill, tokens: list[int]) -> DecodeRow:
    prompt = prefill.prompt
    return DecodeRow(
        prefill.slot, tokens[-1], prompt.length + len(tokens) - 1, prompt.position_delta, dict(prefill.ranges)
    )


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Device:
    world = write_model_fixture(tmp_path_factory.mktemp("world"))
    return loaded(world)


def loaded(world: ModelFixture) -> Device:
    model = load_base_model(world.base, LoadOptions(torch.device("cpu"), torch.float32))
    of = model.description
    bank = AdapterBank(of.targets, 64, of.dtype, of.device, by_image=of.by_image)
    cache = SlotKVCache(CacheShape(of.layers, SLOTS, of.kv_heads, 512, of.head_dim), of.dtype, of.device)
    runner = Runner(model, bank, cache)
    adapters = {}
    for name in world.adapters:
        weights = read_checkpoint(world.roots / name, of.targets, model.canonical)
        adapters[name] = bank.acquire(weights.rank)
        bank.write(adapters[name], weights)
    return Device(model, runner, cache, adapters)


@pytest.mark.parametrize("sizes", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("weights", COMPOSITIONS.values(), ids=COMPOSITIONS)
def test_any_chunk_size_matches_unchunked_prefill(
    device: Device, sizes: list[tuple[int, int]], weights: dict[str, float]
) -> None:
    prompt, ranges = device.prompt(sizes), device.ranges(weights)
    assert prompt.length > max(CHUNKS)
    whole = Prefill(0, prompt, ranges)
    expected = device.prefill(whole, ALL)
    tokens = device.decode(whole, expected, 12)
    for chunk in CHUNKS:
        device.cache.clear(1)
        prefill = Prefill(1, prompt, ranges)
        logits = device.prefill(prefill, chunk)
        torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=TOLERANCE)
        assert device.decode(prefill, logits, 12) == tokens


def test_adapters_change_compared_logits(device: Device) -> None:
    prompt = device.prompt(IMAGES["one image"])
    logits = [device.prefill(Prefill(0, prompt, device.ranges(weights)), 7) for weights in COMPOSITIONS.values()]
    assert all((one - other).abs().max() > 0.1 for one, other in itertools.pairwise(logits))


def test_interleaved_prefills_do_not_disturb_running_sequence(device: Device) -> None:
    texts = ("Scroll down. " * 9, "What is on the screen? " * 5, "Go back.")
    prompts = [device.prompt(sizes, text) for sizes, text in zip(IMAGES.values(), texts, strict=True)]
    ranges = [device.ranges(weights) for weights in COMPOSITIONS.values()]
    expected = []
    for prompt, composition in zip(prompts, ranges, strict=True):
        alone = Prefill(0, prompt, composition)
        expected.append(device.decode(alone, device.prefill(alone, ALL), 16))

    prefills = [
        Prefill(slot, prompt, composition)
        for slot, (prompt, composition) in enumerate(zip(prompts, ranges, strict=True))
    ]
    answers: list[list[int]] = [[] for _ in prefills]
    while any(len(answer) < 16 for answer in answers):
        for prefill, answer in zip(prefills, answers, strict=True):
            if prefill.remaining and (logits := device.runner.prefill(prefill, 5)) is not None:
                answer.append(int(logits.argmax()))
        running = [number for number, answer in enumerate(answers) if 0 < len(answer) < 16]
        if running:
            logits = device.runner.decode([row(prefills[number], answers[number]) for number in running])
            for number, token in zip(running, logits.argmax(dim=-1).tolist(), strict=True):
                answers[number].append(token)
    assert answers == expected


def test_slot_abandoned_during_prefill_serves_next_prompt(device: Device) -> None:
    prompt = device.prompt([], "Go back.")
    expected = device.prefill(Prefill(0, prompt, {}), ALL)
    left = Prefill(2, device.prompt(IMAGES["three images"]), device.ranges({"a4": 1.0}))
    assert device.runner.prefill(left, 40) is None
    torch.testing.assert_close(device.prefill(Prefill(2, prompt, {}), 3), expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_images_are_embedded_once_and_released(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    embed, seen = device.model.embed, []

    def counted(prompt: EncodedPrompt) -> Tensor:
        seen.append(prompt)
        return embed(prompt)

    monkeypatch.setattr(device.model, "embed", counted)
    prefill = Prefill(0, device.prompt(IMAGES["one image"]), {})
    while prefill.remaining:
        device.runner.prefill(prefill, 10)
        assert prefill.holds_embeddings == bool(prefill.remaining)
        assert prefill.prompt.pixels is None
    assert len(seen) == 1


def test_chunk_takes_no_more_than_remaining_tokens(device: Device) -> None:
    prompt = device.prompt([])
    prefill = Prefill(0, prompt, {})
    assert device.runner.prefill(prefill, prompt.length - 1) is None
    assert (prefill.offset, prefill.remaining) == (prompt.length - 1, 1)
    assert device.runner.prefill(prefill, 100) is not None
    assert (prefill.offset, prefill.remaining) == (prompt.length, 0)
