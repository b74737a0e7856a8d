"""The names that adapters of text-only models use, mapped to the modules of transformers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from generation_service.adapters.checkpoint.binding import FusedSlice
from generation_service.lora.weights import Shapes

_LAYERS = re.compile(r"^(?:model\.)?(?:language_model\.)?(?:model\.)?(?=layers\.)")
_FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""Modules that some training tools fuse -> the modules they consist of, whose rows follow one another."""


@dataclass(frozen=True)
class CausalNames:
    """The name mapping of one model. `targets` are its adaptable layers."""

    targets: Shapes

    def canonical(self, name: str) -> str | Sequence[FusedSlice]:
        """Return the path of an adapter's module, or the slices of a module that this model splits.

        Accepts names of the bare model (`layers.0...`) and of the language model inside a multimodal one.
        """
        path = _LAYERS.sub("model.", name.removeprefix("base_model.model."))
        parent, _, module = path.rpartition(".")
        parts = [f"{parent}.{part}" for part in _FUSED.get(module, ())]
        if path in self.targets or not parts or any(part not in self.targets for part in parts):
            return path
        sizes = [self.targets[part][1] for part in parts]
        rows = torch.split(torch.arange(sum(sizes)), sizes)
        return [FusedSlice(part, own_rows) for part, own_rows in zip(parts, rows, strict=True)]
