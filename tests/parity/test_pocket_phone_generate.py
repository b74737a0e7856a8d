"""The demo's trained model and adapters, against PEFT's `generate`, token for token."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from examples.pocket_phone.episodes import generate
from examples.pocket_phone.prompts import Example, chat, step_examples
from generation_service.app import GenerationStack, generation_stack
from infra.contract.composition import Composition, Mixture, WeightedAdapter
from infra.contract.generation import Decoding
from infra.contract.prompt import ImagePart, Prompt
from tests.support.harness.generation_stack import settings_for
from tests.support.harness.images import png

CHECKPOINTS = Path(__file__).parents[2] / "examples" / "pocket_phone" / "checkpoints"
BASE, ADAPTERS = CHECKPOINTS / "base", CHECKPOINTS / "adapters"
TOKENS = 40


class PeftReference:
    """The model in transformers and PEFT, with prompts built by the folder's own tokenizer and processor."""

    def __init__(self, adapters: Sequence[str]) -> None:
        base = Qwen2VLForConditionalGeneration.from_pretrained(BASE, dtype=torch.float32).eval()
        base.generation_config = GenerationConfig()
        self._base = base
        self._tokenizer: Any = AutoTokenizer.from_pretrained(BASE)
        self._processor: Any = Qwen2VLImageProcessorPil.from_pretrained(BASE)
        first, *others = adapters
        self.model: Any = peft.PeftModel.from_pretrained(base, ADAPTERS / first, adapter_name=first)
        for name in others:
            self.model.load_adapter(ADAPTERS / name, adapter_name=name)
        self.model.eval()

    def answer(self, example: Example) -> str:
        """Return the greedy answer of the active adapter."""
        images = self._processor(images=[screen.render() for screen in example.screens], return_tensors="pt")
        text = chat(example.text, images=0)
        marks = "".join(
            f"<|vision_start|>{'<|image_pad|>' * (int(grid.prod()) // 4)}<|vision_end|>"
            for grid in images["image_grid_thw"]
        )
        text = text.replace("<|im_start|>user\n", f"<|im_start|>user\n{marks}", 1)
        ids = self._tokenizer(text, return_tensors="pt").input_ids
        self._base.model.rope_deltas = None
        output = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == self._base.config.image_token_id).int(),
            pixel_values=images["pixel_values"],
            image_grid_thw=images["image_grid_thw"],
            do_sample=False,
            max_new_tokens=TOKENS,
            eos_token_id=self._tokenizer.eos_token_id,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        return str(self._tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))


@pytest.fixture(scope="module")
def stack() -> Iterator[GenerationStack]:
    settings = settings_for(BASE, [ADAPTERS], model_name="qwen2-vl-tiny", max_sequence_tokens=None)
    with generation_stack(settings) as running:
        yield running


def examples(name: str, count: int) -> list[Example]:
    """Return held-out steps of an app, spread over episodes."""
    steps = [example for episode in generate(name, "test", 4, 0) for example in step_examples(episode)]
    return steps[:: max(1, len(steps) // count)][:count]


def answers(stack: GenerationStack, samples: Sequence[Example], composition: Composition) -> list[str]:
    """Return the answers to all examples, requested concurrently."""

    async def together() -> list[str]:
        calls = [
            stack.service.generate(
                Prompt.of(example.text, [ImagePart(png(screen.render())) for screen in example.screens]),
                composition,
                Decoding(max_new_tokens=TOKENS),
            )
            for example in samples
        ]
        return [answer.text for answer in await asyncio.gather(*calls)]

    return asyncio.run(together())


@pytest.mark.parametrize("name", ["adidas", "clock", "decathlon", "youtube"])
def test_app_adapter_matches_peft_answers(stack: GenerationStack, name: str) -> None:
    samples = examples(name, 5)
    reference = PeftReference([name])
    expected = [reference.answer(example) for example in samples]
    assert answers(stack, samples, Mixture((WeightedAdapter(name, 1.0),))) == expected


def test_app_mixture_matches_peft_cat_answers(stack: GenerationStack) -> None:
    names, weights = ["adidas", "amazon", "ebay"], [0.6, 0.3, 0.1]
    samples = examples("adidas", 6)
    reference = PeftReference(names)
    reference.model.add_weighted_adapter(names, weights, "cat", combination_type="cat")
    reference.model.set_adapter("cat")
    expected = [reference.answer(example) for example in samples]
    shares = tuple(WeightedAdapter(name, weight) for name, weight in zip(names, weights, strict=True))
    assert answers(stack, samples, Mixture(shares)) == expected
