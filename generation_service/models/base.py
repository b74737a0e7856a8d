"""What the engine asks of a base model. A family is one file beside this one, named in the registry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from PIL.Image import Image
from torch import Tensor, nn

from generation_service.adapters.checkpoint.binding import Part, Rename
from generation_service.lora.weights import Shapes
from infra.contract.errors import InvalidArgumentError
from infra.contract.prompt import Prompt


@dataclass(frozen=True)
class LoadOptions:
    """Where and how a base model is loaded. None: as the checkpoint says.

    An image is resized to at most `max_pixels`, or cut into at most `max_tiles`, whichever the family does.
    `image_suffix` is written after each image of a prompt; None: images are placed as the model was published.
    """

    device: torch.device = field(default_factory=partial(torch.device, "cpu"))
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
    targets: Shapes
    dtype: torch.dtype
    device: torch.device
    weight_bytes: int


@dataclass(frozen=True)
class ModelOutline:
    """A base model by what its config.json says: nothing of its weights has been read.

    `title` names the family for people; `dtype` is the checkpoint's own, None when the config does not say; `heads`
    are query heads. `targets` and `by_image` are those of ModelDescription; `canonical` is BaseModel's.
    """

    title: str
    parameters: int
    dtype: torch.dtype | None
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    by_image: tuple[str, ...]
    targets: Shapes
    canonical: Rename

    def bank_values(self, ranks: int) -> int:
        """Return the values of an adapter bank of `ranks` columns: A and B of every module that can be adapted."""
        return ranks * sum(inputs + outputs for inputs, outputs in self.targets.values())

    def cache_values(self, tokens: int) -> int:
        """Return the values of keys and values of `tokens` tokens in all layers."""
        return 2 * tokens * self.layers * self.kv_heads * self.head_dim


@dataclass(frozen=True)
class InputFormat:
    """How a base model reads prompts, by the files beside its weights.

    `tokenizer` and `template` say what was found; `image_limits` are the image processor's bounds by name, such as
    max_pixels (pixels an image is resized to at most), empty for a model that reads text only.
    """

    tokenizer: str
    tokens: int
    template: str
    image_limits: Mapping[str, int]


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


@dataclass
class ImageBudget:
    """The tokens that the images of one prompt take, so far. `limit`: as many, and there is no room for an answer."""

    limit: int | None
    taken: int = 0

    def take(self, tokens: int) -> None:
        """Count an image. Raises InvalidArgumentError when the prompt is too long by its images alone."""
        self.taken += tokens
        if self.limit is not None and self.taken >= self.limit:
            raise InvalidArgumentError(
                "",
                f"takes {self.taken} tokens or more for its images alone; this server holds {self.limit} for prompt "
                "and answer together: send fewer or smaller images",
                tokens=str(self.taken),
                limit=str(self.limit),
            )


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

    def canonical(self, name: str) -> str | Sequence[Part]:
        """Return the module path that an adapter's key means, whichever library version wrote it.

        A module that the checkpoint fuses and this model does not falls into parts.
        """

    def encode(self, prompt: Prompt, images: Iterable[Image], max_tokens: int | None = None) -> EncodedPrompt:
        """Return `prompt` with `images` (decoded, in reading order) as the model reads it; keeps one at a time.

        Raises InvalidArgumentError at the image with which the images alone take `max_tokens`: before it is cut into
        patches, and before any later one is decoded.
        """

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
    """Reads the base models of one `model_type`, the word in their config.json. Each method raises CheckpointError."""

    model_type: str

    def describe(self, folder: Path) -> ModelOutline:
        """Return what the folder's config.json says; no weights are read."""

    def inputs(self, folder: Path, options: LoadOptions) -> InputFormat:
        """Return how the model reads prompts; no weights are read."""

    def load(self, folder: Path, options: LoadOptions) -> BaseModel:
        """Load the checkpoint in `folder`, in its original layout; every tensor binds."""
