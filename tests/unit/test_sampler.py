"""Logits -> tokens."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from generation_service.sampler import TokenChooser, choose_tokens
from infra.contract.generation import Decoding

LOGITS = torch.tensor([0.1, 2.0, 1.0, 0.0, 1.9])


def drawn(decoding: Decoding, count: int = 2000) -> Counter[int]:
    chooser = TokenChooser(decoding)
    return Counter(chooser.sample(LOGITS) for _ in range(count))


def test_greedy_takes_the_most_probable_token_of_each_row() -> None:
    choosers = [TokenChooser(Decoding())] * 2
    assert choose_tokens(torch.stack([LOGITS, -LOGITS]), choosers) == [1, 3]


def test_sampling_follows_the_softmax_of_the_logits_over_temperature() -> None:
    temperature, count = 0.7, 20_000
    found = drawn(Decoding(temperature=temperature, seed=1), count)
    for token, probability in enumerate(torch.softmax(LOGITS.double() / temperature, -1).tolist()):
        assert found[token] / count == pytest.approx(probability, abs=4 * math.sqrt(probability / count))


def test_token_top_k_leaves_the_k_most_probable() -> None:
    assert set(drawn(Decoding(temperature=5, token_top_k=2, seed=1))) == {1, 4}


def test_top_p_leaves_the_smallest_set_that_holds_it() -> None:
    probabilities = torch.softmax(LOGITS.double(), -1)
    assert set(drawn(Decoding(temperature=1, top_p=float(probabilities[1]) - 0.01, seed=1))) == {1}
    assert set(drawn(Decoding(temperature=1, top_p=float(probabilities[1]) + 0.01, seed=1))) == {1, 4}


@pytest.mark.parametrize("temperature", [1e-4, 1e-300])
def test_a_cold_temperature_is_greedy(temperature: float) -> None:
    assert set(drawn(Decoding(temperature=temperature, seed=1), 50)) == {1}


def test_a_seed_gives_the_same_tokens_alone_and_in_a_batch() -> None:
    def tokens(batch: int) -> list[int | None]:
        choosers = [TokenChooser(Decoding(temperature=1.0, seed=seed)) for seed in range(batch)]
        return [choose_tokens(LOGITS.expand(batch, -1), choosers)[0] for _ in range(20)]

    assert tokens(1) == tokens(5)


def test_without_a_seed_two_requests_differ() -> None:
    assert drawn(Decoding(temperature=5.0), 40) != drawn(Decoding(temperature=5.0), 40)


def test_a_row_that_is_not_finite_has_no_token_and_spoils_no_other() -> None:
    logits = torch.stack([LOGITS, LOGITS.clone().fill_(torch.nan), LOGITS])
    choosers = [TokenChooser(Decoding()) for _ in range(3)]
    assert choose_tokens(logits, choosers) == [1, None, 1]
