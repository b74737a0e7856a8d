"""The config.json of an original InternVL folder -> the config of InternVL in transformers, and its other settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, InternVLConfig
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

from generation_service.models.folder import read_config
from infra.contract.errors import CheckpointError

SUPPORTED = "InternVL2, 2.5, 3 and 3.5 with InternViT and the language model InternLM2, Qwen2, Qwen3 (dense) or Phi-3"

_SHAPE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
)
_QWEN2 = ("use_sliding_window", "sliding_window", "max_window_layers")
_QWEN3 = (*_QWEN2, "head_dim", "attention_bias")
_PHI3 = ("original_max_position_embeddings", "sliding_window")
_LANGUAGE_MODELS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "InternLM2ForCausalLM": ("llama", _SHAPE),
    "Qwen2ForCausalLM": ("qwen2", _SHAPE + _QWEN2),
    "Qwen3ForCausalLM": ("qwen3", _SHAPE + _QWEN3),
    "Phi3ForCausalLM": ("phi3", _SHAPE + _PHI3),
}
_ARCHITECTURES = {
    "internlm2": "InternLM2ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}
"""The architecture of each `model_type`, for configs that name a class of their own."""

LANGUAGE_MODEL_TYPES = frozenset(model_type for model_type, _ in _LANGUAGE_MODELS.values())
_TOWER_EPS = 1e-6
"""The epsilon of transformers' norms of queries and keys, which is no setting there."""


@dataclass(frozen=True)
class OriginalConfig:
    """The contents of config.json. A tile is `image_size` pixels square and becomes `tile_tokens` tokens.

    `model` is the config of InternVL in transformers; `template` names the conversation template.
    """

    model: Any
    template: str
    dtype: torch.dtype | None
    image_size: int
    tile_tokens: int
    min_tiles: int
    max_tiles: int
    thumbnail: bool


def read_original(folder: Path) -> OriginalConfig:
    """Return the folder's config. Raises CheckpointError if it is incomplete, or its model is not supported."""
    content = read_config(folder)
    try:
        return _parsed(folder, content)
    except CheckpointError:
        raise
    except Exception as error:  # A missing key, or a validation error of a transformers config.
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"{folder / 'config.json'} does not describe an InternVL model: {reason}", path=str(folder)
        ) from error


def _parsed(folder: Path, content: Mapping[str, Any]) -> OriginalConfig:
    llm, vision = content["llm_config"], content["vision_config"]
    architecture = _architecture_of(llm)
    _check_supported(folder, content, llm, vision, architecture)
    size = int(content.get("force_image_size") or vision["image_size"])
    ratio = float(content["downsample_ratio"])
    text = _text_config(folder, llm, architecture, bool(content.get("tie_word_embeddings")))
    dynamic = bool(content.get("dynamic_image_size"))
    return OriginalConfig(
        model=InternVLConfig(
            text_config=text,
            vision_config=_vision_config(vision, size),
            downsample_ratio=ratio,
            image_seq_length=_tile_tokens(vision, size, ratio),
            vision_feature_layer=-1,
            tie_word_embeddings=text.tie_word_embeddings,
            attn_implementation="sdpa",
        ),
        template=str(content["template"]),
        dtype=_stated_dtype(content) or _stated_dtype(llm),
        image_size=size,
        tile_tokens=_tile_tokens(vision, size, ratio),
        min_tiles=int(content.get("min_dynamic_patch") or 1) if dynamic else 1,
        max_tiles=int(content.get("max_dynamic_patch") or 12) if dynamic else 1,
        thumbnail=bool(content.get("use_thumbnail")),
    )


def _architecture_of(llm: Mapping[str, Any]) -> str:
    """Return the language model's class: the named one if it is known, else that of its model_type."""
    named = str((llm.get("architectures") or [""])[0])
    return named if named in _LANGUAGE_MODELS else _ARCHITECTURES.get(str(llm.get("model_type")), named)


def _check_supported(
    folder: Path, content: Mapping[str, Any], llm: Mapping[str, Any], vision: Mapping[str, Any], architecture: str
) -> None:
    reasons = []
    for name, default, expected in (("select_layer", -1, -1), ("ps_version", "v1", "v2"), ("pad2square", False, False)):
        value = content.get(name, default)
        if value != expected:
            reasons.append(f"{name} is {value!r}, not {expected!r}")
    if vision.get("norm_type", "layer_norm") not in ("layer_norm", "rms_norm"):
        reasons.insert(0, f"the norm_type of its vision tower is {vision['norm_type']!r}")
    if vision.get("qk_normalization") and vision.get("layer_norm_eps", _TOWER_EPS) != _TOWER_EPS:
        reasons.insert(0, f"the layer_norm_eps of its vision tower is {vision['layer_norm_eps']}, not {_TOWER_EPS}")
    if "flash_relative_threshold" in content:
        reasons.insert(0, "it is a Flash variant, which routes tiles to two resolutions")
    if architecture not in _LANGUAGE_MODELS:
        reasons.insert(0, language_model_reason(architecture or str(llm.get("model_type", "not named"))))
    if reasons:
        raise CheckpointError(
            f"{folder} is an InternVL that this version does not serve ({'; '.join(reasons)}). It serves {SUPPORTED}",
            path=str(folder),
        )


def language_model_reason(name: str) -> str:
    """Return why the language model of that class or type is not served."""
    experts = name in ("Qwen3MoeForCausalLM", "GptOssForCausalLM", "qwen3_moe", "gpt_oss")
    return f"its language model is {name}" + (", a mixture of experts" if experts else "")


def _text_config(folder: Path, llm: Mapping[str, Any], architecture: str, tied: bool) -> Any:
    model_type, names = _LANGUAGE_MODELS[architecture]
    fields = {name: llm[name] for name in names if llm.get(name) is not None}
    if model_type == "llama":
        fields["attention_bias"] = bool(llm.get("bias"))
    return AutoConfig.for_model(
        model_type,
        **fields,
        rope_parameters=_rope(folder, llm),
        tie_word_embeddings=bool(llm.get("tie_word_embeddings", tied)),
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",
    )


def _rope(folder: Path, llm: Mapping[str, Any]) -> dict[str, Any]:
    """Return the RoPE parameters as transformers names them.

    Dynamic NTK multiplies theta by (factor * length / trained - (factor - 1)) ** (d / (d - 2)) for a sequence longer
    than the trained length, and by 1 up to it, so within `max_positions` it is plain RoPE. Longer ones are refused:
    their cached keys would have been rotated by the frequencies of a shorter length.
    """
    scaling: Mapping[str, Any] = llm.get("rope_parameters") or llm.get("rope_scaling") or {"type": "default"}
    theta = {"rope_theta": float(scaling.get("rope_theta") or llm.get("rope_theta", 10000.0))}
    kind = scaling.get("rope_type") or scaling.get("type")
    if kind in ("default", "dynamic"):
        return {"rope_type": "default"} | theta
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(scaling["factor"])} | theta
    if kind in ("su", "longrope"):
        trained = llm["original_max_position_embeddings"]
        factors = {name: scaling[name] for name in ("short_factor", "long_factor")}
        lengths = {"original_max_position_embeddings": trained, "factor": llm["max_position_embeddings"] / trained}
        return {"rope_type": "longrope"} | factors | lengths | theta
    raise CheckpointError(
        f"{folder / 'config.json'}: rope_scaling of type {kind!r} is not supported; default, dynamic, linear, su and "
        "longrope are",
        path=str(folder),
    )


def max_positions(text: Any) -> int:
    """Return the longest sequence whose RoPE frequencies do not depend on its length."""
    if text.rope_parameters["rope_type"] == "longrope":
        return int(text.original_max_position_embeddings)
    window = getattr(text, "sliding_window", None)
    return int(min(text.max_position_embeddings, window or text.max_position_embeddings))


def _vision_config(vision: Mapping[str, Any], size: int) -> Any:
    return InternVLVisionConfig(
        hidden_size=vision["hidden_size"],
        intermediate_size=vision["intermediate_size"],
        num_hidden_layers=vision["num_hidden_layers"],
        num_attention_heads=vision["num_attention_heads"],
        num_channels=vision.get("num_channels", 3),
        patch_size=vision["patch_size"],
        image_size=size,
        hidden_act=vision.get("hidden_act", "gelu"),
        layer_norm_eps=vision.get("layer_norm_eps", _TOWER_EPS),
        attention_bias=bool(vision.get("qkv_bias")),
        norm_type=vision.get("norm_type", "layer_norm"),
        use_qk_norm=bool(vision.get("qk_normalization")),
        use_mean_pooling=True,
        attn_implementation="sdpa",
    )


def _tile_tokens(vision: Mapping[str, Any], size: int, ratio: float) -> int:
    return int((size // vision["patch_size"]) ** 2 * ratio**2)


def _stated_dtype(config: Mapping[str, Any]) -> torch.dtype | None:
    """Return the dtype that a config states under the key of transformers 5 or 4."""
    dtype = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")), None)
    return dtype if isinstance(dtype, torch.dtype) else None
