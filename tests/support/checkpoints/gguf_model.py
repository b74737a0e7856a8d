"""Tiny GGUF files, written by the gguf package from a folder of transformers, as llama.cpp's converter writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType, GGUFWriter, dequantize, quantize
from safetensors.torch import load_file, save_file
from torch import Tensor

_MODULES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(
    path: Path,
    folder: Path,
    *,
    quantisation: GGMLQuantizationType = GGMLQuantizationType.Q8_0,
    rope_factors: Tensor | None = None,
    metadata: Mapping[str, Any] | None = None,
    tokenizer: Mapping[str, str] | None = None,
) -> Path:
    """Write the model of `folder`, whose weights become what `path` dequantises to, and return `path`.

    Matrices of at least 32 columns are quantised, as by llama.cpp.
    """
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    architecture = str(config["model_type"])
    writer = GGUFWriter(path, architecture)
    for key, value in (_settings(config) | dict(metadata or {})).items():
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        (writer.add_uint32 if isinstance(value, int) else add)(key, value)
    kind = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2"} | dict(tokenizer or {})
    writer.add_tokenizer_model(kind["tokenizer.ggml.model"])
    writer.add_tokenizer_pre(kind["tokenizer.ggml.pre"])
    _add_tokenizer(writer, folder)
    for name, tensor in weights.items():
        rows = _interleaved(name, tensor, config) if architecture == "llama" else tensor
        plain = tensor.dim() < 2 or tensor.shape[-1] % 32
        kind = GGMLQuantizationType.F32 if plain else quantisation
        data = quantize(rows.float().numpy(), kind)
        shape = None if plain else data.shape
        writer.add_tensor(_gguf_name(name), data, raw_shape=shape, raw_dtype=kind)
        if not plain:
            kept = torch.from_numpy(dequantize(data, kind)).reshape(rows.shape)
            weights[name] = _halved(name, kept, config) if architecture == "llama" else kept
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    return path


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    at = config["model_type"]
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return {
        f"{at}.context_length": config["max_position_embeddings"],
        f"{at}.block_count": config["num_hidden_layers"],
        f"{at}.feed_forward_length": config["intermediate_size"],
        f"{at}.embedding_length": config["hidden_size"],
        f"{at}.attention.head_count": config["num_attention_heads"],
        f"{at}.attention.head_count_kv": config["num_key_value_heads"],
        f"{at}.attention.key_length": head_dim,
        f"{at}.attention.layer_norm_rms_epsilon": float(config.get("rms_norm_eps", 1e-6)),
        f"{at}.rope.freq_base": float(config.get("rope_theta", 10000.0)),
    }


def _add_tokenizer(writer: GGUFWriter, folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab = dict(tokenizer["model"]["vocab"])
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    by_id = {number: token for token, number in (vocab | special).items()}
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    writer.add_token_list([by_id.get(number, f"[PAD{number}]") for number in range(rows)])
    writer.add_token_types(
        [3 if by_id.get(number) in special else 1 if number in by_id else 5 for number in range(rows)]
    )
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_eos_token_id(special["<|im_end|>"])
    writer.add_chat_template(json.loads((folder / "chat_template.json").read_text())["chat_template"])


def _gguf_name(name: str) -> str:
    module, _, kind = name.rpartition(".")
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    if module in outer:
        return f"{outer[module]}.{kind}"
    match = re.match(r"model\.layers\.(\d+)\.(.+)", module)
    assert match is not None
    return f"blk.{match[1]}.{_MODULES[match[2]]}.{kind}"


def _heads(name: str, config: Mapping[str, Any]) -> int | None:
    part = next((part for part in ("q_proj", "k_proj") if f".{part}." in name), None)
    return None if part is None else int(config["num_attention_heads" if part == "q_proj" else "num_key_value_heads"])


def _interleaved(name: str, tensor: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Return the rows of q or k as llama.cpp orders them: component i beside component i + d / 2."""
    heads = _heads(name, config)
    if heads is None:
        return tensor
    size = len(tensor) // heads
    order = [head * size + i // 2 + (i % 2) * (size // 2) for head in range(heads) for i in range(size)]
    return tensor[torch.tensor(order)]


def _halved(name: str, tensor: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Undo `_interleaved`."""
    order = _interleaved(name, torch.arange(len(tensor)), config)
    return tensor[torch.argsort(order)]
