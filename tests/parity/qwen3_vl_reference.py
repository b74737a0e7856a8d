"""Qwen3-VL in plain PyTorch: Qwen3, interleaved M-RoPE and DeepStack (arXiv 2406.04334); it shares no code with ours.

One sequence, no cache, loops where the equations have sums: slow and easy to check.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional as F

from tests.parity.qwen2_vl_reference import MERGE, ImagePatches, Qwen2VLReference, patches, rotate


class Qwen3VLReference(Qwen2VLReference):
    """The model in `folder`, with the names and settings of its parts as Qwen2-VL has them."""

    def __init__(self, folder: Path, deltas: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(folder, deltas)
        self.config |= self.config["text_config"]
        self.weights = {
            name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): tensor
            for name, tensor in self.weights.items()
        }

    def logits(self, tokens: Sequence[int], images: Sequence[ImagePatches] = ()) -> Tensor:
        """Return the logits [T, vocab] of a sequence whose image tokens stand for `images`."""
        hidden = self.weights["model.embed_tokens.weight"][torch.tensor(tokens)].clone()
        places = torch.tensor(tokens) == self.config["image_token_id"]
        seen = [self.see_all(image) for image in images]
        if images:
            hidden[places] = torch.cat([features[0] for features in seen])
        cos, sin = self._rotations(self.positions(tokens, images))
        for layer in range(self.config["num_hidden_layers"]):
            at = f"model.layers.{layer}"
            hidden = hidden + self._attend(layer, self._rms(hidden, f"{at}.input_layernorm"), cos, sin)
            normed = self._rms(hidden, f"{at}.post_attention_layernorm")
            gated = F.silu(self._linear(normed, f"{at}.mlp.gate_proj")) * self._linear(normed, f"{at}.mlp.up_proj")
            hidden = hidden + self._linear(gated, f"{at}.mlp.down_proj")
            if images and layer < len(seen[0]) - 1:
                hidden[places] += torch.cat([features[layer + 1] for features in seen])
        tied = self.config["tie_word_embeddings"]
        head = self.weights["model.embed_tokens.weight" if tied else "lm_head.weight"]
        return self._rms(hidden, "model.norm") @ head.T

    def see_all(self, image: ImagePatches) -> list[Tensor]:
        """Return an image's tokens [merged, hidden], then their features for each of the first layers."""
        vision = self.config["vision_config"]
        width, heads = vision["hidden_size"], vision["num_heads"]
        weight = self.weights["visual.patch_embed.proj.weight"].reshape(width, -1)
        hidden = image.values @ weight.T + self.weights["visual.patch_embed.proj.bias"] + self._positions(image)
        cos, sin = self._vision_rotations(image, width // heads)
        deeper: list[Tensor] = []
        for block in range(vision["depth"]):
            at = f"visual.blocks.{block}"
            normed = self._layer_norm(hidden, f"{at}.norm1")
            q, k, v = self._linear(normed, f"{at}.attn.qkv").reshape(-1, 3, heads, width // heads).unbind(1)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(width // heads)
            mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(-1, width)
            hidden = hidden + self._linear(mixed, f"{at}.attn.proj")
            inner = self._linear(self._layer_norm(hidden, f"{at}.norm2"), f"{at}.mlp.linear_fc1")
            hidden = hidden + self._linear(F.gelu(inner, approximate="tanh"), f"{at}.mlp.linear_fc2")
            if block in vision["deepstack_visual_indexes"]:
                merger = f"visual.deepstack_merger_list.{len(deeper)}"
                squares = self._layer_norm(hidden.reshape(-1, width * MERGE**2), f"{merger}.norm")
                deeper.append(self._merge(squares, merger))
        squares = self._layer_norm(hidden, "visual.merger.norm").reshape(-1, width * MERGE**2)
        return [self._merge(squares, "visual.merger"), *deeper]

    def _merge(self, squares: Tensor, merger: str) -> Tensor:
        return self._linear(F.gelu(self._linear(squares, f"{merger}.linear_fc1")), f"{merger}.linear_fc2")

    def _positions(self, image: ImagePatches) -> Tensor:
        """Return the learned grid, read at the patches' places by bilinear interpolation from corner to corner."""
        grid = self.weights["visual.pos_embed.weight"]
        side = math.isqrt(len(grid))
        found = []
        for row, column in merged_order(image):
            y = row * (side - 1) / max(image.grid_h - 1, 1)
            x = column * (side - 1) / max(image.grid_w - 1, 1)
            top, left = min(int(y), side - 1), min(int(x), side - 1)
            bottom, right = min(top + 1, side - 1), min(left + 1, side - 1)
            down, along = y - top, x - left
            found.append(
                (1 - down) * ((1 - along) * grid[top * side + left] + along * grid[top * side + right])
                + down * ((1 - along) * grid[bottom * side + left] + along * grid[bottom * side + right])
            )
        return torch.stack(found)

    def _attend(self, layer: int, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads, kv_heads, size = (self.config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
        at = f"model.layers.{layer}.self_attn"
        q = rotate(self._rms(self._linear(x, f"{at}.q_proj").reshape(-1, heads, size), f"{at}.q_norm"), cos, sin)
        k = rotate(self._rms(self._linear(x, f"{at}.k_proj").reshape(-1, kv_heads, size), f"{at}.k_norm"), cos, sin)
        v = self._linear(x, f"{at}.v_proj").reshape(-1, kv_heads, size)
        future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        mixed = []
        for head in range(heads):
            shared = head // (heads // kv_heads)
            scores = (q[:, head] @ k[:, shared].T / math.sqrt(size)).masked_fill(future, -math.inf)
            mixed.append(scores.softmax(-1) @ v[:, shared])
        return self._linear(torch.cat(mixed, dim=-1), f"{at}.o_proj")

    def _rotations(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return interleaved M-RoPE: frequencies take turns with time, height and width while an axis has some."""
        size, theta = self.config["head_dim"], self.config["rope_theta"]
        _, high, wide = self.config["rope_scaling"]["mrope_section"]
        angles = []
        for frequency in range(size // 2):
            turn, axis = divmod(frequency, 3)
            axis = axis if turn < (math.inf, high, wide)[axis] else 0
            angles.append(positions[axis].double() * theta ** (-2 * frequency / size))
        angle = torch.stack(angles, dim=-1)[:, None]
        return angle.cos().float(), angle.sin().float()


def merged_order(image: ImagePatches) -> list[tuple[int, int]]:
    """Return the row and column of each patch: squares of MERGE x MERGE one after the other."""
    return [
        (block_row * MERGE + row, block_column * MERGE + column)
        for block_row in range(image.grid_h // MERGE)
        for block_column in range(image.grid_w // MERGE)
        for row in range(MERGE)
        for column in range(MERGE)
    ]


def patches_of_16(image: Image) -> ImagePatches:
    """Return an image in patches of 16 pixels, with values from -1 to 1."""
    half = (0.5, 0.5, 0.5)
    return patches(image, 16777216, 4096, size=16, mean=half, deviation=half)
