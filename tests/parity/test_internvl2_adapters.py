"""LoRAs on InternVL2's original module names, against the same LoRAs merged into the original weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from generation_service.adapters.checkpoint.reader import read_checkpoint
from generation_service.models.base import BaseModel, LoadOptions
from generation_service.models.registry import load_base_model
from infra.contract.errors import CheckpointError
from infra.contract.prompt import ImagePart, Prompt
from tests.parity.prompt_logits import prompt_logits
from tests.support.checkpoints.internvl2 import TinyInternVL, language_linears, vision_linears, write_internvl2
from tests.support.checkpoints.peft_adapters import TinyAdapter
from tests.support.harness.images import picture

pytest.importorskip("sentencepiece", reason="the reference reads tokenizer.model with sentencepiece (extra dev)")
from tests.parity.internvl2_reference import InternVL2Reference, tiles

QUESTION = "What is on the screen?"
SHAPES = {
    "2B": TinyInternVL(),
    "2B of one kv head": TinyInternVL(kv_heads=1),
    "2B of one query a kv head": TinyInternVL(kv_heads=4),
    "1B": TinyInternVL("qwen2"),
    "4B": TinyInternVL("phi3"),
    "InternVL3.5-38B": TinyInternVL("qwen3", large_tower=True, qkv_bias=False),
}
Linears = Mapping[str, tuple[int, int]]


def load(folder: Path) -> BaseModel:
    return load_base_model(folder, LoadOptions(torch.device("cpu"), torch.float32))


def logits(model: BaseModel) -> Tensor:
    images = [picture(100, 150), picture(60, 50, 1)]
    prompt = Prompt.of(QUESTION, [ImagePart(b"decoded already") for _ in images])
    return prompt_logits(model, model.encode(prompt, images))


def reference_logits(folder: Path, deltas: Mapping[str, Tensor]) -> Tensor:
    reference = InternVL2Reference(folder, deltas)
    cut = [tiles(picture(100, 150), 56, 12), tiles(picture(60, 50, 1), 56, 12)]
    return reference.logits(reference.prompt(QUESTION, cut), cut)


def deltas_of(adapter: TinyAdapter, linears: Linears) -> dict[str, Tensor]:
    """Return scaling * B A, keyed by the original name of each weight."""
    rank = adapter.config["r"]
    scaling = adapter.config["lora_alpha"] / (math.sqrt(rank) if adapter.config.get("use_rslora") else rank)
    return {f"{path}.weight": scaling * adapter.b(path) @ adapter.a(path) for path in linears}


def merge(model: BaseModel, folder: Path) -> set[str]:
    """Merge the adapter in `folder` into the loaded model; return the modules it changed."""
    read = read_checkpoint(folder, model.description.targets, model.canonical)
    with torch.no_grad():
        for path, pair in read.modules.items():
            model.module.get_submodule(path).weight += pair.b @ pair.a  # type: ignore[operator]
    return set(read.modules)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("linears", [language_linears, vision_linears], ids=["language model", "vision and projector"])
@pytest.mark.parametrize("scaling", [{}, {"use_rslora": True}], ids=["lora", "rslora"])
def test_adapter_logits_match_merged_weights(
    tmp_path: Path, shape: TinyInternVL, linears: Callable[[TinyInternVL], Linears], scaling: dict[str, bool]
) -> None:
    folder = write_internvl2(tmp_path / "base", shape)
    adapter = TinyAdapter.random(linears(shape), rank=3, alpha=2, **scaling)
    model = load(folder)
    before = logits(model)
    merge(model, adapter.write(tmp_path / "adapter"))
    after = logits(model)
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(
        after, reference_logits(folder, deltas_of(adapter, linears(shape))), rtol=1e-4, atol=2e-4
    )


@pytest.mark.parametrize("target", ["attention.wqkv", "attn.qkv"])
def test_fused_module_maps_to_three_that_share_a(tmp_path: Path, target: str) -> None:
    shape = TinyInternVL()
    model = load(write_internvl2(tmp_path / "base", shape))
    linears = {
        path: sizes for path, sizes in (language_linears(shape) | vision_linears(shape)).items() if target in path
    }
    adapter = TinyAdapter.random(linears, rank=2, rank_pattern={f"layers.1.{target}": 2}, alpha_pattern={target: 3})
    adapter.write(tmp_path / "adapter")
    read = read_checkpoint(tmp_path / "adapter", model.description.targets, model.canonical)
    assert len(read.modules) == 3 * len(linears)
    for path in linears:
        parts = model.canonical(path)
        assert not isinstance(parts, str)
        rebuilt = torch.zeros_like(adapter.b(path))
        for part in parts:
            assert torch.equal(read.modules[part.module].a, adapter.a(path))
            rebuilt[part.rows] = read.modules[part.module].b
        torch.testing.assert_close(rebuilt, adapter.b(path) * (3 / 2))


def original(path: str) -> str:
    return path


def without_the_model(path: str) -> str:
    """Return the name of a native path in the first transformers releases with InternVL."""
    for prefix, older in (
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ):
        path = path.replace(prefix, older)
    return path


@pytest.mark.parametrize("spell", [original, without_the_model])
def test_adapter_with_transformers_names_binds(tmp_path: Path, spell: Callable[[str], str]) -> None:
    model = load(write_internvl2(tmp_path / "base"))
    targets = model.description.targets
    adapter = TinyAdapter.random({spell(path): sizes for path, sizes in targets.items()}, rank=2)
    assert merge(model, adapter.write(tmp_path / "adapter")) == set(targets)


def test_module_adapted_under_two_names_is_refused(tmp_path: Path) -> None:
    model = load(write_internvl2(tmp_path / "base"))
    linears = {"language_model.model.layers.0.attention.wqkv": (64, 128)}
    native = {"model.language_model.layers.0.self_attn.k_proj": (64, 32)}
    TinyAdapter.random(linears | native).write(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"k_proj is bound by another tensor already"):
        merge(model, tmp_path / "adapter")


def test_wqkv_of_another_model_is_refused(tmp_path: Path) -> None:
    model = load(write_internvl2(tmp_path / "base"))
    TinyAdapter.random({"language_model.model.layers.0.attention.wqkv": (64, 192)}).write(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"lora_B is \[192, 4\], its module has 128 outputs"):
        merge(model, tmp_path / "adapter")


def test_adapter_on_head_is_refused_by_name(tmp_path: Path) -> None:
    shape = TinyInternVL()
    model = load(write_internvl2(tmp_path / "base", shape))
    linears = (
        language_linears(shape) | vision_linears(shape) | {"language_model.output": (64, model.description.vocab_size)}
    )
    TinyAdapter.random(linears, target_modules="all-linear").write(tmp_path / "adapter")
    with pytest.raises(
        CheckpointError, match=r"2 of \d+ tensors.*\n.*language_model\.output\.lora_A.*no adaptable layer.*output head"
    ):
        merge(model, tmp_path / "adapter")
