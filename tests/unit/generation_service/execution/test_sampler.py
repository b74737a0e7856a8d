"""Logits -> tokens."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from generation_service.execution.sampler import TokenChooser, choose_tokens, sample
from infra.contract.generation import Decoding

LOGITS = torch.tensor([0.1, 2.0, 1.0, 0.0, 1.9])


def drawn(decoding: Decoding, count: int = 2000) -> Counter[int]:
    chooser = TokenChooser(decoding)
    return Counter(sample(LOGITS.expand(count, -1), [chooser] * count).tolist())


def slowly_sampled(logits: Tensor, chooser: TokenChooser) -> int:
    """Draw a token from one row of logits [V], a token at a time."""
    decoding = chooser.decoding
    largest = max(logits.tolist())
    by_logit = sorted(enumerate(logits.tolist()), key=lambda pair: -pair[1])[: decoding.token_top_k or None]
    masses = [(token, math.exp((logit - largest) / decoding.temperature)) for token, logit in by_logit]
    total, before = sum(mass for _, mass in masses), 0.0
    kept = []
    for token, mass in masses:
        if decoding.top_p < 1 and before / total >= decoding.top_p:
            break
        kept.append((token, mass))
        before += mass
    left = chooser.draw() * sum(mass for _, mass in kept)
    for token, mass in kept:
        left -= mass
        if left < 0:
            return token
    return kept[-1][0]


def test_greedy_takes_most_probable_token() -> None:
    choosers = [TokenChooser(Decoding())] * 2
    assert choose_tokens(torch.stack([LOGITS, -LOGITS]), choosers) == [1, 3]


def test_sampling_follows_softmax_with_temperature() -> None:
    temperature, count = 0.7, 20_000
    found = drawn(Decoding(temperature=temperature, seed=1), count)
    for token, probability in enumerate(torch.softmax(LOGITS.double() / temperature, -1).tolist()):
        assert found[token] / count == pytest.approx(probability, abs=4 * math.sqrt(probability / count))


def test_token_top_k_keeps_k_most_probable() -> None:
    assert set(drawn(Decoding(temperature=5, token_top_k=2, seed=1))) == {1, 4}


def test_top_p_keeps_smallest_sufficient_set() -> None:
    probabilities = torch.softmax(LOGITS.double(), -1)
    assert set(drawn(Decoding(temperature=1, top_p=float(probabilities[1]) - 0.01, seed=1))) == {1}
    assert set(drawn(Decoding(temperature=1, top_p=float(probabilities[1]) + 0.01, seed=1))) == {1, 4}


@pytest.mark.parametrize("temperature", [1e-4, 1e-300])
def test_near_zero_temperature_is_greedy(temperature: float) -> None:
    assert set(drawn(Decoding(temperature=temperature, seed=1), 50)) == {1}


def test_seed_gives_same_tokens_alone_and_in_batch() -> None:
    def tokens(batch: int) -> list[int | None]:
        choosers = [TokenChooser(Decoding(temperature=1.0, seed=seed)) for seed in range(batch)]
        return [choose_tokens(LOGITS.expand(batch, -1), choosers)[0] for _ in range(20)]

    assert tokens(1) == tokens(5)


DECODINGS = [
    Decoding(),
    Decoding(temperature=1.0, seed=1),
    Decoding(temperature=0.7, top_p=0.9, seed=2),
    Decoding(temperature=2.0, token_top_k=3, seed=3),
    Decoding(temperature=1.5, top_p=0.6, token_top_k=20, seed=4),
    Decoding(temperature=1.0, top_p=1e-9, seed=5),
    Decoding(temperature=5.0, token_top_k=1, seed=6),
]


def test_batched_sampling_matches_loop_over_rows_and_tokens() -> None:
    choosers = [TokenChooser(decoding) for decoding in DECODINGS * 6]
    slow = [TokenChooser(decoding) for decoding in DECODINGS * 6]
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        logits = (3 * torch.randn(len(choosers), 60, generator=draw)).round(decimals=1)
        expected = [
            int(row.argmax()) if chooser.decoding.greedy else slowly_sampled(row, chooser)
            for row, chooser in zip(logits, slow, strict=True)
        ]
        assert choose_tokens(logits, choosers) == expected


def test_sampled_rows_do_not_affect_greedy_rows() -> None:
    choosers = [TokenChooser(Decoding(temperature=5.0, seed=row) if row % 2 else Decoding()) for row in range(40)]
    for _ in range(5):
        assert set(choose_tokens(LOGITS.expand(40, -1), choosers)[::2]) == {1}


def test_requests_without_seed_differ() -> None:
    assert drawn(Decoding(temperature=5.0), 40) != drawn(Decoding(temperature=5.0), 40)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1e-9])
def test_non_finite_row_gets_no_token_and_affects_no_other(wrong: float, temperature: float) -> None:
    spoilt = LOGITS.clone()
    spoilt[2] = wrong
    logits = torch.stack([LOGITS, spoilt, LOGITS])
    choosers = [TokenChooser(Decoding(temperature=temperature)) for _ in range(3)]
    assert choose_tokens(logits, choosers) == [1, None, 1]
