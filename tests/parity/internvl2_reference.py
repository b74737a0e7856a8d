"""InternVL2, 3 and 3.5 in plain PyTorch, from the papers and the original tensor names; it shares no code with ours.

One sequence, no cache, loops where the equations have sums: slow and easy to check. Language models: InternLM2, Qwen2,
Qwen3 and Phi-3. Papers: InternVL 1.5 (arXiv 2404.16821), InternLM2 (arXiv 2403.17297), LongRoPE (arXiv 2402.13753).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image, Resampling
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen2Tokenizer

SYSTEM_2_5 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
SYSTEM = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
_NAMES = {
    "internlm2": {"embed": "model.tok_embeddings", "head": "output", "norms": ("attention_norm", "ffn_norm")},
    "qwen2": {
        "embed": "model.embed_tokens",
        "head": "lm_head",
        "norms": ("input_layernorm", "post_attention_layernorm"),
    },
    "qwen3": {
        "embed": "model.embed_tokens",
        "head": "lm_head",
        "norms": ("input_layernorm", "post_attention_layernorm"),
    },
    "phi3": {
        "embed": "model.embed_tokens",
        "head": "lm_head",
        "norms": ("input_layernorm", "post_attention_layernorm"),
    },
}


class InternVL2Reference:
    """The model in `folder`. `deltas` are added to the weights of the same original names, as a merged LoRA."""

    def __init__(self, folder: Path, deltas: Mapping[str, Tensor] | None = None) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.llm, self.vision = self.config["llm_config"], self.config["vision_config"]
        self.weights: dict[str, Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            self.weights |= {name: tensor.float() for name, tensor in load_file(path).items()}
        for name, delta in (deltas or {}).items():
            self.weights[name] = self.weights[name] + delta
        self.tokenizer = ReferenceTokenizer(folder)
        self._names: dict[str, Any] = _NAMES[self.llm["model_type"]]
        self.image_token = self.tokenizer.special["<IMG_CONTEXT>"]
        self.end = self.tokenizer.special["<|end|>" if self.llm["model_type"] == "phi3" else "<|im_end|>"]

    def prompt(self, text: str, images: Sequence[Tensor] = ()) -> list[int]:
        """Return the ids of a conversation of one user turn: the images' tiles, then the text."""
        per_tile = (self.config["force_image_size"] // 14) ** 2 // 4
        marks = ["<img>" + "<IMG_CONTEXT>" * per_tile * len(tiles) + "</img>\n" for tiles in images]
        if len(images) > 1:
            marks = [f"Image-{number}: {mark}" for number, mark in enumerate(marks, start=1)]
        return self.tokenizer.encode(self.conversation("".join(marks) + text))

    def conversation(self, question: str) -> str:
        """Render a conversation of one user turn with the assistant's turn opened, in upstream's format."""
        if self.llm["model_type"] == "phi3":
            return f"<|system|>\n{SYSTEM}<|end|><|user|>\n{question}<|end|><|assistant|>\n"
        if self.config["template"] == "internvl2_5":
            turns = f"<|im_start|>system\n{SYSTEM_2_5}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
            return turns + "<|im_start|>assistant\n"
        return f"<|im_start|>system\n{SYSTEM}<|im_end|><|im_start|>user\n{question}<|im_end|><|im_start|>assistant\n"

    def logits(self, tokens: Sequence[int], images: Sequence[Tensor] = ()) -> Tensor:
        """Return the logits [T, vocab] of a sequence whose image tokens stand for `images`, [tiles, 3, size, size]."""
        hidden = self.weights[f"language_model.{self._names['embed']}.weight"][torch.tensor(tokens)].clone()
        if images:
            seen = [self.see(tile) for tiles in images for tile in tiles]
            hidden[torch.tensor(tokens) == self.image_token] = torch.cat(seen)
        cos, sin = self._rotations(len(tokens))
        first, second = self._names["norms"]
        for layer in range(self.llm["num_hidden_layers"]):
            at = f"language_model.model.layers.{layer}"
            hidden = hidden + self._attend(at, self._rms(hidden, f"{at}.{first}"), cos, sin)
            hidden = hidden + self._feed_forward(at, self._rms(hidden, f"{at}.{second}"))
        hidden = self._rms(hidden, "language_model.model.norm")
        head = self._names["embed"] if self.llm["tie_word_embeddings"] else self._names["head"]
        return hidden @ self.weights[f"language_model.{head}.weight"].T

    def generate(self, text: str, images: Sequence[Tensor], count: int) -> list[int]:
        """Return at most `count` greedy tokens after a prompt, fewer if the answer ends."""
        tokens = self.prompt(text, images)
        start = len(tokens)
        while len(tokens) < start + count:
            token = int(self.logits(tokens, images)[-1].argmax())
            if token == self.end:
                break
            tokens.append(token)
        return tokens[start:]

    def see(self, tile: Tensor) -> Tensor:
        """Return the tokens [tile tokens, hidden] of one tile [3, size, size]."""
        width, heads, eps = (
            self.vision["hidden_size"],
            self.vision["num_attention_heads"],
            self.vision["layer_norm_eps"],
        )
        patches = F.conv2d(
            tile[None],
            self.weights["vision_model.embeddings.patch_embedding.weight"],
            self.weights["vision_model.embeddings.patch_embedding.bias"],
            stride=self.vision["patch_size"],
        )
        side = patches.shape[-1]
        hidden = (
            torch.cat([self.weights["vision_model.embeddings.class_embedding"][0], patches[0].flatten(1).T])
            + self.weights["vision_model.embeddings.position_embedding"][0]
        )
        for layer in range(self.vision["num_hidden_layers"]):
            at = f"vision_model.encoder.layers.{layer}"
            normed = self._tower_norm(hidden, f"{at}.norm1", eps)
            q, k, v = self._linear(normed, f"{at}.attn.qkv").chunk(3, dim=-1)
            if self.vision["qk_normalization"]:
                q, k = self._rms(q, f"{at}.attn.q_norm", eps), self._rms(k, f"{at}.attn.k_norm", eps)
            q, k, v = (part.reshape(-1, heads, width // heads) for part in (q, k, v))
            scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(width // heads)
            mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(-1, width)
            hidden = hidden + self.weights[f"{at}.ls1"] * self._linear(mixed, f"{at}.attn.proj")
            inner = F.gelu(self._linear(self._tower_norm(hidden, f"{at}.norm2", eps), f"{at}.mlp.fc1"))
            hidden = hidden + self.weights[f"{at}.ls2"] * self._linear(inner, f"{at}.mlp.fc2")
        merged = self._layer_norm(_pixel_shuffle(hidden[1:].reshape(side, side, width)), "mlp1.0", 1e-5)
        return self._linear(F.gelu(self._linear(merged, "mlp1.1")), "mlp1.3")

    def _attend(self, at: str, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads, kv_heads = self.llm["num_attention_heads"], self.llm["num_key_value_heads"]
        size, groups = self._head_size, heads // kv_heads
        queries, keys, values = self._queries_keys_values(at, x, kv_heads, groups, size)
        future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        mixed = []
        if self.llm["model_type"] == "qwen3":
            queries = [self._rms(query, f"{at}.self_attn.q_norm") for query in queries]
            keys = [self._rms(key, f"{at}.self_attn.k_norm") for key in keys]
        for head in range(heads):
            q, k = _rotate(queries[head], cos, sin), _rotate(keys[head // groups], cos, sin)
            scores = (q @ k.T / math.sqrt(size)).masked_fill(future, -math.inf)
            mixed.append(scores.softmax(-1) @ values[head // groups])
        output = "attention.wo" if self.llm["model_type"] == "internlm2" else "self_attn.o_proj"
        return self._linear(torch.cat(mixed, dim=-1), f"{at}.{output}")

    def _queries_keys_values(
        self, at: str, x: Tensor, kv_heads: int, groups: int, size: int
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return queries, keys and values [T, size] of every head, from the layer's own layout."""
        if self.llm["model_type"] == "internlm2":
            rows = list(torch.split(self._linear(x, f"{at}.attention.wqkv"), size, dim=-1))
            families = [rows[start : start + groups + 2] for start in range(0, len(rows), groups + 2)]
            queries = [row for family in families for row in family[:groups]]
            return queries, [family[groups] for family in families], [family[groups + 1] for family in families]
        if self.llm["model_type"] == "phi3":
            rows = list(torch.split(self._linear(x, f"{at}.self_attn.qkv_proj"), size, dim=-1))
            heads = groups * kv_heads
            return rows[:heads], rows[heads : heads + kv_heads], rows[heads + kv_heads :]
        parts = [torch.split(self._linear(x, f"{at}.self_attn.{part}_proj"), size, dim=-1) for part in "qkv"]
        return list(parts[0]), list(parts[1]), list(parts[2])

    def _feed_forward(self, at: str, x: Tensor) -> Tensor:
        if self.llm["model_type"] == "internlm2":
            gate, up = self._linear(x, f"{at}.feed_forward.w1"), self._linear(x, f"{at}.feed_forward.w3")
            return self._linear(F.silu(gate) * up, f"{at}.feed_forward.w2")
        if self.llm["model_type"] == "phi3":
            gate, up = self._linear(x, f"{at}.mlp.gate_up_proj").chunk(2, dim=-1)
        else:
            gate, up = self._linear(x, f"{at}.mlp.gate_proj"), self._linear(x, f"{at}.mlp.up_proj")
        return self._linear(F.silu(gate) * up, f"{at}.mlp.down_proj")

    def _rotations(self, length: int) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [T, size / 2], scaled for a sequence of this length according to the config."""
        size = self._head_size
        trained, theta = self.llm["max_position_embeddings"], self.llm["rope_theta"]
        scaling = self.llm["rope_scaling"] or {"type": "none"}
        factors, amplitude = [1.0] * (size // 2), 1.0
        if scaling["type"] == "dynamic" and length > trained:
            theta *= (scaling["factor"] * length / trained - scaling["factor"] + 1) ** (size / (size - 2))
        elif scaling["type"] == "linear":
            factors = [scaling["factor"]] * (size // 2)
        elif scaling["type"] == "su":
            original = self.llm["original_max_position_embeddings"]
            factors = scaling["long_factor"] if length > original else scaling["short_factor"]
            amplitude = math.sqrt(1 + math.log(trained / original) / math.log(original))
        turns = torch.tensor([theta ** (-2 * i / size) / factors[i] for i in range(size // 2)], dtype=torch.float64)
        angle = torch.arange(length, dtype=torch.float64)[:, None] * turns
        return (amplitude * angle.cos()).float(), (amplitude * angle.sin()).float()

    @property
    def _head_size(self) -> int:
        size: int = self.llm.get("head_dim") or self.llm["hidden_size"] // self.llm["num_attention_heads"]
        return size

    def _tower_norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        large = self.vision["norm_type"] == "rms_norm"
        return self._rms(x, name, eps) if large else self._layer_norm(x, name, eps)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _rms(self, x: Tensor, name: str, eps: float | None = None) -> Tensor:
        scale = (x.pow(2).mean(-1, keepdim=True) + (eps or self.llm["rms_norm_eps"])).rsqrt()
        normed: Tensor = x * scale * self.weights[f"{name}.weight"]
        return normed

    def _layer_norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], eps)


class ReferenceTokenizer:
    """Ids of the folder's own slow tokenizer: split at added tokens, sentencepiece in between."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "tokenizer_config.json").read_text())
        added = {int(number): token for number, token in config["added_tokens_decoder"].items()}
        self.special = {token["content"]: number for number, token in added.items()}
        self._swallows = {token["content"] for token in added.values() if token["rstrip"]}
        self._qwen2 = Qwen2Tokenizer.from_pretrained(folder) if config["tokenizer_class"] == "Qwen2Tokenizer" else None
        if self._qwen2 is None:
            self._pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        self._prefixes = config.get("legacy", True)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a whole conversation, special tokens spelled out in it."""
        if self._qwen2 is not None:
            return list(self._qwen2(text)["input_ids"])
        ids = [self.special["<s>"]]
        before = ""
        for part in re.split("(" + "|".join(map(re.escape, self.special)) + ")", text):
            if part in self.special:
                ids.append(self.special[part])
            elif part:
                ids += self._ordinary(part.lstrip() if before in self._swallows else part)
            before = part or before
        return ids

    def _ordinary(self, text: str) -> list[int]:
        """Return sentencepiece's ids; of a tokenizer that is not legacy, without the space before the text."""
        if self._prefixes:
            return list(self._pieces.encode(text))
        return list(self._pieces.encode("\x01" + text)[2:])  # Without the space, and the byte that no piece joins.


def tiles(image: Image, size: int, most: int) -> Tensor:
    """Return an RGB image as [tiles, 3, size, size]: the grid of the nearest aspect ratio, row by row, and the whole.

    Of two grids that are equally near, the larger wins as long as the image has more than half of its pixels.
    """
    wide, high = image.size
    grids = sorted(
        ((columns, rows) for columns in range(1, most + 1) for rows in range(1, most + 1) if columns * rows <= most),
        key=lambda grid: grid[0] * grid[1],
    )
    best, nearest = (1, 1), math.inf
    for columns, rows in grids:
        distance = abs(wide / high - columns / rows)
        larger = distance == nearest and wide * high > 0.5 * size * size * columns * rows
        if distance < nearest or larger:
            best, nearest = (columns, rows), distance
    columns, rows = best
    resized = image.resize((columns * size, rows * size), Resampling.BICUBIC)
    cut = [
        resized.crop((left, top, left + size, top + size))
        for top in range(0, rows * size, size)
        for left in range(0, columns * size, size)
    ]
    if len(cut) > 1:
        cut.append(image.resize((size, size), Resampling.BICUBIC))
    pixels = np.stack([np.asarray(tile, dtype=np.float32) for tile in cut]) / 255
    mean = np.array([0.485, 0.456, 0.406], dtype=np.float32)
    deviation = np.array([0.229, 0.224, 0.225], dtype=np.float32)
    return torch.from_numpy(((pixels - mean) / deviation).transpose(0, 3, 1, 2).copy())


def _pixel_shuffle(x: Tensor) -> Tensor:
    """Return x [H, W, C] as [H / 2 * W / 2, 4 C]: each square of four patches one token, row by row."""
    high, wide, _ = x.shape
    tokens = []
    for row in range(0, high, 2):
        for column in range(0, wide, 2):
            tokens.append(torch.cat([x[row + down, column + right] for down in range(2) for right in range(2)]))
    return torch.stack(tokens)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x_i, x_{i + d/2}) of x [T, d] by their angles [T, d / 2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
