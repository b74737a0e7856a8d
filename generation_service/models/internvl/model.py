"""A loaded InternVL: the modules of transformers under our own forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from PIL.Image import Image
from torch import Tensor

from generation_service.adapters.checkpoint.binding import Rename
from generation_service.models.base import EncodedPrompt, ImageBudget, ModelDescription
from generation_service.models.chat import expand_images
from generation_service.models.decoder import Decoder
from generation_service.models.internvl.tiles import Tiling
from infra.contract.prompt import Prompt

#: Tiles that go through the vision tower in one batch. It bounds the activations of prompts with many images, each of
#: up to 13 tiles. No measurement is recorded.
_TILE_BATCH = 16


class Chat(Protocol):
    """Converts conversations to token ids, one image token per image, and back to text."""

    @property
    def longest_token(self) -> int:
        """Characters of the longest token."""

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the ids of `prompt` with the assistant's turn opened."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens` without special tokens."""


@dataclass(frozen=True)
class InputReader:
    """Converts prompts to tokens and tiles.

    An image becomes `tile_tokens` times `image_token` for each of its tiles, between the tokens `before` and `after`.
    """

    chat: Chat
    tiling: Tiling
    image_token: int
    tile_tokens: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def expand(self, tokens: Sequence[int], tiles: Sequence[int]) -> list[int]:
        """Replace each image's one token by the tokens of its tiles; `tiles` has the number of tiles of each image."""
        runs = [[self.image_token] * (self.tile_tokens * count) for count in tiles]
        return expand_images(tokens, self.image_token, [[*self.before, *run, *self.after] for run in runs])


class InternVL(Decoder):
    """An InternVL on its device. Positions have one axis, on which image tokens advance like text."""

    def __init__(self, model: Any, description: ModelDescription, canonical: Rename, reader: InputReader) -> None:
        super().__init__(model, model.model.language_model, description, canonical)
        self._base = model.model
        self._reader = reader

    def encode(self, prompt: Prompt, images: Iterable[Image], max_tokens: int | None = None) -> EncodedPrompt:
        """Encode `prompt`: `pixels` are the tiles of all images, `grids` the number of tiles of each."""
        # Unlike a loop variable, map holds no image.
        tiles_of_images = list(map(partial(self._tiles, ImageBudget(max_tokens)), images))
        counts = [len(tiles) for tiles in tiles_of_images]
        tokens = torch.tensor(self._reader.expand(self._reader.chat.encode(prompt), counts), dtype=torch.long)
        return EncodedPrompt(
            tokens=tokens,
            positions=torch.arange(len(tokens))[None],
            position_delta=0,
            image_tokens=sum(counts) * self._reader.tile_tokens,
            pixels=torch.cat(tiles_of_images) if counts else None,
            grids=torch.tensor(counts) if counts else None,
        )

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens` without special tokens."""
        return self._reader.chat.decode(tokens)

    @property
    def image_token(self) -> int:
        """The placeholder token of four merged patches of a tile."""
        return self._reader.image_token

    def embed_images(self, pixels: Tensor, grids: Tensor) -> Tensor:
        """Return the embeddings [tiles * tile_tokens, hidden] of tiles [tiles, 3, size, size], in batches."""
        return torch.cat([self._embed_tiles(tiles) for tiles in torch.split(pixels, _TILE_BATCH)])

    def _tiles(self, budget: ImageBudget, image: Image) -> Tensor:
        budget.take(self._reader.tiling.count(image.width, image.height) * self._reader.tile_tokens)
        return self._reader.tiling.tiles(image).to(self.description.dtype)

    def _embed_tiles(self, tiles: Tensor) -> Tensor:
        features = self._base.get_image_features(
            tiles.to(self.description.device, self.description.dtype),
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
            return_dict=True,
        )
        embeddings: Tensor = features.pooler_output.flatten(0, 1)
        return embeddings
