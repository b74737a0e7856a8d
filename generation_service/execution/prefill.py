"""A prompt on its way into a slot, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from generation_service.lora.ranks import RankRange
from generation_service.models.base import EncodedPrompt


class Prefill:
    """A prompt being read into `slot` under the composition `ranges`; its first `place` tokens are in the cache.

    Its embeddings are computed once, images and all, when the first chunk is read, and held until the last one was.
    """

    def __init__(self, slot: int, prompt: EncodedPrompt, ranges: Mapping[RankRange, float]) -> None:
        self.slot = slot
        self.prompt = prompt
        self.ranges = ranges
        self.place = 0
        self._embeddings: Tensor | None = None

    @property
    def unread(self) -> int:
        """Tokens of the prompt that the cache does not hold yet."""
        return self.prompt.length - self.place

    @property
    def holds_embeddings(self) -> bool:
        """Whether the prompt's embeddings are in memory."""
        return self._embeddings is not None

    def embeddings(self, embed: Callable[[EncodedPrompt], Tensor]) -> Tensor:
        """Return the embeddings [1, T, hidden] of the whole prompt, by `embed` the first time; then its pixels go."""
        if self._embeddings is None:
            self._embeddings = embed(self.prompt)
            self.prompt = self.prompt.without_images()
        return self._embeddings

    def advance(self, tokens: int) -> None:
        """Note that the next `tokens` are in the cache; with the last of them the embeddings go."""
        self.place += tokens
        if not self.unread:
            self._embeddings = None
