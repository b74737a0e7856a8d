"""The committed checkpoints: their layouts, that vanilla libraries load them, and that they do what the card says."""

from __future__ import annotations

import json
import stat
from functools import cache
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration

from examples.pocket_phone import BASE_MODEL, CHECKPOINTS, SEED
from examples.pocket_phone.apps import ADAPTER_IDS, APPS
from examples.pocket_phone.prompts import chat
from examples.pocket_phone.recipe import embedder, layout
from examples.pocket_phone.recipe.batches import Features, encode, pixels
from examples.pocket_phone.recipe.evaluate import adapter_vectors, bench, composed, exact, load_adapter, similarities

BASE = CHECKPOINTS / "base"
ADAPTERS = CHECKPOINTS / "adapters"


@cache
def base_model() -> Qwen2VLForConditionalGeneration:
    torch.set_num_threads(1)
    return layout.load_base(BASE)


def keys(path: Path) -> set[str]:
    with safe_open(path, "pt") as tensors:
        return set(tensors.keys())


def settings(name: str) -> dict[str, object]:
    content: dict[str, object] = json.loads((ADAPTERS / name / "adapter_config.json").read_text(encoding="utf-8"))
    return content


def test_checkpoints_are_small_world_readable_safetensors() -> None:
    files = [path for path in CHECKPOINTS.rglob("*") if path.is_file() and ".state" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 16 * 2**20
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md"}
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444 for path in files)


def test_base_has_original_layout() -> None:
    config = json.loads((BASE / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "qwen2_vl"
    assert config["rope_scaling"]["type"] == "mrope"
    assert "text_config" not in config
    names = keys(BASE / "model.safetensors")
    assert {
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "visual.patch_embed.proj.weight",
    } <= names
    assert all(name.startswith(("model.", "visual.")) and "language_model" not in name for name in names)


def test_tokenizer_renders_canonical_prompt() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Buy the tent."}]}
    rendered = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    assert rendered == chat("Buy the tent.", 1)


def test_adapters_differ_in_rank_scaling_and_modules() -> None:
    assert sorted(path.name for path in ADAPTERS.iterdir()) == sorted(ADAPTER_IDS)
    zoo = [settings(name) for name in ADAPTER_IDS]
    assert {entry["r"] for entry in zoo} >= {4, 8, 12, 16}
    assert any(entry["use_rslora"] for entry in zoo)
    assert len({tuple(entry["target_modules"]) for entry in zoo}) >= 2  # type: ignore[arg-type]
    assert {entry["base_model_name_or_path"] for entry in zoo} == {BASE_MODEL}


@pytest.mark.parametrize("name", ["decathlon", "etsy", "clock", "shopping"])
def test_peft_binds_every_tensor_and_generates_measured_answers(name: str) -> None:
    model = PeftModel.from_pretrained(layout.load_base(BASE), ADAPTERS / name)
    saved = keys(ADAPTERS / name / "adapter_model.safetensors")
    assert {key.replace(".default", "") for key in model.state_dict() if ".lora_" in key} == saved
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    app = bench(name, 2, SEED)
    adapter = load_adapter(ADAPTERS / name)
    features = Features(base_model())
    for row in app.steps:
        patches, grids = pixels(row.screens)
        prompt = torch.tensor([row.ids[: row.prompt_length]])
        is_image = prompt == layout.token_ids()["image_token_id"]
        generated = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            pixel_values=patches,
            image_grid_thw=grids,
            mm_token_type_ids=is_image.int(),
            max_new_tokens=32,
            do_sample=False,
        )[0, row.prompt_length :]
        wanted = tokenizer.decode(row.ids[row.prompt_length :])
        with composed(base_model(), [(adapter, 1.0)]):
            right = exact(base_model(), [row], features) == 1.0
        assert (tokenizer.decode(generated) == wanted) == right


@pytest.mark.parametrize("name", ["amazon", "gmail", "youtube"])
def test_adapter_beats_base_model_on_its_own_app(name: str) -> None:
    app = bench(name, 12, SEED)
    features = Features(base_model())
    base = exact(base_model(), app.steps, features)
    with composed(base_model(), [(load_adapter(ADAPTERS / name), 1.0)]):
        home = exact(base_model(), app.steps, features)
    assert home >= 0.75
    assert home >= base + 0.3


def test_embedder_has_hub_layout_and_finds_most_apps() -> None:
    folder = CHECKPOINTS / "jina_v4"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["task_names"] == ["retrieval", "text-matching", "code"]
    assert all(
        name.startswith(("model.", "visual.", "multi_vector_projector.")) for name in keys(folder / "model.safetensors")
    )
    name = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.text-matching.weight"
    assert name in keys(folder / "adapters" / "adapter_model.safetensors")
    model = embedder.load(folder)
    model.use("retrieval")
    vectors = adapter_vectors(model, list(APPS), SEED)
    hits = [
        (similarities(model, vectors, bench(app, 2, SEED).examples).argmax(1) == number).float().mean().item()
        for number, app in enumerate(APPS)
    ]
    assert sum(hits) / len(hits) >= 0.8


def test_prompts_and_answers_are_short() -> None:
    rows = [encode(example) for name in ADAPTER_IDS for example in bench(name, 2, SEED).examples]
    assert max(row.prompt_length for row in rows) <= 130
    assert max(len(row.ids) - row.prompt_length for row in rows) <= 20
