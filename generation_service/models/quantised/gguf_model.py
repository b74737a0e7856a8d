"""The architectures of GGUF files that are served: config and tensor names as transformers has them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from generation_service.models.quantised.gguf_file import GgufFile, GgufTensor
from infra.contract.errors import CheckpointError

_SETTINGS = {
    "max_position_embeddings": "context_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "hidden_size": "embedding_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TENSOR = re.compile(r"^(?:blk\.(?P<layer>\d+)\.)?(?P<module>\w+)\.(?P<kind>weight|bias)$")
_ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class _Architecture:
    """`interleaved`: llama.cpp stores the rows of q and k for rotations of neighbouring pairs."""

    model_type: str
    interleaved: bool = False


_ARCHITECTURES = {
    "llama": _Architecture("llama", interleaved=True),
    "qwen2": _Architecture("qwen2"),
    "qwen3": _Architecture("qwen3"),
}


def architecture_of_file(file: GgufFile) -> _Architecture:
    """Return how the file's architecture is read. Raises CheckpointError if it is not served."""
    row = _ARCHITECTURES.get(file.architecture)
    if row is None or file.of_architecture("expert_count"):
        experts = ", a mixture of experts" if file.of_architecture("expert_count") else ""
        raise CheckpointError(
            f"{file.path} is a GGUF of architecture {file.architecture!r}{experts}; of GGUF files, "
            f"{', '.join(_ARCHITECTURES)} (dense) are served: take the model's folder of safetensors",
            path=str(file.path),
        )
    return row


def config_of(file: GgufFile) -> dict[str, Any]:
    """Return config.json of the model in the file. Raises CheckpointError for what is not served."""
    row = architecture_of_file(file)
    settings = {name: file.of_architecture(key) for name, key in _SETTINGS.items()}
    missing = [_SETTINGS[name] for name in ("num_hidden_layers", "hidden_size") if settings[name] is None]
    if missing or "token_embd.weight" not in file.tensors:
        raise CheckpointError(
            f"{file.path} has no {', '.join(missing) or 'token_embd.weight'}: it is not a whole language model",
            path=str(file.path),
        )
    return {
        "model_type": row.model_type,
        "architectures": [],
        **{name: value for name, value in settings.items() if value is not None},
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": _rope(file),
        "eos_token_id": end_tokens(file) or None,
    }


def end_tokens(file: GgufFile) -> list[int]:
    """Return the ids that end an answer: of a text, of a turn, and of a message."""
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    found = (file.metadata.get(f"tokenizer.ggml.{key}") for key in keys)
    return sorted({int(token) for token in found if token is not None})


def tensors_of(file: GgufFile) -> Mapping[str, tuple[GgufTensor, Callable[[], Tensor]]]:
    """Return the tensors under the names of transformers, each with the function that reads its values.

    A tensor without a known name keeps its own, so that binding fails and names it.
    """
    row = architecture_of_file(file)
    heads = int(file.of_architecture("attention.head_count"))
    kv_heads = int(file.of_architecture("attention.head_count_kv") or heads)
    found: dict[str, tuple[GgufTensor, Callable[[], Tensor]]] = {}
    for name, tensor in file.tensors.items():
        if name == _ROPE_FACTORS:
            continue
        match = _TENSOR.match(name)
        module = match["module"] if match else ""
        rows = {"attn_q": heads, "attn_k": kv_heads}.get(module) if row.interleaved else None
        read = partial(_in_halves, tensor.read, rows) if rows else tensor.read
        found[_name(name)] = (tensor, read)
    return found


def _name(name: str) -> str:
    match = _TENSOR.match(name)
    if match is None or match["module"] not in _NAMES:
        return name
    at = f"model.layers.{match['layer']}." if match["layer"] is not None else ""
    return f"{at}{_NAMES[match['module']]}.{match['kind']}"


def _in_halves(read: Callable[[], Tensor], heads: int) -> Tensor:
    """Return the rows of q or k in the order of transformers: each head's first components, then its second ones.

    llama.cpp rotates (x_0, x_1), (x_2, x_3), ...; transformers (x_0, x_{d/2}), (x_1, x_{d/2 + 1}), ....
    """
    rows = read()
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.transpose(1, 2).reshape(rows.shape).contiguous()


def _rope(file: GgufFile) -> dict[str, Any]:
    """Return the RoPE parameters. Factors in the file divide the frequencies, which transformers calls longrope."""
    base = {"rope_theta": float(file.of_architecture("rope.freq_base") or 10000.0)}
    kind = file.of_architecture("rope.scaling.type") or "none"
    if _ROPE_FACTORS in file.tensors:
        factors = file.tensors[_ROPE_FACTORS].read().tolist()
        length = int(file.of_architecture("context_length"))
        lengths = {"original_max_position_embeddings": length, "attention_factor": 1.0}
        return {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, **lengths, **base}
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(file.of_architecture("rope.scaling.factor")), **base}
    if kind != "none":
        raise CheckpointError(
            f"{file.path}: rope.scaling.type {kind!r} of a GGUF is not served: take the model's folder of safetensors",
            path=str(file.path),
        )
    return {"rope_type": "default", **base}
