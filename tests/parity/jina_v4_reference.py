"""The embedding path of jina-embeddings-v4 written a second time: plain PyTorch in float64, one row at a time.

Nothing of transformers is used. Attention is a loop over heads with an explicit mask, windows are a mask over patches
(no permutation), LoRA stays beside the weights, and the positions are built from their definition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from tests.support.checkpoints.jina_v4 import TinyJina


class ReferenceJina:
    """Vectors of one text or image, from the tensors under their names on the hub."""

    def __init__(self, tiny: TinyJina, task: str, max_pixels: int) -> None:
        self.tiny, self.task, self.max_pixels = tiny, task, max_pixels
        self.base: Mapping[str, Tensor] = {name: tensor.double() for name, tensor in tiny.base.items()}
        self.config: dict[str, Any] = tiny.config
        rank, alpha = tiny.adapter_config["r"], tiny.adapter_config["lora_alpha"]
        self.scaling = alpha / (math.sqrt(rank) if tiny.adapter_config["use_rslora"] else rank)

    def text(self, text: str, prefix: str = "Query: ", dim: int | None = None) -> Tensor:
        ids = self.tiny.tokenizer.encode(prefix + text).ids
        positions = torch.arange(len(ids)).expand(3, -1)
        return _unit(self._language(self.base["model.embed_tokens.weight"][ids], positions).mean(0)[:dim])

    def image(self, image: Image.Image, dim: int | None = None) -> Tensor:
        vision, (rows, columns) = self._vision(image)
        before = self._ids("<|im_start|>user\n<|vision_start|>")
        after = self._ids("<|vision_end|>Describe the image.<|im_end|>\n")
        embedding = self.base["model.embed_tokens.weight"]
        hidden = torch.cat([embedding[before], vision, embedding[after]])
        positions = [(p, p, p) for p in range(len(before))]
        start = len(before)
        positions += [(start, start + r, start + c) for r in range(rows) for c in range(columns)]
        start += max(rows, columns)
        positions += [(start + p,) * 3 for p in range(len(after))]
        states = self._language(hidden, torch.tensor(positions).T)
        first = len(before) - 1  # <|vision_start|>
        last = len(before) + len(vision)  # <|vision_end|>
        return _unit(states[first : last + 1].mean(0)[:dim])

    def _ids(self, text: str) -> list[int]:
        return list(self.tiny.tokenizer.encode(text).ids)

    def _linear(self, x: Tensor, path: str) -> Tensor:
        """Return W x + b + scaling * B (A x), for a linear of the language model."""
        y = F.linear(x, self.base[f"model.{path}.weight"], self.base.get(f"model.{path}.bias"))
        key = f"base_model.model.model.language_model.{path}"
        a = self.tiny.adapter[f"{key}.lora_A.{self.task}.weight"].double()
        b = self.tiny.adapter[f"{key}.lora_B.{self.task}.weight"].double()
        delta: Tensor = (x @ a.T) @ b.T
        return y + self.scaling * delta

    def _language(self, x: Tensor, positions: Tensor) -> Tensor:
        """Return the normalised last states. x [T, D]; positions [3, T] of frame, row and column."""
        config = self.config
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        size = config["hidden_size"] // heads
        angles = _mrope_angles(positions, size, config["rope_theta"], config["rope_scaling"]["mrope_section"])
        causal = torch.ones(len(x), len(x), dtype=torch.bool).tril()
        for layer in range(config["num_hidden_layers"]):
            path = f"layers.{layer}"
            h = _rms(x, self.base[f"model.{path}.input_layernorm.weight"], config["rms_norm_eps"])
            q, k, v = (self._linear(h, f"{path}.self_attn.{name}_proj") for name in "qkv")
            out = []
            for head in range(heads):
                shared = head * kv_heads // heads
                query = _rotate(q[:, head * size : (head + 1) * size], angles)
                key = _rotate(k[:, shared * size : (shared + 1) * size], angles)
                out.append(_attend(query, key, v[:, shared * size : (shared + 1) * size], causal))
            x = x + self._linear(torch.cat(out, -1), f"{path}.self_attn.o_proj")
            h = _rms(x, self.base[f"model.{path}.post_attention_layernorm.weight"], config["rms_norm_eps"])
            gate = F.silu(self._linear(h, f"{path}.mlp.gate_proj"))
            x = x + self._linear(gate * self._linear(h, f"{path}.mlp.up_proj"), f"{path}.mlp.down_proj")
        return _rms(x, self.base["model.norm.weight"], config["rms_norm_eps"])

    def _vision(self, image: Image.Image) -> tuple[Tensor, tuple[int, int]]:
        """Return a vector a merged patch, row by row, and the merged grid."""
        config = self.config["vision_config"]
        patch, merge, heads = config["patch_size"], config["spatial_merge_size"], config["num_heads"]
        pixels = self._normalised(image)
        rows, columns = pixels.shape[1] // patch, pixels.shape[2] // patch
        kernel = self.base["visual.patch_embed.proj.weight"].sum(2).flatten(1)  # both frames are the same image
        place = [(r, c) for r in range(rows) for c in range(columns)]
        x = torch.stack(
            [kernel @ pixels[:, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch].flatten() for r, c in place]
        )
        side = config["window_size"] // patch
        window = torch.tensor([r // side * 10_000 + c // side for r, c in place])
        windowed = window[:, None] == window[None, :]
        size = config["hidden_size"] // heads
        inverse = 10000.0 ** -(torch.arange(0, size // 2, 2).double() / (size // 2))
        half = torch.cat([torch.tensor(place)[:, i : i + 1].double() * inverse for i in (0, 1)], -1)
        angles = torch.cat([half, half], -1)
        for block in range(config["depth"]):
            mask = torch.ones_like(windowed) if block in config["fullatt_block_indexes"] else windowed
            path = f"visual.blocks.{block}"
            q, k, v = self._plain(self._vision_norm(x, f"{path}.norm1"), f"{path}.attn.qkv").chunk(3, -1)
            out = [
                _attend(_rotate(q[:, s], angles), _rotate(k[:, s], angles), v[:, s], mask)
                for s in (slice(head * size, (head + 1) * size) for head in range(heads))
            ]
            x = x + self._plain(torch.cat(out, -1), f"{path}.attn.proj")
            h = self._vision_norm(x, f"{path}.norm2")
            gated = F.silu(self._plain(h, f"{path}.mlp.gate_proj")) * self._plain(h, f"{path}.mlp.up_proj")
            x = x + self._plain(gated, f"{path}.mlp.down_proj")
        x = self._vision_norm(x, "visual.merger.ln_q").view(rows, columns, -1)
        merged = torch.stack(
            [x[r : r + merge, c : c + merge].flatten() for r in range(0, rows, merge) for c in range(0, columns, merge)]
        )
        hidden = F.gelu(self._plain(merged, "visual.merger.mlp.0"))
        return self._plain(hidden, "visual.merger.mlp.2"), (rows // merge, columns // merge)

    def _plain(self, x: Tensor, path: str) -> Tensor:
        return x @ self.base[f"{path}.weight"].T + self.base[f"{path}.bias"]

    def _vision_norm(self, x: Tensor, path: str) -> Tensor:
        return _rms(x, self.base[f"{path}.weight"], 1e-6)

    def _normalised(self, image: Image.Image) -> Tensor:
        """Resize to multiples of 28 between the pixel limits, bicubic; subtract the mean, divide by the deviation."""
        factor = self.config["vision_config"]["patch_size"] * self.config["vision_config"]["spatial_merge_size"]
        width, height = image.size
        h, w = round(height / factor) * factor, round(width / factor) * factor
        if h * w > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            h, w = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
        elif h * w < self.tiny.preprocessor["min_pixels"]:
            grow = math.sqrt(self.tiny.preprocessor["min_pixels"] / (height * width))
            h, w = (math.ceil(side * grow / factor) * factor for side in (height, width))
        resized = np.asarray(image.resize((w, h), Image.Resampling.BICUBIC), dtype=np.float64) / 255
        mean, deviation = self.tiny.preprocessor["image_mean"], self.tiny.preprocessor["image_std"]
        return torch.from_numpy((resized - mean) / deviation).permute(2, 0, 1)


def _mrope_angles(positions: Tensor, size: int, theta: float, sections: Sequence[int]) -> Tensor:
    """Return angles [T, size]: frequency i turns with the frame, row or column whose section holds i."""
    owner = [axis for axis, count in enumerate(sections) for _ in range(count)]
    columns = [positions[owner[i]].double() * theta ** (-2 * i / size) for i in range(size // 2)]
    half = torch.stack(columns, -1)
    return torch.cat([half, half], -1)


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = (q @ k.T / math.sqrt(q.shape[-1])).masked_fill(~mask, -math.inf)
    mixed: Tensor = scores.softmax(-1) @ v
    return mixed


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def _unit(x: Tensor) -> Tensor:
    return x / x.norm()
