"""Tiny random Qwen2-VL checkpoints in the published layout, written without transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content or 'image_url' in "
    "content %}<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] == 'video' or 'video' in content %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_CORPUS = (
    'Click on button with the text "Add to cart", then scroll down and go back to the previous page.',
    "Type text: running shoes. Open App: calendar. You are a helpful assistant. system user assistant 0123456789",
    "The quick brown fox jumps over the lazy dog; what is on the screen? Straße, naïve café, 日本語, 🙂.",
)


@dataclass(frozen=True)
class TinyShape:
    """Sizes of a tiny Qwen2-VL; head size is hidden / heads and mrope_section sums to half of it."""

    hidden: int = 64
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 96
    vision_width: int = 32
    vision_depth: int = 2
    vision_heads: int = 2
    mrope_section: tuple[int, int, int] = (2, 3, 3)
    rope_theta: float = 10000.0
    tied: bool = False

    @property
    def head_dim(self) -> int:
        """Size of an attention head."""
        return self.hidden // self.heads


def write_qwen2_vl(
    folder: Path,
    shape: TinyShape | None = None,
    *,
    seed: int = 0,
    shards: int = 1,
    dtype: torch.dtype = torch.float32,
    name: str = "Qwen/Qwen2-VL-tiny",
) -> Path:
    """Write a whole checkpoint folder and return it."""
    shape = shape or TinyShape()

    def config(special: Mapping[str, int], vocab: int) -> dict[str, Any]:
        return qwen_config(shape, special, vocab, dtype, name)

    return write_folder(folder, config, lambda vocab: tensors(shape, vocab, seed), shards=shards, dtype=dtype)


def write_folder(
    folder: Path,
    config: Callable[[Mapping[str, int], int], dict[str, Any]],
    weights: Callable[[int], dict[str, Tensor]],
    *,
    shards: int,
    dtype: torch.dtype,
) -> Path:
    """Write a folder: config and weights for the given special tokens and vocabulary size, and Qwen's other files."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    special = {added.content: number for number, added in tokenizer.get_added_tokens_decoder().items()}
    vocab = -(-tokenizer.get_vocab_size() // 16) * 16
    _write_tokenizer(folder, tokenizer, special)
    _write_json(folder / "config.json", config(special, vocab))
    _write_json(folder / "generation_config.json", _generation_config(special))
    _write_json(folder / "preprocessor_config.json", _PREPROCESSOR)
    _write_tensors(folder, {key: value.to(dtype) for key, value in weights(vocab).items()}, shards)
    return folder


class Draw:
    """Random weights from a seed."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *size: int) -> Tensor:
        """Return values of standard deviation 1."""
        return torch.randn(*size, generator=self._generator)

    def linear(self, rows: int, columns: int) -> Tensor:
        """Return a weight that preserves the magnitude of its input."""
        drawn: Tensor = self.normal(rows, columns) / columns**0.5
        return drawn

    def vector(self, size: int, around: float = 0.0) -> Tensor:
        """Return a bias, or a norm's weight around 1."""
        return torch.full((size,), around) + 0.1 * self.normal(size)

    def affine(self, name: str, rows: int, columns: int) -> dict[str, Tensor]:
        """Return a linear layer with a bias."""
        return {f"{name}.weight": self.linear(rows, columns), f"{name}.bias": self.vector(rows)}


def tensors(shape: TinyShape, vocab: int, seed: int) -> dict[str, Tensor]:
    """Return random weights under the original names."""
    draw = Draw(seed)
    width = shape.vision_width
    found = language_tensors(shape, vocab, draw)
    found["visual.patch_embed.proj.weight"] = draw.linear(width, 3 * 2 * 14 * 14).reshape(width, 3, 2, 14, 14)
    for block in range(shape.vision_depth):
        at = f"visual.blocks.{block}"
        for norm in ("norm1", "norm2"):
            found |= {f"{at}.{norm}.weight": draw.vector(width, 1), f"{at}.{norm}.bias": draw.vector(width)}
        found |= draw.affine(f"{at}.attn.qkv", 3 * width, width) | draw.affine(f"{at}.attn.proj", width, width)
        found |= draw.affine(f"{at}.mlp.fc1", 4 * width, width) | draw.affine(f"{at}.mlp.fc2", width, 4 * width)
    found |= {"visual.merger.ln_q.weight": draw.vector(width, 1), "visual.merger.ln_q.bias": draw.vector(width)}
    return found | merger_tensors(width, shape.hidden, draw)


def language_tensors(shape: TinyShape, vocab: int, draw: Draw) -> dict[str, Tensor]:
    """Return the language model's weights, including the head unless it is tied."""
    hidden, kv, wide = shape.hidden, shape.kv_heads * shape.head_dim, shape.intermediate
    found: dict[str, Tensor] = {"model.embed_tokens.weight": draw.normal(vocab, hidden)}
    for layer in range(shape.layers):
        at = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{at}.{norm}.weight"] = draw.vector(hidden, 1)
        for name, rows in {"q": hidden, "k": kv, "v": kv}.items():
            found |= draw.affine(f"{at}.self_attn.{name}_proj", rows, hidden)
        found[f"{at}.self_attn.o_proj.weight"] = draw.linear(hidden, hidden)
        for name, (rows, columns) in {"gate": (wide, hidden), "up": (wide, hidden), "down": (hidden, wide)}.items():
            found[f"{at}.mlp.{name}_proj.weight"] = draw.linear(rows, columns)
    found["model.norm.weight"] = draw.vector(hidden, 1)
    if not shape.tied:
        found["lm_head.weight"] = draw.linear(vocab, hidden)
    return found


def merger_tensors(width: int, hidden: int, draw: Draw) -> dict[str, Tensor]:
    """Return the merger's two layers: four patches of the tower -> one token of the language model."""
    merged = 4 * width
    return draw.affine("visual.merger.mlp.0", merged, merged) | draw.affine("visual.merger.mlp.2", hidden, merged)


_PREPROCESSOR = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2VLProcessor",
}


def qwen_config(
    shape: TinyShape, special: Mapping[str, int], vocab: int, dtype: torch.dtype, name: str
) -> dict[str, Any]:
    """Return config.json."""
    return {
        "_name_or_path": name,
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": special["<|endoftext|>"],
        "eos_token_id": special["<|im_end|>"],
        "vision_start_token_id": special["<|vision_start|>"],
        "vision_end_token_id": special["<|vision_end|>"],
        "vision_token_id": special["<|vision_pad|>"],
        "image_token_id": special["<|image_pad|>"],
        "video_token_id": special["<|video_pad|>"],
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": 4096,
        "max_window_layers": shape.layers,
        "model_type": "qwen2_vl",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": shape.rope_theta,
        "sliding_window": 4096,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": shape.vision_depth,
            "embed_dim": shape.vision_width,
            "mlp_ratio": 4,
            "num_heads": shape.vision_heads,
            "in_chans": 3,
            "hidden_size": shape.hidden,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": list(shape.mrope_section)},
        "vocab_size": vocab,
    }


def _generation_config(special: Mapping[str, int]) -> dict[str, Any]:
    return {
        "bos_token_id": special["<|endoftext|>"],
        "pad_token_id": special["<|endoftext|>"],
        "do_sample": True,
        "eos_token_id": [special["<|im_end|>"], special["<|endoftext|>"]],
        "repetition_penalty": 1.05,
        "temperature": 0.1,
        "top_k": 1,
        "top_p": 0.001,
        "transformers_version": "4.37.0",
    }


def _tokenizer() -> Tokenizer:
    """Return a byte-level BPE with Qwen2's normaliser and splitting, its special tokens after the vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=360, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, special: Mapping[str, int]) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(number): {
                    "content": token,
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                    "special": True,
                }
                for token, number in special.items()
            },
            "additional_special_tokens": [token for token in SPECIAL if token != "<|endoftext|>"],
            "bos_token": None,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": 32768,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    _write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})


def _write_tensors(folder: Path, weights: dict[str, Tensor], shards: int) -> None:
    metadata = {"format": "pt"}
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata)
        return
    names = sorted(weights)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: weights[name] for name in names[shard::shards]}
        save_file(part, folder / file, metadata)
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
