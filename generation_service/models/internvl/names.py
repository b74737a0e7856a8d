"""Module names of original InternVL checkpoints -> module paths of InternVL in transformers.

InternLM2's `wqkv` has, for each key-value head, the rows of its group's queries, then its key, then its value. The
vision tower's `qkv` stacks queries, keys and values. The same row split applies to a weight and to the B of a LoRA.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from generation_service.adapters.checkpoint.binding import FusedSlice

LANGUAGE, VISION, PROJECTOR = "model.language_model", "model.vision_tower", "model.multi_modal_projector"
HEAD = "lm_head"

_END = r"(?=\.|$)"
_RENAMED = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^base_model\.model\.", ""),
        (rf"^(?:model\.)?language_model\.(?:output|lm_head){_END}", HEAD),
        (r"^language_model\.model\.", f"{LANGUAGE}."),
        (r"^language_model\.(?=layers\.)", f"{LANGUAGE}."),
        (r"^vision_model\.", f"{VISION}."),
        (r"^vision_tower\.", f"{VISION}."),
        (r"^multi_modal_projector\.", f"{PROJECTOR}."),
        (rf"^mlp1\.0{_END}", f"{PROJECTOR}.layer_norm"),
        (rf"^mlp1\.1{_END}", f"{PROJECTOR}.linear_1"),
        (rf"^mlp1\.3{_END}", f"{PROJECTOR}.linear_2"),
        (rf"^({LANGUAGE})\.tok_embeddings{_END}", r"\1.embed_tokens"),
        (rf"^({LANGUAGE}\.layers\.\d+)\.attention\.wo{_END}", r"\1.self_attn.o_proj"),
        (rf"^({LANGUAGE}\.layers\.\d+)\.feed_forward\.w1{_END}", r"\1.mlp.gate_proj"),
        (rf"^({LANGUAGE}\.layers\.\d+)\.feed_forward\.w2{_END}", r"\1.mlp.down_proj"),
        (rf"^({LANGUAGE}\.layers\.\d+)\.feed_forward\.w3{_END}", r"\1.mlp.up_proj"),
        (rf"^({LANGUAGE}\.layers\.\d+)\.attention_norm{_END}", r"\1.input_layernorm"),
        (rf"^({LANGUAGE}\.layers\.\d+)\.ffn_norm{_END}", r"\1.post_attention_layernorm"),
        (rf"^({VISION}\.embeddings)\.class_embedding$", r"\1.cls_token"),
        (rf"^({VISION}\.embeddings)\.position_embedding$", r"\1.position_embeddings"),
        (rf"^({VISION}\.embeddings)\.patch_embedding{_END}", r"\1.patch_embeddings.projection"),
        (rf"^({VISION}\.encoder)\.layers\.", r"\1.layer."),
        (rf"^({VISION}\.encoder\.layer\.\d+)\.attn\.proj{_END}", r"\1.attention.projection_layer"),
        (rf"^({VISION}\.encoder\.layer\.\d+)\.attn\.([qk]_norm){_END}", r"\1.attention.\2"),
        (rf"^({VISION}\.encoder\.layer\.\d+)\.norm1{_END}", r"\1.layernorm_before"),
        (rf"^({VISION}\.encoder\.layer\.\d+)\.norm2{_END}", r"\1.layernorm_after"),
        (rf"^({VISION}\.encoder\.layer\.\d+)\.ls([12])$", r"\1.lambda_\2"),
    )
)
_WQKV = re.compile(rf"^(?P<layer>{LANGUAGE}\.layers\.\d+)\.attention\.wqkv(?P<rest>\..+)?$")
_VISION_QKV = re.compile(rf"^(?P<layer>{VISION}\.encoder\.layer\.\d+)\.attn\.qkv(?P<rest>\..+)?$")


@dataclass(frozen=True)
class OriginalNames:
    """The name mapping of one model, which depends on its attention heads and the width of its vision tower."""

    heads: int
    kv_heads: int
    head_dim: int
    vision_width: int

    def canonical(self, name: str) -> str | tuple[FusedSlice, ...]:
        """Return the path of a module or tensor in transformers, or the parts of a fused one.

        Names in the layout of any transformers version are accepted too.
        """
        for pattern, replacement in _RENAMED:
            name = pattern.sub(replacement, name)
        if match := _WQKV.match(name):
            return _parts(f"{match['layer']}.self_attn", match["rest"] or "", self._wqkv_rows)
        if match := _VISION_QKV.match(name):
            return _parts(f"{match['layer']}.attention", match["rest"] or "", self._vision_rows)
        return name

    @cached_property
    def _wqkv_rows(self) -> tuple[Tensor, Tensor, Tensor]:
        groups = self.heads // self.kv_heads
        rows = torch.arange((self.heads + 2 * self.kv_heads) * self.head_dim)
        by_head = rows.reshape(self.kv_heads, groups + 2, self.head_dim)
        return by_head[:, :groups].flatten(), by_head[:, groups].flatten(), by_head[:, groups + 1].flatten()

    @cached_property
    def _vision_rows(self) -> tuple[Tensor, ...]:
        return torch.arange(3 * self.vision_width).chunk(3)


def _parts(attention: str, rest: str, rows: tuple[Tensor, ...]) -> tuple[FusedSlice, ...]:
    names = ("q_proj", "k_proj", "v_proj")
    return tuple(FusedSlice(f"{attention}.{name}{rest}", part) for name, part in zip(names, rows, strict=True))
