"""Tiny InternVL folders in the layout of transformers (`-hf`), converted from an original one by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen2Tokenizer

from tests.support.checkpoints.internvl2 import TinyInternVL, write_internvl2

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_RENAMED = (
    (r"^mlp1\.0", "multi_modal_projector.layer_norm"),
    (r"^mlp1\.1", "multi_modal_projector.linear_1"),
    (r"^mlp1\.3", "multi_modal_projector.linear_2"),
    (r"^vision_model\.embeddings\.class_embedding", "vision_tower.embeddings.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding", "vision_tower.embeddings.position_embeddings"),
    (r"^vision_model\.embeddings\.patch_embedding", "vision_tower.embeddings.patch_embeddings.projection"),
    (r"^vision_model\.encoder\.layers", "vision_tower.encoder.layer"),
    (r"\.attn\.proj", ".attention.projection_layer"),
    (r"\.attn\.([qk]_norm)", r".attention.\1"),
    (r"\.ls([12])$", r".lambda_\1"),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
)


def write_internvl_native(folder: Path, original: Path, shape: TinyInternVL) -> Path:
    """Write `original`, with Qwen2 or Qwen3 as language model, and the same model in the layout of transformers."""
    write_internvl2(original, shape)
    folder.mkdir(parents=True)
    config = json.loads((original / "config.json").read_text())
    tokenizer = Qwen2Tokenizer.from_pretrained(original)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    _write_json(folder / "config.json", _config(config, tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"), shape))
    _write_json(folder / "generation_config.json", {"eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>")})
    _write_json(folder / "preprocessor_config.json", _preprocessor(shape))
    save_file(native_tensors(load_file(original / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    return folder


def native_tensors(original: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an original folder's tensors under the names of the published `-hf` folders."""
    renamed: dict[str, Tensor] = {}
    for original_name, tensor in original.items():
        name = original_name
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        if ".attn.qkv" in name:
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                renamed[name.replace(".attn.qkv", f".attention.{part}_proj")] = third.clone()
        else:
            renamed[name] = tensor
    return renamed


def _config(config: Mapping[str, Any], image_token: int, shape: TinyInternVL) -> dict[str, Any]:
    vision = config["vision_config"]
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels", "norm_type")
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "downsample_ratio": 0.5,
        "image_seq_length": shape.tile_tokens,
        "image_token_id": image_token,
        "model_type": "internvl",
        "projector_hidden_act": "gelu",
        "text_config": {key: value for key, value in config["llm_config"].items() if value is not None},
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "float32",
        "vision_config": {key: vision[key] for key in kept}
        | {
            "model_type": "internvl_vision",
            "attention_bias": vision["qkv_bias"],
            "image_size": [shape.image_size, shape.image_size],
            "patch_size": [vision["patch_size"]] * 2,
            "layer_norm_eps": vision["layer_norm_eps"],
            "use_mean_pooling": True,
            "use_qk_norm": shape.large_tower,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }


def _preprocessor(shape: TinyInternVL) -> dict[str, Any]:
    return {
        "crop_to_patches": False,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_processor_type": "GotOcr2ImageProcessorFast",
        "image_std": [0.229, 0.224, 0.225],
        "max_patches": shape.max_tiles,
        "min_patches": 1,
        "processor_class": "InternVLProcessor",
        "resample": 3,
        "size": {"height": shape.image_size, "width": shape.image_size},
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
