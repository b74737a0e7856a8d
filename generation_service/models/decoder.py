"""The base class of loaded models: the language model and head of transformers, with image embeddings inserted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generation_service.adapters.checkpoint.binding import Rename
from generation_service.models.base import EncodedPrompt, LayerCache, LoadOptions, ModelArchitecture, ModelDescription


class Decoder:
    """A base model on its device. A family adds `encode`, `decode`, `image_token` and `embed_images`."""

    def __init__(self, model: Any, language: Any, description: ModelDescription, canonical: Rename) -> None:
        self.module: nn.Module = model
        self.description = description
        self.canonical = canonical
        self._language = language

    def embed(self, prompt: EncodedPrompt) -> Tensor:
        """Return the input embeddings [1, T, hidden] of a prompt, with `embed_images` at its image tokens.

        If images have features for deeper layers, the width is a multiple of hidden, and text has zeros there.
        """
        tokens = prompt.tokens.to(self.description.device)
        embeddings = self.embed_tokens(tokens)
        if prompt.pixels is not None and prompt.grids is not None:
            features = self.embed_images(prompt.pixels, prompt.grids).to(embeddings.dtype)
            embeddings = F.pad(embeddings, (0, features.shape[-1] - embeddings.shape[-1]))
            embeddings[tokens == self.image_token] = features
        return embeddings[None]

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Return the input embeddings [.., hidden] of text tokens [..]."""
        embeddings: Tensor = self._language.embed_tokens(tokens)
        return embeddings

    def forward(self, embeddings: Tensor, positions: Tensor, mask: Tensor | None, cache: LayerCache) -> Tensor:
        """Return the last hidden states [N, T, hidden]; embeddings [N, T, (1 + D) hidden], positions [axes, N, T].

        Calls the layers one by one, like the model's own forward, which would build a mask of its own. The D blocks of
        features beyond the first are added to the outputs of the first D layers (DeepStack, arXiv 2406.04334).
        """
        position_ids = positions if self.description.position_axes > 1 else positions[0]
        rotations = self._language.rotary_emb(embeddings, position_ids=position_ids)
        hidden, *deeper = torch.split(embeddings, self._language.config.hidden_size, dim=-1)
        for index, layer in enumerate(self._language.layers):
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_embeddings=rotations,
                past_key_values=cache,
                use_cache=True,
            )
            if index < len(deeper):
                hidden = hidden + deeper[index]
        normed: Tensor = self._language.norm(hidden)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [N, vocab] of hidden states [N, hidden]."""
        logits: Tensor = self.module.lm_head(hidden)  # type: ignore[operator]
        return logits

    @property
    def shortest_window(self) -> int | None:
        """The shortest sliding window of a layer in tokens; None: every layer attends to all tokens."""
        return None

    @property
    def image_token(self) -> int:
        """The placeholder token that image embeddings replace."""
        raise NotImplementedError("a family that reads images defines image_token")

    def embed_images(self, pixels: Tensor, grids: Tensor) -> Tensor:
        """Return the embeddings [image tokens, (1 + D) hidden] of images in the family's own format, in reading order.

        D blocks of features for deeper layers may follow the input embeddings.
        """
        raise NotImplementedError("a family that reads images defines embed_images")


def model_description(
    family: str,
    model: Any,
    architecture: ModelArchitecture,
    options: LoadOptions,
    *,
    token_characters: int,
    eos_tokens: frozenset[int],
    position_axes: int = 1,
) -> ModelDescription:
    """Return the description of a loaded transformers `model`."""
    dtype: torch.dtype = model.dtype
    return ModelDescription(
        family=family,
        layers=architecture.layers,
        kv_heads=architecture.kv_heads,
        head_dim=architecture.head_dim,
        vocab_size=architecture.vocab_size,
        max_positions=architecture.max_positions,
        position_axes=position_axes,
        token_characters=token_characters,
        eos_tokens=eos_tokens,
        by_image=architecture.by_image,
        targets=architecture.targets,
        dtype=dtype,
        device=options.device,
        weight_bytes=sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()),
    )
