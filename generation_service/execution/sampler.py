"""Sampling: logits -> the next token of each row."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from infra.contract.generation import Decoding

#: Rows that are sampled in one batch. Each needs several float64 copies of its vocabulary, about 1.2 MB apiece for
#: 152,064 tokens, so the value bounds that memory; batching pays on a GPU only (lab log, 2026-11-22).
_SAMPLE_BATCH_ROWS = 16


class TokenChooser:
    """How one sequence picks its tokens, with a random stream of its own that does not depend on its batch."""

    def __init__(self, decoding: Decoding) -> None:
        self.decoding = decoding
        self._random = random.Random(
            decoding.seed if decoding.seed is not None else random.SystemRandom().getrandbits(64)
        )

    def draw(self) -> float:
        """Return the next number of the stream, uniform in [0, 1)."""
        return self._random.random()


def choose_tokens(logits: Tensor, choosers: Sequence[TokenChooser]) -> list[int | None]:
    """Return the next token of every row of logits [N, V]; None where the logits are not finite.

    Synchronises with the device once.
    """
    tokens = logits.argmax(dim=-1)
    sampled = [row for row, chooser in enumerate(choosers) if not chooser.decoding.greedy]
    for start in range(0, len(sampled), _SAMPLE_BATCH_ROWS):
        rows = sampled[start : start + _SAMPLE_BATCH_ROWS]
        index = _on_device(torch.tensor(rows), logits.device)
        tokens[index] = sample(logits[index], [choosers[row] for row in rows])
    chosen: list[int] = torch.where(torch.isfinite(logits).all(dim=-1), tokens, -1).tolist()
    return [None if token < 0 else token for token in chosen]


def sample(logits: Tensor, choosers: Sequence[TokenChooser]) -> Tensor:
    """Return one token [N] for each row of logits [N, V], drawn from its chooser's stream, on the logits' device.

    Applies temperature, then token_top_k, then top_p, in the order of transformers. Each row is computed separately in
    float64, so its token does not depend on the other rows of the batch.
    """
    decodings = [chooser.decoding for chooser in choosers]
    vocabulary = logits.shape[-1]
    parameters = [
        [decoding.temperature for decoding in decodings],
        [decoding.token_top_k or vocabulary for decoding in decodings],
        [decoding.top_p if decoding.top_p < 1 else math.inf for decoding in decodings],
        [chooser.draw() for chooser in choosers],
    ]
    on_device = _on_device(torch.tensor(parameters, dtype=torch.float64), logits.device)
    temperature, top_k, top_p, uniform = on_device[..., None]
    ordered, tokens = torch.sort(logits, dim=-1, descending=True, stable=True)
    scaled = (ordered.double() - ordered[:, :1].double()) / temperature
    rank = torch.arange(vocabulary, device=logits.device)
    probabilities = torch.softmax(scaled.masked_fill(rank >= top_k, -math.inf), dim=-1)
    cumulative = torch.cumsum(probabilities, dim=-1)
    candidates = ((cumulative - probabilities < top_p) & (rank < top_k)).sum(dim=-1, keepdim=True)
    last = (candidates - 1).clamp(min=0)
    # Inverse transform sampling over the candidates, without renormalising them.
    threshold = uniform * cumulative.gather(-1, last)
    chosen = (cumulative <= threshold).sum(dim=-1, keepdim=True)
    return tokens.gather(-1, torch.minimum(chosen, last))[:, 0]


def _on_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy `values` to the device without synchronising with it."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values
