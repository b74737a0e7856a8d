"""Model types that people point a server at and that no family serves: what they are, and the near remedy."""

from __future__ import annotations

from collections.abc import Mapping

_MIXTURE = "a mixture of experts; take a dense model"
_QWEN_VL = "take Qwen3-VL or Qwen2.5-VL (dense)"
_TEXT_ONLY = "its text-only relatives are served"
_NO_GENERATOR = "it generates no text; take a causal language model"

UNSERVED: Mapping[str, str] = {
    "qwen3_vl_moe": "Qwen3-VL with a mixture of experts; take a dense one (2B, 4B, 8B, 32B)",
    "qwen2_5_omni": f"Qwen2.5-Omni; {_QWEN_VL}",
    "qwen2_5_omni_thinker": f"the thinker of Qwen2.5-Omni; {_QWEN_VL}",
    "qwen3_omni_moe": f"Qwen3-Omni; {_QWEN_VL}",
    "qwen3_5": f"Qwen3.5, whose linear attention has no KV cache; {_QWEN_VL} or Qwen3",
    "qwen3_5_moe": f"Qwen3.5, {_MIXTURE}",
    "qwen3_next": f"Qwen3-Next, {_MIXTURE}",
    "qwen2_moe": f"Qwen2-MoE, {_MIXTURE}",
    "qwen3_moe": f"Qwen3-MoE, {_MIXTURE}",
    "mixtral": f"Mixtral, {_MIXTURE}",
    "gpt_oss": f"gpt-oss, {_MIXTURE}",
    "deepseek_v2": f"DeepSeek-V2, {_MIXTURE}",
    "deepseek_v3": f"DeepSeek-V3, {_MIXTURE}",
    "llama4": f"Llama 4, {_MIXTURE}",
    "glm4v": f"GLM-4V; {_QWEN_VL}",
    "glm4v_moe": f"GLM-4.5V; {_QWEN_VL}",
    "chatglm": f"ChatGLM or GLM-4V with code of its own; {_QWEN_VL} or Qwen3",
    "llava": f"LLaVA; {_QWEN_VL}",
    "llava_next": f"LLaVA-NeXT; {_QWEN_VL}",
    "llava_onevision": f"LLaVA-OneVision; {_QWEN_VL}",
    "llava_qwen": f"LLaVA-OneVision in its original layout; {_QWEN_VL}",
    "phi3_v": f"Phi-3-Vision; {_QWEN_VL}, or Phi-3 for text",
    "phi4mm": f"Phi-4-multimodal; {_QWEN_VL}, or Phi-3 for text",
    "phi4_multimodal": f"Phi-4-multimodal; {_QWEN_VL}, or Phi-3 for text",
    "gemma3": f"Gemma 3 with images (4B and larger); {_QWEN_VL}, or a Gemma 3 of model_type gemma3_text",
    "gemma3n": f"Gemma 3n; {_QWEN_VL}, or a Gemma 3 of model_type gemma3_text",
    "paligemma": f"PaliGemma; {_QWEN_VL}",
    "mllama": f"Llama 3.2 Vision; {_QWEN_VL}, or Llama 3.2 1B and 3B for text",
    "mistral3": f"Mistral Small 3.1 with images; {_QWEN_VL}; of Mistral, {_TEXT_ONLY}",
    "pixtral": f"Pixtral; {_QWEN_VL}; of Mistral, {_TEXT_ONLY}",
    "idefics3": f"Idefics3 or SmolVLM; {_QWEN_VL}, or SmolLM2 for text",
    "smolvlm": f"SmolVLM; {_QWEN_VL}, or SmolLM2 for text",
    "minicpmv": f"MiniCPM-V; {_QWEN_VL}",
    "minicpmo": f"MiniCPM-o; {_QWEN_VL}",
    "molmo": f"Molmo; {_QWEN_VL}",
    "deepseek_vl_v2": f"DeepSeek-VL2; {_QWEN_VL}",
    "kimi_vl": f"Kimi-VL; {_QWEN_VL}",
    "bert": f"BERT: {_NO_GENERATOR}",
    "roberta": f"RoBERTa: {_NO_GENERATOR}",
    "xlm-roberta": f"XLM-RoBERTa: {_NO_GENERATOR}",
    "clip": f"CLIP: {_NO_GENERATOR}",
    "siglip": f"SigLIP: {_NO_GENERATOR}",
    "t5": "T5, an encoder-decoder; take a causal language model",
    "whisper": "Whisper, a speech model; take a causal language model",
}
"""`model_type` -> what the folder is, then the remedy. A family that is registered takes precedence."""
