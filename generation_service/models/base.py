"""The interface between the engine and a base model. A family is one module of this package, listed in `registry`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from PIL.Image import Image
from torch import Tensor, nn

from generation_service.adapters.checkpoint.binding import FusedSlice, Rename
from generation_service.lora.weights import Shapes
from infra.contract.errors import InvalidArgumentError
from infra.contract.prompt import Prompt


@dataclass(frozen=True)
class LoadOptions:
    """Where and how a base model is loaded. None: the checkpoint's own value.

    An image is resized to at most `max_pixels` or cut into at most `max_tiles`, depending on the family.
    `image_suffix` is inserted after each image of a prompt; None: the image format the model was published with.
    `chat_template` is a file with a template that replaces the folder's own.
    """

    device: torch.device = field(default_factory=partial(torch.device, "cpu"))
    dtype: torch.dtype | None = None
    max_pixels: int | None = None
    max_tiles: int | None = None
    image_suffix: str | None = None
    chat_template: Path | None = None


@dataclass(frozen=True)
class ModelDescription:
    """The shape of a loaded base model.

    `targets` are the linear layers an adapter may change: module path -> (in, out). `by_image` are prefixes of those
    that read image patches rather than rows of tokens. `eos_tokens` end an answer. A token has a position on each of
    `position_axes` axes and encodes at most `token_characters` characters of NFC-normalised text.
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
class ModelArchitecture:
    """The architecture of a base model according to its config.json, without reading its weights.

    `title` is the family's display name. `dtype` is the checkpoint's, None if the config does not state it. `heads` are
    query heads. `targets` and `by_image` are as in ModelDescription, `canonical` as in BaseModel.
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
        """Return the number of values in an adapter bank of `ranks` columns: A and B of every adaptable module."""
        return ranks * sum(inputs + outputs for inputs, outputs in self.targets.values())

    def cache_values(self, tokens: int) -> int:
        """Return the number of values in the KV cache of `tokens` tokens over all layers."""
        return 2 * tokens * self.layers * self.kv_heads * self.head_dim


@dataclass(frozen=True)
class InputFormat:
    """How a base model encodes prompts, according to its tokenizer and processor files.

    `tokenizer` and `template` describe the files in use, `tokens` is the vocabulary size and `largest_token` the
    largest id that needs an embedding. `image_limits` are the image processor's bounds by name, such as max_pixels;
    empty if the model reads no images. `notes` tell what callers may not expect.
    """

    tokenizer: str
    tokens: int
    largest_token: int
    template: str
    image_limits: Mapping[str, int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as token ids, positions and preprocessed images.

    tokens [T]; positions [axes, T]; the token at index i >= T has position i + position_delta on every axis. `pixels`
    and `grids` are in the family's own format, None without images.
    """

    tokens: Tensor
    positions: Tensor
    position_delta: int
    image_tokens: int
    pixels: Tensor | None = None
    grids: Tensor | None = None

    @property
    def length(self) -> int:
        """Number of tokens, image tokens included."""
        return self.tokens.shape[0]

    def without_images(self) -> EncodedPrompt:
        """Return a copy without pixels, which are not needed once the embeddings are computed."""
        return replace(self, pixels=None, grids=None)


@dataclass
class ImageBudget:
    """Counts the tokens of one prompt's images. `limit`: at this many tokens no room is left for the answer."""

    limit: int | None
    taken: int = 0

    def take(self, tokens: int) -> None:
        """Add an image's tokens. Raises InvalidArgumentError if the images alone exceed the limit."""
        self.taken += tokens
        if self.limit is not None and self.taken >= self.limit:
            raise InvalidArgumentError(
                "",
                f"needs {self.taken} tokens or more for its images alone; this server holds {self.limit} for prompt "
                "and answer together: send fewer or smaller images",
                tokens=str(self.taken),
                limit=str(self.limit),
            )


class LayerCache(Protocol):
    """The KV cache that attention layers write to and read from."""

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Store the new tokens' keys and values [N, kv_heads, T, head_dim]; return all that each row attends to."""


class BaseModel(Protocol):
    """A base model on its device.

    Called on: any thread for `encode` and `decode`, the engine thread for everything else.
    """

    @property
    def module(self) -> nn.Module:
        """The module that contains the linear layers of `description.targets`."""

    @property
    def description(self) -> ModelDescription:
        """The shape of the model."""

    @property
    def shortest_window(self) -> int | None:
        """The shortest sliding window of a layer in tokens; None: every layer attends to all tokens."""

    def canonical(self, name: str) -> str | Sequence[FusedSlice]:
        """Return the module path of an adapter's key, whichever library version wrote it.

        A module that is fused in the original checkpoint and split in this model maps to several parts.
        """

    def encode(self, prompt: Prompt, images: Iterable[Image], max_tokens: int | None = None) -> EncodedPrompt:
        """Encode `prompt` with its decoded `images`, in reading order. Holds one image in memory at a time.

        Raises InvalidArgumentError at the first image with which the images alone reach `max_tokens`, before that image
        is preprocessed and before any later one is decoded.
        """

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens`, special tokens left out."""

    def embed(self, prompt: EncodedPrompt) -> Tensor:
        """Return the input embeddings [1, T, hidden] of a prompt, image embeddings included.

        A model whose images have features for deeper layers appends them: [1, T, (1 + D) hidden].
        """

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Return the input embeddings [.., hidden] of text tokens [..]."""

    def forward(self, embeddings: Tensor, positions: Tensor, mask: Tensor | None, cache: LayerCache) -> Tensor:
        """Return the last hidden states [N, T, hidden].

        embeddings [N, T, hidden or more, as `embed` returns]; positions [axes, N, T]; mask [N, 1, T, S] true where a
        token attends, None: causal.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [N, vocab] of hidden states [N, hidden]."""


class Family(Protocol):
    """Reads the base models of one `model_type` of config.json. Every method can raise CheckpointError."""

    @property
    def model_type(self) -> str:
        """The value of `model_type` in config.json."""

    def describe(self, folder: Path) -> ModelArchitecture:
        """Return the architecture in the folder's config.json; reads no weights."""

    def input_format(self, folder: Path, options: LoadOptions) -> InputFormat:
        """Return how the model encodes prompts; reads no weights."""

    def load(self, folder: Path, options: LoadOptions) -> BaseModel:
        """Load the checkpoint in `folder`, in its original layout. Every tensor must bind.

        With the meta device in `options`, the same without values: the model then encodes prompts and computes shapes.
        """
