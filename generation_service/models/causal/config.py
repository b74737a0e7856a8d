"""Read the config.json of a text-only model, and refuse what its forward pass here would not compute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from generation_service.models.causal.architectures import CausalArchitecture, Window
from generation_service.models.modules import parse_config
from infra.contract.errors import CheckpointError

_FULL, _SLIDING = "full_attention", "sliding_attention"
_ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


def read_causal_config(folder: Path, architecture: CausalArchitecture) -> Any:
    """Return the config of transformers for `folder`.

    Dynamic NTK changes the frequencies beyond the trained length only, which is the longest sequence served, so it is
    replaced by plain RoPE: cached keys of one sequence must not be rotated by several sets of frequencies.

    Raises CheckpointError naming what this version does not compute.
    """
    config = parse_config(folder, architecture.config_class, architecture.title)
    reasons = []
    if getattr(config, "use_bidirectional_attention", False):
        reasons.append("its tokens attend to later ones (use_bidirectional_attention), as in an embedding model")
    if architecture.window is Window.BY_LAYER_TYPE:
        others = sorted(set(config.layer_types) - {_FULL, _SLIDING})
        reasons += [f"it has layers of type {', '.join(others)}"] if others else []
    unknown = sorted({str(rope.get("rope_type")) for rope in _ropes(config)} - set(_ROPE_TYPES))
    if unknown:
        reasons.append(f"its rope_type is {', '.join(unknown)}; {', '.join(_ROPE_TYPES)} are served")
    if reasons:
        raise CheckpointError(
            f"{folder} is a {architecture.title} that this version does not serve: {'; '.join(reasons)}",
            path=str(folder),
        )
    for rope in _ropes(config):
        if rope["rope_type"] == "dynamic":
            rope["rope_type"] = "default"
    return config


def max_positions(config: Any) -> int:
    """Return the longest sequence whose RoPE frequencies do not depend on its length."""
    trained = [
        int(rope.get("original_max_position_embeddings") or config.original_max_position_embeddings)
        for rope in _ropes(config)
        if rope["rope_type"] == "longrope"
    ]
    return min([int(config.max_position_embeddings), *trained])


def layer_windows(config: Any, architecture: CausalArchitecture) -> tuple[int | None, ...]:
    """Return, for each layer, how many of the newest tokens it attends to, the current one included; None: all."""
    window = getattr(config, "sliding_window", None)
    layers = int(config.num_hidden_layers)
    if architecture.window is Window.NONE or not window:
        return (None,) * layers
    if architecture.window is Window.EVERY_LAYER:
        return (int(window),) * layers
    return tuple(int(window) if kind == _SLIDING else None for kind in config.layer_types)


def _ropes(config: Any) -> Iterator[dict[str, Any]]:
    """Yield the RoPE parameters: one set, or one for each layer type."""
    ropes: Mapping[str, Any] = config.rope_parameters or {}
    if "rope_type" in ropes or "rope_theta" in ropes:
        yield ropes  # type: ignore[misc]
    else:
        yield from (rope for rope in ropes.values() if isinstance(rope, dict))
