"""Qwen2.5-VL in plain PyTorch: Qwen2-VL's language model under another vision tower; it shares no code with ours."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.parity.qwen2_vl_reference import MERGE, PATCH, ImagePatches, Qwen2VLReference, rotate


class Qwen25VLReference(Qwen2VLReference):
    """The model in a folder. Windows are a mask over patches in reading order: nothing is permuted."""

    def see(self, image: ImagePatches) -> Tensor:
        """Return an image's tokens [merged, hidden] from the vision tower and its merger."""
        vision = self.config["vision_config"]
        width, heads = vision["hidden_size"], vision["num_heads"]
        hidden = image.values @ self.weights["visual.patch_embed.proj.weight"].reshape(width, -1).T
        cos, sin = self._vision_rotations(image, width // heads)
        windowed = _same_window(image, vision["window_size"] // PATCH)
        for block in range(vision["depth"]):
            at = f"visual.blocks.{block}"
            seen = torch.ones_like(windowed) if block in vision["fullatt_block_indexes"] else windowed
            normed = self._rms(hidden, f"{at}.norm1")
            q, k, v = self._linear(normed, f"{at}.attn.qkv").reshape(-1, 3, heads, width // heads).unbind(1)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(width // heads)
            probabilities = scores.masked_fill(~seen, -math.inf).softmax(-1)
            mixed = torch.einsum("hqk,khd->qhd", probabilities, v).reshape(-1, width)
            hidden = hidden + self._linear(mixed, f"{at}.attn.proj")
            normed = self._rms(hidden, f"{at}.norm2")
            gated = F.silu(self._linear(normed, f"{at}.mlp.gate_proj")) * self._linear(normed, f"{at}.mlp.up_proj")
            hidden = hidden + self._linear(gated, f"{at}.mlp.down_proj")
        merged = self._rms(hidden, "visual.merger.ln_q").reshape(-1, width * MERGE**2)
        return self._linear(F.gelu(self._linear(merged, "visual.merger.mlp.0")), "visual.merger.mlp.2")


def _same_window(image: ImagePatches, side: int) -> Tensor:
    """Return which patches [T, T], in merged order, lie in one window of side x side patches."""
    windows = [
        ((block_row * MERGE + row) // side, (block_column * MERGE + column) // side)
        for block_row in range(image.grid_h // MERGE)
        for block_column in range(image.grid_w // MERGE)
        for row in range(MERGE)
        for column in range(MERGE)
    ]
    place = torch.tensor(windows)
    return (place[:, None] == place[None]).all(-1)
