"""The engine's greedy answers against transformers' and PEFT's `generate`, token for token in float32."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from PIL.Image import Image
from transformers import GenerationConfig, Qwen2VLForConditionalGeneration

from generation_service.app import GenerationStack, generation_stack
from generation_service.models.base import EncodedPrompt
from infra.contract.composition import Base, Composition, Fusion, FusionMethod, Mixture, WeightedAdapter
from infra.contract.generation import Decoding
from infra.contract.prompt import ImagePart, Prompt
from tests.support.harness.generation_stack import ModelFixture, settings_for, tiny_adapter, write_model_fixture
from tests.support.harness.images import picture, png

TOKENS = 24
IMAGES = {"text": [], "one image": [(100, 150)], "three images": [(57, 200), (112, 112), (40, 40)]}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ModelFixture:
    return write_model_fixture(tmp_path_factory.mktemp("world"))


def transformers_model(world: ModelFixture) -> Any:
    model = Qwen2VLForConditionalGeneration.from_pretrained(world.base, dtype=torch.float32)
    model.generation_config = GenerationConfig()
    return model.eval()


def reference_answer(model: Any, stack: GenerationStack, prompt: EncodedPrompt) -> str:
    """Return the greedy answer of transformers to an encoded prompt."""
    base = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    base.model.rope_deltas = None
    ids = prompt.tokens[None]
    kinds = (ids == base.config.image_token_id).int()
    images = {} if prompt.pixels is None else {"pixel_values": prompt.pixels, "image_grid_thw": prompt.grids}
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=kinds,
        do_sample=False,
        max_new_tokens=TOKENS,
        eos_token_id=sorted(stack.model.description.eos_tokens),
        pad_token_id=0,
        **images,
    )
    return stack.model.decode(output[0, ids.shape[1] :].tolist())


def question(text: str, images: Sequence[Image]) -> Prompt:
    return Prompt.of(text, [ImagePart(png(image)) for image in images])


def answer(stack: GenerationStack, prompt: Prompt, composition: Composition) -> str:
    return asyncio.run(stack.service.generate(prompt, composition, Decoding(max_new_tokens=TOKENS))).text


@pytest.mark.parametrize("sizes", IMAGES.values(), ids=IMAGES)
def test_base_model_matches_transformers_answers(world: ModelFixture, sizes: list[tuple[int, int]]) -> None:
    images = [picture(width, height, seed) for seed, (width, height) in enumerate(sizes)]
    with generation_stack(settings_for(world.base)) as stack:
        reference = transformers_model(world)
        for text in ("What is on the screen?", "Scroll down, then go back."):
            prompt = question(text, images)
            expected = reference_answer(reference, stack, stack.model.encode(prompt, images))
            assert answer(stack, prompt, Base()) == expected


@pytest.mark.parametrize("name", ["a0", "a2", "a4"])
def test_one_adapter_matches_peft_answers(world: ModelFixture, name: str) -> None:
    images = [picture(100, 150), picture(60, 90, 1)]
    prompt = question("What is on the screen?", images)
    with generation_stack(settings_for(world.base, [world.roots])) as stack:
        reference = peft.PeftModel.from_pretrained(transformers_model(world), world.roots / name).eval()
        expected = reference_answer(reference, stack, stack.model.encode(prompt, images))
        assert answer(stack, prompt, Mixture((WeightedAdapter(name, 1.0),))) == expected
        assert answer(stack, prompt, Base()) != expected


def test_rslora_adapter_matches_peft_answers(world: ModelFixture, tmp_path: Path) -> None:
    tiny_adapter(world.shape, 9, rank=9, use_rslora=True).write(tmp_path / "scaled")
    prompt = question("What is on the screen?", [])
    with generation_stack(settings_for(world.base, [tmp_path])) as stack:
        reference = peft.PeftModel.from_pretrained(transformers_model(world), tmp_path / "scaled").eval()
        expected = reference_answer(reference, stack, stack.model.encode(prompt, []))
        assert answer(stack, prompt, Mixture((WeightedAdapter("scaled", 1.0),))) == expected


@pytest.mark.parametrize("weights", [(0.6, 0.3, 0.1), (1 / 3, 1 / 3, 1 / 3), (0.9, 0.0, 1.4)])
def test_mixture_and_concat_fusion_match_peft_cat_answers(world: ModelFixture, weights: tuple[float, ...]) -> None:
    names = ["a0", "a1", "a4"]
    images = [picture(100, 150)]
    prompt = question("What is on the screen?", images)
    shares = tuple(WeightedAdapter(name, weight) for name, weight in zip(names, weights, strict=True))
    reference = peft.PeftModel.from_pretrained(transformers_model(world), world.roots / "a0", adapter_name="a0")
    for name in names[1:]:
        reference.load_adapter(world.roots / name, adapter_name=name)
    nonzero = [(name, weight) for name, weight in zip(names, weights, strict=True) if weight]
    reference.add_weighted_adapter(
        [name for name, _ in nonzero], [weight for _, weight in nonzero], "cat", combination_type="cat"
    )
    reference.set_adapter("cat")
    reference.eval()
    with generation_stack(settings_for(world.base, [world.roots])) as stack:
        expected = reference_answer(reference, stack, stack.model.encode(prompt, images))
        assert answer(stack, prompt, Mixture(shares)) == expected
        assert answer(stack, prompt, Fusion(shares, FusionMethod.CONCAT)) == expected
