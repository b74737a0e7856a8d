"""Every option of PEFT's LoraConfig: applied, without effect on answers, or refused by name.

A test compares the three tables with the fields of the installed LoraConfig, so that an option of a newer PEFT is
decided here before that version is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

APPLIED = {
    "peft_type": (str, "a string"),
    "base_model_name_or_path": (str, "a string"),
    "r": (int, "a whole number"),
    "lora_alpha": ((int, float), "a number"),
    "use_rslora": (bool, "true or false"),
    "rank_pattern": (dict, "an object of module patterns"),
    "alpha_pattern": (dict, "an object of module patterns"),
    "target_modules": ((str, list), "a string or an array of strings"),
    "exclude_modules": ((str, list), "a string or an array of strings"),
    "layers_to_transform": ((int, list), "a whole number or an array of them"),
    "layers_pattern": ((str, list), "a string or an array of strings"),
}
"""Options that decide the answer and are applied: their types in JSON. null means that an option is not set."""

WITHOUT_EFFECT = {
    "task_type": (str, "a string"),
    "auto_mapping": (dict, "an object"),
    "peft_version": (str, "a string"),
    "revision": (str, "a string"),
    "inference_mode": (bool, "true or false"),
    "lora_dropout": ((int, float), "a number"),
    "init_lora_weights": ((bool, str), "true, false or a string"),
    "bias": (str, "a string"),
    "megatron_core": (str, "a string"),
    "loftq_config": (dict, "an object"),
    "eva_config": (dict, "an object"),
    "corda_config": (dict, "an object"),
    "lora_ga_config": (dict, "an object"),
    "qalora_group_size": (int, "a whole number"),
    "runtime_config": (dict, "an object"),
    "ensure_weight_tying": (bool, "true or false"),
}
"""Options of training, and parameters of options that are refused where they are switched on.

`init_lora_weights` and `bias` have values that are refused, see `refusals`.
"""

REFUSED = {
    "use_dora": "DoRA (use_dora) scales the merged weight by a learnt magnitude",
    "modules_to_save": "modules_to_save holds whole layers of the base model",
    "trainable_token_indices": "trainable_token_indices replaces rows of the embedding",
    "fan_in_fan_out": "fan_in_fan_out stores weights transposed, for Conv1D layers",
    "lora_bias": "lora_bias adds a bias to B",
    "layer_replication": "layer_replication changes the layers of the base model",
    "target_parameters": "target_parameters adapts bare parameters (experts), not linear layers",
    "alora_invocation_tokens": "alora_invocation_tokens (aLoRA) applies only after certain tokens",
    "use_qalora": "QA-LoRA (use_qalora) pools the input",
    "use_bdlora": "BD-LoRA (use_bdlora) has block-diagonal factors",
    "arrow_config": "Arrow (arrow_config) routes between adapters by token",
    "kasa_config": "KaSA (kasa_config) has singular values between A and B",
    "monteclora_config": "MonteCLoRA (monteclora_config) samples its factors",
    "velora_config": "VeLoRA (velora_config) compresses activations",
    "megatron_config": "megatron_config shards layers across devices",
}
"""Options that change the answer and are not applied, and why they would."""

_OF_OTHER_TOOLS = frozenset({"lora_dtype", "lorap_lr_ratio", "lorap_emb_lr", "swift_type", "loraplus_lr_ratio"})
"""Options that ms-swift adds for training only."""
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
_INITS = ("gaussian", "eva", "orthogonal", "mica")
_REMEDY = "train without it, or merge the adapter into the base model and serve that"


def refusals(content: Mapping[str, Any]) -> list[str]:
    """Return a clause for each option of a config that would change the answer and is not supported."""
    kind = content.get("peft_type")
    if kind != "LORA":
        return [_other_method(kind, content)]
    refused = [f"{reason}, which this server does not apply" for name, reason in REFUSED.items() if content.get(name)]
    if content.get("bias", "none") not in ("none", None):
        refused.append(f"bias is {content['bias']!r:.40}: trained biases of the base model are not applied")
    refused += _refused_init(content.get("init_lora_weights"))
    refused += [f"{name} is set, a LoRA option that this server does not know" for name in _unknown_switches(content)]
    if refused:
        refused[-1] += f": {_REMEDY}"
    return [*refused, *_wrong_types(content)]


def unknown_settings(content: Mapping[str, Any]) -> list[str]:
    """Return the options that no installed library knows and that are set, but switch nothing on."""
    switches = _unknown_switches(content)
    return [name for name, value in content.items() if value and not _is_known(name) and name not in switches]


def _unknown_switches(content: Mapping[str, Any]) -> list[str]:
    """Return unknown options that may change the arithmetic.

    PEFT's switches are true, an object or an array. Numbers and strings are parameters of switches, and have defaults
    that PEFT writes into every config.
    """
    return [
        name
        for name, value in content.items()
        if value and isinstance(value, bool | dict | list) and not _is_known(name)
    ]


def _is_known(name: str) -> bool:
    return name in APPLIED or name in WITHOUT_EFFECT or name in REFUSED or name in _OF_OTHER_TOOLS


def _other_method(kind: object, content: Mapping[str, Any]) -> str:
    if kind is None and ("lora_parameters" in content or "fine_tune_type" in content):
        return "it is the config of an MLX adapter; this server reads PEFT folders: convert it, or train with PEFT"
    return (
        f"peft_type is {kind!r:.40}; this server applies LORA only: train a LoRA, or merge the adapter into the base "
        "model and serve that"
    )


def _refused_init(init: object) -> list[str]:
    if not isinstance(init, str) or init.lower().startswith(_INITS):
        return []
    if init.lower().startswith(_BASE_CHANGING_INITS):
        return [
            f"init_lora_weights is {init!r}, which also changed the base model's weights: save the adapter again with "
            "PEFT's path_initial_model_for_weight_conversion"
        ]
    return [f"init_lora_weights is {init!r:.40}, which may have changed the base model's weights"]


def _wrong_types(content: Mapping[str, Any]) -> list[str]:
    wrong = []
    for name, (kinds, words) in (APPLIED | WITHOUT_EFFECT).items():
        value = content.get(name)
        allowed = kinds if isinstance(kinds, tuple) else (kinds,)
        is_wrong = not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed)
        if value is not None and is_wrong:
            wrong.append(f"{name} must be {words}, got {str(value)[:40]!r}")
    return wrong
