"""The engine's greedy answers on InternVL2 against an independent implementation, adapters and batches included."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL.Image import Image
from torch import Tensor

from generation_service.app import GenerationStack, generation_stack
from infra.contract.composition import Base, Composition, Mixture, WeightedAdapter
from infra.contract.generation import Decoding
from infra.contract.prompt import ImagePart, Prompt
from tests.support.checkpoints.internvl2 import TinyInternVL, language_linears, vision_linears, write_internvl2
from tests.support.checkpoints.peft_adapters import TinyAdapter
from tests.support.harness.generation_stack import settings_for
from tests.support.harness.images import picture, png

pytest.importorskip("sentencepiece", reason="the reference reads tokenizer.model with sentencepiece (extra dev)")
from tests.parity.internvl2_reference import InternVL2Reference, tiles

TOKENS = 16
NAME = "OpenGVLab/InternVL2-tiny"
IMAGES: dict[str, list[tuple[int, int]]] = {
    "text": [],
    "one image": [(100, 150)],
    "several images": [(57, 200), (112, 112), (40, 40)],
}
SHAPES = {"2B": TinyInternVL(), "1B": TinyInternVL("qwen2"), "4B": TinyInternVL("phi3")}


def pictures(name: str) -> list[Image]:
    return [picture(width, height, seed) for seed, (width, height) in enumerate(IMAGES[name])]


def answer(stack: GenerationStack, requests: Sequence[tuple[str, str, Composition]]) -> list[str]:
    """Return the answers to (text, images, composition), requested concurrently."""

    async def together() -> list[str]:
        prompts = [Prompt.of(text, [ImagePart(png(image)) for image in pictures(name)]) for text, name, _ in requests]
        decoding = Decoding(max_new_tokens=TOKENS)
        answers = await asyncio.gather(
            *(
                stack.service.generate(prompt, share, decoding)
                for prompt, (_, _, share) in zip(prompts, requests, strict=True)
            )
        )
        return [answer.text for answer in answers]

    return asyncio.run(together())


def expected(stack: GenerationStack, reference: InternVL2Reference, text: str, name: str) -> str:
    cut = [tiles(image, 56, 12) for image in pictures(name)]
    return stack.model.decode(reference.generate(text, cut, TOKENS))


def deltas_of(adapter: TinyAdapter, share: float) -> dict[str, Tensor]:
    paths = [
        key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        for key in adapter.tensors
        if "lora_A" in key
    ]
    scaling = share * adapter.config["lora_alpha"] / adapter.config["r"]
    return {f"{path}.weight": scaling * adapter.b(path) @ adapter.a(path) for path in paths}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_concurrent_requests_match_reference_alone(tmp_path: Path, shape: TinyInternVL) -> None:
    folder = write_internvl2(tmp_path / "base", shape, seed=1)
    reference = InternVL2Reference(folder)
    requests = [(f"{'again ' * number}What?", name, Base()) for number, name in enumerate([*IMAGES, *IMAGES])]
    with generation_stack(settings_for(folder, max_running=4, prefill_tokens=48)) as stack:
        answers = answer(stack, requests)
        assert answers == [expected(stack, reference, text, name) for text, name, _ in requests]
    assert len(set(answers)) > 3


def test_adapters_with_original_names_match_merged_weights(tmp_path: Path) -> None:
    shape = SHAPES["2B"]
    folder = write_internvl2(tmp_path / "base", shape)
    language, vision = language_linears(shape), vision_linears(shape)
    adapters = {
        "language": TinyAdapter.random(language, 4, 2, seed=1, base_model_name_or_path=NAME),
        "vision": TinyAdapter.random(vision, 3, 2, seed=2, base_model_name_or_path=NAME),
        "both": TinyAdapter.random(language | vision, 2, 1, seed=3, base_model_name_or_path=NAME),
    }
    for name, adapter in adapters.items():
        adapter.write(tmp_path / "adapters" / name)
    shares = {"language": {"language": 1.0}, "vision": {"vision": 1.0}, "mixture": {"language": 0.5, "both": 0.7}}
    requests = [
        (
            "What is on the screen?",
            images,
            Mixture(tuple(WeightedAdapter(name, share) for name, share in mixed.items())),
        )
        for mixed in shares.values()
        for images in ("one image", "several images")
    ]
    with generation_stack(settings_for(folder, [tmp_path / "adapters"])) as stack:
        base = answer(stack, [("What is on the screen?", "one image", Base())])
        answers = answer(stack, requests)
        for (text, images, composition), actual in zip(requests, answers, strict=True):
            deltas: dict[str, Tensor] = {}
            for part in composition.adapters:
                for path, delta in deltas_of(adapters[part.adapter_id], part.weight).items():
                    deltas[path] = deltas.get(path, 0) + delta
            assert actual == expected(stack, InternVL2Reference(folder, deltas), text, images)
    assert base[0] not in answers
