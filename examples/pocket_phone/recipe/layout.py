"""The checkpoints' on-disk layout: a small version of the published Qwen2-VL folders."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from examples.pocket_phone.recipe import tokenizer

HIDDEN, LAYERS, HEADS, KV_HEADS, INTERMEDIATE = 128, 4, 4, 2, 384
VISION_DEPTH, VISION_WIDTH, VISION_HEADS = 2, 96, 3
CONTEXT = 2048
MIN_PIXELS, MAX_PIXELS = 56 * 56, 28 * 28 * 1280

PREPROCESSOR: dict[str, Any] = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "Qwen2VLImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "max_pixels": MAX_PIXELS,
    "merge_size": 2,
    "min_pixels": MIN_PIXELS,
    "patch_size": 14,
    "processor_class": "Qwen2VLProcessor",
    "rescale_factor": 1 / 255,
    "resample": 3,
    "size": {"longest_edge": MAX_PIXELS, "shortest_edge": MIN_PIXELS},
    "temporal_patch_size": 2,
}


def token_ids() -> dict[str, int]:
    """Return the token ids of a Qwen2-VL config."""
    vocabulary = tokenizer.build()
    names = {
        "bos_token_id": "<|endoftext|>",
        "eos_token_id": "<|im_end|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "vision_token_id": "<|vision_pad|>",
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
    }
    return {name: _known(vocabulary.token_to_id(token)) for name, token in names.items()}


def _known(token: int | None) -> int:
    assert token is not None, "the tokenizer holds every special token"
    return token


def text_config() -> dict[str, Any]:
    """Return the language model's part of a config, flat as in the original files."""
    return {
        **token_ids(),
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": CONTEXT,
        "max_window_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_section": [4, 6, 6], "type": "mrope"},
        "rope_theta": 1000000.0,
        "sliding_window": CONTEXT,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": tokenizer.build().get_vocab_size(),
    }


def qwen2_vl_config() -> dict[str, Any]:
    """Return `config.json` of the base model."""
    vision = {
        "depth": VISION_DEPTH,
        "embed_dim": VISION_WIDTH,
        "hidden_size": HIDDEN,
        "in_chans": 3,
        "mlp_ratio": 4,
        "model_type": "qwen2_vl",
        "num_heads": VISION_HEADS,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    }
    head = {"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl"}
    return {**head, **text_config(), "vision_config": vision}


def write_files(folder: Path, config: dict[str, Any]) -> None:
    """Write every file of a checkpoint folder except the weights."""
    tokenizer.save(folder)
    ids = token_ids()
    generation = {
        "bos_token_id": ids["bos_token_id"],
        "do_sample": False,
        "eos_token_id": [ids["eos_token_id"], ids["bos_token_id"]],
        "pad_token_id": ids["bos_token_id"],
    }
    files = {"config": config, "preprocessor_config": PREPROCESSOR, "generation_config": generation}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def original_key(key: str) -> str | None:
    """Return a tensor's name in the original layout, or None for the tied head, which is not stored."""
    if key == "lm_head.weight":
        return None
    return re.sub(r"^model\.visual\.", "visual.", re.sub(r"^model\.language_model\.", "model.", key))


def save_weights(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Write `model.safetensors` in float16 under the original names."""
    tensors = {
        name: value.detach().to("cpu", torch.float16).contiguous()
        for key, value in state.items()
        if (name := original_key(key)) is not None
    }
    path = folder / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)


def load_base(folder: Path, device: str = "cpu") -> Qwen2VLForConditionalGeneration:
    """Load the base model in float32. Raises ValueError if a tensor is missing or unexpected."""
    model, report = Qwen2VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    if report["missing_keys"] or report["unexpected_keys"]:
        raise ValueError(f"{folder}: missing {report['missing_keys']}, unexpected {report['unexpected_keys']}")
    loaded: Qwen2VLForConditionalGeneration = model.eval().to(device)
    return loaded


def processor() -> Qwen2VLImageProcessorPil:
    """Return the image processor, which does not resize screens."""
    return Qwen2VLImageProcessorPil(size=PREPROCESSOR["size"])
