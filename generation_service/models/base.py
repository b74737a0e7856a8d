"""What the engine asks of a base model. A family is one file beside this one, named in the registry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from PIL.Image import Image
from torch import Tensor, nn

from infra.contract.prompt import Prompt


@dataclass(frozen=True)
class LoadOptions:
    """Where and how a base model is loaded. None: as the checkpoint says.

    An image is resized to at most `max_pixels`, or cut into at most `max_tiles`, whichever the family does.
    `image_suffix` is written after each image of a prompt; None: images are placed as the model was published.
    """

    device: torch.device
    dtype: torch.dtype | None = None
    max_pixels: int | None = None
    max_tiles: int | None = None
    image_suffix: str | None = None


@dataclass(frozen=True)
class ModelDescription:
    """The shape of a loaded base model.

    `targets` are the linear layers an adapter may change: module path -> (in, out); `by_image` are prefixes of those
    that see patches rather than rows of tokens. `eos_tokens` end an answer. A token has a position on each of
    `position_axes` axes, and stands for at most `token_characters` characters of text in Unicode's form NFC.
    """

    family: str
    layers: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    position_axes: int
    token_characters: int
    eos_tokens: frozenset[int]
    by_image: tuple[str, ...]
    targets: Mapping[str, tuple[int, int]]
    dtype: torch.dtype
    device: torch.device
    weight_bytes: int


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the model reads it.

    tokens [T]; positions [axes, T]; the token at index i >= T stands at position i + position_delta on every axis.
    pixels and grids are the family's own form of the images, None without images.
    """

    tokens: Tensor
    positions: Tensor
    position_delta: int
    image_tokens: int
    pixels: Tensor | None = None
    grids: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens, image tokens included."""
        return self.tokens.shape[0]

    def without_images(self) -> EncodedPrompt:
        """Return it without its pixels: all that is needed once it has been read."""
        return replace(self, pixels=None, grids=None)


class LayerCache(Protocol):
    """Where attention layers keep keys and values."""

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Store the new tokens' keys and values [N, kv_heads, T, head_dim]; return all that each row sees."""


class BaseModel(Protocol):
    """A base model on its device. `encode` and `decode` may be called from any thread, the rest from the engine's."""

    @property
    def module(self) -> nn.Module:
        """The module whose linear layers `description.targets` names."""

    @property
    def description(self) -> ModelDescription:
        """The shape of the model."""

    def canonical(self, name: str) -> str:
        """Return the module path that an adapter's key means, whichever library version wrote it."""

    def encode(self, prompt: Prompt, images: Iterable[Image]) -> EncodedPrompt:
        """Return `prompt` with `images` (decoded, in reading order) as the model reads it; keeps one at a time."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens`, special tokens left out."""

    def embed(self, prompt: EncodedPrompt) -> Tensor:
        """Return the input embeddings [1, T, hidden] of a prompt, images in their places."""

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Return the input embeddings [.., hidden] of text tokens [..]."""

    def forward(self, embeddings: Tensor, positions: Tensor, mask: Tensor | None, cache: LayerCache) -> Tensor:
        """Return the last hidden states [N, T, hidden].

        embeddings [N, T, hidden]; positions [axes, N, T]; mask [N, 1, T, S] true where a token sees, None: causal.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [N, vocab] of hidden states [N, hidden]."""


class Family(Protocol):
    """Loads the base models of one `model_type`."""

    model_type: str

    def load(self, folder: Path, options: LoadOptions) -> BaseModel:
        """Load the checkpoint in `folder`, in its original layout. Raises CheckpointError."""
