"""Writes tiny random jina-embeddings-v4 folders in the hub's layout."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

TASKS = ("retrieval", "text-matching", "code")
HIDDEN, HEADS, KV_HEADS, LAYERS, INTERMEDIATE = 32, 4, 2, 2, 48
VISION_HIDDEN, VISION_HEADS, VISION_DEPTH, VISION_INTERMEDIATE = 16, 2, 3, 24
PATCH, MERGE, TEMPORAL = 14, 2, 2
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
LINEARS = {  # path below a layer -> (out, in)
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN // HEADS * KV_HEADS, HIDDEN),
    "self_attn.v_proj": (HIDDEN // HEADS * KV_HEADS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}


@dataclass
class TinyJina:
    """The content of a folder. Tests change it, then `write` it.

    `base` and `adapter` have the hub's keys: `model.layers.N.*` and `visual.*`;
    `base_model.model.model.language_model.layers.N.*.lora_{A,B}.<task>.weight`.
    """

    config: dict[str, Any]
    base: dict[str, Tensor]
    adapter: dict[str, Tensor]
    adapter_config: dict[str, Any]
    tokenizer: Tokenizer
    preprocessor: dict[str, Any] = field(
        default_factory=lambda: {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "JinaEmbeddingsV4Processor",
            "min_pixels": 56 * 56,
            "max_pixels": 602112,
            "patch_size": PATCH,
            "temporal_patch_size": TEMPORAL,
            "merge_size": MERGE,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        }
    )

    def write(self, folder: Path, *, shards: int = 1) -> Path:
        """Write all files, with an index if there are several shards; return the folder."""
        (folder / "adapters").mkdir(parents=True, exist_ok=True)
        _write_json(folder / "config.json", self.config)
        _write_json(folder / "preprocessor_config.json", self.preprocessor)
        _write_json(folder / "adapters" / "adapter_config.json", self.adapter_config)
        self.tokenizer.save(str(folder / "tokenizer.json"))
        save_file(self.adapter, folder / "adapters" / "adapter_model.safetensors", metadata={"format": "pt"})
        if shards == 1:
            save_file(self.base, folder / "model.safetensors", metadata={"format": "pt"})
            return folder
        weight_map: dict[str, str] = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
            keys = sorted(self.base)[shard::shards]
            save_file({key: self.base[key] for key in keys}, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(keys, file)
        _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
        return folder

    def newer_spelling(self) -> TinyJina:
        """Return the content as newer library versions save it: with other names and a nested text config."""

        def renamed(key: str) -> str:
            if key.startswith("visual."):
                return f"model.{key}"
            return key.replace("model.", "model.language_model.", 1) if key.startswith("model.") else key

        adapter = {key.replace("model.language_model.", "model."): value for key, value in self.adapter.items()}
        base = {renamed(key): value for key, value in self.base.items()}
        outer = ("architectures", "auto_map", "model_type", "task_names", "matryoshka_dims", "vision_config")
        config = {key: value for key, value in self.config.items() if key in outer or key.endswith("_token_id")}
        text = {key: value for key, value in self.config.items() if key not in config}
        text |= {"model_type": "qwen2_5_vl_text", "rope_scaling": {**text["rope_scaling"], "rope_type": "default"}}
        vision = {**config["vision_config"], "model_type": "qwen2_5_vl"}
        config |= {"text_config": text, "vision_config": vision, "tie_word_embeddings": True, "truncate_dim": None}
        return TinyJina(config, base, adapter, self.adapter_config, self.tokenizer, self.preprocessor)


def tiny_jina(seed: int = 0, *, rank: int = 4, alpha: float = 6, use_rslora: bool = False) -> TinyJina:
    """Return a model with random weights large enough that every part of it affects the vectors."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 0.3) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    tokenizer = byte_tokenizer()
    vocabulary = tokenizer.get_vocab_size()
    base = {
        "model.embed_tokens.weight": random(vocabulary, HIDDEN, scale=1.0),
        "model.norm.weight": 1 + random(HIDDEN),
        "multi_vector_projector.weight": random(8, HIDDEN),
        "multi_vector_projector.bias": random(8),
        "visual.patch_embed.proj.weight": random(VISION_HIDDEN, 3, TEMPORAL, PATCH, PATCH, scale=0.05),
        "visual.merger.ln_q.weight": 1 + random(VISION_HIDDEN),
        "visual.merger.mlp.0.weight": random(VISION_HIDDEN * MERGE**2, VISION_HIDDEN * MERGE**2),
        "visual.merger.mlp.0.bias": random(VISION_HIDDEN * MERGE**2),
        "visual.merger.mlp.2.weight": random(HIDDEN, VISION_HIDDEN * MERGE**2),
        "visual.merger.mlp.2.bias": random(HIDDEN),
    }
    adapter = {}
    for layer in range(LAYERS):
        path = f"layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            base[f"model.{path}.{norm}.weight"] = 1 + random(HIDDEN)
        for linear, (rows, columns) in LINEARS.items():
            base[f"model.{path}.{linear}.weight"] = random(rows, columns)
            if linear.endswith(("q_proj", "k_proj", "v_proj")):
                base[f"model.{path}.{linear}.bias"] = random(rows)
            for task in TASKS:
                key = f"base_model.model.model.language_model.{path}.{linear}"
                adapter[f"{key}.lora_A.{task}.weight"] = random(rank, columns)
                adapter[f"{key}.lora_B.{task}.weight"] = random(rows, rank)
    for block in range(VISION_DEPTH):
        path = f"visual.blocks.{block}"
        for norm in ("norm1", "norm2"):
            base[f"{path}.{norm}.weight"] = 1 + random(VISION_HIDDEN)
        for linear, (rows, columns) in {
            "attn.qkv": (3 * VISION_HIDDEN, VISION_HIDDEN),
            "attn.proj": (VISION_HIDDEN, VISION_HIDDEN),
            "mlp.gate_proj": (VISION_INTERMEDIATE, VISION_HIDDEN),
            "mlp.up_proj": (VISION_INTERMEDIATE, VISION_HIDDEN),
            "mlp.down_proj": (VISION_HIDDEN, VISION_INTERMEDIATE),
        }.items():
            base[f"{path}.{linear}.weight"], base[f"{path}.{linear}.bias"] = random(rows, columns), random(rows)
    for task in TASKS:
        adapter[f"base_model.model.multi_vector_projector.lora_A.{task}.weight"] = random(rank, HIDDEN)
        adapter[f"base_model.model.multi_vector_projector.lora_B.{task}.weight"] = random(8, rank)
    adapter_config = {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "r": rank,
        "lora_alpha": alpha,
        "use_rslora": use_rslora,
        "use_dora": False,
        "bias": "none",
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": "(.*(model).*(down_proj|gate_proj|up_proj|k_proj|q_proj|v_proj|o_proj).*$"
        "|.*(single_vector_projector|multi_vector_projector).*$)",
    }
    return TinyJina(_config(tokenizer, vocabulary), base, adapter, adapter_config, tokenizer)


def byte_tokenizer() -> Tokenizer:
    """Return a byte-level tokenizer without merges, with the special tokens of Qwen2.5-VL."""
    vocabulary = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return tokenizer


def _config(tokenizer: Tokenizer, vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["JinaEmbeddingsV4Model"],
        "auto_map": {"AutoModel": "modeling_jina_embeddings_v4.JinaEmbeddingsV4Model"},
        "model_type": "qwen2_5_vl",
        "torch_dtype": "float32",
        "task_names": list(TASKS),
        "matryoshka_dims": [8, 16, HIDDEN],
        "multi_vector_projector_dim": 8,
        "single_vector_pool_strategy": "mean",
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
        "vision_start_token_id": tokenizer.token_to_id("<|vision_start|>"),
        "vision_end_token_id": tokenizer.token_to_id("<|vision_end|>"),
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": VISION_DEPTH,
            "hidden_size": VISION_HIDDEN,
            "intermediate_size": VISION_INTERMEDIATE,
            "num_heads": VISION_HEADS,
            "out_hidden_size": HIDDEN,
            "hidden_act": "silu",
            "in_chans": 3,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "spatial_patch_size": PATCH,
            "temporal_patch_size": TEMPORAL,
            "tokens_per_second": 2,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
