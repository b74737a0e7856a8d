"""Logits -> the next token of each row."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from infra.contract.generation import Decoding

SAMPLED_TOGETHER = 16
"""Rows that are sampled in one go: each takes several copies of its vocabulary in float64."""


class TokenChooser:
    """How one sequence picks its tokens. It owns its random stream, so that batch-mates cannot change its answer."""

    def __init__(self, decoding: Decoding) -> None:
        self.decoding = decoding
        self._random = random.Random(
            decoding.seed if decoding.seed is not None else random.SystemRandom().getrandbits(64)
        )

    def draw(self) -> float:
        """Return the next number of its stream, uniform in [0, 1)."""
        return self._random.random()


def choose_tokens(logits: Tensor, choosers: Sequence[TokenChooser]) -> list[int | None]:
    """Return the next token of every row of logits [N, V]; None where the logits are not finite.

    The device is waited for once.
    """
    tokens = logits.argmax(dim=-1)
    sampled = [row for row, chooser in enumerate(choosers) if not chooser.decoding.greedy]
    for start in range(0, len(sampled), SAMPLED_TOGETHER):
        rows = sampled[start : start + SAMPLED_TOGETHER]
        index = _on_device(torch.tensor(rows), logits.device)
        tokens[index] = sample(logits[index], [choosers[row] for row in rows])
    chosen: list[int] = torch.where(torch.isfinite(logits).all(dim=-1), tokens, -1).tolist()
    return [None if token < 0 else token for token in chosen]


def sample(logits: Tensor, choosers: Sequence[TokenChooser]) -> Tensor:
    """Return one token [N] for each row of logits [N, V], drawn from its chooser's stream, on the logits' device.

    Temperature, then token_top_k, then top_p, as transformers orders them. Every row is computed by itself, in float64:
    the token does not depend on the rows beside it.
    """
    decodings = [chooser.decoding for chooser in choosers]
    vocabulary = logits.shape[-1]
    given = [
        [decoding.temperature for decoding in decodings],
        [decoding.token_top_k or vocabulary for decoding in decodings],
        [decoding.top_p if decoding.top_p < 1 else math.inf for decoding in decodings],
        [chooser.draw() for chooser in choosers],
    ]
    temperature, top_k, top_p, drawn = _on_device(torch.tensor(given, dtype=torch.float64), logits.device)[..., None]
    ordered, tokens = torch.sort(logits, dim=-1, descending=True, stable=True)
    scaled = (ordered.double() - ordered[:, :1].double()) / temperature
    place = torch.arange(vocabulary, device=logits.device)
    probabilities = torch.softmax(scaled.masked_fill(place >= top_k, -math.inf), dim=-1)
    reached = torch.cumsum(probabilities, dim=-1)
    kept = ((reached - probabilities < top_p) & (place < top_k)).sum(dim=-1, keepdim=True)
    last = (kept - 1).clamp(min=0)
    threshold = drawn * reached.gather(-1, last)
    chosen = (reached <= threshold).sum(dim=-1, keepdim=True)
    return tokens.gather(-1, torch.minimum(chosen, last))[:, 0]


def _on_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy `values` over without waiting for what the device is doing."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values
