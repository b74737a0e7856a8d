"""The table of text-only architectures that are served. A further one is a row, if its layers are called like these."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)


class Window(Enum):
    """Which layers attend to the last `sliding_window` tokens of their config only."""

    NONE = "none"
    EVERY_LAYER = "every layer"
    BY_LAYER_TYPE = "the layers of type sliding_attention"


@dataclass(frozen=True)
class CausalArchitecture:
    """How transformers computes the models of one `model_type`.

    `rope_by_layer_type`: its rotary embedding takes the layer's type, because each type has frequencies of its own.
    """

    model_type: str
    title: str
    config_class: Any
    model_class: Any
    window: Window = Window.NONE
    rope_by_layer_type: bool = False


ARCHITECTURES = (
    CausalArchitecture("llama", "Llama", LlamaConfig, LlamaForCausalLM),
    CausalArchitecture("mistral", "Mistral", MistralConfig, MistralForCausalLM, Window.EVERY_LAYER),
    CausalArchitecture("qwen2", "Qwen2", Qwen2Config, Qwen2ForCausalLM, Window.BY_LAYER_TYPE),
    CausalArchitecture("qwen3", "Qwen3", Qwen3Config, Qwen3ForCausalLM, Window.BY_LAYER_TYPE),
    CausalArchitecture("gemma", "Gemma", GemmaConfig, GemmaForCausalLM),
    CausalArchitecture("gemma2", "Gemma 2", Gemma2Config, Gemma2ForCausalLM, Window.BY_LAYER_TYPE),
    CausalArchitecture(
        "gemma3_text", "Gemma 3", Gemma3TextConfig, Gemma3ForCausalLM, Window.BY_LAYER_TYPE, rope_by_layer_type=True
    ),
    CausalArchitecture("phi3", "Phi-3", Phi3Config, Phi3ForCausalLM, Window.EVERY_LAYER),
    CausalArchitecture("smollm3", "SmolLM3", SmolLM3Config, SmolLM3ForCausalLM, Window.BY_LAYER_TYPE),
    CausalArchitecture("olmo2", "OLMo 2", Olmo2Config, Olmo2ForCausalLM),
)
