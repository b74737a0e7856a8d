"""Qwen2-VL in plain PyTorch, from the paper's equations and the original tensor names; it shares no code with ours.

One sequence, no cache, loops where the equations have sums: slow and easy to check.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image, Resampling
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

PATCH, MERGE = 14, 2


@dataclass(frozen=True)
class ImagePatches:
    """Patches [grid_h * grid_w, 3 * 2 * 14 * 14] in the order of merged blocks, and the grid."""

    values: Tensor
    grid_h: int
    grid_w: int

    @property
    def merged_tokens(self) -> int:
        """Number of tokens in the language model."""
        return self.grid_h * self.grid_w // MERGE**2


class Qwen2VLReference:
    """The model in `folder`. `deltas` are added to the weights of the same original names, as a merged LoRA."""

    def __init__(self, folder: Path, deltas: Mapping[str, Tensor] | None = None) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.weights: dict[str, Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            self.weights |= {name: tensor.float() for name, tensor in load_file(path).items()}
        for name, delta in (deltas or {}).items():
            self.weights[name] = self.weights[name] + delta
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def prompt(self, text: str, images: Sequence[ImagePatches] = ()) -> list[int]:
        """Return the ids of a conversation of one user turn: the images, then the text."""
        marks = "".join(
            "<|vision_start|>" + "<|image_pad|>" * image.merged_tokens + "<|vision_end|>" for image in images
        )
        conversation = (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            f"<|im_start|>user\n{marks}{text}<|im_end|>\n<|im_start|>assistant\n"
        )
        return list(self.tokenizer.encode(conversation).ids)

    def logits(self, tokens: Sequence[int], images: Sequence[ImagePatches] = ()) -> Tensor:
        """Return the logits [T, vocab] of a sequence whose image tokens stand for `images`."""
        hidden = self.weights["model.embed_tokens.weight"][torch.tensor(tokens)].clone()
        if images:
            places = torch.tensor(tokens) == self.config["image_token_id"]
            hidden[places] = torch.cat([self.see(image) for image in images])
        cos, sin = self._rotations(self.positions(tokens, images))
        for layer in range(self.config["num_hidden_layers"]):
            hidden = hidden + self._attend(layer, self._rms(hidden, f"model.layers.{layer}.input_layernorm"), cos, sin)
            normed = self._rms(hidden, f"model.layers.{layer}.post_attention_layernorm")
            at = f"model.layers.{layer}.mlp"
            gated = F.silu(self._linear(normed, f"{at}.gate_proj")) * self._linear(normed, f"{at}.up_proj")
            hidden = hidden + self._linear(gated, f"{at}.down_proj")
        hidden = self._rms(hidden, "model.norm")
        tied = self.config["tie_word_embeddings"]
        return hidden @ self.weights["model.embed_tokens.weight" if tied else "lm_head.weight"].T

    def generate(self, text: str, images: Sequence[ImagePatches], count: int) -> list[int]:
        """Return exactly `count` greedy tokens after a prompt, end tokens included."""
        tokens = self.prompt(text, images)
        start = len(tokens)
        for _ in range(count):
            tokens.append(int(self.logits(tokens, images)[-1].argmax()))
        return tokens[start:]

    def positions(self, tokens: Sequence[int], images: Sequence[ImagePatches]) -> Tensor:
        """Return time, height and width positions [3, T]: text advances on all, an image spans a box at one time."""
        triples: list[tuple[int, int, int]] = []
        coming = list(images)
        index = 0
        following = 0
        while index < len(tokens):
            if tokens[index] != self.config["image_token_id"]:
                triples.append((following, following, following))
                following += 1
                index += 1
                continue
            image = coming.pop(0)
            high, wide = image.grid_h // MERGE, image.grid_w // MERGE
            triples += [
                (following, following + row, following + column) for row in range(high) for column in range(wide)
            ]
            following += max(high, wide)
            index += high * wide
        return torch.tensor(triples).T

    def see(self, image: ImagePatches) -> Tensor:
        """Return an image's tokens [merged, hidden] from the vision tower and its merger."""
        vision = self.config["vision_config"]
        width, heads = vision["embed_dim"], vision["num_heads"]
        hidden = image.values @ self.weights["visual.patch_embed.proj.weight"].reshape(width, -1).T
        cos, sin = self._vision_rotations(image, width // heads)
        for block in range(vision["depth"]):
            at = f"visual.blocks.{block}"
            normed = self._layer_norm(hidden, f"{at}.norm1")
            q, k, v = self._linear(normed, f"{at}.attn.qkv").reshape(-1, 3, heads, width // heads).unbind(1)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(width // heads)
            mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(-1, width)
            hidden = hidden + self._linear(mixed, f"{at}.attn.proj")
            inner = self._linear(self._layer_norm(hidden, f"{at}.norm2"), f"{at}.mlp.fc1")
            hidden = hidden + self._linear(inner * torch.sigmoid(1.702 * inner), f"{at}.mlp.fc2")
        merged = self._layer_norm(hidden, "visual.merger.ln_q").reshape(-1, width * MERGE**2)
        return self._linear(F.gelu(self._linear(merged, "visual.merger.mlp.0")), "visual.merger.mlp.2")

    def _attend(self, layer: int, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads, kv_heads = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        size = self.config["hidden_size"] // heads
        at = f"model.layers.{layer}.self_attn"
        q = rotate(self._linear(x, f"{at}.q_proj").reshape(-1, heads, size), cos, sin)
        k = rotate(self._linear(x, f"{at}.k_proj").reshape(-1, kv_heads, size), cos, sin)
        v = self._linear(x, f"{at}.v_proj").reshape(-1, kv_heads, size)
        future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        mixed = []
        for head in range(heads):
            shared = head // (heads // kv_heads)
            scores = (q[:, head] @ k[:, shared].T / math.sqrt(size)).masked_fill(future, -math.inf)
            mixed.append(scores.softmax(-1) @ v[:, shared])
        return self._linear(torch.cat(mixed, dim=-1), f"{at}.o_proj")

    def _rotations(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return M-RoPE: the first frequencies rotate with time, the next with height, the rest with width."""
        size = self.config["hidden_size"] // self.config["num_attention_heads"]
        angles = []
        frequency = 0
        for axis, count in enumerate(self.config["rope_scaling"]["mrope_section"]):
            for _ in range(count):
                angles.append(positions[axis].double() * self.config["rope_theta"] ** (-2 * frequency / size))
                frequency += 1
        angle = torch.stack(angles, dim=-1)[:, None]
        return angle.cos().float(), angle.sin().float()

    @staticmethod
    def _vision_rotations(image: ImagePatches, size: int) -> tuple[Tensor, Tensor]:
        """Return 2-D RoPE: the first half of the frequencies rotates with the row, the second with the column."""
        frequencies = [10000.0 ** (-4 * index / size) for index in range(size // 4)]
        rows = []
        for block_row in range(image.grid_h // MERGE):
            for block_column in range(image.grid_w // MERGE):
                for row in range(MERGE):
                    for column in range(MERGE):
                        high, wide = block_row * MERGE + row, block_column * MERGE + column
                        rows.append([high * f for f in frequencies] + [wide * f for f in frequencies])
        angle = torch.tensor(rows, dtype=torch.float64)[:, None]
        return angle.cos().float(), angle.sin().float()

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _rms(self, x: Tensor, name: str) -> Tensor:
        scale = (x.pow(2).mean(-1, keepdim=True) + self.config["rms_norm_eps"]).rsqrt()
        normed: Tensor = x * scale * self.weights[f"{name}.weight"]
        return normed

    def _layer_norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], 1e-6)


def patches(
    image: Image,
    max_pixels: int = 12845056,
    min_pixels: int = 3136,
    *,
    size: int = PATCH,
    mean: Sequence[float] = (0.48145466, 0.4578275, 0.40821073),
    deviation: Sequence[float] = (0.26862954, 0.26130258, 0.27577711),
) -> ImagePatches:
    """Return an RGB image resized to whole merged patches, normalised (like CLIP), and cut in merged order."""
    unit = size * MERGE
    wide, high = image.size
    new_high, new_wide = round(high / unit) * unit, round(wide / unit) * unit
    if new_high * new_wide > max_pixels:
        shrink = math.sqrt(high * wide / max_pixels)
        new_high = max(unit, math.floor(high / shrink / unit) * unit)
        new_wide = max(unit, math.floor(wide / shrink / unit) * unit)
    elif new_high * new_wide < min_pixels:
        grow = math.sqrt(min_pixels / (high * wide))
        new_high, new_wide = math.ceil(high * grow / unit) * unit, math.ceil(wide * grow / unit) * unit
    pixels = np.asarray(image.resize((new_wide, new_high), Resampling.BICUBIC), dtype=np.float32) / 255
    normal = ((pixels - np.float32(mean)) / np.float32(deviation)).transpose(2, 0, 1)
    cut = []
    for top in range(0, new_high, unit):
        for left in range(0, new_wide, unit):
            for row in range(MERGE):
                for column in range(MERGE):
                    y, x = top + row * size, left + column * size
                    patch = normal[:, y : y + size, x : x + size]
                    cut.append(np.stack([patch, patch], axis=1).reshape(-1))
    return ImagePatches(torch.from_numpy(np.stack(cut)), new_high // size, new_wide // size)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x_i, x_{i + d/2}) of x [T, heads, d] by their angles [T, 1, d/2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
