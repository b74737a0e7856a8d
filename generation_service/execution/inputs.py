"""The runner's inputs: the prefill state of one prompt, and one row of a decode step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from generation_service.lora.ranks import RankRange
from generation_service.models.base import EncodedPrompt


class Prefill:
    """A prompt that is prefilled into `slot` under the composition `ranges`, chunk by chunk.

    The first `offset` tokens are in the KV cache. The input embeddings, images included, are computed once with the
    first chunk and kept until the last one.
    """

    def __init__(self, slot: int, prompt: EncodedPrompt, ranges: Mapping[RankRange, float]) -> None:
        self.slot = slot
        self.prompt = prompt
        self.ranges = ranges
        self.offset = 0
        self._embeddings: Tensor | None = None

    @property
    def remaining(self) -> int:
        """Tokens of the prompt that are not in the cache yet."""
        return self.prompt.length - self.offset

    @property
    def holds_embeddings(self) -> bool:
        """Whether the prompt's embeddings are in memory."""
        return self._embeddings is not None

    def embeddings(self, embed: Callable[[EncodedPrompt], Tensor]) -> Tensor:
        """Return the embeddings [1, T, hidden] of the whole prompt; the first call computes them and drops pixels."""
        if self._embeddings is None:
            self._embeddings = embed(self.prompt)
            self.prompt = self.prompt.without_images()
        return self._embeddings

    def advance(self, tokens: int) -> None:
        """Record that the next `tokens` are in the cache; after the last of them, drop the embeddings."""
        self.offset += tokens
        if not self.remaining:
            self._embeddings = None


@dataclass(frozen=True)
class DecodeRow:
    """One running sequence in a decode step: its newest token, after `length` cached tokens in `slot`.

    The token's position is `length + position_delta` on every axis. `ranges` is the composition it decodes with.
    """

    slot: int
    token: int
    length: int
    position_delta: int
    ranges: Mapping[RankRange, float]
