"""A loaded InternVL: transformers' modules, our own forward around them."""

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

_TILES_AT_ONCE = 16


class Chat(Protocol):
    """Conversations to token ids, one image token an image, and back."""

    @property
    def longest_token(self) -> int:
        """The characters of the longest token."""

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the ids of `prompt` with the answer's turn opened."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens`, special tokens left out."""


@dataclass(frozen=True)
class InputReader:
    """What turns prompts into tokens and tiles.

    An image is its `image_token`, `tile_tokens` times a tile, between the tokens `before` and `after`.
    """

    chat: Chat
    tiling: Tiling
    image_token: int
    tile_tokens: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def expand(self, tokens: Sequence[int], tiles: Sequence[int]) -> list[int]:
        """Return `tokens` with each image's one token in place of as many as it has. `tiles` are the images'."""
        seen = [[self.image_token] * (self.tile_tokens * count) for count in tiles]
        return expand_images(tokens, self.image_token, [[*self.before, *run, *self.after] for run in seen])


class InternVL(Decoder):
    """An InternVL on its device. Positions have one axis: a tile's tokens count on like text."""

    def __init__(self, model: Any, description: ModelDescription, canonical: Rename, reader: InputReader) -> None:
        super().__init__(model, model.model.language_model, description, canonical)
        self._base = model.model
        self._reader = reader

    def encode(self, prompt: Prompt, images: Iterable[Image], max_tokens: int | None = None) -> EncodedPrompt:
        """Return `prompt` as InternVL reads it: `pixels` are the tiles of all images, `grids` how many each has."""
        cut = list(map(partial(self._tiles, ImageBudget(max_tokens)), images))  # Unlike a loop, map keeps no image.
        counts = [len(tiles) for tiles in cut]
        tokens = torch.tensor(self._reader.expand(self._reader.chat.encode(prompt), counts), dtype=torch.long)
        return EncodedPrompt(
            tokens=tokens,
            positions=torch.arange(len(tokens))[None],
            position_delta=0,
            image_tokens=sum(counts) * self._reader.tile_tokens,
            pixels=torch.cat(cut) if cut else None,
            grids=torch.tensor(counts) if cut else None,
        )

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens`, special tokens left out."""
        return self._reader.chat.decode(tokens)

    @property
    def image_token(self) -> int:
        """The token that stands for four patches of a tile."""
        return self._reader.image_token

    def see(self, pixels: Tensor, grids: Tensor) -> Tensor:
        """Return the embeddings [tiles * tile_tokens, hidden] of tiles [tiles, 3, size, size], some at a time."""
        return torch.cat([self._see(tiles) for tiles in torch.split(pixels, _TILES_AT_ONCE)])

    def _tiles(self, budget: ImageBudget, image: Image) -> Tensor:
        budget.take(self._reader.tiling.count(image.width, image.height) * self._reader.tile_tokens)
        return self._reader.tiling.tiles(image).to(self.description.dtype)

    def _see(self, tiles: Tensor) -> Tensor:
        features = self._base.get_image_features(
            tiles.to(self.description.device, self.description.dtype),
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
            return_dict=True,
        )
        seen: Tensor = features.pooler_output.flatten(0, 1)
        return seen
