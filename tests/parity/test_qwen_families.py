"""The Qwen families against independent implementations: images, adapters under every naming, batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL.Image import Image
from torch import Tensor

from generation_service.adapters.checkpoint.reader import read_checkpoint
from generation_service.app import generation_stack
from generation_service.models.base import BaseModel, LoadOptions
from generation_service.models.registry import load_base_model
from infra.contract.composition import Base
from infra.contract.generation import Decoding
from infra.contract.prompt import ImagePart, Prompt
from tests.parity.prompt_logits import prompt_logits
from tests.parity.qwen2_5_vl_reference import Qwen25VLReference
from tests.parity.qwen2_vl_reference import ImagePatches, Qwen2VLReference, patches
from tests.parity.qwen3_vl_reference import Qwen3VLReference, patches_of_16
from tests.support.checkpoints.peft_adapters import TinyAdapter
from tests.support.checkpoints.qwen2_5_vl import TinyShape25, write_qwen2_5_vl
from tests.support.checkpoints.qwen2_vl import TinyShape, write_qwen2_vl
from tests.support.checkpoints.qwen3_vl import TinyShape3, write_qwen3_vl
from tests.support.harness.generation_stack import settings_for
from tests.support.harness.images import picture, png

CPU = torch.device("cpu")
QUESTION = "What is on the screen?"
SIZES = {"text": [], "one image": [(100, 150)], "several images": [(57, 300), (112, 112), (40, 40), (300, 130)]}


def old(path: str) -> str:
    """Return the name of a module in checkpoints and adapters of transformers before 4.52."""
    return path.replace("model.language_model.", "model.").removeprefix("model." if ".visual." in path else "")


def newer(path: str) -> str:
    return path


@dataclass(frozen=True)
class Family:
    """How the tests write and read a family's checkpoints; `original` is the name of a module in them."""

    write: Callable[..., Path]
    shape: TinyShape
    reference: Callable[..., Qwen2VLReference]
    tower_mlp: tuple[str, ...]
    original: Callable[[str], str] = old
    patches: Callable[[Image], ImagePatches] = patches


FAMILIES = {
    "qwen2_vl": Family(write_qwen2_vl, TinyShape(), Qwen2VLReference, ("fc1", "fc2")),
    "qwen2_5_vl": Family(write_qwen2_5_vl, TinyShape25(), Qwen25VLReference, ("gate_proj", "up_proj", "down_proj")),
    "qwen3_vl": Family(
        write_qwen3_vl, TinyShape3(), Qwen3VLReference, ("linear_fc1", "linear_fc2"), newer, patches_of_16
    ),
}


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


def load(folder: Path) -> BaseModel:
    return load_base_model(folder, LoadOptions(CPU, torch.float32))


def pictures(sizes: Sequence[tuple[int, int]]) -> list[Image]:
    return [picture(width, height, seed) for seed, (width, height) in enumerate(sizes)]


def logits(model: BaseModel, images: list[Image]) -> Tensor:
    prompt = Prompt.of(QUESTION, [ImagePart(b"decoded already") for _ in images])
    return prompt_logits(model, model.encode(prompt, images))


def expected_logits(family: Family, reference: Qwen2VLReference, images: list[Image]) -> Tensor:
    cut = [family.patches(image) for image in images]
    return reference.logits(reference.prompt(QUESTION, cut), cut)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(
    "layout",
    [{}, {"tied": True, "shards": 3}, {"kv_heads": 1, "layers": 2, "shards": 2, "dtype": torch.bfloat16}],
    ids=["untied", "tied and sharded", "sharded bfloat16"],
)
def test_logits_match_independent_implementation(
    tmp_path: Path, family: Family, layout: dict[str, Any], sizes: list[tuple[int, int]]
) -> None:
    written = {name: layout[name] for name in ("shards", "dtype") if name in layout}
    shape = type(family.shape)(**{name: value for name, value in layout.items() if name not in written})
    folder = family.write(tmp_path / "base", shape, **written)
    images = pictures(sizes)
    torch.testing.assert_close(
        logits(load(folder), images), expected_logits(family, family.reference(folder), images), rtol=1e-4, atol=2e-4
    )


def before_the_head_moved(path: str) -> str:
    return path.replace("model.language_model.", "language_model.model.").replace("model.visual.", "visual.")


def adapted(model: BaseModel) -> dict[str, tuple[int, int]]:
    """Return modules of every kind in language model, merger and vision tower."""
    return {path: shape for path, shape in model.description.targets.items() if ".0." in path or "merger" in path}


def respelt(adapter: TinyAdapter, spell: Callable[[str], str], ending: str) -> TinyAdapter:
    """Return the adapter with the keys of another library version."""

    def key(name: str) -> str:
        module, _, factor = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        return f"base_model.model.{spell(module)}.{factor}{ending}"

    return TinyAdapter(adapter.config, {key(name): tensor for name, tensor in adapter.tensors.items()})


def deltas(family: Family, adapter: TinyAdapter, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    """Return scaling * B A, keyed by the original name of each weight."""
    rank, alpha = adapter.config["r"], adapter.config["lora_alpha"]
    scaling = alpha / (rank**0.5 if adapter.config.get("use_rslora") else rank)
    return {f"{family.original(path)}.weight": scaling * adapter.b(path) @ adapter.a(path) for path in shapes}


@pytest.mark.parametrize("spell", [old, newer, before_the_head_moved])
@pytest.mark.parametrize("ending", [".weight", ".default.weight"])
def test_adapter_under_any_names_matches_merged_weights(
    tmp_path: Path, family: Family, spell: Callable[[str], str], ending: str
) -> None:
    folder = family.write(tmp_path / "base", family.shape)
    model = load(folder)
    shapes = adapted(model)
    assert {path.rpartition(".")[2] for path in shapes} >= {"qkv", "proj", "q_proj", "down_proj", *family.tower_mlp}
    adapter = TinyAdapter.random(shapes, rank=3, alpha=2, use_rslora=True)
    respelt(adapter, spell, ending).write(tmp_path / "adapter")
    images = pictures(SIZES["several images"])
    base = logits(model, images)

    read = read_checkpoint(tmp_path / "adapter", model.description.targets, model.canonical)
    assert read.modules.keys() == shapes.keys()
    with torch.no_grad():
        for path, pair in read.modules.items():
            model.module.get_submodule(path).weight += pair.b @ pair.a  # type: ignore[operator]

    merged = family.reference(folder, deltas(family, adapter, shapes))
    torch.testing.assert_close(logits(model, images), expected_logits(family, merged, images), rtol=1e-4, atol=2e-4)
    assert (logits(model, images) - base).abs().max() > 0.1


def test_concurrent_requests_of_many_lengths_and_images_match_single_ones(tmp_path: Path, family: Family) -> None:
    folder = family.write(tmp_path / "base", family.shape)
    reference = family.reference(folder)
    requests = [(f"{'again ' * number}What?", pictures(SIZES[name])) for number, name in enumerate([*SIZES, *SIZES])]
    with generation_stack(settings_for(folder, max_running=4)) as stack:

        async def together() -> list[str]:
            prompts = [Prompt.of(text, [ImagePart(png(image)) for image in images]) for text, images in requests]
            decoding = Decoding(max_new_tokens=12)
            answers = await asyncio.gather(*(stack.service.generate(p, Base(), decoding) for p in prompts))
            return [answer.text for answer in answers]

        answered = asyncio.run(together())
        ends = stack.model.description.eos_tokens
        for (text, images), answer in zip(requests, answered, strict=True):
            tokens = reference.generate(text, [family.patches(image) for image in images], 12)
            end = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
            assert answer == stack.model.decode(tokens[:end])
