"""Qwen3-VL in the engine: answers of transformers and PEFT, chunked prefill, folders that transformers 5 saved."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from PIL.Image import Image
from transformers import GenerationConfig, Qwen3VLForConditionalGeneration

from generation_service.app import GenerationStack, generation_stack
from generation_service.execution.inputs import Prefill
from generation_service.execution.kv_cache import CacheShape, SlotKVCache
from generation_service.execution.runner import Runner
from generation_service.lora.bank import AdapterBank
from generation_service.models.base import BaseModel, LoadOptions
from generation_service.models.registry import load_base_model
from infra.contract.composition import Base, Composition, Mixture, WeightedAdapter
from infra.contract.generation import Decoding
from infra.contract.prompt import ImagePart, Prompt
from tests.parity.prompt_logits import prompt_logits
from tests.support.checkpoints.peft_adapters import TinyAdapter
from tests.support.checkpoints.qwen2_vl import write_qwen2_vl
from tests.support.checkpoints.qwen3_vl import write_qwen3_vl
from tests.support.harness.generation_stack import settings_for
from tests.support.harness.images import picture, png

TOKENS = 16


def load(folder: Path) -> BaseModel:
    return load_base_model(folder, LoadOptions(torch.device("cpu"), torch.float32))


def question(images: list[Image]) -> Prompt:
    return Prompt.of("What is on the screen?", [ImagePart(png(image)) for image in images])


def expected_answer(model: Any, stack: GenerationStack, images: list[Image]) -> str:
    """Return the greedy answer of transformers."""
    prompt = stack.model.encode(question(images), images)
    base = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    base.model.rope_deltas = None
    ids = prompt.tokens[None]
    seen = {} if prompt.pixels is None else {"pixel_values": prompt.pixels, "image_grid_thw": prompt.grids}
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == base.config.image_token_id).int(),
        do_sample=False,
        max_new_tokens=TOKENS,
        eos_token_id=sorted(stack.model.description.eos_tokens),
        pad_token_id=0,
        **seen,
    )
    return stack.model.decode(output[0, ids.shape[1] :].tolist())


def test_engine_matches_transformers_and_peft_answers(tmp_path: Path) -> None:
    folder = write_qwen3_vl(tmp_path / "base")
    TinyAdapter.random(
        load(folder).description.targets,
        rank=4,
        alpha=2,
        target_modules=r".*(_proj|qkv|\.proj|linear_fc\d)",
        exclude_modules=r".*patch_embed.*",
        base_model_name_or_path="base",
    ).write(tmp_path / "adapters" / "all")
    reference = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    reference.generation_config = GenerationConfig()

    def answer(composition: Composition, images: list[Image]) -> str:
        decoding = Decoding(max_new_tokens=TOKENS)
        return asyncio.run(stack.service.generate(question(images), composition, decoding)).text

    adapted = Mixture((WeightedAdapter("all", 1.0),))
    rounds: list[list[Image]] = [[], [picture(100, 150), picture(200, 64, 1)]]
    with generation_stack(settings_for(folder, [tmp_path / "adapters"])) as stack:
        base = [answer(Base(), images) for images in rounds]
        assert base == [expected_answer(reference, stack, images) for images in rounds]
        with_lora = peft.PeftModel.from_pretrained(reference, tmp_path / "adapters" / "all").eval()
        answers = [answer(adapted, images) for images in rounds]
        assert answers == [expected_answer(with_lora, stack, images) for images in rounds]
        assert answers != base


def test_deeper_features_reach_their_chunk(tmp_path: Path) -> None:
    model = load(write_qwen3_vl(tmp_path / "base"))
    of = model.description
    bank = AdapterBank(of.targets, 8, of.dtype, of.device, by_image=of.by_image)
    runner = Runner(model, bank, SlotKVCache(CacheShape(of.layers, 2, of.kv_heads, 512, of.head_dim), of.dtype, "cpu"))
    images = [picture(100, 150), picture(64, 64, 1)]
    prompt = model.encode(question(images), images)

    def prefilled(slot: int, tokens: int) -> torch.Tensor:
        prefill = Prefill(slot, prompt, {})
        while (logits := runner.prefill(prefill, tokens)) is None:
            pass
        return logits

    whole = prefilled(0, 4096)
    torch.testing.assert_close(whole, prompt_logits(model, prompt)[-1:], rtol=1e-4, atol=1e-4)
    for tokens in (1, 7, 40):
        torch.testing.assert_close(prefilled(1, tokens), whole, rtol=1e-4, atol=1e-4)


def as_transformers_5_saves(folder: Path) -> None:
    """Move what transformers 5 keeps elsewhere: RoPE, types, image processor; and rename the class, as forks do."""
    config = json.loads((folder / "config.json").read_text())
    text = config.setdefault("text_config", config)
    text["rope_parameters"] = {**text.pop("rope_scaling"), "rope_theta": text.pop("rope_theta")}
    for part in (config, text):
        part["dtype"] = part.pop("torch_dtype", "float32")
    config["architectures"] = ["MyFineTune"]
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not config}))
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    processor = {"image_processor": settings, "processor_class": "AnyProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(processor))


@pytest.mark.parametrize("write", [write_qwen2_vl, write_qwen3_vl])
def test_folder_of_transformers_5_is_the_same_model(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    image = picture(100, 150)
    before = load(write(tmp_path / "base"))
    as_transformers_5_saves(tmp_path / "base")
    after = load(tmp_path / "base")
    old, new = (model.encode(question([image]), [image]) for model in (before, after))
    assert new.tokens.tolist() == old.tokens.tolist()
    assert torch.equal(prompt_logits(after, new), prompt_logits(before, old))


def test_end_token_is_read_from_text_config(tmp_path: Path) -> None:
    folder = write_qwen3_vl(tmp_path / "base")
    stated = json.loads((folder / "config.json").read_text())["text_config"]["eos_token_id"]
    (folder / "generation_config.json").unlink()
    assert load(folder).description.eos_tokens == {stated}
