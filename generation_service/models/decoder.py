"""What loaded base models have in common: transformers' language model and head, images in their places."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from generation_service.adapters.checkpoint.binding import Rename
from generation_service.models.base import EncodedPrompt, LayerCache, LoadOptions, ModelDescription, ModelOutline


class Decoder:
    """A base model on its device, all but how it reads prompts: a family adds `encode`, `decode`, and `see`."""

    def __init__(self, model: Any, language: Any, description: ModelDescription, canonical: Rename) -> None:
        self.module: nn.Module = model
        self.description = description
        self.canonical = canonical
        self._language = language

    def embed(self, prompt: EncodedPrompt) -> Tensor:
        """Return the input embeddings [1, T, hidden] of a prompt, its images' tokens as `see` gives them."""
        tokens = prompt.tokens.to(self.description.device)
        embeddings = self.embed_tokens(tokens)
        if prompt.pixels is not None and prompt.grids is not None:
            embeddings[tokens == self.image_token] = self.see(prompt.pixels, prompt.grids).to(embeddings.dtype)
        return embeddings[None]

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Return the input embeddings [.., hidden] of text tokens [..]."""
        embeddings: Tensor = self._language.embed_tokens(tokens)
        return embeddings

    def forward(self, embeddings: Tensor, positions: Tensor, mask: Tensor | None, cache: LayerCache) -> Tensor:
        """Return the last hidden states [N, T, hidden]; embeddings [N, T, hidden], positions [axes, N, T].

        Layer by layer, as transformers does but for the masks, which are ours already.
        """
        places = positions if self.description.position_axes > 1 else positions[0]
        rotations = self._language.rotary_emb(embeddings, position_ids=places)
        hidden = embeddings
        for layer in self._language.layers:
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_embeddings=rotations,
                past_key_values=cache,
                use_cache=True,
            )
        normed: Tensor = self._language.norm(hidden)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [N, vocab] of hidden states [N, hidden]."""
        logits: Tensor = self.module.lm_head(hidden)  # type: ignore[operator]
        return logits

    @property
    def image_token(self) -> int:
        """The token that stands where an image's embeddings go."""
        raise NotImplementedError("a family that reads images says which token stands for them")

    def see(self, pixels: Tensor, grids: Tensor) -> Tensor:
        """Return the embeddings [image tokens, hidden] of images in the family's own form, in reading order."""
        raise NotImplementedError("a family that reads images says how")


def described(
    family: str,
    model: Any,
    outline: ModelOutline,
    options: LoadOptions,
    *,
    token_characters: int,
    eos_tokens: frozenset[int],
    position_axes: int = 1,
) -> ModelDescription:
    """Return the description of a loaded `model` of transformers."""
    dtype: torch.dtype = model.dtype
    return ModelDescription(
        family=family,
        layers=outline.layers,
        kv_heads=outline.kv_heads,
        head_dim=outline.head_dim,
        vocab_size=outline.vocab_size,
        max_positions=outline.max_positions,
        position_axes=position_axes,
        token_characters=token_characters,
        eos_tokens=eos_tokens,
        by_image=outline.by_image,
        targets=outline.targets,
        dtype=dtype,
        device=options.device,
        weight_bytes=sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()),
    )
