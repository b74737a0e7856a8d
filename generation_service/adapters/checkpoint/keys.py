"""The keys of a LoRA file: module, factor and adapter name, and what keys of other methods mean."""

from __future__ import annotations

import re
from dataclasses import dataclass

_WRAPPER = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
"""Modules that torch.compile, FSDP, activation checkpointing and Lightning put around a module."""
_ROOT = re.compile(r"(?:(?:module|base_model\.model)\.)*")
"""What PEFT and DDP put before the name of the model's own modules."""
_FACTOR_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")

_NO_EMBEDDING = "train with target_modules that leave embed_tokens out"
_MERGE = "merge it into the base model, and serve that"
_IMAGE_LORA = "this is a key of kohya's or diffusers' LoRAs for image generation, not of PEFT"
_REFUSED = (
    ("lora_embedding_", f"embedding LoRA is not applied: {_NO_EMBEDDING}"),
    ("lora_magnitude_vector", f"DoRA is not applied: {_MERGE}"),
    ("modules_to_save", f"modules_to_save are not applied: {_MERGE}"),
    ("trainable_tokens", f"trained tokens are not applied: {_MERGE}"),
    ("token_adapter", f"trained tokens are not applied: {_MERGE}"),
    (".bias", f"trained biases are not applied: {_MERGE}"),
    ("lora_unet_", _IMAGE_LORA),
    ("lora_te", _IMAGE_LORA),
    ("lora_down", _IMAGE_LORA),
    ("lora_up", _IMAGE_LORA),
    ("lora.down", _IMAGE_LORA),
    ("lora.up", _IMAGE_LORA),
    (".lora_a", "this is a key of MLX or torchtune: save the adapter as PEFT does"),
    (".lora_b", "this is a key of MLX or torchtune: save the adapter as PEFT does"),
    ("hada_w", f"LoHa is not applied: {_MERGE}"),
    ("lokr_", f"LoKr is not applied: {_MERGE}"),
    ("ia3_", f"IA3 is not applied: {_MERGE}"),
    ("vera_lambda", f"VeRA is not applied: {_MERGE}"),
    ("lora_E", f"AdaLoRA is not applied: {_MERGE}"),
    ("lora_diag", f"KaSA is not applied: {_MERGE}"),
    ("prompt_embeddings", "prompt tuning is not applied: train a LoRA"),
    ("embed_tokens.", "a trained embedding, as saved after new tokens were added, is not applied: train without them"),
    ("lm_head.weight", f"a trained output head is not applied: {_MERGE}"),
)
_OTHER = "it is not a lora_A or lora_B weight"


@dataclass(frozen=True)
class FactorKey:
    """One factor, "A" or "B", of the LoRA `adapter` on `module`, whose name is that of the model it was trained on."""

    module: str
    factor: str
    adapter: str


def parse_key(key: str) -> FactorKey | str:
    """Return what a tensor is, or why it is not applied."""
    match = _FACTOR_KEY.fullmatch(_without_wrappers(key))
    if match is not None and "modules_to_save" not in key:
        return FactorKey(match["module"], match["factor"], match["adapter"] or "default")
    return next((reason for part, reason in _REFUSED if part in key), _OTHER)


def module_of(key: str) -> str:
    """Return the module in a LoRA tensor's key, without what wraps it; other keys are returned as they are."""
    parsed = parse_key(key)
    return key if isinstance(parsed, str) else parsed.module


def _without_wrappers(key: str) -> str:
    bare = _WRAPPER.sub("", key)
    root = _ROOT.match(bare)
    return bare[root.end() :] if root else bare
