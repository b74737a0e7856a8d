"""Tiny random InternVL2, InternVL3 and InternVL3.5 checkpoints in the original layout, written without transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.support.checkpoints.internvl2_tokenizers import LanguageModel, write_json, write_tokenizer

PATCH = 14


@dataclass(frozen=True)
class TinyInternVL:
    """Sizes of a tiny InternVL, its language model (internlm2, qwen2, qwen3 or phi3), and its RoPE scaling.

    `large_tower`: the vision tower has the norms of InternViT-6B.
    """

    language: LanguageModel = "internlm2"
    hidden: int = 64
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 96
    vision_width: int = 32
    vision_depth: int = 2
    vision_heads: int = 2
    image_size: int = 56
    max_tiles: int = 12
    max_positions: int = 4096
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    template: str = ""
    tied: bool = False
    qkv_bias: bool = True
    bias: bool = False
    large_tower: bool = False

    @property
    def head_dim(self) -> int:
        """Size of an attention head, which Qwen3 states apart."""
        return self.hidden // self.heads if self.language != "qwen3" else self.hidden // self.heads + 4

    @property
    def tile_tokens(self) -> int:
        """Tokens of a tile: one per four patches."""
        return (self.image_size // PATCH) ** 2 // 4


_TEMPLATES = {"internlm2": "internlm2-chat", "qwen2": "Hermes-2", "qwen3": "internvl2_5", "phi3": "phi3-chat"}
_ARCHITECTURES = {
    "internlm2": "InternLM2ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}


def write_internvl2(
    folder: Path,
    shape: TinyInternVL | None = None,
    *,
    seed: int = 0,
    shards: int = 1,
    dtype: torch.dtype = torch.float32,
    name: str = "OpenGVLab/InternVL2-tiny",
) -> Path:
    """Write a whole checkpoint folder and return it."""
    shape = shape or TinyInternVL()
    folder.mkdir(parents=True, exist_ok=True)
    vocab = write_tokenizer(folder, shape.language)
    write_json(folder / "config.json", internvl2_config(shape, vocab, dtype, name))
    write_json(folder / "generation_config.json", {"_from_model_config": True, "transformers_version": "4.37.2"})
    weights = {key: value.to(dtype) for key, value in tensors(shape, vocab, seed).items()}
    _write_tensors(folder, weights, shards)
    return folder


def language_linears(shape: TinyInternVL) -> dict[str, tuple[int, int]]:
    """Return the language model's linear layers by their original names: path -> (in, out)."""
    hidden, wide = shape.hidden, shape.intermediate
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    split = {
        "self_attn.q_proj": (hidden, query),
        "self_attn.k_proj": (hidden, key),
        "self_attn.v_proj": (hidden, key),
        "self_attn.o_proj": (query, hidden),
        "mlp.gate_proj": (hidden, wide),
        "mlp.up_proj": (hidden, wide),
        "mlp.down_proj": (wide, hidden),
    }
    by_language = {
        "internlm2": {
            "attention.wqkv": (hidden, query + 2 * key),
            "attention.wo": (query, hidden),
            "feed_forward.w1": (hidden, wide),
            "feed_forward.w2": (wide, hidden),
            "feed_forward.w3": (hidden, wide),
        },
        "qwen2": split,
        "qwen3": split,
        "phi3": {
            "self_attn.qkv_proj": (hidden, query + 2 * key),
            "self_attn.o_proj": (query, hidden),
            "mlp.gate_up_proj": (hidden, 2 * wide),
            "mlp.down_proj": (wide, hidden),
        },
    }
    return {
        f"language_model.model.layers.{layer}.{path}": sizes
        for layer in range(shape.layers)
        for path, sizes in by_language[shape.language].items()
    }


def vision_linears(shape: TinyInternVL) -> dict[str, tuple[int, int]]:
    """Return the linear layers of vision tower and projector by their original names: path -> (in, out)."""
    width = shape.vision_width
    shapes: dict[str, tuple[int, int]] = {}
    for layer in range(shape.vision_depth):
        at = f"vision_model.encoder.layers.{layer}"
        shapes |= {
            f"{at}.attn.qkv": (width, 3 * width),
            f"{at}.attn.proj": (width, width),
            f"{at}.mlp.fc1": (width, 4 * width),
            f"{at}.mlp.fc2": (4 * width, width),
        }
    return shapes | {"mlp1.1": (4 * width, shape.hidden), "mlp1.3": (shape.hidden, shape.hidden)}


def tensors(shape: TinyInternVL, vocab: int, seed: int) -> dict[str, Tensor]:
    """Return random weights under the original names."""
    draw = torch.Generator().manual_seed(seed)

    def linear(path: str, inputs: int, outputs: int, bias: bool) -> dict[str, Tensor]:
        layer = {f"{path}.weight": torch.randn(outputs, inputs, generator=draw) / inputs**0.5}
        return layer | ({f"{path}.bias": vector(outputs)} if bias else {})

    def vector(size: int, around: float = 0.0) -> Tensor:
        return around + 0.1 * torch.randn(size, generator=draw)

    def norm(path: str, size: int, bias: bool = True) -> dict[str, Tensor]:
        return {f"{path}.weight": vector(size, 1)} | ({f"{path}.bias": vector(size)} if bias else {})

    hidden, width = shape.hidden, shape.vision_width
    attention_norm, ffn_norm, embedding, head = (
        ("attention_norm", "ffn_norm", "model.tok_embeddings", "output")
        if shape.language == "internlm2"
        else ("input_layernorm", "post_attention_layernorm", "model.embed_tokens", "lm_head")
    )
    weights = {f"language_model.{embedding}.weight": torch.randn(vocab, hidden, generator=draw)}
    for path, (inputs, outputs) in language_linears(shape).items():
        own = shape.language == "qwen2" and path.endswith(("q_proj", "k_proj", "v_proj"))
        biased = own or (shape.bias and ".attention." in path)
        weights |= linear(path, inputs, outputs, biased)
    for layer in range(shape.layers):
        at = f"language_model.model.layers.{layer}"
        weights |= {f"{at}.{attention_norm}.weight": vector(hidden, 1), f"{at}.{ffn_norm}.weight": vector(hidden, 1)}
        if shape.language == "qwen3":
            for part in "qk":
                weights |= norm(f"{at}.self_attn.{part}_norm", shape.head_dim, bias=False)
    weights["language_model.model.norm.weight"] = vector(hidden, 1)
    if not shape.tied:
        weights |= linear(f"language_model.{head}", hidden, vocab, False)
    for path, (inputs, outputs) in vision_linears(shape).items():
        weights |= linear(path, inputs, outputs, shape.qkv_bias or not path.endswith("qkv"))
    for layer in range(shape.vision_depth):
        at = f"vision_model.encoder.layers.{layer}"
        for name in ("norm1", "norm2", *(("attn.q_norm", "attn.k_norm") if shape.large_tower else ())):
            weights |= norm(f"{at}.{name}", width, bias=not shape.large_tower)
        weights |= {f"{at}.ls1": vector(width, 0.5), f"{at}.ls2": vector(width, 0.5)}
    patches = (shape.image_size // PATCH) ** 2
    patch = linear("vision_model.embeddings.patch_embedding", 3 * PATCH**2, width, True)
    patch["vision_model.embeddings.patch_embedding.weight"] = patch[
        "vision_model.embeddings.patch_embedding.weight"
    ].reshape(width, 3, PATCH, PATCH)
    return (
        weights
        | patch
        | norm("mlp1.0", 4 * width)
        | {
            "vision_model.embeddings.class_embedding": torch.randn(1, 1, width, generator=draw),
            "vision_model.embeddings.position_embedding": torch.randn(1, patches + 1, width, generator=draw),
        }
    )


def internvl2_config(shape: TinyInternVL, vocab: int, dtype: torch.dtype, name: str) -> dict[str, Any]:
    """Return config.json in the format of the published folders."""
    stored = str(dtype).removeprefix("torch.")
    return {
        "_commit_hash": None,
        "_name_or_path": name,
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": shape.image_size,
        "llm_config": _llm_config(shape, vocab, stored),
        "max_dynamic_patch": shape.max_tiles,
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": shape.template or _TEMPLATES[shape.language],
        "torch_dtype": stored,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "attention_dropout": 0.0,
            "drop_path_rate": 0.1,
            "dropout": 0.0,
            "hidden_act": "gelu",
            "hidden_size": shape.vision_width,
            "image_size": shape.image_size,
            "initializer_factor": 1.0,
            "initializer_range": 0.02,
            "intermediate_size": 4 * shape.vision_width,
            "layer_norm_eps": 1e-06,
            "model_type": "intern_vit_6b",
            "norm_type": "rms_norm" if shape.large_tower else "layer_norm",
            "num_attention_heads": shape.vision_heads,
            "num_channels": 3,
            "num_hidden_layers": shape.vision_depth,
            "patch_size": PATCH,
            "qk_normalization": shape.large_tower,
            "qkv_bias": shape.qkv_bias,
            "torch_dtype": stored,
            "use_bfloat16": True,
            "use_flash_attn": True,
        },
    }


def _llm_config(shape: TinyInternVL, vocab: int, dtype: str) -> dict[str, Any]:
    scaling = shape.rope_scaling
    if scaling is None and shape.language == "internlm2":
        scaling = {"factor": 2.0, "type": "dynamic"}
    config: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[shape.language]],
        "attn_implementation": "flash_attention_2",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "max_length": 20,
        "max_position_embeddings": shape.max_positions,
        "model_type": shape.language,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "pad_token_id": 2,
        "pruned_heads": {},
        "rms_norm_eps": 1e-05,
        "rope_scaling": dict(scaling) if scaling else None,
        "rope_theta": shape.rope_theta,
        "temperature": 1.0,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": vocab,
    }
    of_its_own: dict[str, dict[str, Any]] = {
        "internlm2": {"bias": shape.bias},
        "qwen2": {"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 24},
        "qwen3": {"use_sliding_window": False, "max_window_layers": 28, "head_dim": shape.head_dim}
        | {"attention_bias": False},
        "phi3": {"original_max_position_embeddings": 512, "sliding_window": 262144},
    }
    return config | of_its_own[shape.language]


def _write_tensors(folder: Path, weights: dict[str, Tensor], shards: int) -> None:
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    if shards == 1:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: weights[name] for name in sorted(weights)[shard::shards]}
        save_file(part, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})
