"""Read the config.json of a text-only model, and refuse what its forward pass here would not compute."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from generation_service.models.causal.architectures import CausalArchitecture, Window
from generation_service.models.folder import read_config
from generation_service.models.modules import parse_config
from infra.contract.errors import CheckpointError

_FULL, _SLIDING = "full_attention", "sliding_attention"
_ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
_OTHER_MATHEMATICS = re.compile(
    r"expert|moe|attention_chunk|qk_(?:layer)?norm|alibi|clip_qkv|multiplier|logits?_scal|no_rope|nope|kv_lora|q_lora|"
    r"parallel_attn|sinks|sparse"
)
"""Fields of config.json that change what a layer computes, in classes that have them."""
_NEUTRAL: tuple[object, ...] = (None, False, 0, 1, [], {})


def read_causal_config(folder: Path, architecture: CausalArchitecture) -> Any:
    """Return the config of transformers for `folder`.

    Dynamic NTK changes the frequencies beyond the trained length only, which is the longest sequence served, so it is
    replaced by plain RoPE: cached keys of one sequence must not be rotated by several sets of frequencies.

    Raises CheckpointError naming what this version does not compute.
    """
    config = parse_config(folder, architecture.config_class, architecture.title)
    reasons = _unread(folder, architecture)
    if getattr(config, "use_bidirectional_attention", False):
        reasons.append("its tokens attend to later ones (use_bidirectional_attention), as in an embedding model")
    if architecture.window is Window.BY_LAYER_TYPE:
        others = sorted(set(config.layer_types) - {_FULL, _SLIDING})
        reasons += [f"it has layers of type {', '.join(others)}"] if others else []
    unknown = sorted({str(rope.get("rope_type")) for rope in _ropes(config)} - set(_ROPE_TYPES))
    if unknown:
        reasons.append(f"its rope_type is {', '.join(unknown)}; {', '.join(_ROPE_TYPES)} are served")
    window = getattr(config, "sliding_window", None)
    if architecture.window is not Window.NONE and window is not None and int(window) < 1:
        reasons.append(f"sliding_window is {window}, in which no token attends to itself")
    if reasons:
        raise CheckpointError(
            f"{folder} is a {architecture.title} that this version does not serve: {'; '.join(reasons)}. Take the "
            "config.json that the model was published with, or another model",
            path=str(folder),
        )
    for rope in _ropes(config):
        if rope["rope_type"] == "dynamic":
            rope["rope_type"] = "default"
    return config


def max_positions(config: Any) -> int:
    """Return the longest sequence whose RoPE frequencies do not depend on its length.

    YaRN extends it by its factor, which the published configs leave out of max_position_embeddings.
    """
    longest = int(config.max_position_embeddings)
    for rope in _ropes(config):
        trained = int(
            rope.get("original_max_position_embeddings")
            or getattr(config, "original_max_position_embeddings", None)
            or longest
        )
        if rope["rope_type"] == "longrope":
            longest = min(longest, trained)
        if rope["rope_type"] == "yarn":
            longest = max(longest, int(trained * float(rope.get("factor") or 1)))
    return longest


def layer_windows(config: Any, architecture: CausalArchitecture) -> tuple[int | None, ...]:
    """Return, for each layer, how many of the newest tokens it attends to, the current one included; None: all."""
    window = getattr(config, "sliding_window", None)
    layers = int(config.num_hidden_layers)
    if architecture.window is Window.NONE or not window:
        return (None,) * layers
    if architecture.window is Window.EVERY_LAYER:
        return (int(window),) * layers
    return tuple(int(window) if kind == _SLIDING else None for kind in config.layer_types)


def _unread(folder: Path, architecture: CausalArchitecture) -> list[str]:
    """Return a clause for each field that would change the mathematics, in a config whose class does not read it."""
    content = read_config(folder)
    reasons = [
        f"{name} is {str(value)[:40]}, which the layers of {architecture.model_type} do not compute"
        for name, value in content.items()
        if _OTHER_MATHEMATICS.search(name) and not hasattr(architecture.config_class, name) and _has_effect(value)
    ]
    kinds = content.get("layer_types")
    if architecture.window is Window.EVERY_LAYER and isinstance(kinds, list) and len(set(map(str, kinds))) > 1:
        reasons.append("layer_types gives only some layers a window, while those of this architecture all have one")
    return reasons


def _has_effect(value: object) -> bool:
    return value is True or value not in _NEUTRAL


def _ropes(config: Any) -> Iterator[dict[str, Any]]:
    """Yield the RoPE parameters: one set, or one for each layer type."""
    ropes: Mapping[str, Any] = config.rope_parameters or {}
    if "rope_type" in ropes or "rope_theta" in ropes:
        yield ropes  # type: ignore[misc]
    else:
        yield from (rope for rope in ropes.values() if isinstance(rope, dict))
