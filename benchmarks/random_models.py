"""Base models of published shapes with random weights, created on the device: speed does not depend on training.

Text only. Import `harness` first.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.initialization import no_init_weights

from generation_service.models.base import EncodedPrompt, LayerCache, ModelDescription
from infra.contract.prompt import Prompt

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Shape:
    """Sizes of a language model. `bias` applies to q, k and v projections; `sections` are those of M-RoPE, if any."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    tied: bool = False
    bias: bool = True
    sections: tuple[int, int, int] | None = None

    @property
    def head_dim(self) -> int:
        """Features of one attention head."""
        return self.hidden // self.heads


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", 64, 2, 4, 2, 128, 512),
        Shape("qwen2-0.5b", 896, 24, 14, 2, 4864, 151936, tied=True),
        Shape("internvl2-2b", 2048, 24, 16, 8, 8192, 92553, bias=False),
        Shape("qwen2-vl-7b", 3584, 28, 28, 4, 18944, 152064, sections=(16, 24, 24)),
    )
}
"""Sizes and vocabularies of the published models; qwen2-0.5b ties its head to its embeddings."""


class RandomBaseModel:
    """A random language model that the engine serves like any other (generation_service.models.base.BaseModel).

    `module` is a causal language model of transformers, so that `module.generate` and PEFT work on it too. There is no
    end-of-answer token, so answers never end by themselves. A token decodes to one letter.
    """

    def __init__(self, shape: Shape, device: torch.device | str, dtype: torch.dtype, seed: int = 0) -> None:
        self.shape = shape
        self.module: nn.Module = _random_module(shape, torch.device(device), dtype, seed)
        self.description = ModelDescription(
            family="random",
            layers=shape.layers,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            vocab_size=shape.vocab,
            max_positions=32768,
            position_axes=3 if shape.sections else 1,
            token_characters=1,
            eos_tokens=frozenset(),
            by_image=(),
            targets={
                name: (layer.in_features, layer.out_features)
                for name, layer in self.module.named_modules()
                if isinstance(layer, nn.Linear) and name.endswith("_proj")
            },
            dtype=dtype,
            device=torch.device(device),
            weight_bytes=sum(parameter.nbytes for parameter in self.module.parameters()),
        )

    def canonical(self, name: str) -> str:
        """Return the module path of an adapter's key."""
        return name.removeprefix("base_model.model.")

    def prompt_of(self, tokens: Sequence[int]) -> EncodedPrompt:
        """Return `tokens` as a prompt."""
        positions = torch.arange(len(tokens)).repeat(self.description.position_axes, 1)
        return EncodedPrompt(torch.tensor(tokens, dtype=torch.long), positions, position_delta=0, image_tokens=0)

    def random_prompt(self, length: int, seed: int) -> EncodedPrompt:
        """Return a prompt of `length` random tokens."""
        generator = torch.Generator().manual_seed(seed)
        return self.prompt_of(torch.randint(self.shape.vocab, (length,), generator=generator).tolist())

    def encode(self, prompt: Prompt, images: Iterable[Image], max_tokens: int | None = None) -> EncodedPrompt:
        """Encode each byte of the prompt's text as a token. Raises ValueError for images."""
        if any(True for _ in images):
            raise ValueError("a random language model takes no images")
        texts = [part.text for message in prompt.messages for part in message.parts if hasattr(part, "text")]
        return self.prompt_of(list("\n".join(texts).encode()) or [0])

    def decode(self, tokens: Sequence[int]) -> str:
        """Return one letter per token."""
        return "".join(_LETTERS[token % len(_LETTERS)] for token in tokens)

    def embed(self, prompt: EncodedPrompt) -> Tensor:
        """Return the input embeddings [1, T, hidden] of a prompt."""
        return self.embed_tokens(prompt.tokens.to(self.description.device))[None]

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Return the input embeddings [.., hidden] of tokens [..]."""
        embeddings: Tensor = self._decoder.embed_tokens(tokens)
        return embeddings

    def forward(self, embeddings: Tensor, positions: Tensor, mask: Tensor | None, cache: LayerCache) -> Tensor:
        """Return the last hidden states [N, T, hidden]; embeddings [N, T, hidden], positions [axes, N, T]."""
        output = self._decoder(
            inputs_embeds=embeddings,
            position_ids=positions if self.shape.sections else positions[0],
            attention_mask={"full_attention": mask, "sliding_attention": mask},
            past_key_values=cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [N, vocab] of hidden states [N, hidden]."""
        logits: Tensor = self.module.lm_head(hidden)  # type: ignore[operator]
        return logits

    @property
    def _decoder(self) -> Any:
        model: Any = self.module.model
        return model.language_model if self.shape.sections else model


def copy_sharing_weights(module: nn.Module) -> Any:
    """Return a copy of `module` with its own modules but the same parameters and buffers.

    A bank or PEFT can replace layers of the copy without affecting `module`, and without a second set of weights in
    memory.
    """
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)


def _random_module(shape: Shape, device: torch.device, dtype: torch.dtype, seed: int) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), no_init_weights():
            module = _vision_language(shape) if shape.sections else _language(shape)
    finally:
        torch.set_default_dtype(before)
    module.eval().requires_grad_(False)
    module.tie_weights()
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.02, generator=generator)
        else:
            parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
    return module


def _language(shape: Shape) -> Any:
    module: Any = Qwen2ForCausalLM(Qwen2Config(**_text_config(shape)))
    if not shape.bias:
        for layer in module.model.layers:
            for name in ("q_proj", "k_proj", "v_proj"):
                getattr(layer.self_attn, name).bias = None
    return module


def _vision_language(shape: Shape) -> Any:
    """Return a Qwen2-VL with a minimal vision tower, since no benchmark uses images."""
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(
            text_config=_text_config(shape),
            vision_config={"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": shape.hidden, "mlp_ratio": 1},
            tie_word_embeddings=shape.tied,
        )
    )


def _text_config(shape: Shape) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1_000_000.0}
    if shape.sections:
        rope["mrope_section"] = list(shape.sections)
    return {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": 32768,
        "rope_parameters": rope,
        "tie_word_embeddings": shape.tied,
        "attn_implementation": "sdpa",
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
