"""Logits -> the next token of each row."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from infra.contract.generation import Decoding


class TokenChooser:
    """How one sequence picks its tokens. It owns its random stream, so that batch-mates cannot change its answer."""

    def __init__(self, decoding: Decoding) -> None:
        self.decoding = decoding
        self._random = random.Random(
            decoding.seed if decoding.seed is not None else random.SystemRandom().getrandbits(64)
        )

    def sample(self, logits: Tensor) -> int:
        """Draw a token from logits [V]: temperature, then token_top_k, then top_p, as transformers orders them."""
        wide = logits.to("cpu", torch.float64)
        scaled = (wide - wide.max()) / self.decoding.temperature
        ordered, tokens = torch.sort(scaled, descending=True, stable=True)
        if self.decoding.token_top_k:
            ordered = ordered[: self.decoding.token_top_k]
        probabilities = torch.softmax(ordered, dim=-1)
        if self.decoding.top_p < 1:
            before = torch.cumsum(probabilities, dim=-1) - probabilities
            probabilities = probabilities[before < self.decoding.top_p]
        reached = torch.cumsum(probabilities, dim=-1)
        threshold = self._random.random() * float(reached[-1])
        return int(tokens[int(torch.searchsorted(reached, threshold, right=True).clamp(max=len(reached) - 1))])


def choose_tokens(logits: Tensor, choosers: Sequence[TokenChooser]) -> list[int | None]:
    """Return the next token of every row of logits [N, V]; None where the logits are not finite."""
    finite = torch.isfinite(logits).all(dim=-1).tolist()
    greedy = logits.argmax(dim=-1).tolist()
    return [
        None if not finite[row] else greedy[row] if chooser.decoding.greedy else chooser.sample(logits[row])
        for row, chooser in enumerate(choosers)
    ]
